from __future__ import annotations

import numpy as np
import pytest
import torch

from pldcli.data.loader import NO_TARGET, Batch, SpanSamples, validation_batches
from pldcli.data.masking import Masking
from pldcli.data.stream import TokenStream
from pldcli.engine import validation as module
from pldcli.engine.validation import token_shares, unigram_loss
from pldcli.tokenization.tokenizer import SpecialTokens

SPECIAL = SpecialTokens(pad_id=0, unk_id=1, cls_id=2, sep_id=3, mask_id=4)
V = 12
"""Seven ordinary tokens, 5 to 11."""


class Text(TokenStream):
    """A made-up stream without documents, the later tokens more frequent."""

    def __init__(self, num_tokens: int, seed: int = 0) -> None:
        self.shares = np.arange(1, 8) / 28
        self.tokens = np.random.default_rng(seed).choice(np.arange(5, V), num_tokens, p=self.shares)
        super().__init__([(self.tokens, np.empty(0, np.int64))], end_id=3)


def batch(shown: list[int], targets: list[int]) -> Batch:
    ids = torch.tensor([[2, *shown, 3]])
    return Batch(input_ids=ids, positions=torch.arange(1, len(shown) + 1), target_ids=torch.tensor(targets))


def test_shares_are_those_of_the_text_and_special_tokens_have_none() -> None:
    text = Text(200_000)
    shares = token_shares(text, V, SPECIAL)
    assert shares.sum() == pytest.approx(1.0)
    assert not shares[:5].any()
    np.testing.assert_allclose(shares[5:], text.shares, atol=0.005)


def test_a_long_text_is_sampled_from_its_first_to_its_last_token(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_MOST_TOKENS", 6400)
    text, asked = Text(200_000), []
    whole = text.slice
    monkeypatch.setattr(text, "slice", lambda start, stop: (asked.append((start, stop)), whole(start, stop))[1])
    np.testing.assert_allclose(token_shares(text, V, SPECIAL)[5:], text.shares, atol=0.03)
    assert (asked[0][0], asked[-1][1]) == (0, 200_000)
    assert sum(stop - start for start, stop in asked) == 6400


def test_a_token_never_met_has_a_share() -> None:
    text = Text(300)
    text.tokens[:] = 7
    shares = token_shares(text, V, SPECIAL)
    assert all(shares[5:] > 0)
    assert shares[7] > 0.98


def test_mask_is_answered_with_frequencies_and_a_token_with_how_often_it_was_left() -> None:
    shares = np.zeros(V)
    shares[5], shares[6] = 0.75, 0.25
    assert unigram_loss(shares, [batch([4, 4], [5, 6])], SPECIAL) == pytest.approx(-(np.log(0.75) + np.log(0.25)) / 2)
    # A 5 shown is the target in 0.1 x 0.75 of the cases and drawn in 0.1 x 0.5 of them: left with probability 0.6.
    assert unigram_loss(shares, [batch([5], [5])], SPECIAL) == pytest.approx(-np.log(0.6 + 0.4 * 0.75))
    assert unigram_loss(shares, [batch([5], [6])], SPECIAL) == pytest.approx(-np.log(0.4 * 0.25))
    both = [batch([4], [5]), batch([5, 5], [6, NO_TARGET])]
    assert unigram_loss(shares, both, SPECIAL) == pytest.approx(-(np.log(0.75) + np.log(0.4 * 0.25)) / 2)


def test_no_answer_that_looks_at_the_token_alone_is_better() -> None:
    """The answer that was counted out of many masked targets themselves is as good, and neither is beaten."""
    text = Text(120_000)
    samples = SpanSamples(text, SPECIAL, 62, seed=3, shuffle=False)
    batches = list(validation_batches(samples, Masking(0.15, SPECIAL.mask_id, SPECIAL.ids, V), batch_size=50))
    counts = np.zeros((V, V))
    for one in batches:
        shown = one.input_ids.reshape(-1)[one.positions].numpy()
        np.add.at(counts, (shown, one.target_ids.numpy()), 1)
    rows = counts / np.maximum(counts.sum(1, keepdims=True), 1)
    best = -(counts[counts > 0] * np.log(rows[counts > 0])).sum() / counts.sum()
    loss = unigram_loss(token_shares(text, V, SPECIAL), batches, SPECIAL)
    assert best <= loss < best + 0.01
    unigram = -(text.shares * np.log(text.shares)).sum()
    assert loss < unigram - 0.02
