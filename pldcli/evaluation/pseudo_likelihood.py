"""How likely a language model finds a text: the logarithms of the probabilities of its tokens summed.

A masked language model is asked for each token in turn, with that token masked; a causal one for each from those before it, at once.

Shapes: B batch, T tokens, M targets: one per masked row, all tokens of a row for a causal model.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence

import numpy as np
import numpy.typing as npt
import torch
from torch.nn import functional

from pldcli.data.loader import Batch
from pldcli.evaluation.subject import Subject
from pldcli.tokenization.tokenizer import SpecialTokens

__all__ = ["masked_copies", "pseudo_log_likelihoods", "scored_rows"]

_TOKENS_PER_BATCH = {"cpu": 1024, "cuda": 8192}
"""More does not fit into a processor's caches, and less does not fill a GPU."""
_TARGETS_PER_BATCH = 2048
"""For causal models, whose every token has logits."""


def pseudo_log_likelihoods(
    subject: Subject,
    texts: Sequence[Sequence[int]],
    *,
    gates: Sequence[bool] | None = None,
    advance: Callable[[int], None] = lambda _: None,
) -> list[float]:
    """Sum log p(token | all others), of a causal model log p(token | those before), over the tokens of each text; no special tokens.

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
    for batch, owners in scored_rows(distinct, subject):
        logits_MV = subject.logits(batch, gates)
        losses_M = functional.cross_entropy(logits_MV, batch.target_ids.to(logits_MV.device), reduction="none")
        sums -= np.bincount(owners, weights=losses_M.double().cpu().numpy(), minlength=len(sums))
        advance(len(owners))
    return [float(sums[number]) for number in numbers]


def scored_rows(texts: Iterable[Sequence[int]], subject: Subject) -> Iterator[tuple[Batch, npt.NDArray[np.int64]]]:
    """Yield the rows that a model scores texts with: a batch, and the number of the text that each of its targets is of, [M]."""
    loaded = subject.loaded
    if loaded.causal:
        return whole_texts(texts, loaded.tokenizer.special, loaded.seq_len)
    return masked_copies(texts, loaded.tokenizer.special, loaded.seq_len, most_tokens=_TOKENS_PER_BATCH[subject.runtime.device.type])


def whole_texts(texts: Iterable[Sequence[int]], special: SpecialTokens, seq_len: int) -> Iterator[tuple[Batch, npt.NDArray[np.int64]]]:
    """Yield every text once, with each of its tokens a target, rows of like length together, the longest first.

    Args:
        texts: Token ids without special tokens.
        special: Ids of the special tokens.
        seq_len: Tokens of a row at most, with [CLS].

    Yields:
        A batch, and the number of the text that each target is of, [M].
    """
    windows = _windows(texts, seq_len - 1)
    start = 0
    while start < len(windows):
        stop = start + max(1, _TARGETS_PER_BATCH // len(windows[start][1]))
        chosen = windows[start:stop]
        lengths = np.array([len(ids) for _, ids in chosen])
        ids = np.full((len(chosen), int(lengths.max()) + 1), special.pad_id, np.int64)
        ids[:, 0] = special.cls_id
        is_target = np.arange(ids.shape[1]) < lengths[:, None]  # the position before each token
        ids[:, 1:][is_target[:, :-1]] = np.concatenate([text for _, text in chosen])
        positions = np.flatnonzero(is_target)
        # Padding stands behind a text, where no token of it looks: it needs no mask.
        batch = Batch(
            input_ids=torch.from_numpy(ids),
            positions=torch.from_numpy(positions),
            target_ids=torch.from_numpy(ids.reshape(-1)[positions + 1]),
            causal=True,
        )
        yield batch, np.repeat([number for number, _ in chosen], lengths)
        start = stop


def _windows(texts: Iterable[Sequence[int]], span: int) -> list[tuple[int, Sequence[int]]]:
    """Cut texts into pieces of at most so many tokens, each with the number of its text, the longest first."""
    windows = [(number, text[start : start + span]) for number, text in enumerate(texts) for start in range(0, len(text), span)]
    return sorted(windows, key=lambda window: -len(window[1]))


def masked_copies(
    texts: Iterable[Sequence[int]], special: SpecialTokens, seq_len: int, *, most_tokens: int
) -> Iterator[tuple[Batch, npt.NDArray[np.int64]]]:
    """Yield every text once per token with that token masked, rows of like length together, the longest first.

    Args:
        texts: Token ids without special tokens.
        special: Ids of the special tokens.
        seq_len: Tokens of a row at most, with [CLS] and [SEP].
        most_tokens: Of a batch, unless a row is longer.

    Yields:
        A batch with one target per row, and the number of the text that each row is of, [B].
    """
    copies = [(number, ids, place) for number, ids in _windows(texts, seq_len - 2) for place in range(len(ids))]
    start = 0
    while start < len(copies):
        stop = start + max(1, most_tokens // (len(copies[start][1]) + 2))
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
