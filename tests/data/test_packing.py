from __future__ import annotations

from collections.abc import Sequence
from itertools import chain
from pathlib import Path

import numpy as np
import pytest
import torch

from pldcli.curriculum import Curriculum
from pldcli.data.loader import Rows, to_batch
from pldcli.data.masking import Masking
from pldcli.data.packing import PackedSamples, pack
from pldcli.data.shards import ShardWriter, segments
from pldcli.data.step_batches import StepBatches
from pldcli.data.stream import TokenStream
from pldcli.errors import DataError
from pldcli.tokenization.tokenizer import SpecialTokens

SPECIAL = SpecialTokens(pad_id=0, unk_id=1, cls_id=2, sep_id=3, mask_id=4)
MASKING = Masking(0.15, 4, SPECIAL.ids, 5000)


class Documents(TokenStream):
    """Documents of consecutive ids from 5 on, so that a token says where it comes from."""

    def __init__(self, lengths: Sequence[int]) -> None:
        ends = np.cumsum(lengths, dtype=np.int64)
        self.texts = [list(range(5 + end - length, 5 + end)) for end, length in zip(ends.tolist(), lengths, strict=True)]
        ids = np.array([i for text in self.texts for i in [*text, SPECIAL.sep_id]], np.int64)
        super().__init__([(ids, ends + np.arange(1, len(ends) + 1))], end_id=SPECIAL.sep_id)


def lengths_like_text(count: int, most: int, seed: int = 0) -> list[int]:
    return np.random.default_rng(seed).integers(1, most, count).tolist()


# Which go together


def best_fit_decreasing(sizes: list[int], capacity: int) -> list[int]:
    """The textbook's algorithm, piece by piece: the room left in each row, sorted."""
    room: list[int] = []
    for size in sorted(sizes, reverse=True):
        fitting = [row for row, left in enumerate(room) if left >= size]
        if fitting:
            room[min(fitting, key=lambda row: room[row])] -= size
        else:
            room.append(capacity - size)
    return sorted(room)


@pytest.mark.parametrize("capacity", [1, 7, 30, 128])
@pytest.mark.parametrize("count", [0, 1, 2, 50, 700])
def test_packing_is_best_fit_decreasing(capacity: int, count: int) -> None:
    sizes = np.random.default_rng(count).integers(1, capacity + 1, count)
    rows = pack(sizes, capacity)
    filled = np.bincount(rows, weights=sizes) if count else np.array([])
    assert sorted((capacity - filled).astype(int).tolist()) == best_fit_decreasing(sizes.tolist(), capacity)
    assert set(rows.tolist()) == set(range(len(filled))), "no row is empty"


def test_packing_of_equal_sizes() -> None:
    assert np.bincount(pack(np.full(10, 30), 100)).tolist() == [3, 3, 3, 1]
    assert pack(np.array([60, 40, 40, 60]), 100).tolist() in ([0, 0, 1, 1], [0, 1, 0, 1])


# Rows


def taken_apart(rows: Rows, row: int) -> list[list[int]]:
    """Cut a row into its documents, [CLS] and [SEP] included, and check that positions and segments agree."""
    assert rows.segments is not None and rows.position_ids is not None
    ids, segments, positions = rows.input_ids[row], rows.segments[row], rows.position_ids[row]
    found = []
    for segment in range(1, int(segments.max()) + 1):
        places = np.flatnonzero(segments == segment)
        assert places.tolist() == list(range(places[0], places[-1] + 1)), "side by side"
        assert positions[places].tolist() == list(range(len(places)))
        found.append(ids[places].tolist())
    padding = segments == 0
    assert (ids[padding] == SPECIAL.pad_id).all() and not positions[padding].any()
    assert padding.tolist() == sorted(padding.tolist()), "behind the documents"
    assert rows.attention_mask is not None
    assert rows.attention_mask[row].tolist() == (~padding).tolist()
    return found


def test_an_epoch_has_every_document_once_and_whole() -> None:
    stream = Documents(lengths_like_text(200, 30))
    samples = PackedSamples(stream, SPECIAL, 32, seed=0)
    for epoch in (0, 3):
        rows = samples.rows(np.arange(samples.num_sequences) + epoch * samples.num_sequences)
        documents = [document for row in range(samples.num_sequences) for document in taken_apart(rows, row)]
        assert all(document[0] == SPECIAL.cls_id and document[-1] == SPECIAL.sep_id for document in documents)
        assert sorted(document[1:-1] for document in documents) == sorted(stream.texts)
        real = sum(len(document) for document in documents)
        assert samples.efficiency == pytest.approx(real / (32 * samples.num_sequences))
        pairs = sum(len(document) ** 2 for document in documents)
        assert samples.attended_tokens == pytest.approx(pairs / real)
    assert samples.efficiency > 0.9 and samples.attended_tokens < 0.8 * 32
    assert samples.most_documents == max(int(rows.segments.max()) for rows in [samples.rows(np.arange(samples.num_sequences))])


def test_longer_documents_fill_rows_and_leave_a_rest() -> None:
    stream = Documents([70, 4])
    samples = PackedSamples(stream, SPECIAL, 32, seed=0)
    rows = samples.rows(np.arange(samples.num_sequences))
    found = sorted(document[1:-1] for row in range(samples.num_sequences) for document in taken_apart(rows, row))
    text = stream.texts[0]
    assert found == sorted([text[:30], text[30:60], text[60:], stream.texts[1]])
    assert samples.num_sequences == 3, "the rest and the short one share a row"


def test_order_and_masks_change_with_the_epoch_and_company_with_the_seed() -> None:
    stream = Documents(lengths_like_text(300, 30))
    samples = PackedSamples(stream, SPECIAL, 32, seed=0)
    count = samples.num_sequences
    first, second = samples.rows(np.arange(count)), samples.rows(np.arange(count) + count)
    assert not np.array_equal(first.input_ids, second.input_ids)
    assert sorted(map(bytes, first.input_ids)) == sorted(map(bytes, second.input_ids))
    assert len({*first.keys.tolist(), *second.keys.tolist()}) == 2 * count
    other = PackedSamples(stream, SPECIAL, 32, seed=1)
    assert sorted(map(bytes, first.input_ids)) != sorted(map(bytes, other.rows(np.arange(other.num_sequences)).input_ids))
    again = PackedSamples(stream, SPECIAL, 32, seed=0).rows(np.array([7, 3, 7 + count]))
    for name in ("input_ids", "segments", "position_ids", "attention_mask", "keys"):
        assert np.array_equal(getattr(again, name)[:2], getattr(first, name)[[7, 3]])
        assert np.array_equal(getattr(again, name)[2], getattr(second, name)[7])


def test_boundaries_are_as_many_for_every_batch_and_cover_it() -> None:
    stream = Documents(lengths_like_text(200, 30))
    samples = PackedSamples(stream, SPECIAL, 32, seed=0)
    sizes = set()
    for start in range(0, 40, 8):
        rows = samples.rows(np.arange(start, start + 8))
        assert rows.boundaries is not None and rows.segments is not None and rows.boundaries.dtype == np.int32
        sizes.add(len(rows.boundaries))
        flat = rows.segments.ravel()
        assert (np.diff(rows.boundaries) >= 0).all() and (rows.boundaries[0], rows.boundaries[-1]) == (0, 8 * 32)
        for begin, end in zip(rows.boundaries, rows.boundaries[1:], strict=False):
            assert begin == end or (len(set(flat[begin:end].tolist())) == 1 and begin // 32 == (end - 1) // 32)
        assert len(set(rows.boundaries.tolist())) - 1 == sum(len(set(row.tolist())) for row in rows.segments)
    assert len(sizes) == 1


def test_batches_carry_the_documents() -> None:
    samples = PackedSamples(Documents(lengths_like_text(200, 30)), SPECIAL, 32, seed=0)
    curriculum = Curriculum(total_steps=9, seq_len=32, batch_size=8)
    batches = StepBatches(samples={32: samples}, masking=MASKING, curriculum=curriculum, num_groups=2, micro_batch_size=4)
    [[first], [second]] = batches.step(3)
    rows = samples.rows(np.arange(24, 28))
    assert first.segments is not None and first.position_ids is not None and first.boundaries is not None
    assert torch.equal(first.segments, torch.from_numpy(rows.segments)) and torch.equal(first.boundaries, torch.from_numpy(rows.boundaries))
    assert torch.equal(first.input_ids, to_batch(rows, MASKING).input_ids)
    assert first.positions.shape == second.positions.shape and first.boundaries.shape == second.boundaries.shape  # type: ignore[union-attr]
    real = first.target_ids[first.target_ids >= 0]
    assert len(real) and not set(real.tolist()) & set(SPECIAL.ids)


def test_nothing_to_pack() -> None:
    for lengths in ([], [0, 0]):
        with pytest.raises(DataError, match="no document has a token"):
            PackedSamples(Documents(lengths), SPECIAL, 32, seed=0)
    assert PackedSamples(Documents([0, 1]), SPECIAL, 32, seed=0).num_sequences == 1


def test_tokens_are_gathered_from_the_shards(tmp_path: Path) -> None:
    """Over the borders of record batches and files."""
    lengths = lengths_like_text(80, 30)
    documents = Documents(lengths)
    with ShardWriter(tmp_path, "train", vocab_size=5000, end_id=SPECIAL.sep_id, batch_bytes=100, shard_bytes=600) as writer:
        for text in documents.texts:
            writer.add(np.array(text, np.uint32))
            writer.end_document()
    stream = TokenStream(chain.from_iterable(segments(tmp_path / name) for name in sorted(writer.shards)), end_id=SPECIAL.sep_id)
    assert len(writer.shards) > 1
    positions = np.random.default_rng(0).integers(0, stream.num_tokens, 500)
    assert np.array_equal(stream.gather(positions), documents.gather(positions))
    ours, theirs = (PackedSamples(each, SPECIAL, 32, seed=0) for each in (stream, documents))
    everything = np.arange(ours.num_sequences)
    assert np.array_equal(ours.rows(everything).input_ids, theirs.rows(everything).input_ids)
