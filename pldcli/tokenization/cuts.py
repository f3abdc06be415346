"""Where text can be cut without changing its ids: found out by trying, since a `tokenizer.json` can hold anything."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from typing import Any

__all__ = ["CONTEXT", "cut_before", "encode_plainly", "lines_are_independent", "parting_spaces", "words_are_independent"]

CONTEXT = "a"
"""A letter in front of a part stands for the text before it, where a tokenizer treats the begin of a text apart."""

_PROBES = (
    "The re-entry, no. 42", "don't", "x2 = 'y';", "(e\u0301tude)", "Straße", "İstanbul", "ΣΊΣΥΦΟΣ", "зима", "東京都、2", "العربية",
    "हिन्दी", "ภาษาไทย", "한국어", "🤖🏽 ok", "a\u00a0b", "--", "'s", "...", "3.14", "ﬁne", "\u0301x", "w" * 130, "Ab", "s",
)  # fmt: skip
_SPACED = (" in front", "behind ", "two  spaces", "\tx", "y\r", "")
_MARKS = {" ": " \u2581\u0120", "\n": "\n\u010a"}
"""What vocabularies write for white space: itself, SentencePiece's mark, or byte-level BPE's letters."""


def encode_plainly(fast: Any, texts: Sequence[str]) -> list[list[int]]:
    """Encode texts without special tokens."""
    return [encoding.ids for encoding in fast.encode_batch_fast(list(texts), add_special_tokens=False)]


def lines_are_independent(fast: Any, encode: Callable[[list[str]], list[list[int]]]) -> bool:
    """Return whether a text's ids are those of its lines one after the other, and a line can be cut behind a space.

    So it is where a line end does no more than part words, as in BERT's WordPiece and in SentencePiece. It is not where line ends
    have tokens of their own, as in byte-level BPE.
    """
    if any(_reach_over(fast, space) for space in _MARKS):
        return False
    lines = [*_PROBES, *(line for probe in _SPACED for line in (probe, "x"))]
    whole, spaced = encode(["\n".join(lines), " ".join(_PROBES)])
    return whole == _joined(encode(lines)) and spaced == _joined(encode([probe + " " for probe in _PROBES]))


def words_are_independent(fast: Any) -> bool:
    """Return whether a line's ids are those of what stands between its spaces.

    So it is in BERT's WordPiece, which changes characters one by one, parts words at white space and punctuation, and looks at each alone.
    """
    parts = [type(part).__name__ for part in (fast.normalizer, fast.pre_tokenizer, fast.model)]
    is_plain = all(token.special for token in fast.get_added_tokens_decoder().values())  # others are found in text, across spaces
    return is_plain and parts == ["BertNormalizer", "BertPreTokenizer", "WordPiece"]


def parting_spaces(fast: Any) -> str:
    """Return the white space before which a text can be cut: its ids are those of the parts, each later one behind `CONTEXT`."""
    (context,) = encode_plainly(fast, [CONTEXT])
    spaces = [space for space in _MARKS if context and not _reach_over(fast, space)]
    return "".join(space for space in spaces if all(_parts(fast, space + more, context) for more in ("", "  ")))


def _reach_over(fast: Any, space: str) -> bool:
    """Return whether a token goes on behind white space, or takes the white space behind it."""
    crossing = re.compile(rf"[^\s{''.join(_MARKS.values())}][{_MARKS[space]}]")
    of_text = [token for token in fast.get_added_tokens_decoder().values() if not token.special]
    tokens = [*fast.get_vocab(with_added_tokens=False), *(token.content for token in of_text)]
    return any(token.rstrip for token in of_text) or any(crossing.search(token) for token in tokens)


def _parts(fast: Any, space: str, context: list[int]) -> bool:
    (whole,) = encode_plainly(fast, [space.join(_PROBES)])
    first, *others = encode_plainly(fast, [_PROBES[0], *(CONTEXT + space + probe for probe in _PROBES[1:])])
    return all(ids[: len(context)] == context for ids in others) and whole == first + _joined([ids[len(context) :] for ids in others])


def cut_before(text: str, spaces: str) -> list[str]:
    """Cut a text into parts, each but the first beginning with a whole run of white space.

    Args:
        text: The text.
        spaces: What such a run begins with.
    """
    return re.split(rf"(?<=\S)(?=[{spaces}])", text)


def _joined(parts: Sequence[list[int]]) -> list[int]:
    return [i for part in parts for i in part]
