"""Record a run: metrics, validation, checkpoints, export."""

from __future__ import annotations

import json
import os
import statistics
import time
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path
from types import TracebackType
from typing import Any, NoReturn

import torch

from pldcli import presets
from pldcli.config import Config
from pldcli.console.units import duration
from pldcli.data.loader import Batch
from pldcli.data.prepared import PreparedData
from pldcli.data.step_batches import StepBatches
from pldcli.engine.phases import PHASES
from pldcli.engine.trainer import Observation, Trainer
from pldcli.engine.validation import LmScore, fixed_batches, score_lm, unigram_baseline
from pldcli.errors import DivergedError
from pldcli.huggingface.read_back import ReadBack, read_back
from pldcli.huggingface.save import save_pretrained
from pldcli.model import StBert
from pldcli.pretraining import card
from pldcli.pretraining.assembly import whole_model
from pldcli.pretraining.checkpoint_writer import CheckpointWriter
from pldcli.pretraining.display import RunDisplay
from pldcli.pretraining.estimate import Estimate
from pldcli.pretraining.starting_point import StartingPoint, newest_checkpoint
from pldcli.runs import checkpoint
from pldcli.runs.checkpoint import Position
from pldcli.runs.metrics import MetricsLog, read_metrics, reads_context, validation_key
from pldcli.runs.run_directory import RunDirectory, read_starts
from pldcli.system import atomic
from pldcli.system.hardware import hardware_name, peak_flops_per_second, versions
from pldcli.system.signals import StopRequest, stop_error
from pldcli.tokenization.tokenizer import load_prepared_tokenizer

__all__ = ["PretrainResult", "RunRecorder", "find_straggler", "record_start"]


_NOT_SOUND = "loss or gradient not finite, or a spike"
_STRAGGLES_FROM = 1.5
"""Times the median of the other processes' time."""
_LEAST_SECONDS = 1e-3
"""Below it no clock is trusted."""
_LOOK_SECONDS = 1.0
"""Between two looks for a request to save: on a shared file system one may take milliseconds."""


@dataclass(frozen=True)
class PretrainResult:
    """A finished run."""

    run: RunDirectory
    position: Position
    was_finished: bool = False
    """It was finished before this call."""
    score: LmScore | None = None
    """Of this call's last validation."""
    unigram_loss: float | None = None
    """Of the unigram baseline there; None without a validation."""
    read_back: ReadBack = field(default_factory=ReadBack)
    is_main: bool = True
    """Whether this process prints."""

    @property
    def has_read_context(self) -> bool | None:
        """Return whether the model is clearly better than the unigram baseline; None without a validation."""
        if self.score is None or self.unigram_loss is None:
            return None
        return reads_context(self.score.loss, self.unigram_loss)


class _BrokenOffError(Exception):
    """A signal arrived during a validation."""

    def __init__(self, signal_number: int) -> None:
        self.signal_number = signal_number


class RunRecorder:
    """Record one run, as a context manager that holds its metrics open. Only the main process writes.

    Args:
        run: Its directory.
        trainer: At `position`.
        config: The resolved configuration.
        prepared: What it is trained on.
        display: Shows rows of metrics.
        position: Where the run starts or resumes.
        how_to_resume: What to do after a stop.
    """

    def __init__(
        self,
        run: RunDirectory,
        trainer: Trainer[StepBatches],
        *,
        config: Config,
        prepared: PreparedData,
        display: RunDisplay,
        position: Position,
        how_to_resume: str = "",
    ) -> None:
        self.run, self.trainer, self.config, self.prepared, self.display = run, trainer, config, prepared, display
        self.position, self.how_to_resume, self.runtime = position, how_to_resume, trainer.runtime
        self.log = MetricsLog(run.path, from_step=position.step) if self.runtime.is_main else None
        self.peak = peak_flops_per_second(self.runtime.device, trainer.precision.name)
        self.started = time.perf_counter() - position.wall_seconds
        self.last_logged = position
        self._pass_over(position.shifted_sequences)
        self.checkpoints = CheckpointWriter(run, prepared, trainer.runtime, saved_step=position.step)
        self.next_look = 0.0
        self.straggler: int | None = None
        self.score: LmScore | None = None
        self.unigram_loss: float | None = None
        self.phase_seconds = dict.fromkeys(PHASES, 0.0)

    def __enter__(self) -> RunRecorder:
        """Return itself."""
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        """Close the metrics, and wait for a checkpoint that is being written; after an error not for other processes' parts of it."""
        if error is not None:
            self.runtime.leave(error)
        self.checkpoints.close(others_are_gone=error is not None)
        if self.log is not None:
            self.log.close()

    def announce(self, estimated: Estimate, command: str, *, resumed: bool) -> None:
        """Write down and print what starts, with warnings where the run is long or repeats its text often."""
        self.record_start(command)
        total_steps, executed = self.config.train.total_steps, self.config.run_flops().executed_until
        left = estimated.seconds * (1 - executed(self.position.step) / executed(total_steps))
        self.display.say(
            f"{self.run.path}: {estimated.num_parameters / 1e6:.1f} M parameters, {total_steps:,} steps of "
            f"{self.config.curriculum.describe()} tokens, {estimated.precision} on {estimated.device}, "
            f"{estimated.world_size} process(es), micro-batch {estimated.micro_batch_size}; about {duration(left)}"
        )
        if resumed:
            self.display.say(f"resuming after step {self.position.step:,}")
        for warning in estimated.warnings:
            self.display.say(f"warning: {warning}")

    def record_start(self, command: str) -> None:
        """Add this start to environment.json."""
        if self.runtime.is_main:
            self.run.check_still_there()
            record_start(self.run.environment, command, self.trainer, self.prepared)

    def train(self, stop: StopRequest) -> None:
        """Train to the end; log, validate and save on the way.

        Raises:
            StoppedError, PreemptedError: A signal arrived; the state is saved.
        """
        if self._lacks_validation():
            self.trainer.set_length(self.position.step - 1)
            self._validate(stop)
        for seen in self.trainer.steps(self.position, observe=self._is_due, stop=stop, ask=self._is_save_asked):
            self.record(seen, stop)

    def roll_back(self, error: DivergedError) -> None:
        """Go back to the newest checkpoint that verifies, and pass over the sequences that were read since.

        Args:
            error: How the run diverged; raised again where there is no checkpoint.
        """
        self.checkpoints.finish()
        self.runtime.wait_for_all()
        path, _ = newest_checkpoint(self.run.checkpoints, self.display.say)
        if path is None:
            raise error
        saved, curriculum = checkpoint.read(path), self.trainer.batches.curriculum
        self.runtime.check_agreement(StartingPoint(saved).facts)  # and all have read it before one of them writes
        self.trainer.restore(saved.weights, saved.optimizer, saved.scaler, where=str(path))
        self.trainer.guard.begin_row()
        passed = sum(curriculum.at(step).num_sequences for step in range(saved.position.step, error.last_step + 1))
        self.position = replace(
            saved.position,
            shifted_sequences=self.position.shifted_sequences + passed,
            rollbacks=self.position.rollbacks + 1,
            train_seconds=self.position.train_seconds,
            wall_seconds=self._wall_seconds(),
        )
        self._pass_over(self.position.shifted_sequences)
        self.last_logged = self.position
        if self.log is not None:
            self.log.close()
            self.log = MetricsLog(self.run.path, from_step=self.position.step)
        self.display.say(f"warning: {error}; back to step {self.position.step:,}, passing over {passed:,} sequences")
        # In the checkpoint's place: a run that is restarted before its next one passes over them too, and counts this.
        self.checkpoints.save(self.position, self.config, self.trainer, anew=True)
        self.checkpoints.finish()

    def record(self, seen: Observation, stop: StopRequest | None = None) -> None:
        """Record what is due at an observation: log, validate, save.

        Args:
            seen: The observation.
            stop: On a signal a validation is broken off, to be made when the run resumes.

        Raises:
            StoppedError, PreemptedError: A signal ended the loop; the state is saved.
        """
        if left_out := seen.position.skipped_steps - self.position.skipped_steps:
            self.display.say(f"warning: the updates of {left_out:,} steps up to step {seen.position.step:,} were left out: {_NOT_SOUND}")
        self.position = position = replace(seen.position, wall_seconds=self._wall_seconds())
        for phase, seconds in seen.phase_seconds.items():
            self.phase_seconds[phase] += seconds
        self._name_straggler(seen.seconds_by_process)
        self.checkpoints.look()
        if seen.stop_signal:
            self._end(seen.stop_signal)
        if self._due(position.step, self.config.train.log_every_steps):
            self._log(seen)
        if self._due(position.step, self.config.eval.every_steps):
            self._validate(stop)
        if self._due(position.step, self.config.checkpoint.every_steps) or seen.was_asked:
            self._save()
        if seen.was_asked and self.runtime.is_main:
            self.checkpoints.finish()
            self.run.save_request.unlink(missing_ok=True)
            self.display.say(f"saved at step {position.step:,}, as {self.run.save_request.name} asked")

    def _end(self, signal_number: int) -> NoReturn:
        """End the run after a signal, saved."""
        self._save()
        self.checkpoints.finish()
        state = f"saved at step {self.position.step:,}" if self.position.step else "nothing to save yet"
        raise stop_error(signal_number, state, where=str(self.run.path), hint=self.how_to_resume)

    def pause(self, seconds: float) -> None:
        """Leave a time out of the run's wall seconds, in which another run took its turn."""
        self.started += seconds

    def shorten(self, config: Config, trainer: Trainer[StepBatches]) -> None:
        """Continue with a schedule that ends sooner; what was recorded so far is the same under both.

        Args:
            config: The run's, with fewer steps.
            trainer: Of the same model, in the same state.
        """
        self.config, self.trainer = config, trainer
        if self.runtime.is_main:
            atomic.write_text(self.run.config, presets.dump(config))

    def finish(self, command: str) -> PretrainResult:
        """Write the finished model, its card and its plots."""
        self.checkpoints.finish()
        model = whole_model(self.config, self.trainer.model, keep=self.runtime.is_main)
        checked = ReadBack()
        if self.runtime.is_main:
            assert model is not None
            self.run.check_still_there()
            checked = self._export(model)
            self.run.check_still_there()
            card.write(self.run, self.config, self.prepared, self.position, command)
            self.run.check_still_there()
        self.runtime.wait_for_all()
        return PretrainResult(
            self.run, self.position, score=self.score, unigram_loss=self.unigram_loss, read_back=checked, is_main=self.runtime.is_main
        )

    def _is_due(self, step: int) -> bool:
        """Return whether anything is recorded after this many steps."""
        every = (self.config.train.log_every_steps, self.config.eval.every_steps, self.config.checkpoint.every_steps)
        return any(self._due(step, one) for one in every)

    def _name_straggler(self, seconds_by_process: list[float]) -> None:
        """Say which process keeps the others waiting, where one does that did not before."""
        rank, times = find_straggler(seconds_by_process)
        if rank is not None and rank != self.straggler:
            self.display.say(f"warning: process {rank} takes {times:.1f} times as long as the others for its share of a step")
        self.straggler = rank

    def _is_save_asked(self) -> bool:
        """Return whether the run's SAVE file is there; looked at once a second, on one process."""
        if not self.runtime.is_main or time.monotonic() < self.next_look:
            return False
        self.next_look = time.monotonic() + _LOOK_SECONDS
        with suppress(OSError):  # a network file system that does not answer for a moment ends no run
            return self.run.save_request.exists()
        return False

    def _due(self, step: int, every: int) -> bool:
        return step % every == 0 or step == self.config.train.total_steps

    def _log(self, seen: Observation) -> None:
        position, before = self.position, self.last_logged
        tokens = position.tokens - before.tokens
        curriculum = self.trainer.batches.curriculum
        padded_tokens = curriculum.tokens_until(position.step) - curriculum.tokens_until(before.step)
        seconds = max(position.train_seconds - before.train_seconds, 1e-9)
        row: dict[str, Any] = {"step": position.step, "train/loss": seen.losses["loss"]}
        if len(self.trainer.objective.names) > 1:
            row |= {f"train/{name}_loss": value for name, value in seen.losses.items() if name != "loss"}
        row |= {
            "optim/learning_rate": seen.learning_rate,
            "optim/grad_norm": seen.grad_norm,
            "pld/theta": seen.theta,
            "pld/kept_blocks": seen.kept_blocks,
            "data/packing_efficiency": tokens / max(padded_tokens, 1),
            "speed/tokens_per_second": tokens / seconds,
            "speed/data_wait_fraction": self.phase_seconds["data"] / seconds,
            **{f"speed/{phase}_fraction": self.phase_seconds[phase] / seconds for phase in PHASES if phase != "data"},
        }
        if self.peak is not None:
            row["speed/mfu"] = (position.executed_flops - before.executed_flops) / seconds / (self.peak * self.runtime.world_size)
        self.phase_seconds, self.last_logged = dict.fromkeys(PHASES, 0.0), position
        self._write(row)
        self.display.logged(row)

    def _lacks_validation(self) -> bool:
        """Return whether a signal broke off the validation of the last step, which this run then saved without it."""
        step, lacks = self.position.step, False
        if not step or not self._due(step, self.config.eval.every_steps):
            return False
        if self.runtime.is_main and (self.run.checkpoints / f"step-{step:08d}").is_dir():
            lacks = not any(row["step"] == step and validation_key(row) for row in read_metrics(self.run.metrics))
        return self.runtime.sum_on_host([float(lacks)])[0] > 0

    def _validate(self, stop: StopRequest | None) -> None:
        if self.unigram_loss is None:
            causal = self.config.objective.is_causal
            self.unigram_loss = unigram_baseline(self.prepared, self._validation_batches(), causal=causal)
        gates = self.config.pld_schedule.trained_gates(self.position.step)

        def check() -> None:
            if stop is not None and (signal_number := self.trainer.agreed_stop(stop)):
                raise _BrokenOffError(signal_number)

        model, precision = self.trainer.model, self.trainer.precision
        try:
            self.score = score_lm(model, self._validation_batches(), precision, self.runtime, gates, check=check)
        except _BrokenOffError as broken_off:
            self._end(broken_off.signal_number)
        self.position = replace(self.position, wall_seconds=self._wall_seconds())
        values = {f"eval/{name}": value for name, value in self.score.values.items()}
        row = {"step": self.position.step, **values, "eval/frequency_loss": self.unigram_loss}
        self._write(row)
        self.display.evaluated(row)

    def _validation_batches(self) -> Iterator[Batch]:
        config = self.config
        return fixed_batches(self.prepared, config.data.seq_len, causal=config.objective.is_causal, max_sequences=config.eval.max_sequences)

    def _write(self, row: dict[str, Any]) -> None:
        """Complete a row with the run's progress, and write it."""
        row |= {f"progress/{name}": value for name, value in asdict(self.position).items() if name != "step"}
        if self.log is not None:
            self.log.write(row)

    def _save(self) -> None:
        self.checkpoints.save(self.position, self.config, self.trainer)

    def _pass_over(self, sequences: int) -> None:
        self.trainer.batches = replace(self.trainer.batches, shift=sequences)

    def _export(self, model: StBert) -> ReadBack:
        tokenizer = load_prepared_tokenizer(self.prepared.path)
        with atomic.directory(self.run.model, overwrite=True) as place:
            causal = self.config.objective.is_causal
            save_pretrained(place, model, self.config.model, tokenizer=tokenizer, seq_len=self.config.data.seq_len, causal=causal)
        return read_back(self.run.model, model, tokenizer)

    def _wall_seconds(self) -> float:
        return time.perf_counter() - self.started


def find_straggler(seconds_by_process: Sequence[float]) -> tuple[int | None, float]:
    """Find the process that takes much longer than the median of the others; return its number, or None, and how many times as long."""
    rank = max(range(len(seconds_by_process)), key=lambda rank: seconds_by_process[rank])
    others = [seconds for number, seconds in enumerate(seconds_by_process) if number != rank]
    times = seconds_by_process[rank] / max(statistics.median(others), _LEAST_SECONDS) if others else 1.0
    return (rank if times >= _STRAGGLES_FROM else None), times


def record_start(path: Path, command: str, trainer: Trainer[StepBatches], prepared: PreparedData) -> None:
    """Add this start to a run's environment.json."""
    runtime, batches, data = trainer.runtime, trainer.batches, prepared.path.resolve()
    attended = batches.attended_tokens
    start = {
        "started": datetime.now(UTC).isoformat(timespec="seconds"),
        "command": command,
        **versions(),
        "hardware": hardware_name(runtime.device),
        "device": str(runtime.device),
        "precision": trainer.precision.name,
        "threads": torch.get_num_threads(),
        "processes": runtime.world_size,
        **({"job": runtime.job} if runtime.job else {}),
        "micro_batch_size": batches.micro_batch_size,
        "micro_steps_per_group": batches.micro_steps,
        "attended_tokens": attended if len(attended) > 1 else next(iter(attended.values())),
        "data": str(data),
        "data_from_run": os.path.relpath(data, path.parent.resolve()),  # a project that is moved as a whole takes both along
        "data_fingerprint": prepared.data_fingerprint,
        "tokenizer_fingerprint": prepared.fingerprint,
    }
    atomic.write_text(path, json.dumps({"starts": [*read_starts(path), start]}, indent=1) + "\n")
