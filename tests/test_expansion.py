"""Few blocks first, all of them later: recomputed from the configuration, step by step."""

from __future__ import annotations

import itertools
from collections import Counter
from typing import Any

import pytest

from pldcli import presets
from pldcli.errors import UsageError
from pldcli.expansion import DepthStage, Expansion, spread

TWICE = (DepthStage(0.5, 2), DepthStage(0.8, 4))


def expansion(**changes: Any) -> Expansion:
    return Expansion(**{"num_blocks": 8, "total_steps": 10, "stages": TWICE, **changes})


def runs(schedule: Expansion, step: int) -> set[int]:
    return {block for block, gate in enumerate(schedule.plan(step, 0, seed=0).gates) if gate}


def trained(schedule: Expansion, steps: int) -> set[int]:
    return {block for block, gate in enumerate(schedule.trained_gates(steps)) if gate}


def configured(*changes: str) -> Any:
    return presets.resolve("modern-tiny-preln", ["pld.schedule=expansion", *changes]).config


@pytest.mark.parametrize(
    ("which", "first", "second"), [("spread", {0, 7}, {0, 2, 5, 7}), ("first", {0, 1}, {0, 1, 2, 3}), ("last", {6, 7}, {4, 5, 6, 7})]
)
def test_each_stage_runs_its_blocks_and_the_end_all(which: str, first: set[int], second: set[int]) -> None:
    schedule = expansion(which=which)
    assert [runs(schedule, step) for step in range(10)] == [first] * 5 + [second] * 3 + [set(range(8))] * 2
    assert [schedule.theta(step) for step in (0, 4, 5, 7, 8, 9)] == [0.25, 0.25, 0.5, 0.5, 1.0, 1.0]
    assert [trained(schedule, done) for done in (0, 1, 5, 6, 8, 9)] == [first, first, first, second, second, set(range(8))]
    for plan in (schedule.plan(step, group, seed=seed) for step in range(10) for group in range(2) for seed in range(2)):
        assert plan.residual_scales == (1.0,) * 8
        assert plan.gates == tuple(prob == 1.0 for prob in plan.keep_probs)
    assert not schedule.scales and not schedule.is_dense


def test_what_was_trained_goes_on() -> None:
    for blocks in range(3, 13):
        for depths in itertools.combinations(range(1, blocks), 3):
            stages = tuple(DepthStage(0.25 * (place + 1), depth) for place, depth in enumerate(depths))
            schedule = Expansion(num_blocks=blocks, total_steps=4, stages=stages)
            ran = [runs(schedule, step) for step in range(4)]
            assert [len(one) for one in ran] == [*depths, blocks]
            assert all(before < after for before, after in itertools.pairwise(ran))
            assert all(0 in one and (blocks - 1 in one or len(one) == 1) for one in ran)


def test_spread_is_even_and_has_both_ends() -> None:
    assert [spread(n, 12) for n in (1, 2, 3, 4, 12)] == [(0,), (0, 11), (0, 6, 11), (0, 4, 7, 11), tuple(range(12))]
    for among in range(2, 25):
        for chosen in range(2, among + 1):
            gaps = {after - before for before, after in itertools.pairwise(spread(chosen, among))}
            assert max(gaps) - min(gaps) <= 1


def test_means_and_shares_are_those_of_the_steps() -> None:
    for steps, which in itertools.product((1, 2, 7, 10, 999), ("spread", "random")):
        schedule = expansion(total_steps=steps, which=which, keep_first=1)
        kept = [schedule.expected_kept_blocks(step) for step in range(steps)]
        for until in {1, (steps + 1) // 2, steps}:
            assert schedule.mean_kept_fraction_until(until) == pytest.approx(sum(kept[:until]) / until / 8, abs=1e-12)
        probs = [schedule.keep_probs(step) for step in range(steps)]
        assert schedule.shares_of_run == pytest.approx([sum(column) / steps for column in zip(*probs, strict=True)], abs=1e-12)
    assert expansion().mean_kept_fraction == pytest.approx((5 * 2 + 3 * 4 + 2 * 8) / 80, abs=1e-12)


def test_random_stages_draw_anew_and_keep_both_ends() -> None:
    schedule = expansion(which="random", keep_first=1, keep_last=1, stages=(DepthStage(0.9, 4),), total_steps=4000)
    drawn = [schedule.plan(step, 0, seed=0) for step in range(3600)]
    assert {plan.kept_blocks for plan in drawn} == {4}
    assert all(plan.gates[0] and plan.gates[7] for plan in drawn)
    counts = Counter(block for plan in drawn for block, gate in enumerate(plan.gates) if gate)
    assert all(abs(counts[block] / 3600 - 1 / 3) < 0.04 for block in range(1, 7))
    assert drawn[0].residual_scales == pytest.approx((1.0, *(3.0,) * 6, 1.0))
    assert schedule.plan(3600, 0, seed=0).residual_scales == (1.0,) * 8
    assert schedule.scales and schedule.growth_at(3600) is None and len(trained(schedule, 1)) == 8
    unscaled = expansion(which="random", residual="none").plan(0, 0, seed=0)
    assert unscaled.residual_scales == (1.0,) * 8
    never = expansion(which="random", keep_first=1, keep_last=1).plan(0, 0, seed=0)  # two of two at the ends: the others never
    assert never.gates == (True, *(False,) * 6, True) and never.residual_scales == (1.0,) * 8


def test_growth_is_announced_at_the_step_in_which_new_blocks_run() -> None:
    schedule = expansion(new_blocks="copied", growth_state="fresh")
    grown = {step: growth for step in range(10) if (growth := schedule.growth_at(step))}
    assert {step: (growth.running, growth.new) for step, growth in grown.items()} == {
        5: ((0, 7), (2, 5)),
        8: ((0, 2, 5, 7), (1, 3, 4, 6)),
    }
    assert {(growth.weights, growth.state) for growth in grown.values()} == {("copied", "fresh")}


def test_a_configuration_says_it_in_full() -> None:
    config = configured("pld.depth_stages=[{until: 0.5, blocks: 2}, {until: 0.8, blocks: 4}]", "train.total_steps=10")
    assert config.pld_schedule == expansion()
    assert configured().pld_schedule.stages == (DepthStage(0.8, 2),)
    flops = config.run_flops()
    kept, dense = flops.flops.executed(8.0), [flops.flops.executed(float(blocks)) for blocks in (2, 4, 8)]
    assert flops.executed_per_token == pytest.approx((5 * dense[0] + 3 * dense[1] + 2 * dense[2]) / 10)
    assert flops.saved == pytest.approx(1 - flops.executed_per_token / kept)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (["pld.depth_stages=[]"], "pld.depth_stages: an expansion without a stage"),
        (["pld.depth_stages=[{until: 1, blocks: 2}]"], r"depth_stages\[0\].until: 1 does not lie between 0"),
        (["pld.depth_stages=[{until: 0.5, blocks: 2}, {until: 0.4, blocks: 4}]"], r"depth_stages\[1\].until: 0.4 does not lie between 0.5"),
        (["pld.depth_stages=[{until: 0.5, blocks: 4}, {until: 0.6, blocks: 4}]"], r"depth_stages\[1\].blocks: 4 blocks are not more"),
        (["pld.depth_stages=[{until: 0.5, blocks: 9}]"], r"depth_stages\[0\].blocks: 9 blocks are more than model.num_hidden_layers 8"),
        (["pld.depth_stages=[{until: 0.5, blocks: 0}]"], r"blocks"),
        (["pld.recovery_fraction=0.1"], "pld.recovery_fraction: an expansion ends at full depth"),
        (["pld.stage_blocks=random", "pld.new_blocks=copied"], "pld.new_blocks: no block is new"),
        (["pld.stage_blocks=random", "pld.keep_first=2", "pld.keep_last=1"], "pld.keep_first: 3 blocks at both ends are more"),
        (["pld.growth_state=copied"], "pld.growth_state: moments are copied with the weights"),
        (["pld.stage_blocks=last"], "pld.stage_blocks: the first block, which has no norm"),
        (["pld.stage_blocks=middle"], "pld.stage_blocks"),
    ],
)
def test_what_makes_no_sense_is_refused_in_one_line(changes: list[str], message: str) -> None:
    with pytest.raises(UsageError, match=message) as caught:
        configured(*changes)
    assert "\n" not in str(caught.value)


def test_blocks_after_which_a_norm_stands_cannot_begin_by_changing_nothing() -> None:
    with pytest.raises(UsageError, match=r"pld.new_blocks: Post-LN blocks normalise what passes through them"):
        presets.resolve(
            "bert-tiny-postln", ["pld.schedule=expansion", "pld.depth_stages=[{until: 0.8, blocks: 2}]", "pld.new_blocks=zero-output"]
        )
