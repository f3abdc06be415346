"""What a person sees of a study: a line as each run begins and ends, and how far it all is."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType

from rich.console import Console

from pldcli.console.progress import Progress
from pldcli.console.units import duration
from pldcli.study.halving import Outcome
from pldcli.study.plan import PlannedRun
from pldcli.study.runs import last_step
from pldcli.study.tunings import PlannedTuning, TuningOutcome

__all__ = ["StudyDisplay"]

_LINE_SECONDS = 60.0
_LOOK_SECONDS = 1.0


class StudyDisplay:
    """Show a study as it trains.

    Args:
        out: Its directory.
        at_once: Runs at work at a time.
        console: Where.
    """

    def __init__(self, out: Path, *, at_once: int, console: Console) -> None:
        self._out, self._at_once, self._console = out, at_once, console
        self._runs: list[PlannedRun] = []
        self._outcomes: dict[str, Outcome] = {}
        self._steps: dict[str, int] = {}
        self._last_line = self._last_look = time.monotonic()
        self._bar: Progress | None = None
        self._num_tunings = self._tunings_done = 0

    def __enter__(self) -> StudyDisplay:
        """Enter."""
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        """Take the bar away."""
        if self._bar is not None:
            self._bar.__exit__(kind, error, trace)
            self._bar = None

    def begin(self, runs: Sequence[PlannedRun], outcomes: Mapping[str, Outcome]) -> None:
        """Say which runs are wanted now, and how far each is."""
        self._runs, self._outcomes = list(runs), dict(outcomes)
        self._steps = {run.name: outcomes[run.name].step for run in runs}
        done = sum(outcome.is_settled for outcome in outcomes.values())
        self._say(f"{len(runs)} runs, {done} done; {self._left()}")
        self.__exit__(None, None, None)
        if self._console.is_terminal:
            total = sum(run.config.train.total_steps for run in runs)
            self._bar = Progress("study", total=total, unit="steps", console=self._console)
            self._bar.__enter__()

    def tell(self, run: PlannedRun, outcome: Outcome | None) -> None:
        """Say that a run begins (None) or what became of it."""
        if outcome is None:
            before = self._steps.get(run.name, 0)
            self._say(
                f"{run.name}: " + (f"going on after step {before:,}" if before else f"begins, {run.config.train.total_steps:,} steps")
            )
            return
        self._outcomes[run.name] = outcome
        done = sum(one.is_settled for one in self._outcomes.values())
        loss = "" if outcome.loss is None else f", validation loss {outcome.loss:.4f}"
        note = f": {outcome.note}" if outcome.state == "failed" else ""
        self._say(f"{run.name}: {outcome}{loss}{note} ({done} of {len(self._runs)} runs done)")

    def begin_tunings(self, num_tunings: int, num_left: int) -> None:
        """Say how many fine-tunings there are."""
        self._say(f"{num_tunings} fine-tunings, {num_tunings - num_left} done")
        self._num_tunings, self._tunings_done = num_tunings, num_tunings - num_left
        self.__exit__(None, None, None)
        if self._console.is_terminal:
            self._bar = Progress("fine-tuning", total=num_left, unit="fine-tunings", console=self._console)
            self._bar.__enter__()

    def tell_tuning(self, tuning: PlannedTuning, outcome: TuningOutcome | None) -> None:
        """Say that a fine-tuning begins (None) or what became of it."""
        if outcome is None:
            self._say(f"{tuning.name}: fine-tuning begins")
            return
        self._tunings_done += outcome.is_settled
        self._say(f"{tuning.name}: {outcome} ({self._tunings_done} of {self._num_tunings} fine-tunings done)")
        if self._bar is not None:
            self._bar.advance(1)

    def watch(self, active: Sequence[PlannedRun]) -> None:
        """Look how far the runs at work are; show it now and then."""
        now = time.monotonic()
        if now - self._last_look < _LOOK_SECONDS:
            return
        self._last_look = now
        for run in active:
            self._steps[run.name] = last_step(self._out / "runs" / run.name)
        where = ", ".join(f"{run.name} {self._steps[run.name]:,}/{run.config.train.total_steps:,}" for run in active)
        if self._bar is not None:
            self._bar.describe(where)
            self._bar.update(sum(self._done_steps(run) for run in self._runs))
        elif now - self._last_line >= _LINE_SECONDS:
            self._last_line = now
            self._say(f"{where}; {self._left()}")

    def _done_steps(self, run: PlannedRun) -> int:
        """Count a run that has come to its end, however early, as done."""
        settled = self._outcomes[run.name].is_settled if run.name in self._outcomes else False
        return run.config.train.total_steps if settled else self._steps.get(run.name, 0)

    def _left(self) -> str:
        """Say how much training is left, from the times that were measured alone."""
        seconds = sum(run.seconds_left(self._done_steps(run)) for run in self._runs)
        return f"about {duration(seconds / self._at_once)} of training left" if seconds else "nothing left"

    def _say(self, text: str) -> None:
        self._console.print(text, highlight=False, soft_wrap=True, markup=False)
