from __future__ import annotations

import math
import random
from typing import Any

import numpy as np
import pytest
import torch

from pldcli.choices import TaskKind
from pldcli.engine.objectives import TaskLoss
from pldcli.model import StBert, TaskHead
from pldcli.tasks.batches import TaskBatch, TaskBatches, batches_in_order, collate
from pldcli.tasks.task import Features

PAD = 9
KINDS: list[TaskKind] = ["classification", "multi-label", "regression", "tags", "spans"]


def make_features(kind: TaskKind, rows: int = 100, *, seed: int = 0, pairs: bool = True, longest: int = 30) -> Features:
    """Rows whose first token is their number, so that they are recognised."""
    draw = random.Random(seed)
    lengths = [draw.randint(3, longest) for _ in range(rows)]
    offsets = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64)
    total = int(offsets[-1])
    ids = np.array([draw.randint(10, 49) for _ in range(total)], np.int32)
    ids[offsets[:-1]] = 50 + np.arange(rows)
    types = np.array([draw.randint(0, 1) * pairs for _ in range(total)], np.int8)
    labels: Any = {
        "classification": lambda: np.array([draw.randint(0, 2) for _ in range(rows)], np.int64),
        "multi-label": lambda: np.array([[draw.randint(0, 1) for _ in range(3)] for _ in range(rows)], bool),
        "regression": lambda: np.array([draw.random() for _ in range(rows)], np.float32),
        "tags": lambda: np.array([draw.choice([-100, 0, 1, 2]) for _ in range(total)], np.int64),
        "spans": lambda: np.array([sorted((draw.randrange(n), draw.randrange(n))) for n in lengths], np.int64),
    }[kind]()
    return Features(ids, types, offsets, labels, np.arange(rows))


def make_model(kind: TaskKind, **changes: Any) -> StBert:
    outputs = {"classification": 3, "multi-label": 3, "regression": 1, "tags": 3, "spans": 2}[kind]
    head = TaskHead("token" if kind in ("tags", "spans") else "sequence", outputs)
    given = {"num_hidden_layers": 3, "hidden_size": 16, "num_attention_heads": 2, "intermediate_size": 24, "vocab_size": 160}
    return StBert(
        **(
            given
            | {"max_position_embeddings": 40, "initializer_range": 0.3, "masked_lm": False, "task_head": head, "dropout": 0.0}
            | changes
        )
    ).double()


def make_batches(features: Features, batch_size: int = 8, **changes: Any) -> TaskBatches:
    given = {"seed": 0, "pad_id": PAD, "micro_batch_size": batch_size} | changes
    return TaskBatches(features, batch_size, **given)


def numbers(batch: TaskBatch) -> list[int]:
    return (batch.input_ids[:, 0] - 50).tolist()


def rows_of(batches: TaskBatches, step: int) -> list[int]:
    return [row for micro in batches.step(step)[0] for row in numbers(micro)]


# Side by side


@pytest.mark.parametrize("multiple", [1, 8])
@pytest.mark.parametrize("kind", KINDS)
def test_collate_against_a_plain_loop(kind: TaskKind, multiple: int) -> None:
    features = make_features(kind)
    chosen = np.array([7, 3, 99, 3, 0])
    batch = collate(features, chosen, pad_id=PAD, multiple=multiple)
    width = max(int(features.lengths[row]) for row in chosen)
    width += -width % multiple
    assert batch.input_ids.shape == (5, width) and batch.input_ids.dtype == torch.int64
    assert features.labels is not None
    assert batch.token_type_ids is not None and batch.attention_mask is not None and batch.labels is not None
    for place, row in enumerate(chosen):
        start, stop = features.offsets[row], features.offsets[row + 1]
        size = int(stop - start)
        assert batch.input_ids[place].tolist() == [*features.input_ids[start:stop].tolist(), *[PAD] * (width - size)]
        assert batch.token_type_ids[place].tolist() == [*features.token_type_ids[start:stop].tolist(), *[0] * (width - size)]
        assert batch.attention_mask[place].tolist() == [True] * size + [False] * (width - size)
        if kind == "tags":
            assert batch.labels[place].tolist() == [*features.labels[start:stop].tolist(), *[-100] * (width - size)]
        else:
            assert batch.labels[place].tolist() == features.labels[row].tolist()
    assert batch.labels.dtype == (torch.float32 if kind in ("regression", "multi-label") else torch.int64)


def test_what_is_not_needed_is_none() -> None:
    features = make_features("classification", pairs=False)
    assert collate(features, np.arange(5), pad_id=PAD).token_type_ids is None
    assert collate(features, np.array([4]), pad_id=PAD).attention_mask is None
    assert collate(features, np.arange(5), pad_id=PAD).attention_mask is not None
    without = Features(features.input_ids, features.token_type_ids, features.offsets, None, features.example_of_row)
    assert collate(without, np.arange(5), pad_id=PAD).labels is None


@pytest.mark.parametrize("rows", [1, 7, 100])
def test_in_order_every_row_comes_once_and_batches_stay_small(rows: int) -> None:
    features = make_features("regression", rows)
    seen: list[int] = []
    for chosen, batch in batches_in_order(features, most_tokens=120, pad_id=PAD):
        assert numbers(batch) == chosen.tolist()
        assert batch.input_ids.numel() <= 120 or len(chosen) == 1
        seen += chosen.tolist()
    assert sorted(seen) == list(range(rows))
    assert [int(features.lengths[row]) for row in seen] == sorted(features.lengths.tolist())


def test_a_row_longer_than_a_batch_comes_alone() -> None:
    found = list(batches_in_order(make_features("regression", 9), most_tokens=1, pad_id=PAD))
    assert [len(chosen) for chosen, _ in found] == [1] * 9
    assert all(batch.attention_mask is None for _, batch in found)


def test_nothing_in_order_is_nothing() -> None:
    empty = Features(np.zeros(0, np.int32), np.zeros(0, np.int8), np.zeros(1, np.int64), None, np.zeros(0, np.int64))
    assert list(batches_in_order(empty, most_tokens=9, pad_id=PAD)) == []


# Epochs


@pytest.mark.parametrize("rows", [1, 7, 8, 9, 100, 1100])
def test_every_row_once_per_epoch(rows: int) -> None:
    batches = make_batches(make_features("classification", rows))
    assert batches.steps_per_epoch == math.ceil(rows / 8)
    for epoch in range(3):
        steps = range(epoch * batches.steps_per_epoch, (epoch + 1) * batches.steps_per_epoch)
        sizes = [len(rows_of(batches, step)) for step in steps]
        assert sorted(row for step in steps for row in rows_of(batches, step)) == list(range(rows))
        assert sorted(sizes, reverse=True) == [8] * (rows // 8) + [rows % 8] * (rows % 8 > 0), "one short batch at most"
        assert sizes == [batches.num_sequences(step) for step in steps]


def epoch_of(batches: TaskBatches, epoch: int) -> list[list[int]]:
    return [rows_of(batches, epoch * batches.steps_per_epoch + step) for step in range(batches.steps_per_epoch)]


def test_the_order_is_a_function_of_seed_and_epoch() -> None:
    features = make_features("classification")
    first = make_batches(features)
    expected = [epoch_of(first, epoch) for epoch in range(4)]
    again = make_batches(features)
    assert [epoch_of(again, epoch) for epoch in (3, 0, 2, 1)] == [expected[epoch] for epoch in (3, 0, 2, 1)], "wherever one begins"
    assert len({str(epoch) for epoch in expected}) == 4, "epochs differ"
    assert len({str(sorted(map(sorted, epoch))) for epoch in expected}) == 4, "in which rows come together, too"
    assert epoch_of(make_batches(features, seed=1), 0) != expected[0]
    assert epoch_of(make_batches(features, micro_batch_size=3), 2) == expected[2], "the size of a forward pass changes nothing"


def test_the_order_of_every_other_day() -> None:
    """Literal rows: another order would make the results of different versions incomparable."""
    batches = make_batches(make_features("classification", 12), 4, seed=3)
    assert epoch_of(batches, 0) == [[6, 7, 3, 8], [1, 11, 5, 4], [0, 10, 9, 2]]
    assert epoch_of(batches, 1) == [[6, 7, 3, 8], [0, 10, 9, 2], [1, 11, 5, 4]]


def test_batches_come_in_no_order_of_length() -> None:
    features = make_features("classification", 512)
    lengths = [float(np.mean(features.lengths[rows])) for rows in epoch_of(make_batches(features), 0)]
    steps = np.arange(len(lengths))
    assert abs(np.corrcoef(steps, lengths)[0, 1]) < 0.3


@pytest.mark.parametrize("rows", [500, 2000])
def test_little_of_a_batch_is_padding(rows: int) -> None:
    features = make_features("classification", rows, longest=100)
    batches = make_batches(features, 16)
    padded = sum(micro.input_ids.numel() for step in range(batches.steps_per_epoch) for micro in batches.step(step)[0])
    shuffled = np.random.default_rng(0).permutation(rows)
    at_random = sum(collate(features, shuffled[i : i + 16], pad_id=PAD).input_ids.numel() for i in range(0, rows, 16))
    real = len(features.input_ids)
    assert (padded - real) / real < 0.08 < 0.5 < (at_random - real) / real


def test_micro_steps() -> None:
    batches = make_batches(make_features("classification", 20), 8, micro_batch_size=3)
    sizes = [[len(micro.input_ids) for micro in batches.step(step)[0]] for step in range(3)]
    assert sorted(sizes) == [[3, 1], [3, 3, 2], [3, 3, 2]]


def test_lengths_are_padded_to_a_multiple() -> None:
    batches = make_batches(make_features("classification"), multiple=8)
    assert {micro.input_ids.shape[1] % 8 for step in range(5) for micro in batches.step(step)[0]} == {0}


# Several processes


@pytest.mark.parametrize("rows", [8, 13, 17, 100])
@pytest.mark.parametrize("micro_batch_size", [1, 3, 8])
@pytest.mark.parametrize("kind", KINDS)
def test_processes_share_the_rows(kind: TaskKind, rows: int, micro_batch_size: int) -> None:
    features, loss = make_features(kind, rows), TaskLoss(kind)
    alone = make_batches(features)
    for world_size in (1, 2, 3):
        ranks = [make_batches(features, rank=r, world_size=world_size, micro_batch_size=micro_batch_size) for r in range(world_size)]
        for step in range(2 * alone.steps_per_epoch):
            steps = [rank.step(step) for rank in ranks]
            assert len({len(groups[0]) for groups in steps}) == 1, "as many micro-steps on every process, or they would wait for ever"
            teaching = [micro for groups in steps for micro in groups[0] if loss.num_targets(micro) != [0] or kind == "tags"]
            found = sorted(row for micro in teaching for row in numbers(micro))
            if kind != "tags":  # there a row may have no label at all
                assert found == sorted(rows_of(alone, step))
            everything = [loss.num_targets(micro)[0] for groups in steps for micro in groups[0]]
            assert sum(everything) == sum(loss.num_targets(micro)[0] for micro in alone.step(step)[0])
            assert {rank.num_sequences(step) for rank in ranks} == {alone.num_sequences(step)}


@pytest.mark.parametrize("kind", KINDS)
def test_a_process_without_rows_learns_nothing(kind: TaskKind) -> None:
    features = make_features(kind, 9)
    [last] = [step for step in range(2) if make_batches(features).num_sequences(step) == 1]
    [[batch]] = make_batches(features, rank=2, world_size=3).step(last)
    model = make_model(kind).float()
    loss = TaskLoss(kind)
    assert loss.num_targets(batch) == [0]
    sums = loss.loss_sums(model, batch, None, None)
    assert sums.tolist() == [0.0]
    sums.sum().backward()
    gradients = [parameter.grad for parameter in model.parameters()]
    assert all(gradient is not None and bool((gradient == 0).all()) for gradient in gradients), (
        "zeros, not nothing: it is summed over processes"
    )


# Ahead


def test_built_ahead_is_the_same() -> None:
    batches = make_batches(make_features("tags", 30), 8, micro_batch_size=3)
    for step, groups in zip(range(2, 11), batches.from_step(2, 11), strict=True):
        for ours, theirs in zip(groups[0], make_batches(make_features("tags", 30), 8, micro_batch_size=3).step(step)[0], strict=True):
            assert torch.equal(ours.input_ids, theirs.input_ids)
            assert ours.labels is not None and theirs.labels is not None and torch.equal(ours.labels, theirs.labels)


def test_asking_while_it_is_built_ahead() -> None:
    """With one step per epoch the thread that builds ahead forgets orders that the trainer still asks for."""
    batches = make_batches(make_features("classification", 6), 8)
    for step, groups in enumerate(batches.from_step(0, 400)):
        assert batches.num_sequences(step) == 6 == sum(len(micro.input_ids) for micro in groups[0])


def test_a_batch_moves_as_a_whole() -> None:
    batch = collate(make_features("spans"), np.arange(4), pad_id=PAD)
    assert batch.to(torch.device("cpu")) is batch
