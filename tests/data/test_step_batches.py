"""Batches of runs whose sequences grow longer and whose batch grows: which sequences, on which process, in which forward pass."""

from __future__ import annotations

import pytest
import torch

from pldcli.curriculum import Curriculum, Stage
from pldcli.data.loader import NO_TARGET, Batch, Samples, SpanSamples, to_batch
from pldcli.data.masking import Masking
from pldcli.data.packing import PackedSamples
from pldcli.data.step_batches import StepBatches
from pldcli.tokenization.tokenizer import SpecialTokens
from tests.conftest import made_up_stream

SPECIAL = SpecialTokens(pad_id=0, unk_id=1, cls_id=2, sep_id=3, mask_id=4)
MASKING = Masking(0.15, SPECIAL.mask_id, SPECIAL.ids, 64)
LENGTHS = (8, 16, 32)
CURRICULUM = Curriculum(
    total_steps=20, seq_len=32, batch_size=32, stages=(Stage(0.5, 8), Stage(0.8, 16)), initial_batch_size=16, ramp_fraction=0.6
)
"""Step 0: 64 of 8 tokens; 10: 32 of 16; 12: 64 of 16; 16: 32 of 32."""


def make(*, micro_batch_size: int = 8, rank: int = 0, world_size: int = 1, packed: bool = False) -> StepBatches:
    cut = PackedSamples if packed else SpanSamples
    samples: dict[int, Samples] = {length: cut(made_up_stream(), SPECIAL, length, seed=5) for length in LENGTHS}
    return StepBatches(
        samples=samples,
        masking=MASKING,
        curriculum=CURRICULUM,
        num_groups=2,
        micro_batch_size=micro_batch_size,
        rank=rank,
        world_size=world_size,
    )


def sequences(batches: list[Batch]) -> list[tuple[list[int], list[tuple[int, int]]]]:
    """Take batches apart: of each sequence its ids, and its targets with their places in it."""
    found = []
    for batch in batches:
        targets: list[list[tuple[int, int]]] = [[] for _ in batch.input_ids]
        for position, target in zip(batch.positions.tolist(), batch.target_ids.tolist(), strict=True):
            if target != NO_TARGET:
                targets[position // batch.input_ids.shape[1]].append((position % batch.input_ids.shape[1], target))
        found += list(zip(batch.input_ids.tolist(), targets, strict=True))
    return found


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize(("world_size", "micro_batch_size"), [(1, 1), (2, 4), (4, 8), (8, 3)])
def test_every_step_reads_the_same_with_any_number_of_processes_and_any_micro_batch(
    world_size: int, micro_batch_size: int, packed: bool
) -> None:
    alone = make(packed=packed)
    together = [make(rank=rank, world_size=world_size, micro_batch_size=micro_batch_size, packed=packed) for rank in range(world_size)]
    for step in (0, 9, 10, 12, 15, 16, 19):
        groups, shares = alone.step(step), [batches.step(step) for batches in together]
        for group in range(2):
            assert sequences([batch for share in shares for batch in share[group]]) == sequences(groups[group])


def test_the_steps_of_a_length_walk_through_its_samples() -> None:
    batches = make()
    read: dict[int, list[object]] = {length: [] for length in LENGTHS}
    for step in range(20):
        for group in batches.step(step):
            for batch in group:
                read[batch.input_ids.shape[1]] += sequences([batch])
    assert {length: len(found) for length, found in read.items()} == {8: 10 * 64, 16: 2 * 32 + 4 * 64, 32: 4 * 32}
    for length, found in read.items():
        whole = to_batch(batches.samples[length].rows(torch.arange(len(found)).numpy()), MASKING)
        assert found == sequences([whole])


@pytest.mark.parametrize(("step", "forwards", "rows"), [(0, 1, 32), (10, 1, 16), (12, 2, 16), (16, 2, 8), (19, 2, 8)])
def test_a_forward_pass_has_as_many_tokens_whatever_the_length(step: int, forwards: int, rows: int) -> None:
    groups = make(micro_batch_size=8).step(step)
    assert [[len(batch.input_ids) for batch in group] for group in groups] == [[rows] * forwards] * 2
    assert {batch.input_ids.numel() for group in groups for batch in group} == {8 * 32}


def test_a_forward_pass_never_has_more_than_the_micro_batch() -> None:
    """Where a small batch of a ramp does not divide, it is split into more passes, not into larger ones."""
    batches = make(micro_batch_size=6)
    assert [len(batch.input_ids) for batch in batches.step(0)[0]] == [16, 16]  # 8 sequences of 32 tokens: 4 + 4
    assert [len(batch.input_ids) for batch in batches.step(16)[0]] == [4, 4, 4, 4]
    assert batches.micro_steps == 4
