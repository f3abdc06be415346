from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from pldcli.data.loader import Batch, SpanSamples, count_tokens, validation_batches
from pldcli.data.masking import Masking
from pldcli.data.prepared import PreparedData
from pldcli.data.shards import ShardWriter
from pldcli.engine.precision import Precision
from pldcli.engine.runtime import Runtime
from pldcli.engine.validation import LmScore, fixed_batches, score_lm
from pldcli.model import StBert
from pldcli.tokenization.tokenizer import SpecialTokens

V, SEQ_LEN = 60, 12
SPECIAL = SpecialTokens(pad_id=0, unk_id=1, cls_id=2, sep_id=3, mask_id=4)
CPU = torch.device("cpu")
FP32 = Precision("fp32", CPU)


@pytest.fixture
def prepared(tmp_path: Path) -> PreparedData:
    """A validation split of 397 tokens: 40 rows of which the last has 7."""
    rng = np.random.default_rng(0)
    with ShardWriter(tmp_path, "validation", vocab_size=V, end_id=SPECIAL.sep_id, batch_bytes=64) as writer:
        for length in (100, 1, 60, 232):
            writer.add(rng.integers(5, V, length).astype(np.uint32))
            writer.end_document()
    return PreparedData(
        path=tmp_path, manifest={"shards": writer.shards}, vocab_size=V, special=SPECIAL, fingerprint="f", data_fingerprint="d"
    )


def make_model(**changes: Any) -> StBert:
    sizes = {
        "num_hidden_layers": 3,
        "hidden_size": 16,
        "num_attention_heads": 2,
        "intermediate_size": 24,
        "vocab_size": V,
        "max_position_embeddings": SEQ_LEN,
        "initializer_range": 0.3,
        "dropout": 0.5,
    }
    return StBert(**(sizes | changes))


def score(model: StBert, batches: Any, precision: Precision = FP32) -> LmScore:
    return score_lm(model, batches, precision, Runtime(CPU))


def numbers(scored: LmScore) -> tuple[float, float, int, int]:
    return scored.loss, scored.accuracy, scored.num_targets, scored.num_tokens


def equal(one: Batch, other: Batch) -> bool:
    pairs = zip(vars(one).values(), vars(other).values(), strict=True)
    return all(torch.equal(a, b) if isinstance(a, torch.Tensor) and isinstance(b, torch.Tensor) else a is b for a, b in pairs)


def test_a_score_equals_a_computation_by_hand(prepared: PreparedData) -> None:
    model = make_model()
    batches = [*fixed_batches(prepared, SEQ_LEN)]
    scored = score(model, batches)

    losses, hits = [], []
    model = model.double().eval()
    with torch.no_grad():
        for batch in batches:
            for row, ids in enumerate(batch.input_ids):
                length = SEQ_LEN if batch.attention_mask is None else int(batch.attention_mask[row].sum())
                log_probs = model.mlm_logits(model(ids[None, :length])[0]).log_softmax(-1)
                for position, target in zip(batch.positions.tolist(), batch.target_ids.tolist(), strict=True):
                    if position // SEQ_LEN == row:
                        losses.append(-float(log_probs[position % SEQ_LEN, target]))
                        hits.append(int(log_probs[position % SEQ_LEN].argmax()) == target)
    assert scored.num_targets == len(losses) > 39
    assert scored.loss == pytest.approx(sum(losses) / len(losses), rel=1e-5)
    assert scored.accuracy == pytest.approx(sum(hits) / len(hits))
    assert scored.perplexity == pytest.approx(math.exp(scored.loss))
    assert scored.num_tokens == 397 + 2 * 40
    assert scored.tokens_per_second == pytest.approx(scored.num_tokens / scored.seconds)


def test_the_same_model_gets_the_same_number(prepared: PreparedData) -> None:
    model = make_model()
    torch.manual_seed(1)
    once = score(model, fixed_batches(prepared, SEQ_LEN))
    torch.manual_seed(2)
    assert numbers(score(model, fixed_batches(prepared, SEQ_LEN))) == numbers(once)
    assert numbers(score(make_model(seed=1), fixed_batches(prepared, SEQ_LEN))) != numbers(once)


@pytest.mark.parametrize("batch_size", [1, 7, 40])
def test_a_score_does_not_depend_on_the_batch_size(prepared: PreparedData, batch_size: int) -> None:
    model = make_model()
    samples = SpanSamples(prepared.stream("validation"), SPECIAL, SEQ_LEN, seed=1, shuffle=False)
    masking = Masking(0.15, SPECIAL.mask_id, SPECIAL.ids, V)
    one, other = (score(model, validation_batches(samples, masking, batch_size=size)) for size in (16, batch_size))
    assert numbers(one)[1:] == numbers(other)[1:]
    assert one.loss == pytest.approx(other.loss, rel=1e-6)


@pytest.mark.parametrize("training", [False, True])
def test_every_block_runs_without_dropout_or_gradient_and_the_mode_is_restored(prepared: PreparedData, training: bool) -> None:
    model = make_model().train(training)
    seen = []
    for block in model.blocks:
        block.register_forward_hook(lambda block, inputs, output: seen.append((block.training, output.requires_grad, inputs[2])))
    batches = [*fixed_batches(prepared, SEQ_LEN)]
    score(model, batches)
    assert seen == [(False, False, None)] * 3 * len(batches)
    assert all(module.training == training for module in model.modules())
    assert all(parameter.grad is None for parameter in model.parameters())


def test_fixed_batches_are_fixed(prepared: PreparedData) -> None:
    once, twice = ([*fixed_batches(prepared, SEQ_LEN)] for _ in range(2))
    assert sum(len(batch.input_ids) for batch in once) == 40
    assert all(equal(one, other) for one, other in zip(once, twice, strict=True))
    first = [*fixed_batches(prepared, SEQ_LEN, max_sequences=5)]
    assert torch.equal(torch.cat([batch.input_ids for batch in first]), once[0].input_ids[:5])


def test_fixed_masks_are_these(prepared: PreparedData) -> None:
    """Literal: a number measured by one version is comparable with the next one's."""
    batch = next(fixed_batches(prepared, SEQ_LEN))
    assert batch.positions[:8].tolist() == [6, 8, 16, 19, 28, 34, 38, 42]


def test_fifteen_percent_are_masked_whatever_the_run_masked(prepared: PreparedData) -> None:
    batches = [*fixed_batches(prepared, 102)]
    mask = batches[0].attention_mask
    assert mask is not None
    assert [int(count) for count in torch.bincount(batches[0].positions // 102)][:3] == [15, 15, 15]


def test_processes_share_the_batches(prepared: PreparedData) -> None:
    """Together they score every batch once."""
    model = make_model()
    whole = score(model, fixed_batches(prepared, SEQ_LEN))
    shares = []

    class Alone(Runtime):
        def sum_on_host(self, values: Any) -> list[float]:
            shares.append(list(values))
            return list(values)

    batches = [*validation_batches_of_five(prepared)]
    for rank in range(3):
        score_lm(model, batches, FP32, Alone(CPU, rank, 3))
    loss, hits, targets, tokens = (sum(column) for column in zip(*shares, strict=True))
    assert (targets, tokens) == (whole.num_targets, whole.num_tokens)
    assert loss / targets == pytest.approx(whole.loss, rel=1e-6)
    assert hits / targets == pytest.approx(whole.accuracy)
    assert all(0 < share[2] < targets for share in shares)


def test_a_check_ends_the_scoring_on_all_processes_at_once(prepared: PreparedData) -> None:
    """It is called equally often on all, also where the last batches are of others."""
    model, calls = make_model().train(), [0, 0, 0]
    batches = [*validation_batches_of_five(prepared)][:5]
    for rank in range(3):
        runtime = Runtime(CPU, rank, 3)
        runtime.sum_on_host = list  # type: ignore[assignment,method-assign]

        def check(rank: int = rank) -> None:
            calls[rank] += 1

        score_lm(model, batches, FP32, runtime, check=check)
    assert calls == [2, 2, 2]

    def broken_off() -> None:
        raise InterruptedError

    with pytest.raises(InterruptedError):
        score_lm(model, batches, FP32, Runtime(CPU), check=broken_off)
    assert model.training


def validation_batches_of_five(prepared: PreparedData) -> Any:
    samples = SpanSamples(prepared.stream("validation"), SPECIAL, SEQ_LEN, seed=20201, shuffle=False)
    return validation_batches(samples, Masking(0.15, SPECIAL.mask_id, SPECIAL.ids, V), batch_size=5)


def test_bf16_is_close(prepared: PreparedData) -> None:
    model = make_model()
    exact, rough = (score(model, fixed_batches(prepared, SEQ_LEN), Precision(name, CPU)) for name in ("fp32", "bf16"))  # type: ignore[arg-type]
    assert rough.loss == pytest.approx(exact.loss, rel=0.02)
    assert rough.loss != exact.loss


def test_nothing_to_score_is_no_crash() -> None:
    scored = score(make_model(), [])
    assert numbers(scored) == (0.0, 0.0, 0, 0)


def test_the_perplexity_of_a_diverged_model_is_a_number() -> None:
    assert LmScore(5000.0, 0.0, 1, 1, 0.0).perplexity == math.exp(700)
    assert LmScore(1.0, 0.0, 1, 1, 0.0).tokens_per_second == 0.0


def test_count_tokens() -> None:
    ids = torch.zeros(2, 5, dtype=torch.int64)
    empty = torch.zeros(0, dtype=torch.int64)
    assert count_tokens(Batch(input_ids=ids, positions=empty, target_ids=empty)) == 10
    mask = torch.tensor([[True] * 5, [True] * 2 + [False] * 3])
    assert count_tokens(Batch(input_ids=ids, attention_mask=mask, positions=empty, target_ids=empty)) == 7


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_a_validation_split_without_targets_is_scored(tmp_path: Path, precision: Any) -> None:
    """Every token of it is unknown."""
    with ShardWriter(tmp_path, "validation", vocab_size=V, end_id=SPECIAL.sep_id, batch_bytes=64) as writer:
        writer.add(np.full(200, SPECIAL.unk_id, np.uint32))
        writer.end_document()
    unknown = PreparedData(
        path=tmp_path, manifest={"shards": writer.shards}, vocab_size=V, special=SPECIAL, fingerprint="f", data_fingerprint="d"
    )
    found = score(make_model(), fixed_batches(unknown, SEQ_LEN), Precision(precision, CPU))
    assert (found.loss, found.accuracy, found.num_targets) == (0.0, 0.0, 0) and found.num_tokens > 200
