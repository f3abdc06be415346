"""A sample of a corpus for training its tokenizer."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable

from pldcli.corpus.reader import cut_at_whitespace

__all__ = ["SAMPLE_BYTES", "Sampler", "first_threshold"]

SAMPLE_BYTES = 32 << 20
"""Text for training the tokenizer, at most; above half of it for any larger corpus of plain text."""

_WINDOW_CHARACTERS = 4000
"""Of one part of a text; a quarter of it where characters take up to 4 bytes, since SentencePiece drops pieces of over 4192 bytes."""
_HASHES = 1 << 64


def first_threshold(num_bytes: int, limit_bytes: int) -> int:
    """Return the hash below which parts of a corpus of so many bytes are kept, so that no more than needed is held."""
    threshold = _HASHES
    while num_bytes > limit_bytes:
        threshold, num_bytes = threshold // 2, num_bytes // 2
    return threshold


class _Parts:
    """The parts with the lowest hashes, each once, as many as a limit allows."""

    def __init__(self, limit_bytes: int, threshold: int) -> None:
        self.threshold = threshold
        self.held: dict[int, str] = {}
        self._limit_bytes = limit_bytes
        self._num_bytes = 0

    def add(self, digest: int, text: str) -> None:
        if digest < self.threshold and digest not in self.held:
            self.held[digest] = text
            self._num_bytes += len(text.encode())
            while self._num_bytes > self._limit_bytes:
                self.cut(self.threshold // 2)

    def cut(self, threshold: int) -> None:
        """Leave out parts with hashes from `threshold` on, too."""
        if threshold < self.threshold:
            self.threshold = threshold
            self.held = {digest: text for digest, text in self.held.items() if digest < threshold}
            self._num_bytes = sum(len(text.encode()) for text in self.held.values())


class Sampler:
    """A sample that does not depend on the order of the documents, nor on who read which: the parts with the lowest hashes, each once.

    Args:
        limit_bytes: Half of what is kept goes when it exceeds this.
        threshold: Parts with higher hashes are left out from the beginning.
    """

    def __init__(self, limit_bytes: int, threshold: int = _HASHES) -> None:
        self._limit_bytes = limit_bytes
        self._kept = _Parts(limit_bytes, threshold)
        self._of_document = _Parts(limit_bytes, threshold)
        self._rest = ""

    @property
    def threshold(self) -> int:
        """Return the hash from which on parts are left out."""
        return self._kept.threshold

    def add(self, text: str, *, last: bool, keep: bool = True) -> None:
        """Offer the next piece of a document.

        Args:
            text: The piece.
            last: It ends the document.
            keep: Of a last piece: the document counts.
        """
        text = self._rest + text
        start = 0
        while len(text) - start > _WINDOW_CHARACTERS or (last and start < len(text)):
            window = text[start : start + _WINDOW_CHARACTERS]
            size = len(window) if window.isascii() else _WINDOW_CHARACTERS // 4
            window, _ = next(cut_at_whitespace(window, size)) if len(text) - start > size else (window, True)
            start += len(window)
            digest = int.from_bytes(hashlib.blake2b(window.encode(), digest_size=8).digest(), "big")
            if digest < self._of_document.threshold:
                self._of_document.add(digest, window.replace("\n", " "))
        self._rest = "" if last else text[start:]
        if last:
            if keep:
                self._kept.cut(self._of_document.threshold)
                self.merge(self._of_document.held.items())
            self._of_document = _Parts(self._limit_bytes, self.threshold)

    def merge(self, parts: Iterable[tuple[int, str]]) -> None:
        """Take in parts with their hashes."""
        for digest, text in parts:
            self._kept.add(digest, text)

    @property
    def parts(self) -> list[tuple[int, str]]:
        """List what was kept with its hashes, in an order that depends on nothing but the texts."""
        return sorted(self._kept.held.items())

    def sample(self) -> list[str]:
        """List what was kept."""
        return [text for _, text in self.parts]
