"""Rows for texts longer than a row: the special tokens around a text, and windows that overlap."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from pldcli.errors import UsageError
from pldcli.tokenization.tokenizer import Tokenizer

__all__ = ["Frame", "WordWindow", "frame_of", "window_starts", "word_windows"]

_PROBE = "a"


@dataclass(frozen=True)
class Frame:
    """What a tokenizer puts around one text or a pair, as its post-processor has it: for BERT `[CLS] text [SEP] text [SEP]`."""

    gaps: tuple[npt.NDArray[np.int32], ...]
    """Special ids before each text and, last, after all of them."""
    gap_types: tuple[npt.NDArray[np.int8], ...]
    """Their token types."""
    text_types: tuple[int, ...]
    """The token type of each text."""

    @property
    def num_special(self) -> int:
        """Count the special tokens of a row."""
        return sum(len(gap) for gap in self.gaps)

    def room(self, max_seq_len: int) -> int:
        """Count the tokens of text that a row holds.

        Raises:
            UsageError: There is no room for one token of each text.
        """
        room, least = max_seq_len - self.num_special, len(self.text_types)
        if room < least:
            raise UsageError(
                f"{max_seq_len} tokens leave no room for text", where="max_seq_len", hint=f"{self.num_special + least} is the least"
            )
        return room

    def row(self, *texts: npt.NDArray[np.int32]) -> tuple[npt.NDArray[np.int32], npt.NDArray[np.int8]]:
        """Put texts, the ids of each, into the frame; return the row's ids and token types."""
        ids, types = [self.gaps[0]], [self.gap_types[0]]
        for text, text_type, gap, gap_type in zip(texts, self.text_types, self.gaps[1:], self.gap_types[1:], strict=True):
            ids += [text, gap]
            types += [np.full(len(text), text_type, np.int8), gap_type]
        return np.concatenate(ids), np.concatenate(types)


def frame_of(tokenizer: Tokenizer, num_texts: int) -> Frame:
    """Find out what a tokenizer puts around one text, or two."""
    encoding = tokenizer.fast.encode(*[_PROBE] * num_texts)
    text_of_token = encoding.sequence_ids
    gaps: list[list[int]] = [[] for _ in range(num_texts + 1)]
    gap_types: list[list[int]] = [[] for _ in range(num_texts + 1)]
    text_types = [0] * num_texts
    seen = 0
    for token_id, token_type, text in zip(encoding.ids, encoding.type_ids, text_of_token, strict=True):
        if text is None:
            gaps[seen].append(token_id)
            gap_types[seen].append(token_type)
        else:
            seen = text + 1
            text_types[text] = token_type
    return Frame(tuple(np.array(gap, np.int32) for gap in gaps), tuple(np.array(types, np.int8) for types in gap_types), tuple(text_types))


def window_starts(num_tokens: int, room: int, stride: int) -> Sequence[int]:
    """Return where windows of `room` tokens begin; neighbours share `stride`, half a window at most, or there would be too many of them."""
    step = room - min(stride, room // 2)
    return range(0, max(num_tokens - room + step, 1), step)


@dataclass(frozen=True)
class WordWindow:
    """Words that stand in one row, from `first` to before `end`; it labels those from `labels_from` to before `labels_to`."""

    first: int
    end: int
    labels_from: int
    labels_to: int


def word_windows(starts: npt.NDArray[np.int64], room: int, stride: int) -> list[WordWindow]:
    """Cut a sentence between words into windows that overlap.

    Args:
        starts: [words + 1], the first token of each word, and the end; no word is longer than `room`.
        room: Tokens of a window.
        stride: Tokens that two windows may share.
    """
    num_words = len(starts) - 1
    shared = min(stride, room // 2)
    windows = [WordWindow(0, end := int(np.searchsorted(starts, room, side="right")) - 1, 0, end)]
    while end < num_words:
        must_hold = int(starts[end + 1]) - room
        first = int(np.searchsorted(starts, max(int(starts[end]) - shared, must_hold)))
        middle = int(np.searchsorted(starts, (int(starts[first]) + int(starts[end])) / 2))
        last = windows[-1]
        windows[-1] = WordWindow(last.first, last.end, last.labels_from, middle)
        end = int(np.searchsorted(starts, int(starts[first]) + room, side="right")) - 1
        windows.append(WordWindow(first, end, middle, end))
    return windows
