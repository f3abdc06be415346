"""What is no local file as one: standard input, and addresses. A corpus is read twice, once for the tokenizer and once to encode it."""

from __future__ import annotations

import hashlib
import re
import secrets
import shutil
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from pldcli.console.progress import Progress
from pldcli.errors import DataError, UsageError
from pldcli.system import atomic
from pldcli.system.output_place import check_new

__all__ = ["Spool", "spooled"]

_STANDARD_INPUT = Path("-")
_CHUNK_BYTES = 1 << 20
_ADDRESS = re.compile(r"([a-z][a-z0-9+]+):/+(.+)")
_SECRETS = re.compile(r"(?<=://)[^/@]*@|[?#].*")
"""Of an address: who reads it, and what follows the path, which may be a signature."""


class Spool:
    """Makes local files of what is none.

    Args:
        out: The directory to make; files lie beside it, with room for as much text.
        overwrite: Replace what is there.
    """

    def __init__(self, out: Path, *, overwrite: bool) -> None:
        self._out, self._overwrite = out, overwrite
        self.stdin, self.fetched = out.with_name(f".{out.name}.stdin"), out.with_name(f".{out.name}.inputs")
        self.names: dict[Path, str] = {}
        """The address of each file that was fetched."""

    def local(self, inputs: Sequence[Path]) -> list[Path]:
        """Return the inputs with files in the place of `-` and of addresses.

        Args:
            inputs: Files and directories; `-` at most once. Of an address, patterns and folders stand for the files there.

        Raises:
            UsageError: Standard input is a terminal, or named twice; or what reads an address is not installed.
            DataError: There is nothing at an address, or it cannot be read.
            OutputError: The place is taken, which shows before anything is read; or the disk is full or not writable.
        """
        found: list[Path] = []
        for path in inputs:
            if path == _STANDARD_INPUT:
                found.append(self._standard_input())
            elif (match := _ADDRESS.fullmatch(str(path))) and not path.exists():
                found += self._fetch(f"{match[1]}://{match[2]}")
            else:
                found.append(path)
        return found

    def _standard_input(self) -> Path:
        if sys.stdin.isatty() or self.stdin.exists():
            what = "standard input is a terminal" if sys.stdin.isatty() else "standard input can be read once"
            raise UsageError(what, where="-", hint="pipe text into the command, or name files")
        check_new(self._out, overwrite=self._overwrite)
        with atomic.output_errors(self.stdin):
            self.stdin.mkdir(parents=True)
            first = sys.stdin.buffer.read(_CHUNK_BYTES)
            file = self.stdin / ("standard-input.jsonl" if first.lstrip()[:1] == b"{" else "standard-input.txt")
            with file.open("wb") as written:
                while first:
                    written.write(first)
                    first = sys.stdin.buffer.read(_CHUNK_BYTES)
        return file

    def _fetch(self, address: str) -> list[Path]:
        """Fetch the files at an address that are not there yet."""
        import fsspec

        check_new(self._out, overwrite=self._overwrite)
        shown = _SECRETS.sub("", address)
        try:
            system, place = fsspec.core.url_to_fs(address)
            there = sorted(system.glob(place)) if "*" in place else sorted(system.find(place)) if system.isdir(place) else [place]
            sizes = {one: int(system.info(one)["size"] or 0) for one in there}
        except (ImportError, ValueError) as error:
            raise UsageError(f"cannot be read here ({error})", where=shown, hint="fetch the files yourself, and name them") from error
        except Exception as error:
            raise _failed(shown, error) from error
        if not there:
            raise DataError("there is nothing", where=shown, hint="** stands for folders at any depth")
        files = []
        with Progress("Fetching", total=sum(sizes.values()), unit="bytes") as progress:
            for one, size in sizes.items():
                name = _SECRETS.sub("", system.unstrip_protocol(one))
                file = self.fetched / hashlib.sha256(name.encode()).hexdigest()[:16] / name.rpartition("/")[2]
                if not (file.is_file() and file.stat().st_size == size):
                    self._copy(system, one, file, shown, progress)
                self.names[file] = name
                files.append(file)
        return files

    def _copy(self, system: Any, address: str, file: Path, shown: str, progress: Progress) -> None:
        before = progress.completed
        with atomic.output_errors(self.fetched):
            file.parent.mkdir(parents=True, exist_ok=True)
            partial = file.with_name(f"{file.name}.{secrets.token_hex(4)}.part")
            try:
                source = system.open(address, "rb")
            except Exception as error:
                raise _failed(shown, error) from error
            with source, partial.open("wb") as written:
                while chunk := _read(source, shown):
                    written.write(chunk)
                    progress.update(before + written.tell())
            partial.rename(file)


@contextmanager
def spooled(out: Path, *, overwrite: bool, keep: bool = False) -> Iterator[Spool]:
    """Yield what makes local files.

    Args:
        out: As `Spool`'s.
        overwrite: As `Spool`'s.
        keep: Keep what was fetched when the block ends well, for others that share the work. Standard input is gone in any case.
    """
    spool = Spool(out, overwrite=overwrite)
    shutil.rmtree(spool.stdin, ignore_errors=True)  # of a process that was killed
    try:
        yield spool
        if not keep:
            shutil.rmtree(spool.fetched, ignore_errors=True)
    finally:
        shutil.rmtree(spool.stdin, ignore_errors=True)


def _read(source: Any, shown: str) -> bytes:
    try:
        chunk: bytes = source.read(_CHUNK_BYTES)
    except Exception as error:
        raise _failed(shown, error) from error
    return chunk


def _failed(shown: str, error: Exception) -> DataError:
    """Say why an address cannot be read; libraries for it raise what they like."""
    reason = _SECRETS.sub("", (str(error).splitlines() or [""])[0]) or type(error).__name__
    what = "no such file" if isinstance(error, FileNotFoundError) else f"cannot be fetched ({reason})"
    return DataError(what, where=shown, hint="run the same command again to go on with what is missing")
