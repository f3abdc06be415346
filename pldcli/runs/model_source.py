"""Find and read a model: a run, a checkpoint of one, a fine-tuned model, or a Hugging Face directory."""

from __future__ import annotations

from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

from pldcli.data.prepared import PreparedData, data_fingerprint, read_manifest, verify_tokenizer
from pldcli.errors import CheckpointError, DataError, UsageError
from pldcli.huggingface.load import load_pretrained
from pldcli.pretrained import Pretrained
from pldcli.runs import checkpoint
from pldcli.runs.run_directory import RunDirectory, read_starts
from pldcli.tasks.task import Task
from pldcli.tokenization.tokenizer import Tokenizer, load_prepared_tokenizer

__all__ = ["check_tokenizer", "latest_run", "open_model", "recorded_data", "remembered_task", "short_name"]


def open_model(target: Path, *, data: Path | None = None, allow_bin: bool = False) -> Pretrained:
    """Read a model.

    Args:
        target: A run, a checkpoint, or a Hugging Face directory.
        data: Prepared data that holds a checkpoint's tokenizer; by default what its run was trained on.
        allow_bin: Read a pickle of weights where there is no safetensors file.

    Raises:
        CheckpointError: There is none, it is damaged, or it does not fit.
        DataError: What lies where the run's data was has another tokenizer.
    """
    source, damaged = _weights_of(target)
    if (source / "state.json").is_file():
        return replace(_from_checkpoint(source, data or recorded_data(source, same="tokenizer")), notes=damaged)
    return load_pretrained(source, allow_bin=allow_bin)


def latest_run(directory: Path = Path("runs")) -> Path:
    """Find the run that was written to last.

    Raises:
        UsageError: There is none.
    """
    runs = [path.parent for path in directory.glob("*/config.yaml")]
    if not runs:
        raise UsageError(f"no run in {directory}", hint="name a run or a model directory")
    return max(runs, key=_last_written)


def _last_written(run: Path) -> float:
    """Return when something in a run was written last; links count as such, and what goes away meanwhile not at all."""
    times = [0.0]
    for path in run.iterdir():
        with suppress(FileNotFoundError):
            times.append(path.lstat().st_mtime)
    return max(times)


def recorded_data(target: Path, *, same: Literal["data", "tokenizer"] = "data") -> Path:
    """Find the data that a run, or the run around a model or checkpoint, was trained on; `data` where none is recorded.

    It is looked for at its recorded path, then relative to the run, as in a project that was moved.

    Args:
        target: A run, or a directory in it.
        same: What it must share with the data that the run was trained on.

    Raises:
        DataError: Other data lies there now.
    """
    for place in (target, *target.absolute().parents[:2]):
        starts = read_starts(RunDirectory(place).environment)
        if starts and "data" in starts[-1]:
            return _same_data(place, starts[-1], same)
    return Path("data")


def _same_data(run: Path, start: dict[str, Any], same: Literal["data", "tokenizer"]) -> Path:
    candidates = [Path(start["data"])]
    if "data_from_run" in start:
        candidates.append((run / start["data_from_run"]).resolve())
    expected, others = start.get(f"{same}_fingerprint"), []
    for path in candidates:
        try:
            manifest = read_manifest(path)
            found = data_fingerprint(manifest) if same == "data" else manifest["tokenizer"]["fingerprint"]
        except (DataError, KeyError, TypeError):
            continue  # whoever opens it says what is wrong
        if expected in (None, found):
            return path
        others.append(path)
    if others:
        what = "is not the data" if same == "data" else "has not the tokenizer of the data"
        raise DataError(f"{what} that {run} was trained on", where=str(others[0]), hint="name the right one with --data")
    return candidates[0]


def check_tokenizer(loaded: Pretrained, prepared: PreparedData) -> None:
    """Check that `prepared` was tokenized with the model's tokenizer.

    Raises:
        DataError: It was tokenized with another one.
    """
    if loaded.tokenizer.fingerprint != prepared.fingerprint:
        raise _another_tokenizer(loaded.where, prepared.path)


def _another_tokenizer(model: Path | str, data: Path) -> DataError:
    how = f"--tokenizer {model}`" if Path(model, "tokenizer.json").is_file() else "--tokenizer` and the model's tokenizer"
    what = f"was tokenized with another tokenizer than that of {model}"
    return DataError(what, where=str(data), hint=f"prepare it again with `pld prepare-data {how}")


def remembered_task(loaded: Pretrained) -> Task | None:
    """Return the task that fine-tuning recorded with a model; None where it recorded none.

    Raises:
        CheckpointError: The record is damaged.
    """
    if loaded.task is None:
        return None
    try:
        return Task.from_record(loaded.task)
    except ValueError as error:
        raise CheckpointError(f"pld_task in config.json is damaged ({error})", where=loaded.where) from error


def short_name(target: Path) -> str:
    """Name a model after its directory, or after the directory around `model/`."""
    path = target.resolve()
    if path.name.startswith("step-") and path.parent.name == "checkpoints":
        return f"{path.parents[1].name}-{path.name}"
    return path.parent.name if path.name == "model" and path.parent.name else path.name


def _weights_of(target: Path) -> tuple[Path, tuple[str, ...]]:
    """Find the directory that holds the weights: a run's finished model, else its newest checkpoint that verifies.

    Returns:
        It, and a line on each newer checkpoint, which does not verify.
    """
    if not target.is_dir():
        raise CheckpointError("no such run or model directory", where=str(target), hint="`pld runs` lists the runs here")
    run = RunDirectory(target)
    if (target / "state.json").is_file() or (target / "config.json").is_file():
        return target, ()
    if (run.model / "config.json").is_file():
        return run.model, ()
    if not run.config.is_file():
        return target, ()
    newest, damaged = checkpoint.newest_valid(run.checkpoints)
    if newest is None:
        of_each = f" ({', '.join(damaged)})" if damaged else ""
        raise CheckpointError(f"this run has no model and no complete checkpoint yet{of_each}", where=str(target), hint="train it further")
    return newest, tuple(damaged)


def _from_checkpoint(path: Path, data: Path) -> Pretrained:
    snapshot = checkpoint.read(path)
    config = snapshot.config
    tokenizer = _tokenizer_of(path, data, snapshot.tokenizer_fingerprint)
    # In the middle of a run, positions are rotated as in the stage that these weights were trained in last, and blocks that never ran
    # are no part of the model yet.
    step = snapshot.position.step
    settings = config.model.replace(global_rope_theta=config.curriculum.at(max(0, step - 1)).rope_theta)
    loaded = Pretrained(
        where=str(path),
        settings=settings,
        weights=snapshot.weights,
        seq_len=config.data.seq_len,
        tokenizer=tokenizer,
        causal=config.objective.is_causal,
    )
    trained = config.pld_schedule.trained_gates(step)
    return loaded if all(trained) else loaded.with_blocks(trained)


def _tokenizer_of(path: Path, data: Path, fingerprint: str) -> Tokenizer:
    try:
        verify_tokenizer(data)
        tokenizer = load_prepared_tokenizer(data)
    except DataError as error:
        what = f"its tokenizer is not in {data} ({error.where}: {error.what})"
        raise CheckpointError(what, where=str(path), hint="name the data it was trained on with --data") from error
    if tokenizer.fingerprint != fingerprint:
        raise _another_tokenizer(path, data)
    return tokenizer
