"""Shards: token ids in Arrow files that are mapped, not read.

A row is a document: its ids, then one [SEP]. (A document over 32 million tokens is continued in the next row; only its last row ends
with [SEP].)
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from pldcli.data.stream import PREPARE_AGAIN, Segment, check_ends
from pldcli.errors import DataError
from pldcli.system import atomic
from pldcli.system.arrow import DAMAGE
from pldcli.system.seal import file_sha256

__all__ = ["PREPARE_AGAIN", "ShardWriter", "check_tokens", "open_shard", "segments"]

_COLUMN = "input_ids"
_TYPES = ("uint16", "uint32")
_BATCH_BYTES = 16 << 20
_SHARD_BYTES = 512 << 20
_ROW_TOKENS = 1 << 24


class ShardWriter:
    """Writes one split of a prepared directory; as a context manager it closes itself. A shard takes its name when it is complete.

    Args:
        directory: Where the shards go.
        split: The first part of their names.
        vocab_size: Decides between 16 and 32 bits per token.
        end_id: The separator behind each document.
        batch_bytes: Size of a record batch, about.
        shard_bytes: A shard of this size is followed by a new one.
        row_tokens: A document is continued in a new row when it is twice as long as this.
    """

    def __init__(
        self,
        directory: Path,
        split: str,
        *,
        vocab_size: int,
        end_id: int,
        batch_bytes: int = _BATCH_BYTES,
        shard_bytes: int = _SHARD_BYTES,
        row_tokens: int = _ROW_TOKENS,
    ) -> None:
        self.shards: dict[str, dict[str, Any]] = {}
        self.num_documents = 0
        self.num_tokens = 0
        self._directory = directory
        self._split = split
        self._dtype = np.dtype("<u2" if vocab_size <= 1 << 16 else "<u4")
        self._end_id = end_id
        self._batch_bytes = batch_bytes
        self._shard_bytes = shard_bytes
        self._row_tokens = row_tokens
        self._values = bytearray()
        self._offsets = [0]
        self._ends = 0
        self._shard_start = (0, 0)
        self._file: Any = None
        self._writer: Any = None

    def __enter__(self) -> ShardWriter:
        return self

    def __exit__(self, kind: object, *_: object) -> None:
        if kind is None:
            self.close()
        elif self._file is not None:
            self._file.close()
            Path(self._file.name).unlink(missing_ok=True)

    def add(self, ids: npt.NDArray[np.unsignedinteger[Any]]) -> None:
        """Append ids to the document that is open."""
        self._values += ids.astype(self._dtype).tobytes()
        while self._open_tokens >= 2 * self._row_tokens:
            rest = self._values[(self._offsets[-1] + self._row_tokens) * self._dtype.itemsize :]
            del self._values[-len(rest) :]
            self._offsets.append(self._offsets[-1] + self._row_tokens)
            self._write_batch()
            self._values = rest

    def take_back(self, count: int) -> npt.NDArray[np.unsignedinteger[Any]]:
        """Remove the last `count` ids from the document that is open, but never the first one."""
        count = max(0, min(count, self._open_tokens - 1))
        start = len(self._values) - count * self._dtype.itemsize
        ids = np.frombuffer(bytes(self._values[start:]), self._dtype)
        del self._values[start:]
        return ids

    def end_document(self) -> None:
        """Write the separator behind the document that is open."""
        self._values += np.array([self._end_id], self._dtype).tobytes()
        self._offsets.append(len(self._values) // self._dtype.itemsize)
        self._ends += 1
        if len(self._values) >= self._batch_bytes:
            self._write_batch()

    def copy(self, parts: Iterable[Segment]) -> None:
        """Append whole shards that were written with the same separator."""
        for values, ends in parts:
            start = 0
            for end in ends.tolist():
                is_whole = values[end - 1] == self._end_id  # else it goes on in the next row
                self.add(values[start : end - is_whole])
                if is_whole:
                    self.end_document()
                start = end

    def close(self) -> None:
        """Write what is left."""
        self._write_batch()
        self._end_shard()

    @property
    def _open_tokens(self) -> int:
        return len(self._values) // self._dtype.itemsize - self._offsets[-1]

    @property
    def _shard(self) -> Path:
        return self._directory / f"{self._split}-{len(self.shards):05}.arrow"

    def _write_batch(self) -> None:
        import pyarrow as pa

        if len(self._offsets) == 1:
            return
        kind = pa.large_list(pa.from_numpy_dtype(self._dtype))
        if self._writer is None:
            self._file = atomic.sibling(self._shard).open("wb")
            self._writer = pa.ipc.new_file(self._file, pa.schema([(_COLUMN, kind)]))
        values = pa.Array.from_buffers(kind.value_type, self._offsets[-1], [None, pa.py_buffer(self._values)])
        edges = pa.Array.from_buffers(pa.int64(), len(self._offsets), [None, pa.py_buffer(np.array(self._offsets, np.int64))])
        rows = pa.LargeListArray.from_arrays(edges, values)  # of a list pa.array() would import pandas to look what it is
        self._writer.write_batch(pa.record_batch([rows], names=[_COLUMN]))
        self.num_tokens += self._offsets[-1]
        self.num_documents += self._ends
        self._values, self._offsets, self._ends = bytearray(), [0], 0
        if self._file.tell() >= self._shard_bytes:
            self._end_shard()

    def _end_shard(self) -> None:
        if self._writer is None:
            return
        self._writer.close()
        self._file.flush()
        os.fsync(self._file.fileno())  # before the file that names it, which is flushed too
        self._file.close()
        path = Path(self._file.name).replace(self._shard)
        documents, tokens = self._shard_start
        self.shards[path.name] = {
            "bytes": path.stat().st_size,
            "sha256": file_sha256(path),
            "documents": self.num_documents - documents,
            "tokens": self.num_tokens - tokens,
        }
        self._shard_start = (self.num_documents, self.num_tokens)
        self._file = self._writer = None


def open_shard(path: Path) -> Any:
    """Map a shard, and read its footer.

    Raises:
        DataError: It is damaged.
    """
    import pyarrow as pa

    try:
        return pa.ipc.open_file(pa.memory_map(str(path)))
    except (OSError, pa.ArrowException, *DAMAGE) as error:
        raise _damaged(path) from error


def segments(path: Path) -> Iterator[Segment]:
    """Map the record batches of a shard without a copy.

    Raises:
        DataError: It is damaged.
    """
    import pyarrow as pa

    reader = open_shard(path)
    try:
        for index in range(reader.num_record_batches):
            rows = reader.get_batch(index).column(_COLUMN)
            values, offsets = _view(rows.values), _view(rows.offsets)
            # No more is looked at here: all of them would have to be read from the disk.
            if str(rows.type.value_type) not in _TYPES or offsets[0] != 0 or offsets[-1] != len(values):
                raise _damaged(path)
            yield values, offsets[1:]
    except (OSError, AttributeError, pa.ArrowException, *DAMAGE) as error:
        raise _damaged(path) from error


def check_tokens(path: Path, *, vocab_size: int, num_tokens: int) -> None:
    """Look at every token id and every end of a document in a shard.

    Args:
        path: The shard.
        vocab_size: What ids are below.
        num_tokens: How many there are.

    Raises:
        DataError: It is damaged, or holds something else.
    """
    found = 0
    for values, ends in segments(path):
        check_ends(values, ends, where=str(path))
        found += len(values)
        if (largest := int(values.max(initial=0))) >= vocab_size:
            what = f"holds the token id {largest:,}, and the vocabulary has {vocab_size:,} entries"
            raise DataError(what, where=str(path), hint=PREPARE_AGAIN)
    if found != num_tokens:
        raise DataError(f"holds {found:,} tokens instead of {num_tokens:,}", where=str(path), hint=PREPARE_AGAIN)


def _view(array: Any) -> npt.NDArray[Any]:
    """View numbers without a copy, as `to_numpy` does; that would import pandas.

    Raises:
        ValueError: The buffer is shorter than it says.
    """
    if not len(array):
        return np.zeros(0, str(array.type))
    return np.frombuffer(array.buffers()[1], str(array.type), len(array), array.offset * array.type.byte_width)


def _damaged(path: Path) -> DataError:
    return DataError("is damaged: not an Arrow file of token ids", where=str(path), hint=PREPARE_AGAIN)
