"""Where a run starts: from scratch, after a checkpoint, or not at all because it is finished.

Existing work is never overwritten: `--resume never` sets it aside first.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from pldcli import presets
from pldcli.config import Config
from pldcli.errors import CheckpointError
from pldcli.runs import checkpoint
from pldcli.runs.checkpoint import Position, Snapshot, check_same_run
from pldcli.runs.metrics import read_metrics
from pldcli.runs.run_directory import RunDirectory, has_saved, read_starts
from pldcli.system.agreement import HASH_DIGITS
from pldcli.system.seal import read_sums

__all__ = ["StartingPoint", "find_starting_point", "newest_checkpoint", "resume_of_restart"]


@dataclass(frozen=True)
class StartingPoint:
    """What to do with a run directory."""

    snapshot: Snapshot | None = None
    """The checkpoint to resume from; None to start from scratch."""
    end: Position | None = None
    """Where the run ended, if it is finished."""
    stranded_step: int = 0
    """Last step in the metrics of a run that was killed before its first checkpoint, which have to be set aside; 0 where there are none."""

    @property
    def position(self) -> Position:
        """Position from which the run starts or resumes."""
        return self.snapshot.position if self.snapshot else Position()

    @property
    def facts(self) -> dict[str, str]:
        """Describe it for `Runtime.check_agreement`: of a shared directory not all machines see a new file at once."""
        name = "none, the run is finished" if self.end is not None else "none"
        if self.snapshot is not None:
            name = f"{self.snapshot.path.name} ({read_sums(self.snapshot.path)['state.json'][:HASH_DIGITS]})"
        return {"the checkpoint to resume from": name}


def resume_of_restart(run: RunDirectory, resume: str, *, is_of_this_job: Callable[[str], bool]) -> str:
    """Return where a job starts from, whose processes may have been started anew: what it did itself is neither set aside nor set back.

    Args:
        run: The run directory.
        resume: What the job was told: `auto`, `never`, or the path of a checkpoint.
        is_of_this_job: Whether a start of the run that is on record was by the same job.
    """
    starts = read_starts(run.environment)
    if not starts or not is_of_this_job(str(starts[-1].get("job", ""))):
        return resume
    # A named checkpoint of another run is still where this one begins, until it has one of its own.
    return resume if resume != "never" and not checkpoint.list_checkpoints(run.checkpoints) else "auto"


def find_starting_point(run: RunDirectory, config: Config, *, data: str, resume: str, say: Callable[[str], None]) -> StartingPoint:
    """Decide how to start, from the files alone; nothing is written, so that all processes decide the same.

    Args:
        run: The run directory.
        config: The resolved configuration.
        data: Fingerprint of the prepared data.
        resume: `auto`, `never`, or the path of a checkpoint.
        say: Prints a line.

    Raises:
        CheckpointError: The work in the directory is of another run, or has no checkpoint to resume from.
    """
    if resume == "never":
        return StartingPoint()
    rows = read_metrics(run.metrics)
    if resume != "auto":
        return _from_named(run, config, data, Path(resume), rows, say)
    path, complaints = newest_checkpoint(run.checkpoints, say)
    if path is not None:
        return _from_snapshot(run, checkpoint.read(path), config, data, rows)
    stored = _stored(run, config, data, rows)
    if stored is None and not complaints:
        return StartingPoint()
    last = _last_step(rows)
    if run.has_model and (not rows or last >= config.train.total_steps):
        return StartingPoint(end=_end(rows, config))
    if complaints:
        raise CheckpointError("no checkpoint verifies", where=str(run.checkpoints), hint="start over with --resume never")
    assert stored is not None
    if run.has_model or has_saved(run, last, stored):
        what = " and ".join([*([f"metrics up to step {last:,}"] if rows else []), *(["a model"] if run.has_model else [])])
        hint = "put its checkpoints back, choose another place with --out, or set it aside with --resume never"
        raise CheckpointError(f"holds {what}, but no checkpoint to resume from", where=str(run.path), hint=hint)
    return StartingPoint(stranded_step=last)


def newest_checkpoint(checkpoints: Path, say: Callable[[str], None]) -> tuple[Path | None, list[str]]:
    """Find the newest checkpoint that verifies, and say what is wrong with newer ones; return that, too."""
    path, complaints = checkpoint.newest_valid(checkpoints)
    for complaint in complaints:
        say(f"warning: {complaint}")
    return path, complaints


def _from_snapshot(run: RunDirectory, snapshot: Snapshot, config: Config, data: str, rows: list[dict[str, Any]]) -> StartingPoint:
    check_same_run(snapshot.config, config, stored_data=snapshot.data_fingerprint, data=data, where=snapshot.path)
    total = config.train.total_steps
    if run.is_finished and snapshot.position.step >= total:
        return StartingPoint(end=snapshot.position)
    if run.is_finished and _last_step(rows) >= total:  # its last checkpoint is gone or damaged
        return StartingPoint(end=_end(rows, config))
    return StartingPoint(snapshot)


def _from_named(
    run: RunDirectory, config: Config, data: str, path: Path, rows: list[dict[str, Any]], say: Callable[[str], None]
) -> StartingPoint:
    """Start after the named checkpoint: one of this run, which is to be set back, or one of another run, which is continued here."""
    if (path / "checkpoints").is_dir():
        newest, _ = newest_checkpoint(path / "checkpoints", say)
        if newest is None:
            hint = "name another run or checkpoint with --resume"
            raise CheckpointError("no checkpoint verifies", where=str(path / "checkpoints"), hint=hint)
        path = newest
    if not path.is_dir():
        raise CheckpointError("no such checkpoint", where=str(path), hint="give auto, never, or a directory checkpoints/step-*")
    snapshot = checkpoint.read(path)
    if path.resolve().parent == run.checkpoints.resolve():
        return _from_snapshot(run, snapshot, config, data, [])
    check_same_run(snapshot.config, config, stored_data=snapshot.data_fingerprint, data=data, where=path)
    if run.has_model or checkpoint.list_checkpoints(run.checkpoints):
        hint = "resume that one with --resume auto, or choose another place with --out"
        raise CheckpointError(f"holds a run already, and {path} is not of it", where=str(run.path), hint=hint)
    _stored(run, config, data, rows)
    return StartingPoint(snapshot, stranded_step=_last_step(rows))


def _stored(run: RunDirectory, config: Config, data: str, rows: list[dict[str, Any]]) -> Config | None:
    """Return the configuration of a run that did some work, and refuse to resume another one; None where nothing was done."""
    if not run.config.is_file() or not (rows or run.has_model):
        return None
    stored = presets.load(run.config)
    starts = read_starts(run.environment)
    stored_data = starts[-1].get("data_fingerprint") if starts else None
    check_same_run(stored, config, stored_data=stored_data, data=data, where=run.path)
    return stored


def _last_step(rows: list[dict[str, Any]]) -> int:
    return max((row["step"] for row in rows), default=0)


def _end(rows: list[dict[str, Any]], config: Config) -> Position:
    """Reconstruct the final position of a finished run from its metrics, as far as they go."""
    last = max(rows, key=lambda row: row["step"], default={})
    progress = {name: last.get(f"progress/{name}") or number for name, number in asdict(Position()).items()}
    return Position(**progress | {"step": config.train.total_steps})
