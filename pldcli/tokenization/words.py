"""Text whose words can be encoded one by one: each distinct one is, once."""

from __future__ import annotations

import string
from array import array
from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import chain
from typing import Any

import numpy as np
import numpy.typing as npt

from pldcli.corpus.reader import Piece, cut_at_whitespace
from pldcli.tokenization.cuts import encode_plainly

__all__ = ["Ids", "KnownParts", "WordPieces", "as_bytes", "batches", "encode_between_spaces", "marked", "short_lines"]

Ids = npt.NDArray[np.uint32]

MAX_LINE_CHARACTERS = 8192
"""Longer lines, and parts of lines without a space, are cut before encoding: the time and memory of BPE grow with them."""
MAX_KNOWN, MAX_KNOWN_CHARACTERS = 1 << 18, 64

_BATCH_CHARACTERS = 1 << 22
"""Each distinct part of so much text is looked up once; more would save little, and takes memory."""
_MARK = " \n "
_PUNCTUATION = [bytes([code]) for code in string.punctuation.encode()]


def short_lines(lines: Iterable[str]) -> list[str]:
    """Leave out empty lines, and cut long ones."""
    return [part for line in lines if line for part, _ in cut_at_whitespace(line, MAX_LINE_CHARACTERS)]


def batches(pieces: Iterable[Piece]) -> Iterator[list[Piece]]:
    """Put pieces of documents together that are encoded at a time."""
    batch, size = list[Piece](), 0
    for piece in pieces:
        batch.append(piece)
        size += len(piece[0])
        if size >= _BATCH_CHARACTERS:
            yield batch
            batch, size = [], 0
    if batch:
        yield batch


def as_bytes(ids: Iterable[int]) -> bytes:
    """Write ids as 32-bit numbers."""
    return array("I", ids).tobytes()


class KnownParts(dict[str, bytes]):
    """The ids of parts of text, as 32-bit numbers; those of a new part are found when it is looked up.

    Args:
        encode: Gives the ids of a part.
    """

    def __init__(self, encode: Callable[[str], bytes]) -> None:
        super().__init__()
        self._encode = encode

    def __missing__(self, part: str) -> bytes:
        ids = self._encode(part)
        if len(part) <= MAX_KNOWN_CHARACTERS:  # else a line without spaces, which does not come again
            self[part] = ids
        return ids

    def array(self, parts: Sequence[str]) -> Any:
        """Return the ids of parts as an Arrow array of bytes; begin anew where too many are known then."""
        found = list(map(self.__getitem__, parts))
        self.forget()
        return _array(np.cumsum([0, *map(len, found)], dtype=np.int32), b"".join(found))

    def forget(self) -> None:
        """Begin anew where there are too many."""
        if len(self) > MAX_KNOWN:
            self.clear()


class WordPieces(KnownParts):
    """The ids of words by BERT's WordPiece, which parts text at punctuation too.

    Args:
        fast: The tokenizer, of which `words_are_independent` is true.
    """

    def __init__(self, fast: Any) -> None:
        super().__init__(self._encode_word)
        self._fast, self._tokenize, self._lowercase = fast, fast.model.tokenize, fast.normalizer.lowercase

    def array(self, parts: Sequence[str]) -> Any:
        """Return the ids of parts as an Arrow array of bytes."""
        content = marked(parts)
        for mark in _PUNCTUATION:
            content = content.replace(mark, b" %b " % mark)
        return encode_between_spaces(content, super().array)

    def _encode_word(self, word: str) -> bytes:
        if len(word) <= MAX_LINE_CHARACTERS and word.isascii() and word.isprintable():
            # The normaliser changes nothing but its case: the model alone is faster.
            return as_bytes([token.id for token in self._tokenize(word.lower() if self._lowercase else word)])
        return as_bytes(chain.from_iterable(encode_plainly(self._fast, short_lines([word]))))


def marked(texts: Iterable[str]) -> bytes:
    """Join texts without line ends, with a line end in front of each and behind the last one."""
    return _MARK.join(["", *texts, ""]).strip(" ").encode()


def encode_between_spaces(content: bytes, encode: Callable[[Sequence[str]], Any]) -> Any:
    """Encode texts by what stands between spaces, of which each distinct part is encoded once.

    Args:
        content: The texts as `marked` gives them, a few megabytes at most.
        encode: Gives the ids of parts as an Arrow array of bytes; those of "" are none.

    Returns:
        Such an array of the ids of the texts.
    """
    import pyarrow as pa
    import pyarrow.compute as pc

    whole = pa.Array.from_buffers(pa.string(), 1, [None, pa.py_buffer(np.array([0, len(content)], np.int32)), pa.py_buffer(content)])
    parts = pc.split_pattern(whole, " ").values.dictionary_encode()
    encoded = encode(["", *parts.dictionary.to_pylist()[1:]]).take(parts.indices)  # the first one is a mark
    marks = np.flatnonzero(np.frombuffer(parts.indices.buffers()[1], np.int32, len(parts)) == 0)
    _, edges, values = encoded.buffers()
    return _array(np.frombuffer(edges, np.int32)[marks], values)


def _array(edges: npt.NDArray[np.int32], values: Any) -> Any:
    import pyarrow as pa

    return pa.Array.from_buffers(pa.binary(), len(edges) - 1, [None, pa.py_buffer(edges), pa.py_buffer(values)])
