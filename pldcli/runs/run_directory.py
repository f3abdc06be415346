"""A run directory: its files, its lock, and the state of the run."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import KW_ONLY, dataclass
from pathlib import Path
from typing import Any, Literal

from pldcli import presets
from pldcli.config import Config
from pldcli.errors import OutputError, PldError
from pldcli.runs.metrics import VALIDATION_LOSSES, read_metrics
from pldcli.system import atomic, locks
from pldcli.system.json_text import from_json
from pldcli.system.output_place import check_output

__all__ = ["RunDirectory", "RunState", "RunSummary", "has_saved", "list_runs", "read_starts", "run_state", "summarise"]

RunState = Literal["running", "finished", "stopped", "not started", "unreadable"]
_WORD = r"""((?:'[^']*'|"[^"]*"|[^ '"])+)"""
_RESUME, _OUT, _PRESET = (re.compile(f" --{name}[ =]{_WORD}") for name in ("resume", "out", "preset"))
"""As `shlex.join` writes them; a word with `=` in it stands in quotes as a whole where it has to."""


class RunDirectory:
    """runs/NAME and the files in it."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.config = path / "config.yaml"
        self.environment = path / "environment.json"  # versions, hardware and command of every start
        self.metrics = path / "metrics.jsonl"
        self.checkpoints = path / "checkpoints"
        self.model = path / "model"  # the finished model as a Hugging Face directory
        self.plots = path / "plots"
        self.card = path / "README.md"
        self.saving = self.checkpoints / ".saving"  # while a checkpoint is written in the background
        self.save_request = path / "SAVE"  # made by whoever wants a checkpoint now, and removed once it is there

    def check_usable(self) -> None:
        """Refuse a directory that holds something else.

        Raises:
            OutputError: It is a file, or a non-empty directory that is not a run's.
        """
        if not self.config.is_file() and (saved := sorted(self.checkpoints.glob("step-*/config.yaml"))):
            hint = f"copy {saved[-1]} there, or choose another place with --out"
            raise OutputError("holds checkpoints, but its config.yaml is missing", where=str(self.path), hint=hint)
        check_output(self.path, "a run directory", mark=self.config.name)

    def check_still_there(self) -> None:
        """Refuse to go on where the directory was moved or removed since the run began: what is written would be a second one.

        Raises:
            OutputError: It was.
        """
        if not self.config.is_file():
            hint = "put it back and run the same command again"
            raise OutputError("is gone: it was moved or removed while the run was going on", where=str(self.path), hint=hint)

    def set_aside(self) -> Path | None:
        """Rename an earlier run to NAME.1, NAME.2, ...; return its new path, or None where there was none.

        Raises:
            OutputError: A process is training there, or it cannot be renamed.
        """
        if not self.config.is_file():
            return None
        with self.lock():
            return atomic.set_aside(self.path)

    @contextmanager
    def lock(self) -> Iterator[None]:
        """Lock the directory against a second trainer.

        Raises:
            OutputError: Another process holds it, or it is not writable.
        """
        with locks.locked(self.path, "training"):
            yield

    @property
    def has_model(self) -> bool:
        """Whether there is a finished model."""
        return (self.model / "config.json").is_file()

    @property
    def has_weights(self) -> bool:
        """Whether there are weights to resume from: a finished model, checkpoints, or this is a checkpoint itself."""
        return self.has_model or any(self.checkpoints.glob("step-*")) or (self.path / "state.json").is_file()

    @property
    def what_is_saved(self) -> str:
        """Which checkpoint is the last, in words; not verified."""
        last = max(self.checkpoints.glob("step-*"), default=None)
        return f"{self.path} has no checkpoint" if last is None else f"the last checkpoint is {last}"

    @property
    def is_finished(self) -> bool:
        """Whether the run has ended: the card is written last."""
        return self.has_model and self.card.is_file()

    @property
    def is_locked(self) -> bool:
        """Whether a process is training here now."""
        return locks.is_held(self.path)


@dataclass(frozen=True)
class RunSummary:
    """A run as `pld runs` lists it."""

    path: Path
    state: RunState
    _: KW_ONLY
    step: int = 0
    total_steps: int = 0
    train_loss: float | None = None
    eval_loss: float | None = None
    train_seconds: float = 0.0
    next_action: str
    """The command to run next, or what is wrong."""


def read_starts(path: Path) -> list[dict[str, Any]]:
    """Read the starts of a run from environment.json, oldest first; none where it cannot be read."""
    try:
        starts = from_json(path.read_text(encoding="utf-8"))["starts"]
    except (OSError, ValueError, KeyError, TypeError):
        return []
    return [start for start in starts if isinstance(start, dict)] if isinstance(starts, list) else []


def list_runs(directory: Path) -> list[RunSummary]:
    """Summarise the runs in a directory, by name."""
    if not directory.is_dir():
        return []
    places = sorted(path.parent for path in directory.glob("*/config.yaml"))
    return [summarise(RunDirectory(place)) for place in places]


def summarise(run: RunDirectory) -> RunSummary:
    """Summarise one run."""
    try:
        config = presets.load(run.config)
    except PldError as error:
        return RunSummary(run.path, "unreadable", next_action=str(error))
    rows = read_metrics(run.metrics)
    step = max((row["step"] for row in rows), default=0)
    state = run_state(run, config, step)
    reached = config.train.total_steps if state == "finished" else max(step, _last_saved(run))
    start: dict[str, Any] = next(reversed(read_starts(run.environment)), {})
    again = _in_place(start["command"], run.path) if start.get("command") else "the same `pld pretrain` line again"
    actions = {
        "running": "wait, or follow it in metrics.jsonl",
        "finished": shlex.join(["pld", "evaluate", str(run.path)]),
        "stopped": _how_to_resume(run, config, step, again),
        "not started": f"{again} (starts)",
    }
    return RunSummary(
        run.path,
        state,
        step=reached,
        total_steps=config.train.total_steps,
        train_loss=_last(rows, "train/loss"),
        eval_loss=_last(rows, *VALIDATION_LOSSES),
        train_seconds=_last(rows, "progress/train_seconds") or 0.0,
        next_action=actions[state],
    )


def run_state(run: RunDirectory, config: Config, step: int) -> RunState:
    """Return the state of a run, as starting it again would find it.

    Args:
        run: Its directory.
        config: Its configuration.
        step: Last step in its metrics; 0 where there is none.
    """
    if run.is_locked:
        return "running"
    reached = max(step, _last_saved(run))
    # A model without metrics counts as finished where nothing says otherwise; with its checkpoints a missing card is written again.
    if run.has_model and (reached >= config.train.total_steps or not reached) and (run.card.is_file() or not _last_saved(run)):
        return "finished"
    return "stopped" if reached or run.has_model else "not started"


def has_saved(run: RunDirectory, step: int, config: Config) -> bool:
    """Return whether a run with metrics up to `step` must have saved a checkpoint, which follows the metrics of its step.

    One that was killed while it wrote in the background may have gone on beyond that.
    """
    return step > config.checkpoint.every_steps and not run.saving.exists()


def _how_to_resume(run: RunDirectory, config: Config, step: int, again: str) -> str:
    if _last_saved(run):
        return f"{_without_resume(again)} (resumes from the newest checkpoint)"
    if run.has_model or has_saved(run, step, config):
        return f"{_without_resume(again)}, with --resume never (its checkpoints are gone)"
    return f"{again} (starts over: it was stopped before its first checkpoint)"


def _in_place(command: str, path: Path) -> str:
    """Let a command line train in a directory, which may have been copied or renamed since it was typed."""
    if _OUT.search(command):
        return _OUT.sub(lambda found: f" --out {shlex.quote(str(path))}", command)
    preset = _PRESET.search(command)
    is_named_after = preset is None or Path(shlex.split(preset[1])[0]).stem == path.name
    return command if is_named_after else f"{command} --out {shlex.quote(str(path))}"


def _without_resume(command: str) -> str:
    """Leave `--resume` out of a command line: never would set the run aside, and a checkpoint set it back."""
    return _RESUME.sub("", command)


def _last_saved(run: RunDirectory) -> int:
    """Read the step of the newest checkpoint from its name; 0 where there is none."""
    steps = (path.name.removeprefix("step-") for path in run.checkpoints.glob("step-*"))
    return max((int(step) for step in steps if step.isdecimal()), default=0)


def _last(rows: list[dict[str, Any]], *names: str) -> float | None:
    return next((row[name] for row in reversed(rows) for name in names if row.get(name) is not None), None)
