"""Where text can be cut without changing its ids: found out by trying, since a `tokenizer.json` can hold anything."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from typing import Any

__all__ = ["CONTEXT", "cut_before_whitespace", "encode_plainly", "lines_are_independent", "whitespace_parts_text"]

CONTEXT = "a"
"""A letter in front of a part stands for the text before it, where a tokenizer treats the begin of a text apart."""

_PROBES = (
    "The re-entry, no. 42", "don't", "x2 = 'y';", "(e\u0301tude)", "Straße", "İstanbul", "ΣΊΣΥΦΟΣ", "зима", "東京都、2", "العربية",
    "हिन्दी", "ภาษาไทย", "한국어", "🤖🏽 ok", "a\u00a0b", "--", "'s", "...", "3.14", "ﬁne", "\u0301x", "w" * 130, "Ab", "s",
)  # fmt: skip
_SPACED = (" in front", "behind ", "two  spaces", "\tx", "y\r", "")
_CROSSING = re.compile(r"[^\s\u2581][\s\u2581]")
_LAST_SPACE = re.compile(r".*\S(?P<space>\s)", re.DOTALL)
_NEXT_SPACE = re.compile(r"(?<=\S)(?P<space>\s)")


def encode_plainly(fast: Any, texts: Sequence[str]) -> list[list[int]]:
    """Encode texts without special tokens."""
    return [encoding.ids for encoding in fast.encode_batch_fast(list(texts), add_special_tokens=False)]


def lines_are_independent(fast: Any) -> bool:
    """Return whether a text's ids are those of its lines one after the other, and a line can be cut behind a space.

    So it is where a line end does no more than part words, as in BERT's WordPiece and in SentencePiece. It is not where line ends
    have tokens of their own, as in byte-level BPE.
    """
    if any(_CROSSING.search(token) for token in fast.get_vocab(with_added_tokens=False)):
        return False
    lines = [*_PROBES, *(line for probe in _SPACED for line in (probe, "x"))]
    whole, spaced = encode_plainly(fast, ["\n".join(lines), " ".join(_PROBES)])
    return whole == _joined(encode_plainly(fast, lines)) and spaced == _joined(encode_plainly(fast, [probe + " " for probe in _PROBES]))


def whitespace_parts_text(fast: Any) -> bool:
    """Return whether a text's ids are those of its parts one after the other, cut before white space, each behind `CONTEXT`."""
    (context,) = encode_plainly(fast, [CONTEXT])
    if not context:
        return False
    for space in (" ", "\n", "  \n"):
        (whole,) = encode_plainly(fast, [space.join(_PROBES)])
        first, *others = encode_plainly(fast, [_PROBES[0], *(CONTEXT + space + probe for probe in _PROBES[1:])])
        if any(ids[: len(context)] != context for ids in others) or whole != first + _joined(ids[len(context) :] for ids in others):
            return False
    return True


def cut_before_whitespace(text: str, size: int) -> Iterator[str]:
    """Cut a text into parts of about `size` characters, each but the first beginning with a whole run of white space.

    Where there is none, a part is longer.
    """
    start = 0
    while len(text) - start > size:
        found = _LAST_SPACE.match(text, start, start + size) or _NEXT_SPACE.search(text, start + size)
        if found is None:
            break
        yield text[start : found.start("space")]
        start = found.start("space")
    yield text[start:]


def _joined(parts: Iterator[list[int]] | Sequence[list[int]]) -> list[int]:
    return [i for part in parts for i in part]
