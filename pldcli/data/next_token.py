"""Choose next-token targets, vectorised over a batch, and the steps of a run that have them.

Shapes: B batch, T tokens, M targets of the whole batch.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from pldcli.choices import LmKind
from pldcli.data.order import UInt64s, hashes, key
from pldcli.tokenization.tokenizer import SpecialTokens

__all__ = ["NextTokenSteps", "NextTokens", "Shifted"]

_PREFIX = np.uint64(9 << 32)
"""A key apart from those of masks and pairs: the length of the prefix."""


@dataclass(frozen=True)
class Shifted:
    """Where the next token is predicted; nothing is replaced."""

    positions: npt.NDArray[np.int64]
    """[M], as indices into the flattened [B x T]: each reads up to itself and predicts the token behind it."""
    target_ids: npt.NDArray[np.int64]
    """[M], the tokens behind them."""
    prefix_lengths: npt.NDArray[np.int64] | None = None
    """[B], tokens at the start of a row that all see each other and are no targets; None for causal attention throughout."""


@dataclass(frozen=True)
class NextTokens:
    """Every token that text goes on with is a target.

    Targets are ordinary tokens and the separators that end documents: within a row of several documents, the token behind a separator is
    predicted too, as GPT-2 does across its end-of-text token, unless the documents are packed so that they do not see each other. No
    targets are the other special tokens, the separator that closes a row, since text was cut there, and the tokens of a prefix.

    Source: Radford et al. 2019 (GPT-2), section 2. For prefixes Dong et al. 2019 (UniLM), section 2.3; here the prefix is a random part of
    a row instead of its first segment, all tokens behind it are targets instead of masked ones, and none is predicted from right to left.
    For causal steps of an encoder Charpentier & Samuel 2024 (GPT-BERT), who predict masked tokens too at the position before; here those
    are predicted where they stand, as BERT does.
    """

    special: SpecialTokens
    prefix: bool = False
    """Rows begin with a prefix of at least one token, of random length, [CLS] counted, that leaves one token to predict."""

    @property
    def never_ids(self) -> list[int]:
        """List the tokens that are never targets: those that do not stand for text or its end."""
        return [token_id for token_id in self.special.ids if token_id != self.special.sep_id]

    def most_targets(self, num_tokens: int) -> int:
        """Count the targets of a row of so many tokens, [CLS] and [SEP] among them: no row has more."""
        return num_tokens - 2

    def __call__(
        self,
        input_ids: npt.NDArray[np.int64],
        row_keys: UInt64s,
        *,
        attention_mask: npt.NDArray[np.bool_] | None = None,
        segments: npt.NDArray[np.int64] | None = None,
    ) -> Shifted:
        """Choose the targets of a batch.

        Args:
            input_ids: [B, T].
            row_keys: [B], one key per sequence; equal keys and lengths give equal prefixes.
            attention_mask: [B, T], True at real tokens, from the left; None when there is no padding.
            segments: [B, T], the document of each token where documents do not see each other, 0 for padding.
        """
        is_target = ~np.isin(input_ids, self.never_ids)
        is_target[:, [0, -1]] = False
        if segments is not None:
            is_target[:, 1:] &= segments[:, 1:] == segments[:, :-1]
        elif attention_mask is not None:
            is_target[:, :-1] &= attention_mask[:, 1:]  # the last real token is the separator that closes the row
        lengths = None
        if self.prefix:
            room = np.full(len(input_ids), input_ids.shape[1]) if attention_mask is None else attention_mask.sum(1)
            draws = hashes(row_keys ^ _PREFIX, np.zeros(1, np.int64))
            lengths = 1 + (draws % np.maximum(room - 2, 1).astype(np.uint64)).astype(np.int64)
            is_target &= np.arange(input_ids.shape[1]) >= lengths[:, None]
        rows, columns = np.nonzero(is_target)
        return Shifted(rows * input_ids.shape[1] + columns - 1, input_ids[rows, columns], lengths)


@dataclass(frozen=True)
class NextTokenSteps:
    """The steps of a run whose targets are next tokens: a function of (seed, step) alone, so that resume is exact.

    Whole steps, not rows: one forward pass then has one form of attention, and a step's loss is a mean over targets of one kind.
    """

    special: SpecialTokens
    kind: LmKind
    causal_share: float
    seed: int

    def at(self, step: int) -> NextTokens | None:
        """Return how a step's targets are chosen; None where they are masked tokens."""
        if self.kind == "causal":
            return NextTokens(self.special)
        share = float(hashes(key(self.seed, "causal"), np.array([step]))[0]) / 2**64
        if self.kind == "masked":
            return NextTokens(self.special) if share < self.causal_share else None
        return NextTokens(self.special, prefix=share < 1 / 3) if share < 2 / 3 else None
