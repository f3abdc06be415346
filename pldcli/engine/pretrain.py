"""Pre-training assembled: data, model, optimizer and trainer in; a run directory with a finished model out."""

from __future__ import annotations

import signal
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
from rich.console import Console

from pldcli import atomic, presets
from pldcli.config import Config
from pldcli.data.loader import PairSamples, Samples, SpanSamples, StepBatches
from pldcli.data.masking import Masking
from pldcli.data.shards import PreparedData, open_prepared
from pldcli.engine import checkpoint, model_card
from pldcli.engine.checkpoint import Position, Snapshot
from pldcli.engine.display import RunDisplay, duration
from pldcli.engine.environment import peak_flops_per_second, record_start
from pldcli.engine.estimate import Estimate, estimate, fitting_micro_batch, measure_step_seconds, warnings
from pldcli.engine.evaluation import MaskedLmScore, fixed_batches, score_masked_lm
from pldcli.engine.metrics import MetricsLog
from pldcli.engine.objectives import MaskedLm
from pldcli.engine.optim import build_optimizer, learning_rate
from pldcli.engine.precision import resolve_precision
from pldcli.engine.run_directory import RunDirectory
from pldcli.engine.runtime import Runtime, launch
from pldcli.engine.signals import StopRequest, stop_requests
from pldcli.engine.trainer import Observation, Trainer
from pldcli.errors import CheckpointError, DeviceError, PldError, PreemptedError, StoppedError, UsageError
from pldcli.huggingface import largest_difference, save_pretrained
from pldcli.model import StBert

__all__ = ["DryRun", "PretrainResult", "build_trainer", "dry_run", "pretrain"]

_RELOAD_TOLERANCE = 1e-3


@dataclass(frozen=True)
class PretrainResult:
    """A finished run."""

    run: RunDirectory
    position: Position
    was_finished: bool
    """It was finished before this call."""
    score: MaskedLmScore | None
    """Of this call's last validation."""
    reload_difference: float | None
    """Largest difference of logits when transformers read the model back; None where it is not installed."""
    is_main: bool = True
    """Whether this process speaks to the user."""


@dataclass(frozen=True)
class DryRun:
    """What a run would be and take."""

    config: Config
    estimate: Estimate
    warnings: list[str]
    device: str
    precision: str
    micro_batch_size: int
    micro_steps: int
    world_size: int
    is_main: bool = True
    """Whether this process speaks to the user."""


def pretrain(
    config: Config, *, data: Path, out: Path, resume: str = "auto", command: str = "", console: Console | None = None
) -> PretrainResult:
    """Pre-train to the end of the schedule, or go on with a run that was stopped.

    Args:
        config: The resolved configuration.
        data: A prepared directory.
        out: The run directory.
        resume: `auto` (the newest checkpoint that verifies), `never`, or the path of a checkpoint.
        command: What the user typed, for the model card.
        console: Where to show progress.

    Raises:
        PldError: Bad data, another run's checkpoint, out of memory, divergence, a full disk, or a stop with the state saved.
    """
    with launch(config.runtime.device) as runtime:
        return _pretrain(config, runtime, open_prepared(data), RunDirectory(out), resume, command, console or Console())


def dry_run(config: Config, *, data: Path) -> DryRun:
    """Work out what a run would take, from a few measured steps; nothing is written.

    Raises:
        PldError: As `pretrain`, for what shows before the first step.
    """
    with launch(config.runtime.device) as runtime:
        trainer = build_trainer(config, open_prepared(data), runtime)
        with _out_of_memory(trainer):
            estimated = _estimate(config, trainer)
        batches = trainer.batches
        return DryRun(
            config,
            estimated,
            warnings(estimated),
            str(runtime.device),
            trainer.precision.name,
            batches.micro_batch_size,
            batches.micro_steps,
            runtime.world_size,
            runtime.is_main,
        )


def build_trainer(config: Config, prepared: PreparedData, runtime: Runtime) -> Trainer:
    """Put the parts of a run together at its first step.

    Raises:
        UsageError: The vocabulary or the batch does not fit.
        DataError: The training text is shorter than a sequence.
    """
    settings, train = config.model, config.train
    if settings.vocab_size < prepared.vocab_size:
        raise UsageError(
            f"{settings.vocab_size} rows cannot hold the {prepared.vocab_size} entries of the tokenizer in {prepared.path}",
            where="model.vocab_size",
            hint="leave it out: the prepared data's size is taken",
        )
    config.share_of_group(runtime.world_size)
    model = StBert(**vars(settings), next_sentence=config.objective.next_sentence, seed=train.seed).to(runtime.device)
    if config.runtime.compile == "on" or (config.runtime.compile == "auto" and runtime.device.type == "cuda"):
        for block in model.blocks:
            block.compile()
    fitting = fitting_micro_batch(config, sum(parameter.numel() for parameter in model.parameters()), runtime.device)
    micro_steps, micro_batch_size = config.forwards_per_group(runtime.world_size, most_sequences=fitting)
    cut = PairSamples if config.data.layout == "nsp-pairs" else SpanSamples
    samples: Samples = cut(prepared.stream("train"), prepared.special, config.data.seq_len, seed=train.seed)
    batches = StepBatches(
        samples,
        Masking(config.objective.mask_probability, prepared.special.mask_id, prepared.special.ids, prepared.vocab_size),
        train.global_batch_size,
        config.pld.draws_per_step,
        micro_steps,
        micro_batch_size,
        runtime.rank,
        runtime.world_size,
    )
    return Trainer(
        model.train(),
        objective=MaskedLm(config.objective.next_sentence),
        schedule=config.pld_schedule,
        optimizer=build_optimizer(model, config.optim),
        batches=batches,
        learning_rate=lambda step: learning_rate(step, train.total_steps, config.optim),
        max_grad_norm=config.optim.max_grad_norm,
        precision=resolve_precision(config.runtime.precision, runtime.device),
        runtime=runtime,
        flops=config.flops,
        seed=train.seed,
    )


def _pretrain(
    config: Config, runtime: Runtime, prepared: PreparedData, run: RunDirectory, resume: str, command: str, console: Console
) -> PretrainResult:
    trainer = build_trainer(config, prepared, runtime)
    display = RunDisplay(
        console,
        title=str(run.path),
        total_steps=config.train.total_steps,
        save_every=config.checkpoint.every_steps,
        quiet=not runtime.is_main,
    )
    with ExitStack() as stack:
        if runtime.is_main:
            run.check_usable()
            if resume == "never" and (aside := run.set_aside()):
                display.say(f"the run that was there is now {aside}")
            stack.enter_context(run.lock())
        runtime.wait_for_all()
        snapshot = _find_snapshot(run, resume, display)
        if snapshot is not None:
            checkpoint.check_same_run(snapshot, config, prepared.data_fingerprint)
            _restore(trainer, snapshot)
        position = snapshot.position if snapshot else Position()
        if position.step >= config.train.total_steps and run.is_finished:
            return PretrainResult(run, position, True, None, None, runtime.is_main)
        stop = stop_requests_on(stack)
        if runtime.is_main:
            atomic.write_text(run.config, presets.dump(config))  # first: it marks the directory as a run
        keeper = _Keeper(config, prepared, run, trainer, display, stack, position, resume)
        with _out_of_memory(trainer):
            keeper.announce(command, resumed=snapshot is not None)
            if config.runtime.compile == "on" or (config.runtime.compile == "auto" and runtime.device.type == "cuda"):
                trainer.warm_up()
            stack.enter_context(display)
            position = keeper.train(position, stop)
        return keeper.finish(position, command)


def stop_requests_on(stack: ExitStack) -> StopRequest:
    """Catch signals until the stack closes."""
    return stack.enter_context(stop_requests())


class _Keeper:
    """Keep the books of one run: metrics, validation, checkpoints, the finished model. Only the main process writes."""

    def __init__(
        self,
        config: Config,
        prepared: PreparedData,
        run: RunDirectory,
        trainer: Trainer,
        display: RunDisplay,
        stack: ExitStack,
        start: Position,
        resume: str,
    ) -> None:
        self.config, self.prepared, self.run, self.trainer, self.display = config, prepared, run, trainer, display
        self.runtime = trainer.runtime
        self.log = stack.enter_context(MetricsLog(run.path, from_step=start.step)) if self.runtime.is_main else None
        self.peak = peak_flops_per_second(self.runtime.device, trainer.precision.name)
        self.started, self.wall_before = time.perf_counter(), start.wall_seconds
        self.last_logged = start
        self.score: MaskedLmScore | None = None
        self.saved_step = -1
        self.how_to_go_on = f"run the same command {'again' if resume == 'auto' else 'with --resume auto'} to go on"

    def announce(self, command: str, *, resumed: bool) -> None:
        """Write down what starts and say it, with warnings where the run is long or repeats its text often."""
        estimated = _estimate(self.config, self.trainer)
        if self.runtime.is_main:
            record_start(self.run.environment, command, self.trainer, self.prepared)
        batches, precision = self.trainer.batches, self.trainer.precision
        left = (estimated.seconds or 0.0) * (1 - self.last_logged.step / self.config.train.total_steps)
        self.display.say(
            f"{self.run.path}: {estimated.num_parameters / 1e6:.1f} M parameters, {self.config.train.total_steps:,} steps of "
            f"{self.config.train.global_batch_size} x {self.config.data.seq_len} tokens, {precision.name} on {self.runtime.device}, "
            f"{self.runtime.world_size} process(es), micro-batch {batches.micro_batch_size}; about {duration(left)}"
        )
        if resumed:
            self.display.say(f"going on after step {self.last_logged.step:,}")
        for warning in warnings(estimated):
            self.display.say(f"warning: {warning}")

    def train(self, position: Position, stop: StopRequest) -> Position:
        """Train to the end; log, validate and save on the way.

        Raises:
            StoppedError, PreemptedError: A signal arrived; the state is saved.
        """
        evaluation, saving, logging = (
            self.config.eval.every_steps,
            self.config.checkpoint.every_steps,
            self.config.train.log_every_steps,
        )
        total = self.config.train.total_steps
        self.saved_step = position.step if position.step else -1

        def due(step: int, every: int) -> bool:
            return step % every == 0 or step == total

        def observe(step: int) -> bool:
            return due(step, evaluation) or due(step, saving) or due(step, logging)

        for seen in self.trainer.steps(position, observe=observe, stop=stop):
            position = replace(seen.position, wall_seconds=self._wall_seconds())
            if seen.stop_signal:
                self._save(position)
                raise self._stopped(position, seen.stop_signal)
            if due(position.step, logging):
                self._log(seen, position)
            if due(position.step, evaluation):
                position = self._validate(position)
            if due(position.step, saving):
                self._save(position)
        return position

    def finish(self, position: Position, command: str) -> PretrainResult:
        """Write the finished model, its card and its plots."""
        difference = None
        if self.runtime.is_main:
            difference = self._export()
            model_card.write(self.run, self.config, self.prepared, position, command)
        self.runtime.wait_for_all()
        return PretrainResult(self.run, position, False, self.score, difference, self.runtime.is_main)

    def _log(self, seen: Observation, position: Position) -> None:
        tokens = position.tokens - self.last_logged.tokens
        seconds = max(position.train_seconds - self.last_logged.train_seconds, 1e-9)
        row: dict[str, Any] = {"step": position.step, "train/loss": seen.losses["loss"]}
        if len(seen.losses) > 2:
            row |= {f"train/{name}_loss": value for name, value in seen.losses.items() if name != "loss"}
        row |= {
            "optim/learning_rate": seen.learning_rate,
            "optim/grad_norm": seen.grad_norm,
            "pld/theta": seen.theta,
            "pld/kept_blocks": seen.kept_blocks,
            "speed/tokens_per_second": tokens / seconds,
            "speed/data_wait_fraction": seen.data_wait_seconds / seconds,
        }
        if self.peak is not None:
            executed = position.executed_flops - self.last_logged.executed_flops
            row["speed/mfu"] = executed / seconds / (self.peak * self.runtime.world_size)
        row |= _progress(position)
        self.last_logged = position
        if self.log is not None:
            self.log.write(row)
        self.display.logged(row)

    def _validate(self, position: Position) -> Position:
        batches = fixed_batches(self.prepared, self.config.data.seq_len, max_sequences=self.config.eval.max_sequences)
        self.score = score_masked_lm(self.trainer.model, batches, self.trainer.precision, self.runtime)
        position = replace(position, wall_seconds=self._wall_seconds())
        row = {
            "step": position.step,
            "eval/mlm_loss": self.score.mlm_loss,
            "eval/perplexity": self.score.perplexity,
            "eval/mlm_accuracy": self.score.mlm_accuracy,
            **_progress(position),
        }
        if self.log is not None:
            self.log.write(row)
        self.display.evaluated(row)
        return position

    def _save(self, position: Position) -> None:
        if position.step in (self.saved_step, 0):
            return
        self.saved_step = position.step
        if self.runtime.is_main:
            checkpoint.write(
                self.run.checkpoints,
                position=position,
                config=self.config,
                model=self.trainer.model,
                optimizer=self.trainer.optimizer,
                scaler=self.trainer.scaler.state_dict(),
                data_fingerprint=self.prepared.data_fingerprint,
                tokenizer_fingerprint=self.prepared.fingerprint,
                keep=self.config.checkpoint.keep,
            )
        self.runtime.wait_for_all()

    def _export(self) -> float | None:
        model, settings = self.trainer.model, self.config.model
        with atomic.directory(self.run.model, overwrite=True) as place:
            save_pretrained(
                place,
                model,
                settings,
                tokenizer_path=self.prepared.tokenizer_path,
                special=self.prepared.special,
                seq_len=self.config.data.seq_len,
            )
            batch = self.trainer.batches.step(0)[0][0]
            difference = largest_difference(place, model, batch.input_ids[:2].cpu())
            if difference is not None and not difference < _RELOAD_TOLERANCE:
                raise PldError(f"the exported model differs by {difference:.2g} when transformers reads it back", where=str(place))
        return difference

    def _stopped(self, position: Position, signal_number: int) -> PldError:
        saved = f"saved at step {position.step:,}" if position.step else "nothing to save yet"
        kind, word = (StoppedError, "interrupted") if signal_number == signal.SIGINT else (PreemptedError, "terminated")
        return kind(f"{word}, {saved}", where=str(self.run.path), hint=self.how_to_go_on)

    def _wall_seconds(self) -> float:
        return self.wall_before + time.perf_counter() - self.started


def _progress(position: Position) -> dict[str, float]:
    return {f"progress/{name}": value for name, value in asdict(position).items() if name != "step"}


def _find_snapshot(run: RunDirectory, resume: str, display: RunDisplay) -> Snapshot | None:
    """Read the checkpoint to go on from, or None to start."""
    if resume == "never":
        return None
    if resume == "auto":
        path, complaints = checkpoint.newest_valid(run.checkpoints)
        for complaint in complaints:
            display.say(f"warning: {complaint}")
        if path is None and complaints:
            raise CheckpointError("no checkpoint verifies", where=str(run.checkpoints), hint="start over with --resume never")
        return checkpoint.read(path) if path else None
    path = Path(resume)
    if (path / "checkpoints").is_dir():
        path = checkpoint.newest_valid(path / "checkpoints")[0] or path
    if not path.is_dir():
        raise CheckpointError("no such checkpoint", where=resume, hint="give auto, never, or a directory checkpoints/step-*")
    return checkpoint.read(path)


def _restore(trainer: Trainer, snapshot: Snapshot) -> None:
    try:
        trainer.model.load_state_dict(snapshot.weights, strict=True)
    except RuntimeError as error:
        raise CheckpointError("weights do not fit the configuration", where=str(snapshot.path)) from error
    checkpoint.restore_optimizer(snapshot, trainer.model, trainer.optimizer)
    trainer.scaler.load_state_dict(snapshot.scaler)


def _estimate(config: Config, trainer: Trainer) -> Estimate:
    step_seconds = measure_step_seconds(trainer, config)
    return estimate(config, trainer.model, trainer.batches, seconds=step_seconds * config.train.total_steps)


@contextmanager
def _out_of_memory(trainer: Trainer) -> Iterator[None]:
    """Name the micro-batch to try when memory runs out.

    Raises:
        DeviceError: Memory ran out.
    """
    try:
        yield
    except (torch.OutOfMemoryError, MemoryError, RuntimeError) as error:
        is_memory = not isinstance(error, RuntimeError) or isinstance(error, torch.OutOfMemoryError) or "allocate memory" in str(error)
        if not is_memory:
            raise
        size = trainer.batches.micro_batch_size
        smaller = next((n for n in range(size // 2, 0, -1) if size % n == 0), 1)
        hint = f"try train.micro_batch_size={smaller}" if size > 1 else "choose a smaller model or shorter sequences"
        raise DeviceError(f"out of memory with {size} sequences per forward pass", where=str(trainer.runtime.device), hint=hint) from error
