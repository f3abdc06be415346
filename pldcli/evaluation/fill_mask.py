"""Fill the masks in a text with what the model finds most likely."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from pldcli.data.loader import Batch
from pldcli.errors import UsageError
from pldcli.evaluation.subject import Subject
from pldcli.tasks.reading import reader_of
from pldcli.tokenization.special_tokens import SPECIAL_NAMES, mark_special

__all__ = ["Candidate", "fill_mask"]

_WHERE = "--fill"


@dataclass(frozen=True)
class Candidate:
    """A token for one mask."""

    token_id: int
    token: str
    """As it reads in text."""
    probability: float
    text: str
    """The whole text with this token in place of the mask, and the other masks as they were."""


def fill_mask(subject: Subject, text: str, *, top: int = 5) -> list[list[Candidate]]:
    """Find the most likely tokens for each mask, each on its own while the others stay masked.

    Args:
        subject: The model.
        text: With masks spelled as the tokenizer spells them, or `[MASK]`, or `<mask>`.
        top: Candidates per mask.

    Returns:
        Per mask, from the left, its candidates, the most likely one first.

    Raises:
        UsageError: The text has no mask or is too long, or `top` is not within the vocabulary.
    """
    tokenizer, settings = subject.loaded.tokenizer, subject.loaded.settings
    special = tokenizer.special
    if not 1 <= top <= tokenizer.vocab_size:
        raise UsageError(f"must be between 1 and the {tokenizer.vocab_size:,} entries of the vocabulary, not {top}", where="--top")
    fast = reader_of(tokenizer)
    mark_special(fast, special)  # else the spelling of a mask that the tokenizer does not declare is text
    mask = fast.id_to_token(special.mask_id)
    for spelling in SPECIAL_NAMES["mask"]:
        text = text.replace(spelling, mask)
    ids = [special.cls_id, *fast.encode(text, add_special_tokens=False).ids, special.sep_id]
    places = [place for place, token_id in enumerate(ids) if token_id == special.mask_id]
    if not places:
        raise UsageError(f"there is no {mask} in {text!r}", where=_WHERE, hint=f'for example "the capital of {mask} is paris"')
    if len(ids) > settings.max_position_embeddings:
        what = f"the text has {len(ids):,} tokens, this model reads {settings.max_position_embeddings:,} at most"
        raise UsageError(what, where=_WHERE, hint="shorten it")
    masks = torch.full((len(places),), special.mask_id)
    batch = Batch(input_ids=torch.tensor([ids]), positions=torch.tensor(places), target_ids=masks)
    best = subject.logits(batch).softmax(-1)[:, : tokenizer.vocab_size].topk(top)
    return [
        [_candidate(fast, ids, place, token_id, probability) for token_id, probability in zip(*pair, strict=True)]
        for place, *pair in zip(places, best.indices.tolist(), np.asarray(best.values.cpu()).tolist(), strict=True)
    ]


def _candidate(fast: Any, ids: list[int], place: int, token_id: int, probability: float) -> Candidate:
    filled = [*ids[1:place], token_id, *ids[place + 1 : -1]]
    token = fast.decode([token_id], skip_special_tokens=False)
    return Candidate(token_id, token, probability, fast.decode(filled, skip_special_tokens=False))
