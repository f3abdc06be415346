from __future__ import annotations

from itertools import groupby

import pytest

from pldcli.curriculum import Curriculum, Stage, largest_divisor
from pldcli.flops import Flops
from pldcli.pld import Dropping
from pldcli.run_flops import RunFlops

STAGES = (Stage(0.7, 32, 10.0), Stage(0.9, 64, 20.0))


def curriculum(total_steps: int = 100, **changes: object) -> Curriculum:
    """Sequences of 32, then 64, then 128 tokens, and as many of them as make 2,048 tokens."""
    settings = {"seq_len": 128, "batch_size": 16, "rope_theta": 40.0, "stages": STAGES} | changes
    return Curriculum(total_steps=total_steps, **settings)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("step", "seq_len", "rope_theta", "num_sequences", "first_sequence"),
    [
        (0, 32, 10.0, 64, 0),
        (1, 32, 10.0, 64, 64),
        (69, 32, 10.0, 64, 4416),
        (70, 64, 20.0, 32, 0),
        (89, 64, 20.0, 32, 608),
        (90, 128, 40.0, 16, 0),
        (99, 128, 40.0, 16, 144),
        (102, 128, 40.0, 16, 192),
    ],
)
def test_a_step_reads_as_many_tokens_in_sequences_of_its_stage(
    step: int, seq_len: int, rope_theta: float, num_sequences: int, first_sequence: int
) -> None:
    found = curriculum().at(step)
    assert (found.seq_len, found.rope_theta, found.num_sequences) == (seq_len, rope_theta, num_sequences)
    assert curriculum().first_sequence(step) == first_sequence
    assert curriculum().tokens_until(step) == step * 2048


@pytest.mark.parametrize(
    ("step", "num_sequences", "first_sequence"),
    [(0, 4, 0), (6, 4, 24), (7, 8, 28), (13, 8, 76), (14, 12, 84), (19, 12, 144), (20, 16, 156), (21, 16, 172), (99, 16, 1420)],
)
def test_a_ramp_grows_in_multiples_of_the_first_batch(step: int, num_sequences: int, first_sequence: int) -> None:
    found = curriculum(stages=(), initial_batch_size=4, ramp_fraction=0.2)
    assert (found.at(step).num_sequences, found.first_sequence(step)) == (num_sequences, first_sequence)
    assert found.tokens_until(step) == 128 * first_sequence


@pytest.mark.parametrize(
    ("step", "seq_len", "num_sequences", "first_sequence"), [(29, 32, 32, 928), (30, 32, 64, 960), (70, 64, 32, 0), (90, 128, 16, 0)]
)
def test_a_stage_inside_a_ramp_has_its_share_of_sequences(step: int, seq_len: int, num_sequences: int, first_sequence: int) -> None:
    found = curriculum(initial_batch_size=8, ramp_fraction=0.3)
    assert (found.at(step).seq_len, found.at(step).num_sequences, found.first_sequence(step)) == (seq_len, num_sequences, first_sequence)


def test_a_ramp_may_end_in_the_middle_of_a_later_stage() -> None:
    found = curriculum(initial_batch_size=8, ramp_fraction=0.8)
    assert [(one.first_step, one.stop, one.seq_len, one.num_sequences) for one in found.stretches] == [
        (0, 70, 32, 32),
        (70, 80, 64, 16),
        (80, 90, 64, 32),
        (90, 100, 128, 16),
    ]
    assert found.first_sequence(80) == 160
    assert found.describe() == "32 x 32, then 16 to 32 x 64 (from step 70 on), then 16 x 128 (from step 90 on)"


@pytest.mark.parametrize("total_steps", [1, 2, 3, 7, 100, 1000])
@pytest.mark.parametrize(("initial", "ramp"), [(16, 0.0), (1, 0.5), (4, 0.01), (2, 0.95)])
def test_no_sequence_is_left_out_or_read_twice(total_steps: int, initial: int, ramp: float) -> None:
    found = curriculum(total_steps, initial_batch_size=initial, ramp_fraction=ramp)
    expected = dict.fromkeys((32, 64, 128), 0)
    tokens = 0
    for step in range(total_steps):
        stretch = found.at(step)
        assert found.first_sequence(step) == expected[stretch.seq_len]
        assert found.tokens_until(step) == tokens
        expected[stretch.seq_len] += stretch.num_sequences
        tokens += stretch.num_sequences * stretch.seq_len
    assert found.num_tokens == tokens
    assert found.sequences_by_length == {length: number for length, number in expected.items() if number}
    assert found.at(total_steps - 1).seq_len == 128, "a run ends with its own length, however short it is"


def test_two_stages_of_one_length_do_not_read_the_same_sequences() -> None:
    found = curriculum(10, stages=(Stage(0.3, 128, 1.0), Stage(0.5, 32, 1.0)))
    assert [(step, found.at(step).seq_len, found.first_sequence(step)) for step in (0, 2, 3, 4, 5, 6)] == [
        (0, 128, 0), (2, 128, 32), (3, 32, 0), (4, 32, 64), (5, 128, 48), (6, 128, 64),
    ]  # fmt: skip


def test_a_fraction_of_the_run_is_not_lost_to_rounding() -> None:
    assert 0.29 * 100 < 29
    assert curriculum(stages=(Stage(0.29, 64),)).at(28).seq_len == 64
    assert curriculum(stages=(Stage(0.29, 64),)).at(29).seq_len == 128


def test_batches_of_a_long_ramp_come_close_to_a_straight_line() -> None:
    found = curriculum(1000, stages=(), batch_size=4096, initial_batch_size=64, ramp_fraction=0.5)
    sizes = [found.at(step).num_sequences for step in range(1000)]
    assert all(abs(size - (64 + 4032 * min(1.0, step / 500))) < 64 for step, size in enumerate(sizes))
    assert [len(list(group)) for _, group in groupby(sizes)][:4] == [8, 8, 8, 8]


def test_steps_that_have_so_many_tokens_are_counted_along_the_ramp() -> None:
    """Steps 0 to 6 have 512 tokens each, 7 to 13 1,024, 14 to 19 1,536, and the others 2,048."""
    found = curriculum(stages=(), initial_batch_size=4, ramp_fraction=0.2)
    counted = {0: 0, 1: 1, 512: 1, 513: 2, 3584: 7, 3585: 8, 4608: 8, 10752: 14, 10753: 15, 19968: 20, 19969: 21, 22016: 21, 22017: 22}
    assert {tokens: found.steps_for(tokens) for tokens in counted} == counted
    assert curriculum().steps_for(2048 * 100) == 100 and curriculum().steps_for(2048 * 100 + 1) == 101


def test_largest_divisor() -> None:
    assert [largest_divisor(12, most) for most in (1, 5, 6, 11, 12, 99)] == [1, 4, 6, 6, 12, 12]


def test_flops_of_a_run_add_up_step_by_step() -> None:
    """Two blocks; dropping rises linearly, so that long sequences are dropped more often than short ones."""
    schedule = Dropping(num_blocks=2, total_steps=4, time="linear", theta_bar=0.2, depth_rule="uniform")
    flops = RunFlops(
        schedule,
        Curriculum(total_steps=4, seq_len=8, batch_size=4, stages=(Stage(0.5, 4),), initial_batch_size=2, ramp_fraction=0.25),
        Flops(matrices=10.0, attention=1.0, attended_tokens=8.0, head=5.0, num_blocks=2),
    )
    # Tokens 16, 32, 32, 32; a token's block costs 14, 14, 18, 18; theta 1, 0.8, 0.6, 0.4.
    dense = [16 * 33, 32 * 33, 32 * 41, 32 * 41]
    executed = [16 * (28 + 5), 32 * (0.8 * 28 + 5), 32 * (0.6 * 36 + 5), 32 * (0.4 * 36 + 5)]
    for steps in (1, 2, 3, 4):
        assert flops.dense_until(steps) == pytest.approx(sum(dense[:steps]))
        assert flops.executed_until(steps) == pytest.approx(sum(executed[:steps]))
    assert flops.dense_per_token == pytest.approx(sum(dense) / 112)
    assert flops.saved == pytest.approx(1 - sum(executed) / sum(dense))
    packed = RunFlops(schedule, flops.curriculum, flops.flops, {4: 3.0})
    assert packed.dense_until(3) == pytest.approx((16 + 32) * 31 + 32 * 41)
