"""Progress of a run on the screen: a live panel on a terminal, plain lines elsewhere."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping
from types import TracebackType
from typing import Any

from rich.console import Console, Group
from rich.live import Live
from rich.panel import Panel
from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn
from rich.table import Table
from rich.text import Text

from pldcli.console.units import duration, quantity
from pldcli.runs.metrics import validation_key

__all__ = ["RunDisplay"]

_LINE_SECONDS = 5.0
_SMOOTHING = 0.95


class RunDisplay:
    """Show rows of metrics as they come.

    Args:
        console: Where to print.
        title: The run's name.
        total_steps: Steps of the whole run.
        save_every: Steps between checkpoints.
        quiet: Show nothing, as processes other than the main one do.
        work: What the first so many steps do, in any unit; by default steps are alike.
    """

    def __init__(
        self, console: Console, *, title: str, total_steps: int, save_every: int, quiet: bool, work: Callable[[int], float] = float
    ) -> None:
        self._console, self._title, self._total, self._save_every, self._quiet = console, title, total_steps, save_every, quiet
        self._work = work
        self._live: Live | None = None
        self._bar = Progress(TextColumn("{task.fields[step]}"), BarColumn(None), TaskProgressColumn(), expand=True)
        self._task = self._bar.add_task("steps", total=total_steps, step="")
        self._smoothed = self._weight = 0.0
        self._first: tuple[int, float] | None = None
        self._evaluation: Mapping[str, Any] = {}
        self._last_line = 0.0

    def __enter__(self) -> RunDisplay:
        """Start the live panel where there is a terminal."""
        if self._console.is_terminal and not self._quiet:
            self._live = Live(console=self._console, refresh_per_second=4)
            self._live.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        """Stop the live panel; its last state stays on the screen."""
        if self._live is not None:
            self._show(self._live.stop)

    def say(self, text: str) -> None:
        """Print a line."""
        self._show(lambda: self._console.print(text, highlight=False, soft_wrap=True, markup=False))

    def _show(self, show: Callable[[], None]) -> None:
        """Show something, as long as there is somebody to look: a terminal or a pipe that is gone must not end a run."""
        try:
            if not self._quiet:
                show()
        except (OSError, SystemExit):  # which rich makes of a broken pipe
            self._quiet, self._live = True, None

    def evaluated(self, row: Mapping[str, Any]) -> None:
        """Show a validation."""
        self._evaluation = row
        if self._live is None:
            name = validation_key(row)
            assert name is not None
            self.say(
                f"step {row['step']:,}/{self._total:,}  validation loss {row[name]:.4f} (unigram baseline: "
                f"{row['eval/frequency_loss']:.4f})  accuracy {row[name.replace('_loss', '_accuracy')]:.3f}"
            )

    def logged(self, row: Mapping[str, Any]) -> None:
        """Show a logged step."""
        loss = row["train/loss"]
        if math.isfinite(loss):  # one that is not would stay in the mean
            self._weight = _SMOOTHING * self._weight + (1 - _SMOOTHING)
            self._smoothed += (loss - self._smoothed) * (1 - _SMOOTHING) / self._weight  # the first rows count in full
        step, seconds = row["step"], row["progress/wall_seconds"]
        if self._first is None or step <= self._first[0]:  # the latter after a rollback
            self._first = (step, seconds)
        done, took = self._work(step) - self._work(self._first[0]), seconds - self._first[1]
        left = duration((self._work(self._total) - self._work(step)) * took / done) if done else "?"
        if self._live is not None:
            live, panel = self._live, self._panel(row, left)
            self._show(lambda: live.update(panel))
        elif time.monotonic() - self._last_line >= _LINE_SECONDS or step == self._total:
            self._last_line = time.monotonic()
            self.say(
                f"step {step:,}/{self._total:,}  loss {loss:.4f} ({self._smoothed:.4f})  lr {row['optim/learning_rate']:.2e}  "
                f"theta {row['pld/theta']:.3f}  blocks {row['pld/kept_blocks']:.2f}  "
                f"{quantity(row['speed/tokens_per_second'])} tokens/s  {left} left"
            )

    def _panel(self, row: Mapping[str, Any], left: str) -> Panel:
        step = row["step"]
        self._bar.update(self._task, completed=step, step=f"step {step:,}/{self._total:,}")
        next_save = min(self._total, (step // self._save_every + 1) * self._save_every)
        cells = [
            ("loss", f"{row['train/loss']:.4f}"),
            ("smoothed", f"{self._smoothed:.4f}"),
            ("learning rate", f"{row['optim/learning_rate']:.3e}"),
            ("theta", f"{row['pld/theta']:.3f}"),
            ("kept blocks", f"{row['pld/kept_blocks']:.2f}"),
            ("gradient norm", f"{row['optim/grad_norm']:.3f}"),
            ("tokens/s", quantity(row["speed/tokens_per_second"])),
            ("MFU", f"{row['speed/mfu']:.1%}" if "speed/mfu" in row else "-"),
            ("tokens", quantity(row["progress/tokens"])),
            ("validation", f"{self._evaluation[name]:.4f}" if (name := validation_key(self._evaluation)) else "-"),
            ("next checkpoint", f"step {next_save:,}"),
            ("time left", left),
        ]
        grid = Table.grid(padding=(0, 1), expand=True)
        for _ in range(6):
            grid.add_column(no_wrap=True)
        for start in range(0, len(cells), 3):
            grid.add_row(*(part for name, value in cells[start : start + 3] for part in (f"[dim]{name}[/]", f"[bold]{value}[/]")))
        return Panel(Group(self._bar, grid), title=Text(self._title), title_align="left")
