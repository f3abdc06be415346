"""Standard input as a file: a corpus is read twice, once for the tokenizer and once to encode it."""

from __future__ import annotations

import shutil
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from pldcli.errors import UsageError
from pldcli.system import atomic
from pldcli.system.output_place import check_new

__all__ = ["spooled"]

_STANDARD_INPUT = Path("-")
_CHUNK_BYTES = 1 << 20


@contextmanager
def spooled(inputs: Sequence[Path], out: Path, *, overwrite: bool) -> Iterator[list[Path]]:
    """Yield the inputs with a file in the place of `-`, which holds standard input until the block ends.

    Args:
        inputs: Files and directories; `-` at most once.
        out: The directory to make; the file lies beside it, with room for as much text.
        overwrite: Replace what is there.

    Raises:
        UsageError: Standard input is a terminal, or named twice.
        OutputError: The place is taken, which shows before anything is read; or the disk is full or not writable.
    """
    if _STANDARD_INPUT not in inputs:
        yield list(inputs)
        return
    if sys.stdin.isatty() or inputs.count(_STANDARD_INPUT) > 1:
        what = "standard input is a terminal" if sys.stdin.isatty() else "standard input can be read once"
        raise UsageError(what, where="-", hint="pipe text into the command, or name files")
    check_new(out, overwrite=overwrite)
    place = out.with_name(f".{out.name}.stdin")
    shutil.rmtree(place, ignore_errors=True)  # of a process that was killed
    try:
        with atomic.output_errors(place):
            place.mkdir(parents=True)
            first = sys.stdin.buffer.read(_CHUNK_BYTES)
            file = place / ("standard-input.jsonl" if first.lstrip()[:1] == b"{" else "standard-input.txt")
            with file.open("wb") as written:
                while first:
                    written.write(first)
                    first = sys.stdin.buffer.read(_CHUNK_BYTES)
        yield [file if path == _STANDARD_INPUT else path for path in inputs]
    finally:
        shutil.rmtree(place, ignore_errors=True)
