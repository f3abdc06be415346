"""Choose masked-LM targets and replace them, vectorised over a batch.

Shapes: B batch, T tokens, W words of the row that has most of them, M masked positions of the whole batch, V vocabulary.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from fractions import Fraction
from functools import cached_property

import numpy as np
import numpy.typing as npt

from pldcli.choices import MaskingUnit
from pldcli.data.order import UInt64s, hashes
from pldcli.tokenization.tokenizer import SpecialTokens

__all__ = ["KEPT_SHARE", "RANDOM_SHARE", "Masked", "Masking"]

Bools = npt.NDArray[np.bool_]
Int64s = npt.NDArray[np.int64]

_MASKED_TENTHS, _RANDOM_TENTHS = 8, 1
RANDOM_SHARE, KEPT_SHARE = _RANDOM_TENTHS / 10, (10 - _MASKED_TENTHS - _RANDOM_TENTHS) / 10
"""Of the targets: those that a random token replaces, and those that stay; [MASK] replaces the rest."""

_CHOOSE, _REPLACE, _RANDOM, _LENGTH = (np.uint64(tag << 32) for tag in (1, 2, 3, 5))
"""Keys apart: which positions, what happens there, which random token, how long a span is; 4 is taken by the pairs of the loader."""
_LAST = np.iinfo(np.uint64).max

_MEAN_LENGTH_P, _LONGEST_SPAN = Fraction(1, 5), 10
_LENGTH_BOUNDS = np.array(
    [int(2**64 * (1 - (1 - _MEAN_LENGTH_P) ** n) / (1 - (1 - _MEAN_LENGTH_P) ** _LONGEST_SPAN)) for n in range(1, _LONGEST_SPAN)], np.uint64
)
"""Cumulative distribution of a span's length in words, times 2^64: geometric with p = 0.2, its tail beyond 10 cut off, mean 3.80."""
_WORDS_AHEAD = 24
"""Spans are laid from so many words before the row, so that its first word is in a span as often as any, not always."""
_TOKENS_AT_ONCE = 1 << 14
"""Of a large batch: a dozen arrays of these fit into the cache, and are not asked of the operating system anew for every batch."""

_COLUMNS = np.uint64((1 << 16) - 1)
"""Bits of an order that tell the tokens of a span apart."""


@dataclass(frozen=True)
class Masked:
    """A batch after masking."""

    input_ids: Int64s
    """[B, T], with the replacements."""
    positions: Int64s
    """[M], targets as indices into the flattened [B x T]."""
    target_ids: Int64s
    """[M], what stood there."""


@dataclass(frozen=True)
class Masking:
    """Dynamic masking: a share of each row's tokens are targets; of these 80 % [MASK], 10 % random, 10 % kept.

    A word is a run of tokens of which only the first begins one; a special token ends it.

    - `token`: tokens on their own, exactly the share.
    - `whole-word`: words in random order, each with all its tokens, or left out where it would exceed the share; 80/10/10 by token.
    - `span`: runs of whole words with others between, exactly the share: the last one is cut short. 80/10/10 by span.

    Source: Devlin et al. 2019, section 3.1; for whole words the release of May 2019 of their `create_pretraining_data.py`; for spans Joshi
    et al. 2020 (SpanBERT), section 3.1. SpanBERT's code draws spans that may touch and merges them, so that they come out longer
    than drawn.
    """

    probability: float
    mask_id: int
    special_ids: tuple[int, ...]
    vocab_size: int
    unit: MaskingUnit = "token"
    continues_word: Bools | None = field(default=None, compare=False, repr=False)
    """[V], tokens that continue the word of the token before; not needed for `token`."""
    final_probability: float | None = None
    """At the last step, towards which the share moves linearly; None where it stays."""
    total_steps: int = 1

    @classmethod
    def of(
        cls,
        probability: float,
        special: SpecialTokens,
        vocab_size: int,
        *,
        unit: MaskingUnit = "token",
        continues_word: Bools | None = None,
        final_probability: float | None = None,
        total_steps: int = 1,
    ) -> Masking:
        """Take what a tokenizer says."""
        return cls(probability, special.mask_id, special.ids, vocab_size, unit, continues_word, final_probability, total_steps)

    def share(self, step: int = 0) -> float:
        """Return the share of the maskable tokens that are targets in a step."""
        if self.final_probability is None:
            return self.probability
        done = min(1.0, step / max(1, self.total_steps - 1))
        return (1.0 - done) * self.probability + done * self.final_probability

    def most_targets(self, num_tokens: int, step: int = 0) -> int:
        """Count the targets of a row of so many tokens, [CLS] and [SEP] among them, without further special tokens: no row has more."""
        return max(1, round(self.share(step) * (num_tokens - 2)))

    @cached_property
    def _is_special(self) -> Bools:
        return np.isin(np.arange(self.vocab_size), self.special_ids)

    @cached_property
    def ordinary_ids(self) -> Int64s:
        """The ids that random replacement draws from; once, for listing them takes longer than masking a batch."""
        return np.setdiff1d(np.arange(self.vocab_size), self.special_ids)

    def __call__(self, input_ids: Int64s, row_keys: UInt64s, step: int = 0) -> Masked:
        """Mask a batch.

        Args:
            input_ids: [B, T]; special tokens, padding among them, are never targets.
            row_keys: [B], one key per sequence; equal keys and ids give equal masks at equal shares.
            step: Of the run, where the share moves.
        """
        special = self._is_special[input_ids]
        available = input_ids.shape[1] - special.sum(1)
        wanted = np.minimum(available, np.maximum(1, np.rint(self.share(step) * available).astype(np.int64)))
        at_once = max(1, _TOKENS_AT_ONCE // input_ids.shape[1])
        parts = [slice(start, start + at_once) for start in range(0, max(1, len(input_ids)), at_once)]
        chosen = [self._choose(input_ids[part], special[part], row_keys[part], wanted[part]) for part in parts]
        rows, columns = np.nonzero(np.concatenate(chosen))

        decided_at = _run_starts(rows, columns) if self.unit == "span" else columns
        fate = hashes(row_keys[rows] ^ _REPLACE, decided_at) % np.uint64(10)
        ordinary = self.ordinary_ids
        random_ids = ordinary[(hashes(row_keys[rows] ^ _RANDOM, columns) % np.uint64(len(ordinary))).astype(np.int64)]
        target_ids = input_ids[rows, columns]
        masked_ids = input_ids.copy()
        replaced = np.where(fate < _MASKED_TENTHS + _RANDOM_TENTHS, random_ids, target_ids)
        masked_ids[rows, columns] = np.where(fate < _MASKED_TENTHS, self.mask_id, replaced)
        return Masked(masked_ids, rows * input_ids.shape[1] + columns, target_ids)

    def _choose(self, input_ids: Int64s, special: Bools, row_keys: UInt64s, wanted: Int64s) -> Bools:
        """Choose the targets, [B, T]: at most `wanted` of each row."""
        if self.unit == "token":
            order = hashes(row_keys[:, None] ^ _CHOOSE, np.arange(input_ids.shape[1]))
            order[special] = _LAST
            return _smallest(order, wanted)
        assert self.continues_word is not None
        begins = ~special
        begins[:, 1:] &= special[:, :-1] | ~self.continues_word[input_ids[:, 1:]]
        words = np.cumsum(begins, axis=1) - 1  # a special token counts to the word before it
        if self.unit == "whole-word":
            return _whole_words(words, special, row_keys, wanted)
        order = _span_order(words.clip(0), row_keys)
        order[special] = _LAST
        return _smallest(order, wanted)


def _smallest(order: UInt64s, wanted: Int64s) -> Bools:
    """Choose the `wanted` smallest of each row, [B, T]."""
    # The rest need not be sorted.
    most = max(1, int(wanted.max(initial=0)))
    smallest = np.sort(np.partition(order, most - 1, axis=1)[:, :most], axis=1)
    bounds = np.take_along_axis(smallest, np.maximum(wanted, 1)[:, None] - 1, axis=1)
    chosen: Bools = (order <= bounds) & (wanted > 0)[:, None]
    return chosen


def _whole_words(words: Int64s, special: Bools, row_keys: UInt64s, wanted: Int64s) -> Bools:
    """Choose words in random order, leaving out those for which there is no room any more, [B, T]."""
    num_rows, num_words = len(words), int(words.max(initial=0)) + 1
    numbered = (words + num_words * np.arange(num_rows)[:, None])[~special]
    sizes = np.bincount(numbered, minlength=num_rows * num_words).reshape(num_rows, num_words)
    shuffled = np.argsort(hashes(row_keys[:, None] ^ _CHOOSE, np.arange(num_words)), axis=1)
    sizes = np.take_along_axis(sizes, shuffled, axis=1)
    room, waiting, taken = wanted[:, None].copy(), sizes > 0, np.zeros(sizes.shape, bool)
    # Word by word would be a loop of Python. Each round takes what fits up to the first word that does not; that one is never looked at
    # again, since there will not be more room, and two or three rounds are usual.
    while (waiting := waiting & (sizes <= room)).any():
        fitting = waiting & (np.cumsum(sizes * waiting, axis=1) <= room)
        room -= (sizes * fitting).sum(1, keepdims=True)
        taken, waiting = taken | fitting, waiting & ~fitting
    chosen = np.zeros(sizes.shape, bool)
    np.put_along_axis(chosen, shuffled, taken, axis=1)
    return np.take_along_axis(chosen, words.clip(0), axis=1) & ~special


def _span_order(words: Int64s, row_keys: UInt64s) -> UInt64s:
    """Return the order in which tokens become targets, [B, T]: spans in random order, each from its first token on.

    Every row is laid out with spans and gaps in turn, both of geometric lengths, and a random few of the spans are needed. So they do not
    touch, and have the lengths that were drawn: long ones are not left out more often, as by drawing places until a span fits in. Where
    the share is so large that it needs more than all spans, the gaps come last.
    """
    num_rows, num_words = len(words), int(words.max(initial=0)) + 1
    draws = hashes(row_keys[:, None] ^ _LENGTH, np.arange(num_words // 2 + 2 * _WORDS_AHEAD))  # twice as many as fit on average
    ends = np.cumsum(1 + np.searchsorted(_LENGTH_BOUNDS, draws, side="right"), axis=1) - _WORDS_AHEAD
    ends = ends.clip(0, num_words) + (num_words + 1) * np.arange(num_rows)[:, None]
    pieces = np.bincount(ends.ravel(), minlength=num_rows * (num_words + 1)).reshape(num_rows, -1)[:, :-1].cumsum(1)  # by word
    order = hashes(row_keys[:, None] ^ _CHOOSE, pieces) >> np.uint64(1) | (pieces % 2).astype(np.uint64) << np.uint64(63)
    by_token: UInt64s = order.ravel()[words + num_words * np.arange(num_rows)[:, None]]
    return by_token & ~_COLUMNS | np.arange(words.shape[1], dtype=np.uint64)


def _run_starts(rows: Int64s, columns: Int64s) -> Int64s:
    """Return the first column of the run of neighbours that each target is in, [M]."""
    begins = np.ones(len(rows), bool)
    begins[1:] = (np.diff(rows) != 0) | (np.diff(columns) != 1)
    return columns[np.maximum.accumulate(np.where(begins, np.arange(len(rows)), 0))]
