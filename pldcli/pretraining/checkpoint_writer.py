"""Write the checkpoints of a run: at once or in the background, whole or in parts."""

from __future__ import annotations

import secrets
import threading
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor

from pldcli.config import Config
from pldcli.data.prepared import PreparedData
from pldcli.data.step_batches import StepBatches
from pldcli.engine.runtime import Runtime
from pldcli.engine.trainer import Trainer
from pldcli.runs import checkpoint
from pldcli.runs.checkpoint import Position
from pldcli.runs.checkpoint_parts import Part
from pldcli.runs.run_directory import RunDirectory
from pldcli.sharding import is_sharded
from pldcli.system import atomic

__all__ = ["CheckpointWriter"]

_TOKEN_BITS = 48


class CheckpointWriter:
    """Write the checkpoints of one run. All processes call it together; the main one writes, and of a sharded model each its part.

    Args:
        run: Its directory.
        prepared: What it is trained on.
        runtime: Of this process.
        saved_step: Where the run starts or resumes.
    """

    def __init__(self, run: RunDirectory, prepared: PreparedData, runtime: Runtime, *, saved_step: int) -> None:
        self._run, self._prepared, self._runtime, self._saved_step = run, prepared, runtime, saved_step
        self._writer = ThreadPoolExecutor(1, thread_name_prefix="checkpoint")
        self._saving: Future[None] | None = None
        self._others_are_gone = threading.Event()

    def save(self, position: Position, config: Config, trainer: Trainer[StepBatches], *, anew: bool = False) -> None:
        """Save the state at a position, unless that step is saved; `anew`, in any case."""
        if position.step == self._saved_step and not anew:
            return
        self._saved_step = position.step
        self.finish()
        in_background = self._runtime.is_on(config.checkpoint.background)
        is_split = is_sharded(trainer.model)
        part = self._own_part() if is_split else None
        if self._runtime.is_main or part is not None:
            self._run.check_still_there()
            held = checkpoint.hold(
                position,
                config,
                trainer.model,
                trainer.optimizer,
                scaler=trainer.scaler.state_dict(),
                guard=trainer.guard.state(),
                data_fingerprint=self._prepared.data_fingerprint,
                tokenizer_fingerprint=self._prepared.fingerprint,
                copy=in_background,
                part=part,
            )
            if in_background:
                if self._runtime.is_main:
                    atomic.write_text(self._run.saving, "")
                self._saving = self._writer.submit(self._write, held, config)
            else:
                self._write(held, config, arrive=self._runtime.wait_for_all if is_split else None)
        elif is_split and not in_background:
            self._runtime.wait_for_all()  # for the parts, like the processes that write them
        self._runtime.wait_for_all()

    def look(self) -> None:
        """Finish what is written by now: a full disk is told now, not at the next checkpoint.

        Raises:
            OutputError: The disk is full or not writable.
        """
        if self._saving is not None and self._saving.done():
            self.finish()

    def finish(self) -> None:
        """Wait for the checkpoint that is being written in the background.

        Raises:
            OutputError: The disk is full or not writable.
        """
        if self._saving is not None:
            saving, self._saving = self._saving, None
            saving.result()

    def close(self, *, others_are_gone: bool) -> None:
        """Wait for what is being written; for other processes' parts of it only where these are still there."""
        if others_are_gone:
            self._others_are_gone.set()
        self._writer.shutdown()

    def _own_part(self) -> Part | None:
        """Return which part of a sharded model this process writes; None where another process has the same. All call this together."""
        [token] = self._runtime.sum_on_host([float(secrets.randbits(_TOKEN_BITS)) if self._runtime.is_main else 0.0])
        number, count = self._runtime.rank + 1, self._runtime.num_shards
        return Part(number, count, int(token)) if number <= count else None

    def _write(self, held: checkpoint.Held, config: Config, *, arrive: Callable[[], None] | None = None) -> None:
        checkpoint.write(
            self._run.checkpoints,
            held,
            keep=config.checkpoint.keep,
            keep_every=config.checkpoint.keep_every_steps,
            arrive=arrive,
            cancelled=self._others_are_gone,
            patience_seconds=config.runtime.timeout_seconds,
        )
        if self._runtime.is_main:
            self._run.saving.unlink(missing_ok=True)
