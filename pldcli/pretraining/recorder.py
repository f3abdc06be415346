"""The books of a pre-training run: metrics, validation, checkpoints, and the finished model with its card."""

from __future__ import annotations

import signal
import time
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import asdict, dataclass, replace
from typing import Any

from pldcli import presets
from pldcli.config import Config
from pldcli.console.units import duration
from pldcli.data.loader import Batch, StepBatches
from pldcli.data.shards import PreparedData
from pldcli.data.tokenizer import load_prepared_tokenizer
from pldcli.engine import checkpoint
from pldcli.engine.checkpoint import Position
from pldcli.engine.hardware import peak_flops_per_second, record_start
from pldcli.engine.metrics import MetricsLog, reads_context
from pldcli.engine.phases import PHASES
from pldcli.engine.run_directory import RunDirectory
from pldcli.engine.trainer import Observation, Trainer
from pldcli.engine.validation import MaskedLmScore, fixed_batches, frequencies_alone, score_masked_lm
from pldcli.errors import PldError, PreemptedError, StoppedError
from pldcli.huggingface.read_back import ReadBack, read_back
from pldcli.huggingface.save import save_pretrained
from pldcli.pretraining import card
from pldcli.pretraining.display import RunDisplay
from pldcli.pretraining.estimate import Estimate, warnings
from pldcli.system import atomic
from pldcli.system.signals import StopRequest

__all__ = ["Bookkeeper", "PretrainResult"]


@dataclass(frozen=True)
class PretrainResult:
    """A finished run."""

    run: RunDirectory
    position: Position
    was_finished: bool
    """It was finished before this call."""
    score: MaskedLmScore | None
    """Of this call's last validation."""
    frequency_loss: float | None
    """What token frequencies alone score there; None without a validation."""
    reload_difference: float | None
    """Largest difference of logits when transformers read the model back; None where it did not."""
    reload_failure: str | None = None
    """Why that check failed; None where it did not, or was not made."""
    is_main: bool = True
    """Whether this process speaks to the user."""

    @property
    def has_read_context(self) -> bool | None:
        """Tell whether the model is clearly better than token frequencies; None without a validation."""
        if self.score is None or self.frequency_loss is None:
            return None
        return reads_context(self.score.mlm_loss, self.frequency_loss)


class Bookkeeper:
    """Keep the books of one run: metrics, validation, checkpoints, the finished model. Only the main process writes."""

    def __init__(
        self,
        config: Config,
        prepared: PreparedData,
        run: RunDirectory,
        trainer: Trainer[StepBatches],
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
        self.frequency_loss: float | None = None
        self.saved_step = start.step if start.step else -1
        self.phase_seconds = dict.fromkeys(PHASES, 0.0)
        self.how_to_go_on = f"run the same command {'again' if resume == 'auto' else 'with --resume auto'} to go on"

    def announce(self, estimated: Estimate, command: str, *, resumed: bool) -> None:
        """Write down what starts and say it, with warnings where the run is long or repeats its text often."""
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
        for seen in self.trainer.steps(position, observe=self.is_due, stop=stop):
            position = self.record(seen)
        return position

    def is_due(self, step: int) -> bool:
        """Return whether something is recorded after this many steps: a row of metrics, a validation or a checkpoint."""
        every = (self.config.train.log_every_steps, self.config.eval.every_steps, self.config.checkpoint.every_steps)
        return any(self._due(step, one) for one in every)

    def record(self, seen: Observation) -> Position:
        """Record what is due at an observation: log, validate, save.

        Raises:
            StoppedError, PreemptedError: It is of a signal; the state is saved.
        """
        position = replace(seen.position, wall_seconds=self._wall_seconds())
        for phase, seconds in seen.phase_seconds.items():
            self.phase_seconds[phase] += seconds
        if seen.stop_signal:
            self._save(position)
            raise self._stopped(position, seen.stop_signal)
        if self._due(position.step, self.config.train.log_every_steps):
            self._log(seen, position)
        if self._due(position.step, self.config.eval.every_steps):
            position = self._validate(position)
        if self._due(position.step, self.config.checkpoint.every_steps):
            self._save(position)
        return position

    def stand_still(self, seconds: float) -> None:
        """Leave so much time out of the run's wall seconds: another run took its turn."""
        self.started += seconds

    def shorten(self, config: Config, trainer: Trainer[StepBatches]) -> None:
        """Go on with a schedule that ends sooner; what was recorded so far is the same under both.

        Args:
            config: The run's, with fewer steps.
            trainer: Of the same model, in the same state.
        """
        self.config, self.trainer = config, trainer
        if self.runtime.is_main:
            atomic.write_text(self.run.config, presets.dump(config))

    def finish(self, position: Position, command: str) -> PretrainResult:
        """Write the finished model, its card and its plots."""
        difference = failure = None
        if self.runtime.is_main:
            difference, failure = self._export()
            card.write(self.run, self.config, self.prepared, position, command)
        self.runtime.wait_for_all()
        is_main = self.runtime.is_main
        return PretrainResult(self.run, position, False, self.score, self.frequency_loss, difference, failure, is_main)

    def _due(self, step: int, every: int) -> bool:
        return step % every == 0 or step == self.config.train.total_steps

    def _log(self, seen: Observation, position: Position) -> None:
        tokens = position.tokens - self.last_logged.tokens
        seconds = max(position.train_seconds - self.last_logged.train_seconds, 1e-9)
        row: dict[str, Any] = {"step": position.step, "train/loss": seen.losses["loss"]}
        if len(seen.losses) > 2:
            row |= {f"train/{name}_loss": value for name, value in seen.losses.items() if name != "loss"}
        rows = (position.sequences - self.last_logged.sequences) * self.config.data.seq_len
        row |= {
            "optim/learning_rate": seen.learning_rate,
            "optim/grad_norm": seen.grad_norm,
            "pld/theta": seen.theta,
            "pld/kept_blocks": seen.kept_blocks,
            "data/packing_efficiency": tokens / max(rows, 1),
            "speed/tokens_per_second": tokens / seconds,
            "speed/data_wait_fraction": self.phase_seconds["data"] / seconds,
            **{f"speed/{phase}_fraction": self.phase_seconds[phase] / seconds for phase in PHASES if phase != "data"},
        }
        self.phase_seconds = dict.fromkeys(PHASES, 0.0)
        if self.peak is not None:
            executed = position.executed_flops - self.last_logged.executed_flops
            row["speed/mfu"] = executed / seconds / (self.peak * self.runtime.world_size)
        row |= _progress(position)
        self.last_logged = position
        if self.log is not None:
            self.log.write(row)
        self.display.logged(row)

    def _validate(self, position: Position) -> Position:
        if self.frequency_loss is None:
            self.frequency_loss = frequencies_alone(self.prepared, self._validation_batches())
        self.score = score_masked_lm(self.trainer.model, self._validation_batches(), self.trainer.precision, self.runtime)
        position = replace(position, wall_seconds=self._wall_seconds())
        row = {
            "step": position.step,
            "eval/mlm_loss": self.score.mlm_loss,
            "eval/perplexity": self.score.perplexity,
            "eval/mlm_accuracy": self.score.mlm_accuracy,
            "eval/frequency_loss": self.frequency_loss,
            **_progress(position),
        }
        if self.log is not None:
            self.log.write(row)
        self.display.evaluated(row)
        return position

    def _validation_batches(self) -> Iterator[Batch]:
        return fixed_batches(self.prepared, self.config.data.seq_len, max_sequences=self.config.eval.max_sequences)

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

    def _export(self) -> ReadBack:
        model, settings = self.trainer.model, self.config.model
        with atomic.directory(self.run.model, overwrite=True) as place:
            save_pretrained(
                place,
                model,
                settings,
                tokenizer=load_prepared_tokenizer(self.prepared.path),
                seq_len=self.config.data.seq_len,
            )
        batch = self.trainer.batches.step(0)[0][0]
        return read_back(self.run.model, model, batch.input_ids[:2].cpu())

    def _stopped(self, position: Position, signal_number: int) -> PldError:
        saved = f"saved at step {position.step:,}" if position.step else "nothing to save yet"
        kind, word = (StoppedError, "interrupted") if signal_number == signal.SIGINT else (PreemptedError, "terminated")
        return kind(f"{word}, {saved}", where=str(self.run.path), hint=self.how_to_go_on)

    def _wall_seconds(self) -> float:
        return self.wall_before + time.perf_counter() - self.started


def _progress(position: Position) -> dict[str, float]:
    return {f"progress/{name}": value for name, value in asdict(position).items() if name != "step"}
