"""Text files as a token stream, tokenized on the fly into a temporary file."""

from __future__ import annotations

import tempfile
from array import array
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from pldcli.choices import DocumentPer
from pldcli.console.progress import Progress
from pldcli.corpus.reader import Reader
from pldcli.corpus.sources import find_sources, note_on_skipped
from pldcli.data.stream import TokenStream
from pldcli.errors import DataError
from pldcli.system.atomic import output_errors
from pldcli.tokenization.tokenizer import Tokenizer

__all__ = ["tokenise"]

_TOKEN = np.dtype("<u4")


def tokenise(
    inputs: Sequence[Path],
    tokenizer: Tokenizer,
    *,
    text_field: str = "text",
    document_per: DocumentPer = "blank-line",
    quiet: bool = False,
) -> TokenStream:
    """Read text as `pld prepare-data` does and tokenize it.

    The tokens lie in a temporary file without a name behind a memory map, so that memory does not grow with the text.

    Args:
        inputs: Text, JSON-lines, CSV, Parquet or Arrow files, or directories of them.
        tokenizer: The model's.
        text_field: The field of a JSON object that holds the text.
        document_per: What ends a document in a text file.
        quiet: Show no progress.

    Raises:
        DataError: A file is missing, damaged or not text, or there is no text in any.
        OutputError: The disk of temporary files is full.
    """
    sources, left_out = find_sources(inputs)
    place, special = Path(tempfile.gettempdir()), tokenizer.special
    ends = array("q")
    num_tokens = bytes_before = num_replaced = num_unknown = 0
    with output_errors(place):
        file = tempfile.TemporaryFile()  # noqa: SIM115 - opened apart, for its own kind of error
    with file, Progress("Tokenizing", total=sum(source.num_bytes for source in sources), unit="bytes", quiet=quiet) as progress:
        for source in sources:
            reader, continued = Reader(source, document_per=document_per, text_field=text_field), False
            for text, last in reader.pieces():
                ids = tokenizer.document_ids(text.split("\n"), continued=continued).astype(_TOKEN)
                num_tokens += len(ids) + last
                num_unknown += int(np.count_nonzero(ids == special.unk_id))
                continued = not last
                with output_errors(place):
                    file.write(ids.tobytes() + np.array([special.sep_id] * last, _TOKEN).tobytes())
                if last:
                    ends.append(num_tokens)
                progress.update(bytes_before + reader.raw_bytes)
            bytes_before += reader.raw_bytes
            num_replaced += reader.replaced_bytes
            left_out.update(reader.skipped)
        if num_tokens == len(ends):
            where = ", ".join(str(source.path) for source in sources[:3])
            raise DataError("holds no text", where=where, hint="name files with text in them")
        with output_errors(place):
            file.flush()
        tokens = np.memmap(file, _TOKEN, "r")  # the map outlives the file
    notes = note_on_skipped(left_out)
    notes += [f"bytes that are not UTF-8 and were replaced: {num_replaced:,}"] if num_replaced else []
    if num_unknown:
        notes.append(f"tokens that the vocabulary cannot spell ([UNK]): {num_unknown / (num_tokens - len(ends)):.2%}")
    return TokenStream([(tokens, np.array(ends, np.int64))], end_id=special.sep_id, notes=tuple(notes))
