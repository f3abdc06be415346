"""What a person sees of a study: a line as each job begins and ends, and how far it all is."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType

from rich.console import Console

from pldcli.console.progress import Progress
from pldcli.console.units import duration
from pldcli.study.jobs import Outcome, State, last_step
from pldcli.study.plan import PlannedRun

__all__ = ["StudyDisplay"]

_LINE_SECONDS = 60.0
_LOOK_SECONDS = 1.0


class StudyDisplay:
    """Show a study as it trains and fine-tunes.

    Args:
        out: Its directory.
        at_once: Jobs at work at a time.
        console: Where.
    """

    def __init__(self, out: Path, *, at_once: int, console: Console) -> None:
        self._out, self._at_once, self._console = out, at_once, console
        self._what = ""
        self._runs: dict[str, PlannedRun] = {}
        """Those to train; none while scores are taken."""
        self._outcomes: dict[str, Outcome] = {}
        self._steps: dict[str, int] = {}
        self._last_line = self._last_look = time.monotonic()
        self._bar: Progress | None = None

    def __enter__(self) -> StudyDisplay:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        if self._bar is not None:
            self._bar.__exit__(kind, error, trace)
            self._bar = None

    def begin_runs(self, runs: Sequence[PlannedRun], outcomes: Mapping[str, Outcome]) -> None:
        """Show which runs are wanted now, and how far each is."""
        self._runs = {run.name: run for run in runs}
        self._steps = {name: outcome.step for name, outcome in outcomes.items()}
        self._begin("runs", outcomes, Progress("study", total=sum(map(_total_steps, runs)), unit="steps", console=self._console))

    def begin_scorings(self, outcomes: Mapping[str, Outcome]) -> None:
        """Show how many fine-tunings and sets of minimal pairs there are, and how many are done."""
        self._runs, left = {}, sum(not outcome.is_settled for outcome in outcomes.values())
        self._begin("scores", outcomes, Progress("scoring", total=left, unit="scores", console=self._console))

    def _begin(self, what: str, outcomes: Mapping[str, Outcome], bar: Progress) -> None:
        self._what, self._outcomes = what, dict(outcomes)
        self._say(f"{len(outcomes)} {what}, {self._num_settled()} done" + (f"; {self._left()}" if self._runs else ""))
        self.__exit__(None, None, None)
        if self._console.is_terminal:
            self._bar = bar.__enter__()

    def tell(self, name: str, outcome: Outcome | None) -> None:
        """Show that a job begins (None) or what became of it."""
        if outcome is None:
            before, run = self._steps.get(name, 0), self._runs.get(name)
            length = "begins" if run is None else f"begins, {_total_steps(run):,} steps"
            self._say(f"{name}: " + (f"resumes after step {before:,}" if run and before else length))
            return
        self._outcomes[name] = outcome
        note = f": {outcome.note}" if outcome.state == State.FAILED else ""
        self._say(f"{name}: {outcome}{note} ({self._num_settled()} of {len(self._outcomes)} {self._what} done)")
        if self._bar is not None and not self._runs:
            self._bar.advance(1)

    def watch(self, active: Sequence[str]) -> None:
        """Look how far the runs at work are; show it now and then."""
        now = time.monotonic()
        if now - self._last_look < _LOOK_SECONDS:
            return
        self._last_look = now
        for name in active:
            self._steps[name] = last_step(self._out / "runs" / name)
        where = ", ".join(f"{name} {self._steps[name]:,}/{_total_steps(self._runs[name]):,}" for name in active)
        if self._bar is not None:
            self._bar.describe(where)
            self._bar.update(sum(map(self._done_steps, self._runs.values())))
        elif now - self._last_line >= _LINE_SECONDS:
            self._last_line = now
            self._say(f"{where}; {self._left()}")

    def _num_settled(self) -> int:
        return sum(outcome.is_settled for outcome in self._outcomes.values())

    def _done_steps(self, run: PlannedRun) -> int:
        """Count a run that has come to its end, however early, as done."""
        return _total_steps(run) if self._outcomes[run.name].is_settled else self._steps.get(run.name, 0)

    def _left(self) -> str:
        """Return how much training is left, by the step times that were measured alone."""
        seconds = sum(run.seconds_left(self._done_steps(run)) for run in self._runs.values())
        return f"about {duration(seconds / self._at_once)} of training left" if seconds else "nothing left"

    def _say(self, text: str) -> None:
        self._console.print(text, highlight=False, soft_wrap=True, markup=False)


def _total_steps(run: PlannedRun) -> int:
    return run.config.train.total_steps
