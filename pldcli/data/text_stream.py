"""Text files as one stream of tokens, made on the fly, in a temporary file."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import IO, Any

import numpy as np
import numpy.typing as npt

from pldcli.choices import DocumentPer
from pldcli.console.progress import Progress
from pldcli.data.corpus import Reader, Source, find_sources
from pldcli.data.tokenizer import Tokenizer
from pldcli.errors import DataError
from pldcli.system.atomic import output_errors

__all__ = ["TextStream", "tokenise"]

_TOKEN = np.dtype("<u4")


class TextStream:
    """Documents end to end, a mark behind each, as prepared data has them.

    Args:
        tokens: All tokens and marks.
        document_ends: Positions just behind each document's mark, ascending.
        notes: What the user should hear of the text.
    """

    def __init__(self, tokens: npt.NDArray[Any], document_ends: npt.NDArray[np.int64], notes: tuple[str, ...] = ()) -> None:
        self.num_tokens = len(tokens)
        self.document_ends = document_ends
        self.notes = notes
        self._tokens = tokens

    def slice(self, start: int, stop: int) -> npt.NDArray[np.int64]:
        """Copy the tokens from `start` to `stop`, clipped to the stream."""
        return self._tokens[max(0, start) : stop].astype(np.int64)

    def take(self, starts: npt.NDArray[np.integer[Any]], length: int) -> npt.NDArray[np.int64]:
        """Gather spans of `length` tokens, [B, length]."""
        return np.stack([self.slice(int(start), int(start) + length) for start in starts])

    def documents(self) -> Iterator[npt.NDArray[np.int64]]:
        """Yield the tokens of each document without its mark."""
        start = 0
        for end in self.document_ends.tolist():
            yield self.slice(start, end - 1)
            start = end


def tokenise(
    inputs: Sequence[Path],
    tokenizer: Tokenizer,
    *,
    text_field: str = "text",
    document_per: DocumentPer = "blank-line",
    quiet: bool = False,
) -> TextStream:
    """Read text as `pld prepare-data` does and encode it.

    The tokens lie in a temporary file without a name behind a memory map, so that memory does not grow with the text.

    Args:
        inputs: Text or JSON-lines files, plain, .gz or .zst, or directories of them.
        tokenizer: The model's.
        text_field: The field of a JSON object that holds the text.
        document_per: What ends a document in a text file.
        quiet: Show no progress.

    Raises:
        DataError: A file is missing, damaged or not text, or there is no text in any.
        OutputError: The disk of temporary files is full.
    """
    sources, _ = find_sources(inputs)
    place = Path(tempfile.gettempdir())
    with output_errors(place):
        file = tempfile.TemporaryFile()  # noqa: SIM115 - opened apart, for its own kind of error
    with file:
        ends, num_replaced, num_unknown = _write(sources, file, tokenizer, text_field=text_field, document_per=document_per, quiet=quiet)
        if not ends or ends[-1] == len(ends):
            where = ", ".join(str(source.path) for source in sources[:3])
            raise DataError("holds no text", where=where, hint="name files with text in them")
        with output_errors(place):
            file.flush()
        tokens = np.memmap(file, _TOKEN, "r")  # the map outlives the file
        notes = [f"bytes that are not UTF-8 and were replaced: {num_replaced:,}"] if num_replaced else []
        if num_unknown:
            notes.append(f"tokens that the vocabulary cannot spell ([UNK]): {num_unknown / (len(tokens) - len(ends)):.2%}")
        return TextStream(tokens, np.array(ends, np.int64), tuple(notes))


def _write(
    sources: Sequence[Source], file: IO[bytes], tokenizer: Tokenizer, *, text_field: str, document_per: DocumentPer, quiet: bool
) -> tuple[list[int], int, int]:
    """Write the tokens; return the ends of the documents, how many bytes were replaced, and how many tokens are unknown."""
    ends: list[int] = []
    num_tokens = bytes_before = num_replaced = num_unknown = 0
    with Progress("Tokenising", total=sum(source.num_bytes for source in sources), unit="bytes", quiet=quiet) as progress:
        for source in sources:
            reader, continued = Reader(source, document_per=document_per, text_field=text_field), False
            for text, last in reader.pieces():
                ids = tokenizer.encode_document_lines(text.split("\n"), continued=continued) + [tokenizer.special.sep_id] * last
                continued = not last
                num_tokens += len(ids)
                num_unknown += ids.count(tokenizer.special.unk_id)
                with output_errors(Path(tempfile.gettempdir())):
                    file.write(np.array(ids, _TOKEN).tobytes())
                if last:
                    ends.append(num_tokens)
                progress.update(bytes_before + reader.raw_bytes)
            bytes_before += reader.raw_bytes
            num_replaced += reader.replaced_bytes
    return ends, num_replaced, num_unknown
