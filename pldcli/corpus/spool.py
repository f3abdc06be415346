"""What is no local file as one: standard input, and addresses. A corpus is read twice, once for the tokenizer and once to encode it."""

from __future__ import annotations

import hashlib
import json
import shutil
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import NoReturn

from pldcli.console.progress import Progress
from pldcli.corpus.addresses import Address, Location, address_of, files_at
from pldcli.errors import DataError, OutputError, UsageError
from pldcli.system import atomic, locks
from pldcli.system.output_place import check_new
from pldcli.system.signals import first_signal, stop_error

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
        is_shared: Other processes read the same inputs.
        stream: Leave addresses as they are, to be read in parts where they lie, again for every pass.
    """

    def __init__(self, out: Path, *, overwrite: bool, is_shared: bool = False, stream: bool = False) -> None:
        check_new(out, overwrite=overwrite)
        self._out, self._is_shared, self._stream = out, is_shared, stream
        self.stdin, self.fetched = out.with_name(f".{out.name}.stdin"), out.with_name(f".{out.name}.inputs")
        self.names: dict[Location, str] = {}
        """The address of each file that was fetched."""
        self.held = ExitStack()
        """The place of standard input, while its text is needed."""
        self._files: dict[tuple[str, str], Path] = {}
        self._stdin_is_read = False

    def local(self, inputs: Sequence[Path]) -> list[Path]:
        """Return the inputs with files in the place of `-` and of addresses.

        Args:
            inputs: Files and directories; `-` at most once. Of an address, patterns and folders stand for the files there.

        Raises:
            UsageError: Standard input is a terminal, named twice or shared; or what reads an address is not installed.
            DataError: There is nothing at an address, or it cannot be read.
            OutputError: The place is in use or too small, which shows before anything is read; or the disk is full or not writable.
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
        if self._is_shared:
            raise UsageError("standard input is read by one process alone", where="-", hint="write the text to a file that all shares see")
        if sys.stdin.isatty() or self._stdin_is_read:
            what = "standard input is a terminal" if sys.stdin.isatty() else "standard input can be read once"
            raise UsageError(what, where="-", hint="pipe text into the command, or name files")
        self.held.enter_context(_held_until_gone(self.stdin))
        self._stdin_is_read = True
        with first_signal(_stop), atomic.output_errors(self.stdin):
            file = self.stdin / "standard-input.txt"  # JSON lines are told by what they hold
            with file.open("wb") as written:
                shutil.copyfileobj(sys.stdin.buffer, written, _CHUNK_BYTES)
        return file

    def _fetch(self, address: str) -> list[Path]:
        """Fetch the files at an address that are not there yet, one process at a time; each of several is alone in its folder."""
        places = {one: self._file_of(one) for one in files_at(address)}
        with locks.locked(self.fetched, "fetching", waits=True):
            missing = {one for one, file in places.items() if not _is_complete(one, file)}
            self._check_room(sum(one.num_bytes or 0 for one in missing), where=next(iter(places)).shown)
            with Progress("Fetching", total=sum(one.num_bytes or 0 for one in places), unit="bytes") as progress:
                for one, file in places.items():
                    before = progress.completed
                    if one in missing:
                        self._copy(one, file, lambda done, before=before: progress.update(before + done))  # type: ignore[misc]
                    progress.update(before + (one.num_bytes or 0))
                    self.names[file] = one.shown
        # A folder's files are not named themselves: an empty one is counted, not refused.
        return [file if len(places) == 1 else file.parent for file in places.values()]

    def _file_of(self, address: Address) -> Path:
        """Choose where a file goes: a name for what it is now, and for its whole place, of which what is shown may be a part."""
        now = json.dumps([address.shown, address.place, address.num_bytes, address.version])
        file = self.fetched / hashlib.sha256(now.encode()).hexdigest()[:16] / address.name
        return self._files.setdefault((address.shown, address.place), file)  # sizes and versions depend on how a file was found

    def _check_room(self, num_bytes: int, *, where: str) -> None:
        beside = next(place for place in self._out.absolute().parents if place.is_dir())
        free = shutil.disk_usage(beside).free
        if num_bytes > free:
            what = f"{num_bytes / 1e9:,.1f} GB are to be fetched to {beside}, where {free / 1e9:,.1f} GB are free"
            raise OutputError(what, where=where, hint="--stream reads them where they are")

    def _copy(self, address: Address, file: Path, report: Callable[[int], None]) -> None:
        with atomic.output_errors(self.fetched):
            file.parent.mkdir(parents=True, exist_ok=True)
            partial = file.with_name(".part")
            with address.open(buffering=0) as source, partial.open("wb") as written:
                while chunk := source.read(_FETCHED_BYTES):
                    written.write(chunk)
                    report(written.tell())
            num_bytes = partial.stat().st_size
            if address.num_bytes not in (None, num_bytes):
                what = f"came with {num_bytes:,} bytes instead of {address.num_bytes:,}"
                raise DataError(what, where=address.shown, hint="run the same command again when it is complete")
            partial.rename(file)


@contextmanager
def spooled(out: Path, *, overwrite: bool, keep: bool = False, stream: bool = False) -> Iterator[Spool]:
    """Yield a `Spool`; `keep` keeps what was fetched when the block ends well, for others that share the work."""
    spool = Spool(out, overwrite=overwrite, is_shared=keep, stream=stream)
    try:
        with spool.held:
            yield spool
        if not keep:
            shutil.rmtree(spool.fetched, ignore_errors=True)
    finally:
        if not any(spool.fetched.glob("*/*")) and not locks.is_held(spool.fetched):
            shutil.rmtree(spool.fetched, ignore_errors=True)  # nothing was fetched


def _stop(number: int) -> NoReturn:
    raise stop_error(number, "standard input was being read, and nothing is left behind")


@contextmanager
def _held_until_gone(place: Path) -> Iterator[None]:
    """Hold the lock of a directory while the block runs, and remove it then."""
    with locks.locked(place, "reading standard input"):
        try:
            yield
        finally:
            shutil.rmtree(place, ignore_errors=True)


def _is_complete(address: Address, file: Path) -> bool:
    return file.is_file() and address.num_bytes in (None, file.stat().st_size)
