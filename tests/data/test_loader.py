from __future__ import annotations

import hashlib
import threading
from collections.abc import Sequence
from dataclasses import replace
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from pldcli.curriculum import Curriculum
from pldcli.data.loader import NO_TARGET, Batch, PairSamples, Rows, SpanSamples, to_batch, validation_batches
from pldcli.data.masking import Masking
from pldcli.data.packing import PackedSamples
from pldcli.data.shards import ShardWriter, segments
from pldcli.data.step_batches import StepBatches, built_ahead
from pldcli.data.stream import TokenStream
from pldcli.errors import DataError
from pldcli.tokenization.tokenizer import SpecialTokens
from tests.conftest import made_up_stream

SPECIAL = SpecialTokens(pad_id=0, unk_id=1, cls_id=2, sep_id=3, mask_id=4)
PAD, CLS, SEP = 0, 2, 3
FIRST = 10
"""The token at place p of a test's stream has the id FIRST + p, so that an id tells where it comes from."""
VOCAB = 1000
MASKING = Masking(0.15, SPECIAL.mask_id, SPECIAL.ids, VOCAB)


def make_stream(directory: Path, lengths: Sequence[int], **sizes: int) -> TokenStream:
    """Write documents of so many tokens, each with its end mark; several record batches and shards."""
    sizes = {"batch_bytes": 100, "shard_bytes": 600} | sizes
    place = FIRST
    with ShardWriter(directory, "train", vocab_size=VOCAB, end_id=SEP, **sizes) as writer:
        for length in lengths:
            writer.add(np.arange(place, place + length, dtype=np.uint32))
            writer.end_document()
            place += length + 1
    return TokenStream(chain.from_iterable(segments(directory / name) for name in sorted(writer.shards)), end_id=SEP)


def places_of(span: np.ndarray, stream: TokenStream) -> list[int]:
    """Find where a span lies: ids tell, and end marks follow their neighbours."""
    known = next(index for index, token in enumerate(span) if token != SEP)
    start = int(span[known]) - FIRST - known
    places = [(start + index) % stream.num_tokens for index in range(len(span))]
    whole = stream.slice(0, stream.num_tokens)
    assert whole[places].tolist() == span.tolist()
    return places


@pytest.fixture
def stream(tmp_path: Path) -> TokenStream:
    stream = make_stream(tmp_path, [17, 40, 5, 90, 1, 2, 33, 60])
    assert stream.num_tokens == 256
    return stream


# Spans


def test_a_span_row(stream: TokenStream) -> None:
    samples = SpanSamples(stream, SPECIAL, 12, seed=0)
    assert samples.num_sequences == 25  # 256 // 10
    rows = samples.rows(np.arange(25))
    assert rows.input_ids.shape == (25, 12)
    assert (rows.input_ids[:, 0] == CLS).all()
    assert (rows.input_ids[:, -1] == SEP).all()
    assert rows.token_type_ids is rows.attention_mask is rows.next_sentence_labels is None


@pytest.mark.parametrize("seq_len", [8, 12, 34, 129, 130, 258])
@pytest.mark.parametrize("epoch", [0, 1, 5])
def test_an_epoch_covers_each_token_at_most_once(stream: TokenStream, seq_len: int, epoch: int) -> None:
    samples = SpanSamples(stream, SPECIAL, seq_len, seed=4)
    first = epoch * samples.num_sequences
    ids = samples.rows(np.arange(first, first + samples.num_sequences)).input_ids
    places = [place for row in ids for place in places_of(row[1:-1], stream)]
    assert len(set(places)) == len(places) == samples.num_sequences * (seq_len - 2)
    assert len(places) > 256 - (seq_len - 2)


def test_every_epoch_cuts_elsewhere_and_in_another_order(stream: TokenStream) -> None:
    samples = SpanSamples(stream, SPECIAL, 12, seed=0)
    orders, offsets = [], []
    for epoch in range(6):
        rows = samples.rows(np.arange(epoch * 25, epoch * 25 + 25)).input_ids
        starts = [places_of(row[1:-1], stream)[0] for row in rows]
        orders.append([start // 10 for start in starts])
        offsets.append(min(starts) % 10 if epoch == 0 else sorted(starts)[1] % 10)
    assert offsets[0] == 0, "the first epoch cuts from the start"
    assert len(set(offsets)) > 2
    assert len({tuple(order) for order in orders}) == 6
    assert orders[0] != sorted(orders[0])


def test_another_seed_is_another_order_with_other_masks(stream: TokenStream) -> None:
    one, other = (SpanSamples(stream, SPECIAL, 12, seed=seed).rows(np.arange(25)) for seed in (0, 1))
    assert not np.array_equal(one.input_ids, other.input_ids)
    assert not set(one.keys.tolist()) & set(other.keys.tolist())


def test_the_ring_closes(stream: TokenStream) -> None:
    """Some epoch cuts a span over the end of the stream: its tail, then its head."""
    samples = SpanSamples(stream, SPECIAL, 12, seed=0)
    rows = samples.rows(np.arange(25, 25 * 20)).input_ids
    wrapped = [row[1:-1] for row in rows if places_of(row[1:-1], stream)[0] > 246]
    assert wrapped
    for span in wrapped:
        places = places_of(span, stream)
        assert 0 in places
        assert places[0] > places[-1]


def test_a_stream_of_just_one_row(tmp_path: Path) -> None:
    stream = make_stream(tmp_path, [9])
    samples = SpanSamples(stream, SPECIAL, 12, seed=0)
    assert samples.num_sequences == 1
    assert samples.rows(np.array([0])).input_ids[0].tolist() == [CLS, *range(FIRST, FIRST + 9), SEP, SEP]
    assert len({places_of(row[1:-1], stream)[0] for row in samples.rows(np.arange(30)).input_ids}) > 3


def test_too_little_text(tmp_path: Path) -> None:
    stream = make_stream(tmp_path, [8])
    with pytest.raises(DataError, match=r"9 tokens, fewer than one sequence of 12; .*data\.seq_len"):
        SpanSamples(stream, SPECIAL, 12, seed=0)
    assert SpanSamples(stream, SPECIAL, 12, seed=0, shuffle=False).num_sequences == 1


def equal_rows(one: Rows, other: Rows) -> bool:
    return all(np.array_equal(mine, theirs) for mine, theirs in zip(vars(one).values(), vars(other).values(), strict=True))


@pytest.mark.parametrize("kind", [SpanSamples, PairSamples])
def test_a_row_depends_on_its_index_alone(stream: TokenStream, kind: type[SpanSamples | PairSamples]) -> None:
    samples = kind(stream, SPECIAL, 12, seed=3)
    indices = np.arange(3, 3 * samples.num_sequences)
    whole = samples.rows(indices)
    assert equal_rows(kind(stream, SPECIAL, 12, seed=3).rows(indices), whole)
    order = np.random.default_rng(0).permutation(len(indices))
    shuffled = samples.rows(indices[order])
    assert np.array_equal(shuffled.input_ids, whole.input_ids[order])
    assert np.array_equal(shuffled.keys, whole.keys[order])
    for start in range(0, len(indices), 11):
        part = samples.rows(indices[start : start + 11])
        assert np.array_equal(part.input_ids, whole.input_ids[start : start + 11])
        assert np.array_equal(part.keys, whole.keys[start : start + 11])
    assert len(set(whole.keys.tolist())) == len(indices), "a key per epoch and sample: masks are dynamic"


def test_rows_do_not_depend_on_how_the_data_is_stored(tmp_path: Path) -> None:
    lengths = [17, 40, 5, 90, 1, 2, 33, 60]
    streams = []
    for name, sizes in (("one", {"batch_bytes": 1 << 20}), ("many", {"batch_bytes": 1, "shard_bytes": 1})):
        (tmp_path / name).mkdir()
        streams.append(make_stream(tmp_path / name, lengths, **sizes))
    for kind in (SpanSamples, PairSamples):
        one, many = (kind(stream, SPECIAL, 14, seed=1).rows(np.arange(60)) for stream in streams)
        assert equal_rows(one, many)


# Validation


def test_validation_is_in_order_complete_and_padded(stream: TokenStream) -> None:
    samples = SpanSamples(stream, SPECIAL, 12, seed=0, shuffle=False)
    assert samples.num_sequences == 26
    rows = samples.rows(np.arange(26))
    assert rows.attention_mask is not None
    whole = stream.slice(0, 256)
    for row in range(25):
        assert rows.input_ids[row].tolist() == [CLS, *whole[row * 10 : row * 10 + 10], SEP]
        assert rows.attention_mask[row].all()
    assert rows.input_ids[25].tolist() == [CLS, *whole[250:], SEP, PAD, PAD, PAD, PAD]
    assert rows.attention_mask[25].tolist() == [True] * 8 + [False] * 4


def test_validation_without_a_short_row_has_no_mask(tmp_path: Path) -> None:
    samples = SpanSamples(make_stream(tmp_path, [19, 19]), SPECIAL, 12, seed=0, shuffle=False)
    assert samples.num_sequences == 4
    assert samples.rows(np.arange(4)).attention_mask is None


def test_validation_batches_never_change(stream: TokenStream) -> None:
    samples = SpanSamples(stream, SPECIAL, 12, seed=0, shuffle=False)
    once, twice = ([*validation_batches(samples, MASKING, batch_size=8)] for _ in range(2))
    assert [len(batch.input_ids) for batch in once] == [8, 8, 8, 2]
    assert all(equal(one, other) for one, other in zip(once, twice, strict=True))
    first = [*validation_batches(samples, MASKING, batch_size=5, max_sequences=12)]
    assert [len(batch.input_ids) for batch in first] == [5, 5, 2]
    ids = torch.cat([batch.input_ids for batch in once])
    assert torch.equal(torch.cat([batch.input_ids for batch in first]), ids[:12])
    assert sum(len(batch.input_ids) for batch in validation_batches(samples, MASKING, batch_size=8, max_sequences=1000)) == 26


# Batches


def equal(one: Batch, other: Batch) -> bool:
    """Compare field by field; a field that is None must be None in both."""
    pairs = zip(vars(one).values(), vars(other).values(), strict=True)
    return all(torch.equal(a, b) if isinstance(a, torch.Tensor) and isinstance(b, torch.Tensor) else a is b for a, b in pairs)


def test_to_batch_masks_and_makes_tensors(stream: TokenStream) -> None:
    rows = SpanSamples(stream, SPECIAL, 22, seed=0).rows(np.arange(6))
    batch = to_batch(rows, MASKING)
    masked = MASKING(rows.input_ids, rows.keys)
    assert torch.equal(batch.input_ids, torch.from_numpy(masked.input_ids))
    assert batch.positions.dtype == batch.target_ids.dtype == batch.input_ids.dtype == torch.int64
    assert len(batch.positions) == len(batch.target_ids) == sum(max(1, round(0.15 * int((row > 4).sum()))) for row in rows.input_ids)
    assert torch.equal(torch.from_numpy(rows.input_ids).flatten()[batch.positions], batch.target_ids)
    assert batch.to(torch.device("cpu")) is batch


@pytest.mark.parametrize("kind", [SpanSamples, PairSamples])
def test_the_number_of_targets_can_be_fixed(stream: TokenStream, kind: type[SpanSamples | PairSamples]) -> None:
    """Rows with marks or padding inside have fewer; what fills up is no target."""
    samples, sizes, filled = kind(stream, SPECIAL, 30, seed=0), set(), 0
    for start in range(0, 40, 8):
        rows = samples.rows(np.arange(start, start + 8))
        loose, fixed = to_batch(rows, MASKING), to_batch(rows, MASKING, fixed_targets=True)
        count = len(loose.positions)
        assert len(fixed.positions) == len(fixed.target_ids) == 8 * 4
        assert torch.equal(fixed.positions[:count], loose.positions) and torch.equal(fixed.target_ids[:count], loose.target_ids)
        assert (fixed.target_ids[count:] == NO_TARGET).all() and torch.equal(fixed.input_ids, loose.input_ids)
        sizes.add(count)
        filled += 32 - count
    assert filled > 0 or kind is SpanSamples


def test_batches_are_pinned_where_they_are_built(stream: TokenStream, monkeypatch: pytest.MonkeyPatch) -> None:
    threads = set()

    def pin_memory(tensor: torch.Tensor) -> torch.Tensor:
        threads.add(threading.current_thread())
        return tensor.clone()

    monkeypatch.setattr(torch.Tensor, "pin_memory", pin_memory)
    plain = make_batches(stream, micro_batch_size=4)
    expected, batches = [list(made.from_step(0, 3)) for made in (plain, replace(plain, pin_memory=True))]
    for ours, theirs in zip(*(chain.from_iterable(chain.from_iterable(made)) for made in (expected, batches)), strict=True):
        assert equal(ours, theirs)
    assert threads and threading.main_thread() not in threads


def make_batches(stream: TokenStream, *, micro_batch_size: int, rank: int = 0, world_size: int = 1, pairs: bool = False) -> StepBatches:
    samples = (PairSamples if pairs else SpanSamples)(stream, SPECIAL, 14, seed=5)
    return StepBatches(
        samples={14: samples},
        masking=MASKING,
        curriculum=Curriculum(total_steps=10, seq_len=14, batch_size=16),
        num_groups=2,
        micro_batch_size=micro_batch_size,
        rank=rank,
        world_size=world_size,
    )


def samples_of(batch: Batch) -> list[tuple[list[int], list[tuple[int, int]]]]:
    """Take a batch apart: of each sequence its ids, and its targets with their places in it."""
    length = batch.input_ids.shape[1]
    targets: list[list[tuple[int, int]]] = [[] for _ in batch.input_ids]
    for position, target in zip(batch.positions.tolist(), batch.target_ids.tolist(), strict=True):
        if target != NO_TARGET:
            targets[position // length].append((position % length, target))
    return list(zip(batch.input_ids.tolist(), targets, strict=True))


@pytest.mark.parametrize("pairs", [False, True])
@pytest.mark.parametrize(("world_size", "micro_batch_size"), [(1, 4), (1, 2), (2, 4), (2, 1), (4, 2), (4, 1), (8, 1)])
def test_groups_are_the_same_for_every_number_of_processes(
    stream: TokenStream, world_size: int, micro_batch_size: int, pairs: bool
) -> None:
    alone = make_batches(stream, micro_batch_size=8, pairs=pairs)
    together = [
        make_batches(stream, micro_batch_size=micro_batch_size, rank=rank, world_size=world_size, pairs=pairs) for rank in range(world_size)
    ]
    for step in (0, 1, 7):
        groups = alone.step(step)
        shares = [batches.step(step) for batches in together]
        assert [len(micro_steps) for micro_steps in shares[0]] == [8 // world_size // micro_batch_size] * 2
        for group in range(2):
            assert len(groups[group]) == 1
            theirs = [sample for share in shares for batch in share[group] for sample in samples_of(batch)]
            assert theirs == samples_of(groups[group][0])


def test_steps_walk_through_the_samples(stream: TokenStream) -> None:
    batches = make_batches(stream, micro_batch_size=4)
    got = [sample for step in range(5) for group in batches.step(step) for batch in group for sample in samples_of(batch)]
    assert got == samples_of(to_batch(batches.samples[14].rows(np.arange(80)), MASKING))


@pytest.mark.parametrize("ahead", [1, 2, 5])
def test_from_step_gives_the_same(stream: TokenStream, ahead: int) -> None:
    batches = make_batches(stream, micro_batch_size=4)
    for first, stop in ((0, 4), (3, 4), (2, 7), (4, 4)):
        built = [*built_ahead(batches.step, first, stop, ahead=ahead)]
        assert len(built) == stop - first
        for step, groups in enumerate(built, start=first):
            for mine, theirs in zip(groups, batches.step(step), strict=True):
                assert all(equal(one, other) for one, other in zip(mine, theirs, strict=True))


def test_from_step_may_be_left_early(stream: TokenStream) -> None:
    iterator = make_batches(stream, micro_batch_size=4).from_step(0, 1_000_000)
    next(iterator)
    iterator.close()
    assert next(iterator, None) is None
    assert not any(thread.name.startswith("batches") for thread in threading.enumerate()), "its thread has ended"


class Broken:
    num_sequences = 100

    def rows(self, indices: np.ndarray) -> Rows:
        if indices[0] >= 8:
            raise DataError("shard is gone", where="train-00000.arrow")
        ids = np.full((len(indices), 8), 20)
        return Rows(input_ids=ids, keys=indices.astype(np.uint64))


def test_an_error_in_the_thread_reaches_the_loop() -> None:
    curriculum = Curriculum(total_steps=10, seq_len=8, batch_size=4)
    batches = StepBatches(samples={8: Broken()}, masking=MASKING, curriculum=curriculum, num_groups=1, micro_batch_size=4)
    iterator = batches.from_step(0, 10)
    next(iterator)
    next(iterator)
    with pytest.raises(DataError, match="shard is gone"):
        next(iterator)


# Pairs


def taken_apart(rows: Rows, row: int) -> tuple[list[int], list[int]]:
    """Check a row's layout and return its two segments."""
    ids = rows.input_ids[row].tolist()
    assert rows.token_type_ids is not None
    types = rows.token_type_ids[row].tolist()
    mask = [True] * len(ids) if rows.attention_mask is None else rows.attention_mask[row].tolist()
    length = sum(mask)
    assert mask == [True] * length + [False] * (len(ids) - length)
    assert ids[length:] == [PAD] * (len(ids) - length)
    assert ids[0] == CLS
    assert ids[length - 1] == SEP
    middle = ids.index(SEP)
    assert types == [0] * (middle + 1) + [1] * (length - middle - 1) + [0] * (len(ids) - length)
    first, second = ids[1:middle], ids[middle + 1 : length - 1]
    assert first
    assert second
    assert SEP not in second
    return first, second


def document_of(token: int, lengths: Sequence[int]) -> int:
    return int(np.searchsorted(np.cumsum(np.array(lengths) + 1), token - FIRST, side="right"))


LENGTHS = [17, 40, 5, 90, 1, 2, 33, 60, 0, 3, 11, 12, 200]


def test_pairs(tmp_path: Path) -> None:
    stream = make_stream(tmp_path, LENGTHS)
    samples = PairSamples(stream, SPECIAL, 14, seed=0)
    # Chunks of 11 tokens of each document, those of 1 token left out:
    assert samples.num_sequences == sum([2, 4, 1, 9, 0, 1, 3, 6, 0, 1, 1, 1, 19])
    count = 60 * samples.num_sequences
    rows = samples.rows(np.arange(count))
    assert rows.next_sentence_labels is not None
    for row in range(count):
        first, second = taken_apart(rows, row)
        assert first == list(range(first[0], first[0] + len(first)))
        assert second == list(range(second[0], second[0] + len(second)))
        documents = {document_of(token, LENGTHS) for token in first}, {document_of(token, LENGTHS) for token in second}
        assert len(documents[0]) == len(documents[1]) == 1
        if rows.next_sentence_labels[row]:
            assert documents[0] != documents[1]
        else:
            assert second[0] == first[-1] + 1
            assert documents[0] == documents[1]
    share = float(rows.next_sentence_labels.mean())
    assert abs(share - 0.5) < 4 * 0.5 / np.sqrt(count)


def test_pairs_use_every_chunk_once_an_epoch(tmp_path: Path) -> None:
    samples = PairSamples(make_stream(tmp_path, LENGTHS), SPECIAL, 14, seed=0)
    orders = []
    for epoch in range(3):
        rows = samples.rows(np.arange(samples.num_sequences) + epoch * samples.num_sequences)
        starts = [taken_apart(rows, row)[0][0] for row in range(samples.num_sequences)]
        assert len(set(starts)) == samples.num_sequences
        orders.append(starts)
    assert sorted(orders[0]) == sorted(orders[1]) == sorted(orders[2])
    assert orders[0] != orders[1] != orders[2]


def test_pairs_cut_at_every_place(tmp_path: Path) -> None:
    samples = PairSamples(make_stream(tmp_path, [11] * 40), SPECIAL, 14, seed=0)
    rows = samples.rows(np.arange(4000))
    counts = np.bincount([len(taken_apart(rows, row)[0]) for row in range(4000)], minlength=12)
    assert counts[0] == counts[11] == 0
    assert abs(counts[1:11] - 400).max() < 5 * np.sqrt(400)
    assert rows.attention_mask is None, "every row is full here"


def test_pairs_of_a_single_document_always_continue(tmp_path: Path) -> None:
    samples = PairSamples(make_stream(tmp_path, [100]), SPECIAL, 14, seed=0)
    rows = samples.rows(np.arange(50))
    assert rows.next_sentence_labels is not None
    assert not rows.next_sentence_labels.any()
    for row in range(50):
        first, second = taken_apart(rows, row)
        assert second[0] == first[-1] + 1


def test_pairs_of_the_shortest_documents(tmp_path: Path) -> None:
    rows = PairSamples(make_stream(tmp_path, [2, 1, 2, 0]), SPECIAL, 8, seed=0).rows(np.arange(40))
    for row in range(40):
        first, second = taken_apart(rows, row)
        assert len(first) == 1
        assert 1 <= len(second) <= 2
        assert set(first) <= {FIRST, FIRST + 5}
        assert second[0] in (FIRST, FIRST + 1, FIRST + 5, FIRST + 6)


def test_no_document_makes_a_pair(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no document has the two tokens"):
        PairSamples(make_stream(tmp_path, [1, 0, 1]), SPECIAL, 14, seed=0)


def test_neither_length_nor_start_tells_which_pairs_continue(tmp_path: Path) -> None:
    """Before, a short row was a true pair twice as often, and a random second segment always began a chunk."""
    stream = make_stream(tmp_path, [30 + 7 * (i % 13) for i in range(60)])
    samples = PairSamples(stream, SPECIAL, 43, seed=0)
    rows = samples.rows(np.arange(20 * samples.num_sequences))
    assert rows.next_sentence_labels is not None and rows.attention_mask is not None
    lengths = rows.attention_mask.sum(1)
    for chosen in (lengths == 43, lengths < 43):
        assert chosen.sum() > 500
        assert abs(float(rows.next_sentence_labels[chosen].mean()) - 0.5) < 0.1
    starts = {taken_apart(rows, row)[1][0] for row in np.flatnonzero(rows.next_sentence_labels)[:300].tolist()}
    assert len(starts) > 200


@pytest.mark.parametrize(
    ("cut", "digest"),
    [(SpanSamples, "bdd78189f69436ac"), (PairSamples, "6b814334ea565e5f"), (PackedSamples, "2c6d529b9418e445")],
)
def test_the_order_and_the_content_of_samples_are_what_they_always_were(cut: Any, digest: str) -> None:
    samples = cut(made_up_stream(), SPECIAL, 24, seed=3)
    number = samples.num_sequences
    rows = samples.rows(np.array([0, 1, number - 1, number, 5 * number + 7]))
    content = b"".join(np.ascontiguousarray(array).astype("<i8").tobytes() for _, array in sorted(vars(rows).items()) if array is not None)
    assert hashlib.sha256(content).hexdigest()[:16] == digest
