"""Causal and prefix LM, from the model's attention to a run of some steps."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from pldcli.data.loader import NO_TARGET, SpanSamples, to_batch
from pldcli.data.next_token import NextTokens
from pldcli.data.packing import PackedSamples
from pldcli.engine.objectives import encode
from pldcli.engine.precision import Precision
from pldcli.engine.runtime import Runtime
from pldcli.engine.validation import count_attended, fixed_batches, score_lm, unigram_baseline
from pldcli.model import StBert
from pldcli.pld import Plan
from pldcli.runs.checkpoint import Position, optimizer_tensors
from pldcli.system.signals import StopRequest
from tests.conftest import MadeUpData, made_up_stream, tiny_config, tiny_trainer

CPU = torch.device("cpu")
SPECIAL = MadeUpData.special
GPT = ("model.embedding_norm=false", "model.lm_head=plain", "model.type_vocab_size=0", "objective.kind=causal")
MODERN = (
    *("model.position_embedding=rotary", "model.feed_forward=geglu", "model.type_vocab_size=0", "model.first_attention_norm=false"),
    *("model.global_layers=3", "model.local_attention=8", "objective.kind=causal"),
)


def make_model(*changes: str) -> StBert:
    """Weights large enough that every token in sight matters."""
    settings = dict(tiny_config(*changes, "model.dropout=0", "model.initializer_range=0.3").model)
    return StBert(**settings, seed=1).eval()


def logits(model: StBert, ids: Tensor, **how: Any) -> Tensor:
    return model.mlm_logits(model(ids, **how)).detach()


@pytest.mark.parametrize("changes", [GPT, MODERN])
def test_no_token_sees_a_later_one(changes: tuple[str, ...]) -> None:
    model = make_model(*changes)
    ids = torch.from_numpy(SpanSamples(made_up_stream(), SPECIAL, 32, seed=0).rows(np.arange(2)).input_ids)
    before = logits(model, ids, causal=True)
    for place in (1, 9, 31):
        other = ids.clone()
        other[:, place] = (other[:, place] - 5 + 7) % 59 + 5
        changed = (logits(model, other, causal=True) - before).abs().amax(-1) > 1e-4
        assert not changed[:, :place].any() and changed[:, place].all()
        assert (logits(model, other) - logits(model, ids)).abs()[:, max(0, place - 1)].max() > 1e-4, "without it they do"


def test_a_prefix_sees_itself_whole_and_nothing_behind() -> None:
    """Which token changes which output, against a matrix made by hand."""
    model = make_model(*GPT)
    ids = torch.from_numpy(SpanSamples(made_up_stream(), SPECIAL, 10, seed=0).rows(np.arange(2)).input_ids)
    lengths = torch.tensor([1, 4])
    before = logits(model, ids, causal=True, prefix_lengths_B=lengths)
    for place in range(10):
        other = ids.clone()
        other[:, place] = (other[:, place] + 7 - 5) % 59 + 5
        changed = (logits(model, other, causal=True, prefix_lengths_B=lengths) - before).abs().amax(-1) > 1e-5
        expected = [[reader >= place or place < length for reader in range(10)] for length in (1, 4)]
        assert changed.tolist() == expected, place


@pytest.mark.parametrize("changes", [GPT, MODERN])
def test_packed_documents_get_what_each_gets_alone(changes: tuple[str, ...]) -> None:
    model = make_model(*changes)
    batch = to_batch(PackedSamples(made_up_stream(), SPECIAL, 64, seed=0).rows(np.arange(4)), NextTokens(SPECIAL))
    assert batch.segments is not None and int(batch.segments.max()) > 1
    packed = model.mlm_logits(encode(model, batch)).detach()
    for row in range(4):
        for number in range(1, int(batch.segments[row].max()) + 1):
            inside = batch.segments[row] == number
            alone = logits(model, batch.input_ids[row][inside][None], causal=True)[0]
            torch.testing.assert_close(packed[row][inside], alone, rtol=0, atol=1e-4)


# Loss and validation


def test_the_loss_is_that_of_every_next_token() -> None:
    trainer = tiny_trainer(*GPT, "model.dropout=0")
    batch = trainer.batches.step(0)[0][0]
    assert trainer.objective.names == ("clm",)
    sums = trainer.objective.loss_sums(trainer.model, batch, None, None)
    log_probs = logits(trainer.model, batch.input_ids, causal=True).log_softmax(-1)
    expected = -sum(
        float(log_probs[row, place, batch.input_ids[row, place + 1]]) for row in range(len(batch.input_ids)) for place in range(30)
    )
    assert trainer.objective.num_targets(batch) == [len(batch.input_ids) * 30]
    torch.testing.assert_close(sums, torch.tensor([expected]), rtol=1e-5, atol=0)


def test_a_dropped_block_has_no_gradient() -> None:
    trainer = tiny_trainer(*GPT)
    batch = trainer.batches.step(0)[0][0]
    trainer.forward_backward(batch, Plan((True, False, True), (1.0, 0.5, 1.0), (1.0, 2.0, 1.0)), trainer.objective.num_targets(batch))
    assert all(parameter.grad is None for parameter in trainer.model.blocks[1].parameters())
    assert all(parameter.grad is not None for parameter in trainer.model.blocks[2].parameters())


def test_validation_of_a_causal_model() -> None:
    """Loss and unigram baseline of next tokens, on the same rows as masked models' validation."""
    model, data = make_model(*GPT), MadeUpData()
    batches = [*fixed_batches(data, 32, causal=True)]  # type: ignore[arg-type]
    masked = [*fixed_batches(data, 32)]  # type: ignore[arg-type]
    assert sum(len(batch.input_ids) for batch in batches) == sum(len(batch.input_ids) for batch in masked)
    score = score_lm(model, batches, Precision("fp32", CPU), Runtime(CPU))
    losses, hits, targets = 0.0, 0, 0
    for batch in batches:
        log_probs = logits(model, batch.input_ids, causal=True, attention_mask_BT=batch.attention_mask).log_softmax(-1).flatten(0, 1)
        losses -= float(log_probs[batch.positions, batch.target_ids].double().sum())
        hits += int((log_probs[batch.positions].argmax(-1) == batch.target_ids).sum())
        targets += len(batch.target_ids)
    assert score.num_targets == targets
    assert score.values == {
        "clm_loss": pytest.approx(losses / targets, rel=1e-5),
        "perplexity": pytest.approx(math.exp(losses / targets), rel=1e-4),
        "clm_accuracy": hits / targets,
    }
    text = np.concatenate([values for values, _ in data.stream("train").segments])
    counts = np.bincount(text, minlength=64) + 0.5
    counts[[0, 1, 2, 4]] = 0.0
    predicted = np.concatenate([batch.target_ids.numpy() for batch in batches])
    expected = -np.log((counts / counts.sum())[predicted]).mean()
    assert unigram_baseline(data, batches, causal=True) == pytest.approx(expected, abs=1e-3)  # type: ignore[arg-type]
    assert (predicted == SPECIAL.sep_id).any()


def test_what_a_token_attends_to() -> None:
    """Counted pair by pair."""
    rows = SpanSamples(made_up_stream(), SPECIAL, 12, seed=0).rows(np.arange(5))
    causal, prefixed = (to_batch(rows, NextTokens(SPECIAL, prefix=prefix)) for prefix in (False, True))
    assert prefixed.prefix_lengths is not None
    assert count_attended(causal, 12.0) == 5 * 12 * 13 / 2
    seen = sum(key <= query or key < length for length in prefixed.prefix_lengths.tolist() for query in range(12) for key in range(12))
    assert count_attended(prefixed, 12.0) == seen
    packed = to_batch(PackedSamples(made_up_stream(), SPECIAL, 64, seed=0).rows(np.arange(4)), NextTokens(SPECIAL))
    assert packed.segments is not None
    sizes = [int((row == number).sum()) for row in packed.segments for number in range(1, int(row.max()) + 1)]
    assert count_attended(packed, 64.0) == sum(size * (size + 1) / 2 for size in sizes)


# Steps


def taken(trainer: Any, position: Position, last: int) -> tuple[list[dict[str, float]], Position]:
    losses = []
    for seen in trainer.steps(position, observe=lambda step: True, stop=StopRequest()):
        losses.append(seen.losses)
        if seen.position.step == last:
            return losses, seen.position
    raise AssertionError("not so many steps")


@pytest.mark.parametrize(
    "changes", [("objective.causal_share=0.5",), ("objective.kind=prefix",), GPT, (*GPT, "data.packing=documents")], ids=str
)
def test_resume_is_exact(changes: tuple[str, ...]) -> None:
    whole = tiny_trainer(*changes)
    expected, _ = taken(whole, Position(), 12)
    first = tiny_trainer(*changes)
    begun, position = taken(first, Position(), 5)
    again = tiny_trainer(*changes, "train.seed=0")
    weights = {name: tensor.clone() for name, tensor in first.model.state_dict().items()}
    again.restore(weights, optimizer_tensors(first.model, first.optimizer), {}, where="here")
    ended, _ = taken(again, replace(position, step=5), 12)
    assert begun + ended == expected
    assert all(math.isfinite(value) for losses in expected for value in losses.values())


def test_a_step_has_one_kind_of_targets() -> None:
    trainer = tiny_trainer("objective.causal_share=0.5")
    losses, position = taken(trainer, Position(), 12)
    kinds = ["clm" if trainer.batches.step(step)[0][0].causal else "mlm" for step in range(12)]
    assert set(kinds) == {"clm", "mlm"}
    for found, kind in zip(losses, kinds, strict=True):
        assert found == {"loss": found[kind], kind: found[kind]}
    assert position.tokens == 12 * 8 * 32


def test_a_causal_model_learns_from_context() -> None:
    """On documents in which each id hints at the next, soon below what frequencies alone would give."""
    trainer = tiny_trainer(*GPT, "train.total_steps=150", "optim.learning_rate=3e-3", "pld.theta_bar=0.5")
    taken(trainer, Position(), 150)
    data = MadeUpData()
    batches = [*fixed_batches(data, 32, causal=True, max_sequences=32)]  # type: ignore[arg-type]
    score = score_lm(trainer.model, batches, Precision("fp32", CPU), Runtime(CPU))
    assert score.loss < unigram_baseline(data, batches, causal=True) - 0.3  # type: ignore[arg-type]
    assert NO_TARGET not in torch.cat([batch.target_ids for batch in batches])
