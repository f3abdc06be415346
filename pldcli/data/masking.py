"""Choose masked-LM targets and replace them, vectorised over a batch.

Shapes: B batch, T tokens, M masked positions of the whole batch.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np
import numpy.typing as npt

from pldcli.data.order import UInt64s, hashes
from pldcli.data.tokenizer import SpecialTokens

__all__ = ["KEPT_SHARE", "RANDOM_SHARE", "Masked", "Masking"]

_MASKED_TENTHS, _RANDOM_TENTHS = 8, 1
RANDOM_SHARE, KEPT_SHARE = _RANDOM_TENTHS / 10, (10 - _MASKED_TENTHS - _RANDOM_TENTHS) / 10
"""Of the targets: those that a random token replaces, and those that stay; [MASK] replaces the rest."""

_CHOOSE, _REPLACE, _RANDOM = (np.uint64(tag << 32) for tag in (1, 2, 3))
"""Keys apart: which positions, what happens there, which random token."""
_LAST = np.iinfo(np.uint64).max


@dataclass(frozen=True)
class Masked:
    """A batch after masking."""

    input_ids: npt.NDArray[np.int64]
    """[B, T], with the replacements."""
    positions: npt.NDArray[np.int64]
    """[M], targets as indices into the flattened [B x T]."""
    target_ids: npt.NDArray[np.int64]
    """[M], what stood there."""


@dataclass(frozen=True)
class Masking:
    """BERT's dynamic masking: a fixed number of targets per sequence; of these 80 % [MASK], 10 % random, 10 % kept.

    Source: Devlin et al. 2019, section 3.1.
    """

    probability: float
    mask_id: int
    special_ids: tuple[int, ...]
    vocab_size: int

    @classmethod
    def of(cls, probability: float, special: SpecialTokens, vocab_size: int) -> Masking:
        """Take what a tokenizer says."""
        return cls(probability, special.mask_id, special.ids, vocab_size)

    def most_targets(self, num_tokens: int) -> int:
        """Count the targets of a row of so many tokens, [CLS] and [SEP] among them, without further special tokens: no row has more."""
        return max(1, round(self.probability * (num_tokens - 2)))

    @cached_property
    def _is_special(self) -> npt.NDArray[np.bool_]:
        return np.isin(np.arange(self.vocab_size), self.special_ids)

    @cached_property
    def ordinary_ids(self) -> npt.NDArray[np.int64]:
        """The ids that random replacement draws from; once, for listing them takes longer than masking a batch."""
        return np.setdiff1d(np.arange(self.vocab_size), self.special_ids)

    def __call__(self, input_ids: npt.NDArray[np.int64], row_keys: UInt64s) -> Masked:
        """Mask a batch.

        Args:
            input_ids: [B, T]; special tokens, padding among them, are never targets.
            row_keys: [B], one key per sequence; equal keys and ids give equal masks.
        """
        num_tokens = input_ids.shape[1]
        special = self._is_special[input_ids]
        available = num_tokens - special.sum(1)
        wanted = np.minimum(available, np.maximum(1, np.rint(self.probability * available).astype(np.int64)))
        order = hashes(row_keys[:, None] ^ _CHOOSE, np.arange(num_tokens))
        order[special] = _LAST
        # A row's targets are its `wanted` smallest hashes; the rest need not be sorted.
        most = max(1, int(wanted.max(initial=0)))
        smallest = np.sort(np.partition(order, most - 1, axis=1)[:, :most], axis=1)
        bounds = np.take_along_axis(smallest, np.maximum(wanted, 1)[:, None] - 1, axis=1)
        rows, columns = np.nonzero((order <= bounds) & (wanted > 0)[:, None])

        fate = hashes(row_keys[rows] ^ _REPLACE, columns) % np.uint64(10)
        ordinary = self.ordinary_ids
        random_ids = ordinary[(hashes(row_keys[rows] ^ _RANDOM, columns) % np.uint64(len(ordinary))).astype(np.int64)]
        target_ids = input_ids[rows, columns]
        masked_ids = input_ids.copy()
        replaced = np.where(fate < _MASKED_TENTHS + _RANDOM_TENTHS, random_ids, target_ids)
        masked_ids[rows, columns] = np.where(fate < _MASKED_TENTHS, self.mask_id, replaced)
        return Masked(masked_ids, rows * input_ids.shape[1] + columns, target_ids)
