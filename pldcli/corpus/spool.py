"""What is no local file as one: standard input, and addresses. A corpus is read twice, once for the tokenizer and once to encode it."""

from __future__ import annotations

import hashlib
import secrets
import shutil
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from pldcli.console.progress import Progress
from pldcli.corpus.addresses import Address, Location, address_of, files_at
from pldcli.errors import OutputError, UsageError
from pldcli.system import atomic
from pldcli.system.output_place import check_new

__all__ = ["Spool", "spooled"]

_STANDARD_INPUT = Path("-")
_CHUNK_BYTES = 1 << 20
_FETCHED_BYTES = 8 << 20
"""Asked of the other side at a time."""


class Spool:
    """Makes local files of what is none.

    Args:
        out: The directory to make; files lie beside it, with room for as much text.
        overwrite: Replace what is there.
        stream: Leave addresses as they are, to be read in parts where they lie, again for every pass.
    """

    def __init__(self, out: Path, *, overwrite: bool, stream: bool = False) -> None:
        self._out, self._overwrite, self._stream = out, overwrite, stream
        self.stdin, self.fetched = out.with_name(f".{out.name}.stdin"), out.with_name(f".{out.name}.inputs")
        self.names: dict[Location, str] = {}
        """The address of each file that was fetched."""

    def local(self, inputs: Sequence[Path]) -> list[Path]:
        """Return the inputs with files in the place of `-` and of addresses.

        Args:
            inputs: Files and directories; `-` at most once. Of an address, patterns and folders stand for the files there.

        Raises:
            UsageError: Standard input is a terminal, or named twice; or what reads an address is not installed.
            DataError: There is nothing at an address, or it cannot be read.
            OutputError: The place is taken or too small, which shows before anything is read; or the disk is full or not writable.
        """
        found: list[Path] = []
        for path in inputs:
            if path == _STANDARD_INPUT:
                found.append(self._standard_input())
            elif not self._stream and (address := address_of(path)):
                found += self._fetch(address)
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
        check_new(self._out, overwrite=self._overwrite)
        places = {one: self.fetched / hashlib.sha256(one.shown.encode()).hexdigest()[:16] / one.name for one in files_at(address)}
        missing = {one: file for one, file in places.items() if not (file.is_file() and file.stat().st_size == one.num_bytes)}
        self._check_room(sum(one.num_bytes or 0 for one in missing), where=next(iter(places)).shown)
        with Progress("Fetching", total=sum(one.num_bytes or 0 for one in places), unit="bytes") as progress:
            for one, file in places.items():
                before = progress.completed
                if one in missing:
                    self._copy(one, file, lambda done, before=before: progress.update(before + done))  # type: ignore[misc]
                progress.update(before + (one.num_bytes or 0))
                self.names[file] = one.shown
        return list(places.values())

    def _check_room(self, num_bytes: int, *, where: str) -> None:
        beside = next(place for place in self._out.absolute().parents if place.is_dir())
        free = shutil.disk_usage(beside).free
        if num_bytes > free:
            what = f"{num_bytes / 1e9:,.1f} GB are to be fetched to {beside}, where {free / 1e9:,.1f} GB are free"
            raise OutputError(what, where=where, hint="--stream reads them where they are")

    def _copy(self, address: Address, file: Path, report: Callable[[int], None]) -> None:
        with atomic.output_errors(self.fetched):
            file.parent.mkdir(parents=True, exist_ok=True)
            partial = file.with_name(f"{file.name}.{secrets.token_hex(4)}.part")
            with address.open(buffering=0) as source, partial.open("wb") as written:
                while chunk := source.read(_FETCHED_BYTES):
                    written.write(chunk)
                    report(written.tell())
            partial.rename(file)


@contextmanager
def spooled(out: Path, *, overwrite: bool, keep: bool = False, stream: bool = False) -> Iterator[Spool]:
    """Yield what makes local files.

    Args:
        out: As `Spool`'s.
        overwrite: As `Spool`'s.
        keep: Keep what was fetched when the block ends well, for others that share the work. Standard input is gone in any case.
        stream: As `Spool`'s.
    """
    spool = Spool(out, overwrite=overwrite, stream=stream)
    shutil.rmtree(spool.stdin, ignore_errors=True)  # of a process that was killed
    try:
        yield spool
        if not keep:
            shutil.rmtree(spool.fetched, ignore_errors=True)
    finally:
        shutil.rmtree(spool.stdin, ignore_errors=True)
