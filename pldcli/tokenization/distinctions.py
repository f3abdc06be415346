"""What a normalisation makes the same although a script tells it apart: joiners, vowel signs and accents, the i with and without a dot."""

from __future__ import annotations

import unicodedata
from collections import Counter
from collections.abc import Callable, Iterable

__all__ = ["characters", "lost_distinctions"]

_JOINERS = "\u200c\u200d"
_DOTTED = "\u0130\u0131"
_NOTED_SHARE = 1e-4
"""Of the characters of a text."""


def characters(texts: Iterable[str]) -> Counter[str]:
    """Count the characters of texts."""
    counts = Counter[str]()
    for text in texts:
        counts.update(text)
    return counts


def lost_distinctions(counts: Counter[str], normalize: Callable[[str], str], *, keeps: str = "") -> list[str]:
    """Say which distinctions of a text a normalisation undoes, where more than one character in 10,000 is concerned.

    Args:
        counts: Of the text's characters.
        normalize: The normalisation.
        keeps: How to keep them, by which each line ends.
    """
    kinds = {
        "zero-width joiners, which are removed or become spaces": _joiners(counts, normalize),
        "accents and vowel signs, which are removed": _marks(counts, normalize),
        "letters İ and ı, while I is lower-cased to i": _dotted(counts, normalize),
        "such as ², ﬁ or Ａ, which become plain letters and digits": _compatible(counts, normalize),
    }
    total = counts.total()
    return [
        f"Among {total:,} characters are {number:,} {kind}{f': {keeps}' if keeps else ''}."
        for kind, number in kinds.items()
        if number > _NOTED_SHARE * total
    ]


def _joiners(counts: Counter[str], normalize: Callable[[str], str]) -> int:
    return sum(counts[joiner] for joiner in _JOINERS if counts[joiner] and joiner not in normalize(f"\u0628{joiner}\u0628"))


def _marks(counts: Counter[str], normalize: Callable[[str], str]) -> int:
    number = 0
    for character, count in counts.items():
        parts = unicodedata.normalize("NFD", character)
        base, marks = parts[0], parts[1:]
        if marks and unicodedata.category(marks[0]) == "Mn" and unicodedata.category(base)[0] == "L":
            number += count * (normalize(character) == normalize(base))
        elif unicodedata.category(character) == "Mn":
            number += count * (normalize(f"\u0915{character}") == normalize("\u0915"))
    return number


def _dotted(counts: Counter[str], normalize: Callable[[str], str]) -> int:
    return sum(counts[letter] for letter in _DOTTED) if normalize("I") == normalize("i") else 0


def _compatible(counts: Counter[str], normalize: Callable[[str], str]) -> int:
    number = 0
    for character, count in counts.items():
        plain = unicodedata.normalize("NFKC", character)
        if plain.strip() and plain != unicodedata.normalize("NFC", character):
            number += count * (normalize(character) == normalize(plain))
    return number
