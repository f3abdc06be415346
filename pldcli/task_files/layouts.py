"""Where the files of a task lie below a directory: as published, as the hub lays them out, or as `datasets` saved them."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from pldcli.choices import TaskKind
from pldcli.errors import DataError, MissingDataError
from pldcli.system.input_files import bare_name, ending
from pldcli.task_files.columnar import is_saved_dataset
from pldcli.task_files.table import ENDINGS
from pldcli.tasks.registry import TASKS
from pldcli.tasks.task import Task

__all__ = ["SplitFiles", "find_split_files", "splits_of", "where_to_put"]

_BENCHMARK_FOLDERS = ("glue", "glue_data", "squad")
_INNER_FOLDERS = ("plain_text", "data")
"""Where data sets of the hub keep their files, below their own folder."""

_PART = re.compile(r"(.+)-(\d{5})-of-(\d{5})", re.ASCII)


@dataclass(frozen=True)
class SplitFiles:
    """The files of one split, in order."""

    paths: tuple[Path, ...]
    note: str = ""
    """What the user should hear of the choice."""


def splits_of(task: Task) -> tuple[str, ...]:
    """List the splits of a task."""
    return (*([task.train] if task.train else ()), *task.validation, *task.test)


def find_split_files(data_dir: Path, task: Task) -> dict[str, SplitFiles]:
    """Find what there is of a task in a directory that holds the folders of a benchmark, or is the task's own.

    Raises:
        MissingDataError: There is nothing.
        DataError: Two files could be the same split.
    """
    if not data_dir.is_dir():
        what = "is not a directory" if data_dir.exists() else "no such directory"
        raise MissingDataError(what, where=str(data_dir), hint=f"to use {task.name}, {where_to_put(task)}")
    found: dict[Path, dict[str, SplitFiles]] = {}
    for folder in _folders_named_like(data_dir, task):
        if splits := _splits_in(folder, task):
            found[folder] = splits
    if len(found) > 1:
        first, second = list(found)[:2]
        raise DataError(f"both {first} and {second} hold {task.name}", where=str(data_dir), hint="name one of them with --data-dir")
    splits = next(iter(found.values())) if found else _first_with_splits(data_dir, task)
    if not splits:
        raise MissingDataError(f"holds no files of {task.name}", where=str(data_dir), hint=where_to_put(task))
    return splits


def where_to_put(task: Task) -> str:
    """Name the files that the task needs, and their place."""
    names = [f"{task.stems.get(split, (split.replace('validation', 'dev'),))[0]}" for split in splits_of(task)]
    suffix = ".json" if task.kind == TaskKind.SPANS else ".tsv"
    files = ", ".join(f"{name}{suffix}" for name in names)
    return f"put {files} (or .jsonl, .parquet) into DIR/{task.folder} and give --data-dir DIR"


def _key(task: Task) -> str:
    return task.name.rpartition("/")[2]


def _folders_named_like(data_dir: Path, task: Task) -> Iterator[Path]:
    names = {task.folder.lower(), _key(task), *(stem.lower() for stems in task.stems.values() for stem in stems)}
    roots = [data_dir, *(child for child in _children(data_dir) if child.is_dir() and child.name.lower() in _BENCHMARK_FOLDERS)]
    roots.extend(child for root in (data_dir / "snapshots",) if root.is_dir() for child in _children(root) if child.is_dir())
    for root in roots:
        for child in _children(root):
            if child.is_dir() and child.name.lower() in names:
                yield from (one for one in (child, *(child / inner for inner in _INNER_FOLDERS)) if one.is_dir())


def _first_with_splits(data_dir: Path, task: Task) -> dict[str, SplitFiles]:
    for folder in (data_dir, *(data_dir / inner for inner in _INNER_FOLDERS)):
        if folder.is_dir() and (splits := _splits_in(folder, task)):
            return splits
    return {}


def _splits_in(folder: Path, task: Task) -> dict[str, SplitFiles]:
    """Find the splits in one folder; in one that is called like another task only files that cannot be that other's."""
    others = {one.folder.lower() for one in TASKS.values()} | {_key(one) for one in TASKS.values()}
    name = folder.absolute().name.lower()
    foreign = name in others and name not in (task.folder.lower(), _key(task))
    shared = any(name == _key(one) for one in TASKS.values() if one.name != task.name)
    entries = [(stem, path) for path in _children(folder) if (stem := _stem(path)) is not None]
    found = {}
    for split in splits_of(task):
        stems = task.stems.get(split, ())
        files = _exact(entries, stems)
        if files is None and not foreign and not shared:
            names = _names(split)
            files = _exact(entries, names) or _beginning_with(entries, (*stems, *names), split)
        if files is not None:
            found[split] = files
    return found


def _names(split: str) -> tuple[str, ...]:
    names = (split, split.replace("validation", "dev"))
    return (*names, "valid", "val") if split == "validation" else names if names[0] != names[1] else names[:1]


def _exact(entries: list[tuple[str, Path]], names: tuple[str, ...]) -> SplitFiles | None:
    wanted = {name.lower() for name in names}
    whole = [path for stem, path in entries if stem.lower() in wanted]
    parts: dict[tuple[str, int], dict[int, Path]] = {}
    for stem, path in entries:
        match = _PART.fullmatch(stem)
        if match and match[1].lower() in wanted:
            parts.setdefault((match[1], int(match[3])), {})[int(match[2])] = path
    choices = [*((path,) for path in whole), *(tuple(path for _, path in sorted(some.items())) for some in parts.values())]
    if not choices:
        return None
    if len(choices) > 1:
        what = f"{choices[0][0].name} and {choices[1][0].name} are the same split"
        raise DataError(what, where=str(choices[0][0].parent), hint="keep one of them")
    for (stem, count), some in parts.items():
        if len(some) != count:
            missing = next(number for number in range(count) if number not in some)
            raise DataError(
                f"part {missing:05d} of {count:05d} of {stem} is missing", where=str(choices[0][0].parent), hint="copy the files again"
            )
    path = choices[0][0]
    return SplitFiles(choices[0] if not path.is_dir() or is_saved_dataset(path) else tuple(_parquet_parts(path)))


def _beginning_with(entries: list[tuple[str, Path]], names: tuple[str, ...], split: str) -> SplitFiles | None:
    """Take a single file whose name begins with the split's, such as a sample of it."""
    published = {stem.lower() for task in TASKS.values() for stems in task.stems.values() for stem in stems}
    found = [
        path
        for stem, path in entries
        if not path.is_dir()
        and stem.lower() not in published
        and any(stem.lower().startswith(name.lower()) and not stem[len(name) : len(name) + 1].isalpha() for name in names)
    ]
    if len(found) > 1:
        hint = f"call the one meant {split}{''.join(found[0].suffixes[-1:])}"
        raise DataError(f"both {found[0].name} and {found[1].name} could be {split}", where=str(found[0].parent), hint=hint)
    return SplitFiles((found[0],), f"{found[0]} is taken for {split}") if found else None


def _stem(path: Path) -> str | None:
    """Return a file's name without its ending, or a directory's where it holds a split; None for other files."""
    if path.is_dir():
        return path.name if is_saved_dataset(path) or _parquet_parts(path) else None
    return bare_name(path).stem if ending(path) in ENDINGS else None


def _parquet_parts(path: Path) -> list[Path]:
    return [child for child in _children(path) if child.suffix.lower() == ".parquet"]


def _children(folder: Path) -> list[Path]:
    return sorted(child for child in folder.iterdir() if not child.name.startswith("."))
