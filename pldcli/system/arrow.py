"""Arrow files that come from elsewhere: mapped, and looked through before a value is taken.

Arrow's reader believes what a file says of its buffers. Where that is wrong, a value lies outside the file, and taking it ends the
process with SIGBUS or SIGSEGV, which nothing can catch.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

from pldcli.system.input_files import check_expansion

__all__ = ["DAMAGE", "memory_bytes", "record_batches"]

DAMAGE = (ArithmeticError, LookupError, MemoryError, SystemError, TypeError, ValueError)
"""What pyarrow raises, beside `ArrowException` and OSError, over bytes that are not what they should be."""

_ROW_BYTES = 8
"""Of memory for each row, at least: a column of type null has rows and no bytes."""


def record_batches(source: Any, where: str, select: Callable[[Sequence[str]], Sequence[int]]) -> tuple[Any, Iterator[Any]]:
    """Open either format of Arrow IPC: `datasets` writes streams, others files with a footer.

    Args:
        source: A `pyarrow.NativeFile`; of one that is mapped only the selected columns are read.
        where: The file, for errors.
        select: Takes the names of all columns, and returns the numbers of those to read.

    Returns:
        The schema of all columns, and the record batches with the selected ones. Each batch is looked through when it is read: offsets,
        lengths, numbers of dictionary entries. Text in a column need not be UTF-8: taking it as a string may raise UnicodeDecodeError.

    Raises:
        pyarrow.ArrowException, OSError, `DAMAGE`: It is none, or is damaged; reading the batches raises them too.
        DataError: A batch is far larger than the file; while reading them.
    """
    import pyarrow as pa

    size, is_file = source.size(), source.read(6) == b"ARROW1"
    source.seek(0)
    opened = pa.ipc.open_file(source) if is_file else pa.ipc.open_stream(source)
    numbers = list(select(opened.schema.names))

    def checked(batch: Any) -> Any:
        selected = batch.select(numbers)
        for column in selected.columns:
            _as_bytes(column).validate(full=True)
        check_expansion(memory_bytes(selected), size, where)
        return selected

    batches = map(opened.get_batch, range(opened.num_record_batches)) if is_file else opened
    return opened.schema, map(checked, batches)


def _as_bytes(column: Any) -> Any:
    """Return a column of text as one of bytes, in the same memory."""
    import pyarrow as pa

    if pa.types.is_dictionary(column.type):
        return pa.DictionaryArray.from_arrays(column.indices, _as_bytes(column.dictionary), safe=False)
    if pa.types.is_string(column.type):
        return column.view(pa.binary())
    return column.view(pa.large_binary()) if pa.types.is_large_string(column.type) else column


def memory_bytes(batch: Any) -> int:
    """Return the bytes that the values of a record batch take in memory, at least."""
    return int(batch.nbytes) + _ROW_BYTES * int(batch.num_rows)
