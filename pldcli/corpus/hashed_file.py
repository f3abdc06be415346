"""A file that is hashed and counted while it is read."""

from __future__ import annotations

import hashlib
import io
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING, BinaryIO

from pldcli.corpus.addresses import Location
from pldcli.corpus.decoding import CHUNK_BYTES

if TYPE_CHECKING:
    from _typeshed import WriteableBuffer

__all__ = ["HashedFile"]


class HashedFile(io.RawIOBase):
    """A binary file that hashes and counts what is read from it.

    Args:
        most_bytes: Where it ends, counted from where it is opened; None for the file's own end.
    """

    def __init__(self, most_bytes: int | None) -> None:
        self._most_bytes = most_bytes
        self.hash = hashlib.sha256()
        self.num_bytes = 0
        self._file: BinaryIO | None = None

    def open(self, path: Location, start: int) -> None:
        """Open a file, and go to where reading begins."""
        self._file = path.open("rb", buffering=0)
        if start:
            self._file.seek(start)

    @contextmanager
    def hashed_whole(self, *, after_errors: bool) -> Iterator[None]:
        """Hash what the block leaves unread: Parquet, and what lies behind a compressed stream, or behind damage."""
        try:
            yield
        except Exception:
            if after_errors:
                with suppress(OSError):
                    self._read_to_end()
            raise
        self._read_to_end()

    def _read_to_end(self) -> None:
        while self.read(CHUNK_BYTES):
            pass

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: WriteableBuffer) -> int:
        assert self._file is not None
        view = memoryview(buffer)
        left = len(view) if self._most_bytes is None else min(len(view), self._most_bytes - self.num_bytes)
        data = self._file.read(left)
        view[: len(data)] = data
        self.hash.update(data)
        self.num_bytes += len(data)
        return len(data)

    def close(self) -> None:
        if self._file is not None:
            self._file.close()
        super().close()
