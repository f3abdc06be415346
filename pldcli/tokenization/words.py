"""Text whose words can be encoded one by one: each distinct one is, once."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import numpy as np

from pldcli.corpus.reader import cut_at_whitespace
from pldcli.tokenization.cuts import encode_plainly

__all__ = ["KnownParts", "WordPieces", "as_bytes", "short_lines"]

MAX_LINE_CHARACTERS = 8192
"""Longer lines, and parts of lines without a space, are cut before encoding: the time and memory of BPE grow with them."""
MAX_KNOWN, MAX_KNOWN_CHARACTERS = 1 << 18, 64

_WORD = re.compile(r"[^!-/:-@\[-`{-~]+|[!-/:-@\[-`{-~]")


def short_lines(lines: Iterable[str]) -> list[str]:
    """Leave out empty lines, and cut long ones."""
    return [part for line in lines if line for part, _ in cut_at_whitespace(line, MAX_LINE_CHARACTERS)]


def as_bytes(ids: Sequence[int]) -> bytes:
    """Write ids as 32-bit numbers."""
    return np.array(ids, np.uint32).tobytes()


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

    def forget(self) -> None:
        """Begin anew where there are too many."""
        if len(self) > MAX_KNOWN:
            self.clear()


class WordPieces:
    """Gives the ids of parts of text by BERT's WordPiece, word by word.

    Args:
        fast: The tokenizer, of which `words_are_independent` is true.
    """

    def __init__(self, fast: Any) -> None:
        self._fast, self._tokenize, self._lowercase = fast, fast.model.tokenize, fast.normalizer.lowercase
        self._known = KnownParts(self._encode)

    def __call__(self, part: str) -> bytes:
        """Return the ids of a part of text, as 32-bit numbers."""
        ids = b"".join(map(self._known.__getitem__, _WORD.findall(part)))
        self._known.forget()
        return ids

    def _encode(self, word: str) -> bytes:
        return b"".join(map(self._encode_short, short_lines([word])))

    def _encode_short(self, word: str) -> bytes:
        if word.isascii() and word.isprintable():  # the normaliser changes nothing but its case: the model alone is faster
            return as_bytes([token.id for token in self._tokenize(word.lower() if self._lowercase else word)])
        return as_bytes(encode_plainly(self._fast, [word])[0])
