"""How likely a masked language model finds a text: each token masked in turn, the logarithms of their probabilities summed.

Shapes: B batch, T tokens, M targets: here one per row.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence

import numpy as np
import numpy.typing as npt
import torch
from torch.nn import functional

from pldcli.data.loader import Batch
from pldcli.data.tokenizer import SpecialTokens
from pldcli.evaluation.subject import Subject

__all__ = ["masked_copies", "pseudo_log_likelihoods"]

_TOKENS_PER_BATCH = 8192


def pseudo_log_likelihoods(
    subject: Subject,
    texts: Sequence[Sequence[int]],
    *,
    gates: Sequence[bool] | None = None,
    advance: Callable[[int], None] = lambda _: None,
) -> list[float]:
    """Sum log p(token | all others) over the tokens of each text; special tokens are not scored.

    A text longer than a row is scored in consecutive rows, each by itself. Equal texts are scored once, so that they get the
    same number to the last bit.

    Args:
        subject: The model.
        texts: Token ids without special tokens.
        gates: Which blocks run; None for all.
        advance: Hears how many more tokens are scored.

    Source: Salazar et al. 2020, "Masked Language Model Scoring", equation 1.
    """
    distinct: dict[tuple[int, ...], int] = {}
    numbers = [distinct.setdefault(tuple(text), len(distinct)) for text in texts]
    sums = np.zeros(len(distinct))
    for batch, owners in masked_copies(distinct, subject.loaded.tokenizer.special, subject.loaded.seq_len):
        logits_MV = subject.logits(batch, gates)
        losses_M = functional.cross_entropy(logits_MV, batch.target_ids.to(logits_MV.device), reduction="none")
        sums -= np.bincount(owners, weights=losses_M.double().cpu().numpy(), minlength=len(sums))
        advance(len(owners))
    return [float(sums[number]) for number in numbers]


def masked_copies(texts: Iterable[Sequence[int]], special: SpecialTokens, seq_len: int) -> Iterator[tuple[Batch, npt.NDArray[np.int64]]]:
    """Yield every text once per token with that token masked, rows of like length together, the longest first.

    Args:
        texts: Token ids without special tokens.
        special: Ids of the special tokens.
        seq_len: Tokens of a row at most, with [CLS] and [SEP].

    Yields:
        A batch with one target per row, and the number of the text that each row is of, [B].
    """
    span = seq_len - 2
    windows = [(number, text[start : start + span]) for number, text in enumerate(texts) for start in range(0, len(text), span)]
    windows.sort(key=lambda window: -len(window[1]))
    copies = [(number, ids, place) for number, ids in windows for place in range(len(ids))]
    start = 0
    while start < len(copies):
        stop = start + max(1, _TOKENS_PER_BATCH // (len(copies[start][1]) + 2))
        yield _batch(copies[start:stop], special)
        start = stop


def _batch(copies: Sequence[tuple[int, Sequence[int], int]], special: SpecialTokens) -> tuple[Batch, npt.NDArray[np.int64]]:
    lengths = np.array([len(ids) for _, ids, _ in copies])
    width = int(lengths.max()) + 2
    rows = np.full((len(copies), width), special.pad_id, np.int64)
    rows[:, 0] = special.cls_id
    targets = np.empty(len(copies), np.int64)
    for row, (_, ids, place) in enumerate(copies):
        rows[row, 1 : len(ids) + 1] = ids
        rows[row, len(ids) + 1] = special.sep_id
        targets[row] = ids[place]
        rows[row, place + 1] = special.mask_id
    mask = np.arange(width) < lengths[:, None] + 2
    positions = np.arange(len(copies)) * width + np.array([place + 1 for _, _, place in copies])
    optional_mask = None if mask.all() else torch.from_numpy(mask)
    input_ids, places, target_ids = (torch.from_numpy(array) for array in (rows, positions, targets))
    return Batch(input_ids=input_ids, attention_mask=optional_mask, positions=places, target_ids=target_ids), np.array(
        [number for number, _, _ in copies]
    )
