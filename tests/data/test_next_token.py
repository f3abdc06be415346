from __future__ import annotations

import numpy as np
import pytest
import torch

from pldcli.curriculum import Curriculum
from pldcli.data.loader import NO_TARGET, Batch, SpanSamples, to_batch
from pldcli.data.masking import Masking
from pldcli.data.next_token import NextTokens, NextTokenSteps
from pldcli.data.order import hashes, key
from pldcli.data.packing import PackedSamples
from pldcli.data.step_batches import StepBatches
from pldcli.tokenization.tokenizer import SpecialTokens
from tests.conftest import made_up_stream

PAD, UNK, CLS, SEP, MASK = range(5)
SPECIAL = SpecialTokens(pad_id=PAD, unk_id=UNK, cls_id=CLS, sep_id=SEP, mask_id=MASK)
NEXT = NextTokens(SPECIAL)
LITERAL = [35, 58, 70, 87, 100, 101]


def keys(count: int) -> np.ndarray:
    return hashes(key(3), np.arange(count))


def pairs(batch: Batch) -> list[tuple[int, int, int]]:
    """Row, place that predicts, token to predict."""
    length = batch.input_ids.shape[1]
    return [
        (place // length, place % length, token)
        for place, token in zip(batch.positions.tolist(), batch.target_ids.tolist(), strict=True)
        if token != NO_TARGET
    ]


def test_every_token_predicts_the_next_one_within_a_row() -> None:
    """Also across the separator inside; not [UNK], which is no text, and not the separator where the row was cut."""
    ids = np.array([[CLS, 11, 12, SEP, 13, UNK, 14, SEP]])
    found = NEXT(ids, keys(1))
    assert found.positions.tolist() == [0, 1, 2, 3, 5]
    assert found.target_ids.tolist() == [11, 12, SEP, 13, 14]
    assert found.prefix_lengths is None


def test_padding_is_not_predicted() -> None:
    """Nor the separator before it, where the text was cut; that of the document before is."""
    ids = np.array([[CLS, 11, 12, SEP, SEP, PAD, PAD], [CLS, 21, 22, 23, 24, 25, SEP]])
    found = NEXT(ids, keys(2), attention_mask=ids != PAD)
    assert found.positions.tolist() == [0, 1, 2, 7, 8, 9, 10, 11]
    assert found.target_ids.tolist() == [11, 12, SEP, 21, 22, 23, 24, 25]


def test_packed_documents_do_not_predict_each_other() -> None:
    ids = np.array([[CLS, 11, 12, SEP, CLS, 13, SEP, PAD]])
    segments = np.array([[1, 1, 1, 1, 2, 2, 2, 0]])
    found = NEXT(ids, keys(1), attention_mask=segments > 0, segments=segments)
    assert list(zip(found.positions.tolist(), found.target_ids.tolist(), strict=True)) == [(0, 11), (1, 12), (2, SEP), (4, 13), (5, SEP)]


def test_prefixes() -> None:
    """Each row has one of random length; its tokens are no targets, and at least one token behind it is."""
    samples = SpanSamples(made_up_stream(), SPECIAL, 12, seed=0)
    rows = samples.rows(np.arange(200))
    found = NextTokens(SPECIAL, prefix=True)(rows.input_ids, rows.keys)
    assert found.prefix_lengths is not None
    assert set(found.prefix_lengths.tolist()) == set(range(1, 11))
    every = NEXT(rows.input_ids, rows.keys)
    wanted = [
        (place, token)
        for place, token in zip(every.positions.tolist(), every.target_ids.tolist(), strict=True)
        if place % 12 + 1 >= found.prefix_lengths[place // 12]
    ]
    assert list(zip(found.positions.tolist(), found.target_ids.tolist(), strict=True)) == wanted
    assert {place // 12 for place in found.positions.tolist()} == set(range(200))
    again = NextTokens(SPECIAL, prefix=True)(rows.input_ids[50:60], rows.keys[50:60])
    assert again.prefix_lengths is not None and np.array_equal(again.prefix_lengths, found.prefix_lengths[50:60])


def test_the_prefix_of_a_short_row_ends_before_its_padding() -> None:
    ids = np.full((300, 9), PAD)
    ids[:, 0], ids[:, 1:3], ids[:, 3] = CLS, 11, SEP
    found = NextTokens(SPECIAL, prefix=True)(ids, keys(300), attention_mask=ids != PAD)
    assert found.prefix_lengths is not None
    assert set(found.prefix_lengths.tolist()) == {1, 2}


@pytest.mark.parametrize("samples", [SpanSamples, PackedSamples])
def test_a_batch_of_next_tokens(samples: type[SpanSamples | PackedSamples]) -> None:
    """Nothing is masked, what is predicted is what stands there, and the number of targets can be fixed."""
    rows = samples(made_up_stream(), SPECIAL, 30, seed=0).rows(np.arange(8))
    batch, fixed = to_batch(rows, NEXT), to_batch(rows, NEXT, fixed_targets=True)
    assert batch.causal and batch.prefix_lengths is None
    assert torch.equal(batch.input_ids, torch.from_numpy(rows.input_ids))
    assert all(int(batch.input_ids[row, place + 1]) == token for row, place, token in pairs(batch))
    assert len(fixed.positions) == 8 * 28 >= len(batch.positions)
    assert pairs(fixed) == pairs(batch)
    assert not to_batch(rows, Masking.of(0.15, SPECIAL, 64)).causal


# Steps


def steps(kind: str, share: float = 0.0, *, seed: int = 0) -> NextTokenSteps:
    return NextTokenSteps(SPECIAL, kind, share, seed)  # type: ignore[arg-type]


def test_the_steps_of_an_encoder_that_are_causal() -> None:
    """Literal steps: they are a promise to whoever resumes a run."""
    some = steps("masked", 0.06)
    assert [step for step in range(120) if some.at(step)] == LITERAL
    assert all(found is None or not found.prefix for found in map(some.at, range(120)))
    assert abs(sum(some.at(step) is not None for step in range(20_000)) / 20_000 - 0.06) < 0.005
    other = steps("masked", 0.06, seed=1)
    assert [step for step in range(120) if other.at(step)] != LITERAL
    more = steps("masked", 0.2)
    assert {step for step in range(120) if more.at(step)} > set(LITERAL), "a larger share adds steps"


def test_all_steps_of_a_causal_run_are_causal() -> None:
    assert all(steps("causal").at(step) == NEXT for step in range(50))


def test_a_third_of_the_steps_each_with_prefixes() -> None:
    found = [steps("prefix").at(step) for step in range(9_000)]
    counts = [sum(one is None for one in found), sum(one == NEXT for one in found), sum(one is not None and one.prefix for one in found)]
    assert sum(counts) == 9_000 and all(abs(count - 3_000) < 150 for count in counts)


@pytest.mark.parametrize("kind", ["masked", "causal", "prefix"])
def test_targets_are_the_same_for_every_number_of_processes_and_micro_batches(kind: str) -> None:
    samples = SpanSamples(made_up_stream(), SPECIAL, 14, seed=5)

    def batches(micro_batch_size: int, rank: int, world_size: int) -> StepBatches:
        return StepBatches(
            samples={14: samples},
            masking=Masking.of(0.15, SPECIAL, 64),
            curriculum=Curriculum(total_steps=6, seq_len=14, batch_size=16),
            num_groups=2,
            micro_batch_size=micro_batch_size,
            rank=rank,
            world_size=world_size,
            next_tokens=steps(kind, 0.5 if kind == "masked" else 0.0),
        )

    def taken(batch: Batch) -> list[object]:
        lengths = [None] * len(batch.input_ids) if batch.prefix_lengths is None else batch.prefix_lengths.tolist()
        targets = [[(place, token) for row, place, token in pairs(batch) if row == number] for number in range(len(batch.input_ids))]
        return list(zip(batch.input_ids.tolist(), targets, lengths, [batch.causal] * len(lengths), strict=True))

    forms = set()
    for step in range(6):
        alone = batches(8, 0, 1).step(step)
        for micro_batch_size, world_size in ((4, 2), (2, 2), (1, 8)):
            shares = [batches(micro_batch_size, rank, world_size).step(step) for rank in range(world_size)]
            for group in range(2):
                assert [row for share in shares for batch in share[group] for row in taken(batch)] == taken(alone[group][0])
        forms |= {(batch.causal, batch.prefix_lengths is not None) for group in alone for batch in group}
    assert len(forms) == {"masked": 2, "causal": 1, "prefix": 3}[kind]
