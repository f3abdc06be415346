"""A sample of a corpus for training its tokenizer."""

from __future__ import annotations

import hashlib

from pldcli.corpus.reader import cut_at_whitespace

__all__ = ["SAMPLE_BYTES", "Sampler"]

SAMPLE_BYTES = 32 << 20
"""Text for training the tokenizer, at most; above half of it for any larger corpus."""

_WINDOW_CHARACTERS = 4000
"""Of one part of a text; a quarter of it where characters take up to 4 bytes, since SentencePiece drops pieces of over 4192 bytes."""


class Sampler:
    """A sample of the corpus that does not depend on the order of its documents: the parts with the lowest hashes.

    Args:
        limit_bytes: Half of what is kept goes when it exceeds this.
    """

    def __init__(self, limit_bytes: int) -> None:
        self._limit_bytes = limit_bytes
        self._threshold = 1 << 64
        self._kept: list[tuple[int, str]] = []
        self._kept_bytes = 0
        self._rest = ""

    def add(self, text: str, *, last: bool) -> None:
        """Offer the next piece of a document; `last` ends it."""
        text = self._rest + text
        start = 0
        while len(text) - start > _WINDOW_CHARACTERS or (last and start < len(text)):
            window = text[start : start + _WINDOW_CHARACTERS]
            size = len(window) if window.isascii() else _WINDOW_CHARACTERS // 4
            window, _ = next(cut_at_whitespace(window, size)) if len(text) - start > size else (window, True)
            start += len(window)
            self._offer(window)
        self._rest = "" if last else text[start:]

    def sample(self) -> list[str]:
        """Return what was kept, in an order that depends on nothing but the texts."""
        return [text for _, text in sorted(self._kept)]

    def _offer(self, text: str) -> None:
        content = text.encode()
        digest = int.from_bytes(hashlib.blake2b(content, digest_size=8).digest(), "big")
        if digest >= self._threshold:
            return
        self._kept.append((digest, text.replace("\n", " ")))
        self._kept_bytes += len(content)
        while self._kept_bytes > self._limit_bytes:
            self._threshold //= 2
            self._kept = [one for one in self._kept if one[0] < self._threshold]
            self._kept_bytes = sum(len(text.encode()) for _, text in self._kept)
