"""The files of a corpus: what the command line names, found, each once, and told apart by what they hold."""

from __future__ import annotations

import errno
import glob
import os
import stat
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from pldcli.corpus.addresses import SAVED_DATASET, Address, Location, address_of, files_at
from pldcli.errors import DataError, UsageError
from pldcli.system.extras import require
from pldcli.system.input_files import Format, compression_of, format_of, input_errors
from pldcli.system.json_text import from_json

__all__ = ["EMPTY_FILE", "FILE_TWICE", "FOLDER_TWICE", "IRREGULAR_FILE", "LINK_TO_NOTHING", "Source", "find_sources", "notes_on_skipped"]

EMPTY_FILE = "empty file"
FOLDER_TWICE = "folder linked twice"
FILE_TWICE = "file named twice"
IRREGULAR_FILE = "not a regular file"
LINK_TO_NOTHING = "link to nothing"
_PREPARED = {"manifest.json", "tokenizer.json"}


@dataclass(frozen=True)
class Source:
    """One file of a corpus."""

    path: Location
    num_bytes: int
    format: Format
    compression: str
    """`gzip`, `bzip2`, `xz`, `zstd`, or empty for a plain file."""
    weight: float = 1.0
    """How often its text counts in training."""
    name: str = ""
    """What the user calls it, where not by its path."""

    @property
    def shown(self) -> str:
        """What it is called in the manifest."""
        return self.name or str(self.path)


def find_sources(inputs: Sequence[Path], *, exclude: Path | None = None) -> tuple[list[Source], Counter[str]]:
    """List the files that the command line names.

    Args:
        inputs: Files, directories and patterns of them, also at addresses; a directory is walked in sorted order with the folders that it
            links to, its hidden files left out.
        exclude: A directory that is not read; neither are those of prepared data.

    Returns:
        Every file once, and what was left out, by reason.

    Raises:
        DataError: A file is missing, empty, or not a regular file; or there are no files.
        UsageError: Files at an address cannot be read in parts there, or not at all, or what reads the format is not installed.
    """
    sources: dict[Location, Source] = {}
    skipped: Counter[str] = Counter()
    for path, is_named in _listed(inputs, exclude, skipped):
        num_bytes, cause = _size(path)
        if cause:
            if is_named:
                raise _refused(path, cause)
            skipped[cause] += 1
        elif (place := path.resolve()) in sources:
            skipped[FILE_TWICE] += 1
        else:
            sources[place] = _source(path, num_bytes)
    if not sources:
        raise DataError("no files with text here", where=", ".join(map(str, inputs)), hint="name text or JSON-lines files")
    return list(sources.values()), skipped


def notes_on_skipped(skipped: Counter[str]) -> list[str]:
    """Return a line on what was left out, by reason; none where nothing was."""
    return [f"skipped: {', '.join(f'{count:,} x {reason}' for reason, count in sorted(skipped.items()))}"] if skipped else []


def _listed(inputs: Sequence[Path], exclude: Path | None, skipped: Counter[str]) -> Iterator[tuple[Location, bool]]:
    """List files, and whether each was named itself."""
    left_out = {exclude.resolve()} if exclude else set[Path]()
    for given in inputs:
        if address := address_of(given):
            there = files_at(address)
            yield from ((path, len(there) == 1) for path in there)
            continue
        for path in _matched(given):
            if path != given and not left_out.isdisjoint(((place := path.resolve()), *place.parents)):
                continue
            if path.is_dir():
                yield from ((inner, False) for inner in _walk(path, left_out, skipped))
            else:
                yield path, path == given


def _matched(given: Path) -> list[Path]:
    """Replace a pattern by what it matches, sorted."""
    if not glob.has_magic(str(given)) or given.exists():
        return [given]
    found = sorted(glob.glob(str(given), recursive=True))  # noqa: PTH207 - Path.glob takes no absolute patterns
    if not found:
        raise DataError("matches no file", where=str(given), hint="** stands for folders at any depth")
    return list(map(Path, found))


def _walk(directory: Path, left_out: set[Path], skipped: Counter[str]) -> Iterator[Path]:
    """List the files of a directory; folders of prepared data are left out, and join those that are."""

    def fail(error: OSError) -> None:
        with input_errors(error.filename):
            raise error

    walked = {directory.resolve()}
    for folder, folders, names in os.walk(directory, onerror=fail, followlinks=True):
        there, folders[:] = sorted(name for name in folders if not name.startswith(".")), []
        for name in there:
            place = Path(folder, name).resolve()
            if place in walked:  # linked to from two places, or from within itself
                skipped[FOLDER_TWICE] += 1
            elif place not in left_out:
                walked.add(place)
                folders.append(name)
        if _PREPARED.issubset(names):
            skipped["folder of prepared data"] += 1
            left_out.add(Path(folder).resolve())
            folders.clear()
            continue
        if set(names) >= SAVED_DATASET:
            names = _files_of_dataset(Path(folder), names)
        yield from (Path(folder, name) for name in sorted(names) if not name.startswith(".") and name != "dataset_dict.json")


def _files_of_dataset(folder: Path, names: Sequence[str]) -> list[str]:
    """Name the files that hold a saved dataset: not what `datasets` kept beside it when it was filtered or shuffled."""
    arrow = [name for name in names if name.endswith(".arrow")]
    try:
        listed = {one["filename"] for one in from_json((folder / "state.json").read_bytes())["_data_files"]}
    except (OSError, ValueError, KeyError, TypeError):
        return arrow
    return [name for name in arrow if name in listed]


def _size(path: Location) -> tuple[int, str]:
    """Return how large a file is, and why there is nothing to read in it; empty where there is.

    Raises:
        DataError: There is no such file, or it cannot be looked at.
        UsageError: Where it lies, nobody says how large it is.
    """
    if isinstance(path, Address):
        if path.num_bytes is None:
            what = "cannot be read in parts, since its size is not known"
            raise UsageError(what, where=str(path), hint="`pld prepare-data` without --stream fetches it")
        return path.num_bytes, "" if path.num_bytes else EMPTY_FILE
    try:
        status = path.stat()
    except OSError as error:
        if path.is_symlink() and error.errno in (errno.ENOENT, errno.ELOOP):
            return 0, LINK_TO_NOTHING
        with input_errors(path):
            raise
    if not stat.S_ISREG(status.st_mode):
        return 0, IRREGULAR_FILE
    return status.st_size, "" if status.st_size else EMPTY_FILE


def _refused(path: Location, cause: str) -> DataError:
    what, hint = {
        LINK_TO_NOTHING: ("links to nothing", "mend the link, or name the file"),
        IRREGULAR_FILE: ("is not a regular file", "the corpus is read twice, so write it to a file first"),
        EMPTY_FILE: ("is empty", "name a file with text in it"),
    }[cause]
    return DataError(what, where=str(path), hint=hint)


def _source(path: Location, num_bytes: int) -> Source:
    compression = compression_of(path)
    kind = format_of(path, compression)
    if kind == "wiki":
        require("mwparserfromhell", extra="wikipedia", where=str(path))
    return Source(path, num_bytes, kind, compression)
