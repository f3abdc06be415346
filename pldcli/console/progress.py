"""How far a long command has come: a bar on a terminal, a line every few seconds elsewhere."""

from __future__ import annotations

import sys
import time
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.console import Console
    from rich.progress import Progress as RichProgress
    from rich.progress import TaskID

__all__ = ["Progress"]


class Progress:
    """Shows progress on standard error, as a context manager.

    Args:
        description: What is being done.
        total: The amount at the end; None when it is not known.
        unit: What is counted; `bytes` are shown as kB, MB and GB.
        quiet: Show nothing.
        every_seconds: Time between two lines where there is no terminal.
        console: Where to show it.
    """

    def __init__(
        self,
        description: str,
        *,
        total: float | None = None,
        unit: str = "",
        quiet: bool = False,
        every_seconds: float = 5.0,
        console: Console | None = None,
    ) -> None:
        self.description = description
        self.total = total
        self.completed = 0.0
        self._unit = unit
        self._quiet = quiet
        self._every_seconds = every_seconds
        self._console = console
        self._bar: RichProgress | None = None
        self._task: TaskID | None = None
        self._began = self._last = 0.0
        self._printed = -1.0

    def __enter__(self) -> Progress:
        from rich.console import Console

        self._console = self._console or Console(stderr=True, file=sys.stderr)
        self._began = self._last = time.monotonic()
        if self._console.is_terminal and not self._quiet:
            self._bar = self._make_bar(self._console)
            self._task = self._bar.add_task(self.description, total=self.total)
            self._bar.start()
        return self

    def __exit__(self, kind: object, *_: object) -> None:
        if self._bar is not None:
            self._bar.stop()
        elif kind is None and self._last > self._began and self._printed != self.completed:
            self._print_line(time.monotonic())

    def update(self, completed: float) -> None:
        """Show how much is done in all."""
        self.completed = completed
        if self._bar is not None and self._task is not None:
            self._bar.update(self._task, completed=completed, total=self.total)
            return
        now = time.monotonic()
        if now - self._last >= self._every_seconds:
            self._last = now
            self._print_line(now)

    def advance(self, amount: float) -> None:
        """Show how much more is done."""
        self.update(self.completed + amount)

    def describe(self, description: str) -> None:
        """Show what is being done now."""
        self.description = description
        if self._bar is not None and self._task is not None:
            self._bar.update(self._task, description=description)

    def _make_bar(self, console: Console) -> RichProgress:
        from rich import progress

        if self._unit == "bytes":
            amount: list[progress.ProgressColumn] = [progress.DownloadColumn(), progress.TransferSpeedColumn()]
        else:
            amount = [progress.MofNCompleteColumn(), progress.TextColumn(self._unit)]
        columns = [progress.TextColumn("{task.description}"), progress.BarColumn(), *amount, progress.TimeRemainingColumn()]
        return progress.Progress(*columns, console=console, transient=True)

    def _print_line(self, now: float) -> None:
        if self._quiet or self._console is None:
            return
        self._printed = self.completed
        seconds = max(now - self._began, 1e-9)
        rate = self.completed / seconds
        amount = self._amount(self.completed)
        if self.total:
            amount = f"{100 * self.completed / self.total:.0f} % of {self._amount(self.total)}"
        left = f", {(self.total - self.completed) / rate:.0f} s left" if self.total and rate and self.completed < self.total else ""
        self._console.print(f"{self.description}: {amount}, {self._amount(rate)}/s{left}", highlight=False, markup=False, soft_wrap=True)

    def _amount(self, value: float) -> str:
        from rich.filesize import decimal

        if self._unit == "bytes":
            return decimal(int(value))
        return f"{value:,.0f} {self._unit}".strip() if value >= 10 or value == int(value) else f"{value:.1f} {self._unit}".strip()
