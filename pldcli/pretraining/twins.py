"""Train runs step by step in turn, so that whatever else the machine does hits all of them alike, and end them by the clock."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Generator, Mapping
from contextlib import ExitStack
from pathlib import Path

from rich.console import Console

from pldcli import presets
from pldcli.config import Config
from pldcli.console.progress import Progress
from pldcli.console.units import duration
from pldcli.data.shards import PreparedData
from pldcli.engine.checkpoint import Position
from pldcli.engine.run_directory import RunDirectory
from pldcli.engine.runtime import Runtime, launch
from pldcli.engine.trainer import Observation
from pldcli.errors import PldError
from pldcli.pretraining.assembly import assemble, build_trainer, compiles
from pldcli.pretraining.display import RunDisplay
from pldcli.pretraining.recorder import PretrainResult, RunRecorder
from pldcli.system import atomic
from pldcli.system.signals import StopRequest, stop_requests

__all__ = ["shortened", "train_in_turn"]

_MEASURED_STEPS = 20
"""Steps before the first plan."""
_WINDOW_STEPS = 200
"""The pace is that of the last so many steps: it follows what other programs do."""


def shortened(config: Config, total_steps: int) -> Config:
    """Give a run fewer steps, and leave all that it has done so far as it is: warm-up in steps, flat rate, speed of theta.

    Args:
        config: With the `wsd` schedule, a fixed `pld.gamma` and no recovery, so that nothing before the decay depends on the length.
        total_steps: The new length; what was done is over with the warm-up and not yet in the new decay.
    """
    assert config.optim.schedule == "wsd" and config.pld.gamma != "auto" and not config.pld.recovery_fraction
    return config.replace(train={"total_steps": total_steps}, optim={"warmup_fraction": _warmup_steps(config) / total_steps})


def _warmup_steps(config: Config) -> int:
    return round(config.optim.warmup_fraction * config.train.total_steps)


def train_in_turn(
    configs: Mapping[str, Config],
    *,
    prepared: PreparedData,
    directory: Path,
    until: float | None,
    command: Callable[[str, Config], str],
    console: Console,
) -> dict[str, tuple[Config, PretrainResult]]:
    """Pre-train runs that differ in their systems only, one step of each at a time.

    Args:
        configs: By name; alike in everything that decides how many tokens a step has. Their number of steps is the most there may be.
        prepared: What they are trained on.
        directory: Each run gets a directory in it.
        until: When `time.monotonic()` says this, training should be over: the learning rate begins to decay so that it ends there.
            None to take all steps.
        command: The command line that trains such a run alone.
        console: Where to show progress.

    Returns:
        By name, the configuration with the steps that were taken, and the finished run.

    Raises:
        StoppedError, PreemptedError: A signal arrived; both runs are saved.
    """
    with launch(next(iter(configs.values())).runtime.device) as runtime, ExitStack() as stack:
        stop = stack.enter_context(stop_requests())
        twins = [_Twin(name, config, prepared, RunDirectory(directory / name), runtime, stop, stack) for name, config in configs.items()]
        first = twins[0]
        pace = _Pace(until)
        if is_fixed := until is None:
            _fix_length(twins, first.total_steps, command)
        with Progress("training in turn", total=first.total_steps, unit="steps", console=console) as progress:
            while first.step < first.total_steps:
                _take_one_step(twins)
                pace.note()
                step, decay_fraction = first.step, first.config.optim.decay_fraction
                if not is_fixed:
                    expected = min(pace.expected_steps(step), first.total_steps)
                    progress.total = expected
                    if step == _MEASURED_STEPS:
                        console.print(f"    about {expected:,} steps of each in {duration(pace.seconds_left)}", highlight=False)
                    if step >= max(_MEASURED_STEPS, _warmup_steps(first.config), (1 - decay_fraction) * expected):
                        is_fixed = True
                        _fix_length(twins, min(first.total_steps, round(step / (1 - decay_fraction))), command)
                        progress.total = first.total_steps
                losses = " and ".join(f"{twin.loss:.3f}" for twin in twins)
                progress.describe(f"training in turn, losses {losses}")
                progress.update(step)
        return {twin.name: (twin.config, twin.finish(command(twin.name, twin.config))) for twin in twins}


def _fix_length(twins: list[_Twin], total_steps: int, command: Callable[[str, Config], str]) -> None:
    for twin in twins:
        if total_steps < twin.total_steps:
            twin.shorten(total_steps)
        twin.record_start(command(twin.name, twin.config))


def _take_one_step(twins: list[_Twin]) -> None:
    """Let each run take a step; on a signal all of them save before it is passed on."""
    stopped: dict[str, PldError] = {}
    for twin in twins:
        try:
            twin.advance()
        except PldError as error:
            stopped[twin.name] = error
    if not stopped:
        return
    for twin in twins:
        if twin.name not in stopped:
            try:
                twin.advance()
            except PldError as error:
                stopped[twin.name] = error
    raise next(stopped[twin.name] for twin in twins if twin.name in stopped)


class _Pace:
    """How long a step of all runs takes, and how many more there is time for."""

    def __init__(self, until: float | None) -> None:
        self.until = until
        self._times = deque([time.monotonic()], maxlen=_WINDOW_STEPS + 1)

    @property
    def seconds_left(self) -> float:
        """Time until training should be over."""
        assert self.until is not None
        return max(0.0, self.until - self._times[-1])

    def note(self) -> None:
        """Note that all runs took a step."""
        self._times.append(time.monotonic())

    def expected_steps(self, step: int) -> int:
        """Compute how many steps there will have been at the end, at the pace of the last ones."""
        seconds = (self._times[-1] - self._times[0]) / (len(self._times) - 1)
        return step + int(self.seconds_left / max(seconds, 1e-9))


class _Twin:
    """One of the runs that are trained in turn."""

    def __init__(
        self, name: str, config: Config, prepared: PreparedData, run: RunDirectory, runtime: Runtime, stop: StopRequest, stack: ExitStack
    ) -> None:
        self.name, self.config, self.loss, self._stop = name, config, float("nan"), stop
        run.check_usable()
        stack.enter_context(run.lock())
        atomic.write_text(run.config, presets.dump(config))
        self._trainer = build_trainer(config, prepared, runtime)
        if compiles(config, runtime):
            self._trainer.warm_up()
        display = RunDisplay(Console(quiet=True), title=name, total_steps=0, save_every=1, quiet=True)
        self._recorder = stack.enter_context(
            RunRecorder(run, self._trainer, config=config, prepared=prepared, display=display, position=Position())
        )
        self._steps = self._begin()
        self._rested = time.perf_counter()

    @property
    def step(self) -> int:
        """Completed steps."""
        return self._recorder.position.step

    @property
    def total_steps(self) -> int:
        """Steps of the whole run."""
        return self.config.train.total_steps

    def advance(self) -> None:
        """Take one step and record it.

        Raises:
            StoppedError, PreemptedError: A signal arrived; the state is saved.
            DivergedError: The loss is not finite.
        """
        self._recorder.pause(time.perf_counter() - self._rested)
        seen = next(self._steps)
        self.loss = seen.losses.get("loss", self.loss)
        self._recorder.record(seen)
        self._rested = time.perf_counter()

    def shorten(self, total_steps: int) -> None:
        """End after so many steps: a new trainer resumes where the old one was."""
        self._steps.close()
        before = self._trainer
        self.config = shortened(self.config, total_steps)
        batches = before.batches
        self._trainer = assemble(self.config, before.model, batches.samples, batches.masking, before.runtime, optimizer=before.optimizer)
        self._trainer.scaler.load_state_dict(before.scaler.state_dict())
        self._recorder.shorten(self.config, self._trainer)
        self._steps = self._begin()

    def record_start(self, command: str) -> None:
        """Write environment.json."""
        self._recorder.record_start(command)

    def finish(self, command: str) -> PretrainResult:
        """Write the finished model, its card and its plots."""
        return self._recorder.finish(command)

    def _begin(self) -> Generator[Observation, None, None]:
        return self._trainer.steps(self._recorder.position, observe=lambda step: True, stop=self._stop)
