"""Train runs in turn, one step of each at a time, so that other load on the machine hits all of them alike; end them by the clock."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Generator, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path

from rich.console import Console

from pldcli import presets
from pldcli.config import Config
from pldcli.console.progress import Progress
from pldcli.console.units import duration
from pldcli.data.prepared import PreparedData
from pldcli.engine.runtime import Runtime, launch
from pldcli.engine.trainer import Observation
from pldcli.errors import PldError
from pldcli.pretraining.assembly import assemble, build_trainer
from pldcli.pretraining.display import RunDisplay
from pldcli.pretraining.recorder import PretrainResult, RunRecorder
from pldcli.runs.checkpoint import Position
from pldcli.runs.run_directory import RunDirectory
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
        config: With the `wsd` schedule, a fixed `pld.gamma`, no recovery, no stages and no ramp, so that nothing before the decay depends
            on the number of steps.
        total_steps: The new length; what was done is over with the warm-up and not yet in the new decay.
    """
    assert config.optim.schedule == "wsd" and config.pld.gamma != "auto" and not config.pld.recovery_fraction
    assert len(config.curriculum.stretches) == 1
    return config.replace(train={"total_steps": total_steps}, optim={"warmup_steps": config.warmup_steps, "warmup_tokens": None})


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
        twins = [
            _Twin(name, stack.enter_context(_recorded(config, prepared, RunDirectory(directory / name), runtime)), stop)
            for name, config in configs.items()
        ]
        first = twins[0]
        pace = _Pace(until)
        if is_fixed := until is None:
            _fix_length(twins, first.total_steps, command)
        with Progress("training in turn", total=first.total_steps, unit="steps", console=console) as progress:
            while first.step < first.total_steps:
                _take_one_step(twins)
                pace.note()
                step, decay_fraction = first.step, first.recorder.config.optim.decay_fraction
                if not is_fixed:
                    expected = min(pace.expected_steps(step), first.total_steps)
                    progress.total = expected
                    if step == _MEASURED_STEPS:
                        console.print(f"    about {expected:,} steps of each in {duration(pace.seconds_left)}", highlight=False)
                    if step >= max(_MEASURED_STEPS, first.recorder.config.warmup_steps, (1 - decay_fraction) * expected):
                        is_fixed = True
                        _fix_length(twins, min(first.total_steps, round(step / (1 - decay_fraction))), command)
                        progress.total = first.total_steps
                losses = " and ".join(f"{twin.loss:.3f}" for twin in twins)
                progress.describe(f"training in turn, losses {losses}")
                progress.update(step)
        return {twin.name: (twin.recorder.config, twin.recorder.finish(command(twin.name, twin.recorder.config))) for twin in twins}


def _fix_length(twins: list[_Twin], total_steps: int, command: Callable[[str, Config], str]) -> None:
    for twin in twins:
        if total_steps < twin.total_steps:
            twin.shorten(total_steps)
        twin.recorder.record_start(command(twin.name, twin.recorder.config))


def _take_one_step(twins: list[_Twin]) -> None:
    """Let each run take a step; on a signal all of them save before it is passed on."""
    errors = [twin.advance() for twin in twins]
    if any(errors):
        errors = [error or twin.advance() for twin, error in zip(twins, errors, strict=True)]
        raise next(error for error in errors if error)


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

    def __init__(self, name: str, recorder: RunRecorder, stop: StopRequest) -> None:
        self.name, self.recorder, self.loss, self._stop = name, recorder, float("nan"), stop
        self._steps = self._begin()
        self._rested = time.perf_counter()

    @property
    def step(self) -> int:
        """Completed steps."""
        return self.recorder.position.step

    @property
    def total_steps(self) -> int:
        """Steps of the whole run."""
        return self.recorder.config.train.total_steps

    def advance(self) -> PldError | None:
        """Take one step and record it; return the error that ends the run, on a signal with the state saved."""
        self.recorder.pause(time.perf_counter() - self._rested)
        try:
            seen = next(self._steps)
            self.loss = seen.losses.get("loss", self.loss)
            self.recorder.record(seen)
        except PldError as error:
            return error
        finally:
            self._rested = time.perf_counter()
        return None

    def shorten(self, total_steps: int) -> None:
        """End after so many steps: a new trainer resumes where the old one was."""
        self._steps.close()
        before, config = self.recorder.trainer, shortened(self.recorder.config, total_steps)
        batches = before.batches
        trainer = assemble(
            config,
            before.model,
            batches.samples,
            batches.masking,
            before.runtime,
            next_tokens=batches.next_tokens,
            optimizer=before.optimizer,
        )
        trainer.scaler.load_state_dict(before.scaler.state_dict())
        trainer.guard.restore(before.guard.state())
        self.recorder.shorten(config, trainer)
        self._steps = self._begin()

    def _begin(self) -> Generator[Observation, None, None]:
        return self.recorder.trainer.steps(self.recorder.position, observe=lambda step: True, stop=self._stop)


@contextmanager
def _recorded(config: Config, prepared: PreparedData, run: RunDirectory, runtime: Runtime) -> Iterator[RunRecorder]:
    """Begin a run whose progress its twin shows too."""
    run.check_usable()
    with run.lock():
        atomic.write_text(run.config, presets.dump(config))
        trainer = build_trainer(config, prepared, runtime)
        if runtime.is_on(config.runtime.compile):
            trainer.warm_up()
        display = RunDisplay(Console(quiet=True), title=str(run.path), total_steps=0, save_every=1, quiet=True)
        with RunRecorder(run, trainer, config=config, prepared=prepared, display=display, position=Position()) as recorder:
            yield recorder
