import time
from pathlib import Path

import pytest
import torch

from pldcli.config import ModelConfig
from pldcli.engine.runtime import Runtime
from pldcli.errors import UsageError
from pldcli.evaluation.depth import DepthChoice, Measure, choose_depths, keep_probs_of, kept_blocks, measure_depths, parse_depths
from pldcli.presets import dump
from tests.conftest import tiny_config


def numbers(gates):
    return [number for number, runs in enumerate(gates, 1) if runs]


@pytest.mark.parametrize(
    ("depth", "first", "even"),
    [(12, [*range(1, 13)], [*range(1, 13)]), (6, [1, 2, 3, 4, 5, 6], [1, 3, 5, 8, 10, 12]), (2, [1, 2], [1, 12]), (1, [1], [1])],
)
def test_which_blocks_are_kept(depth, first, even):
    falling = [1 - i / 24 for i in range(12)]
    assert numbers(kept_blocks(12, depth, "first", ())) == first
    assert numbers(kept_blocks(12, depth, "even", ())) == even
    assert numbers(kept_blocks(12, depth, "keep-prob", falling)) == first


def test_the_most_often_kept_ones_wherever_they_are():
    probs = (0.2, 0.9, 0.5, 0.9, 1.0)
    assert numbers(kept_blocks(5, 2, "keep-prob", probs)) == [2, 5], "of equal ones the lower"
    assert numbers(kept_blocks(5, 4, "keep-prob", probs)) == [2, 3, 4, 5]


@pytest.mark.parametrize("num_blocks", [1, 2, 5, 7, 12, 24])
def test_every_depth_has_its_number_of_blocks(num_blocks):
    for depth in range(1, num_blocks + 1):
        for how in ("first", "even", "keep-prob"):
            gates = kept_blocks(num_blocks, depth, how, [0.5] * num_blocks)
            assert len(gates) == num_blocks and sum(gates) == depth


def test_reading_depths():
    assert parse_depths("6, 8,12") == (6, 8, 12)


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ("6,x", "--depth: 'x' is not a number of blocks; give numbers from 1 up, for example --depth 6,9,12"),
        ("0", "--depth: '0' is not a number of blocks; give numbers from 1 up, for example --depth 6,9,12"),
        ("-1", "--depth: '-1' is not a number of blocks; give numbers from 1 up, for example --depth 6,9,12"),
        ("2.5", "--depth: '2.5' is not a number of blocks; give numbers from 1 up, for example --depth 6,9,12"),
        ("6,,8", "--depth: '' is not a number of blocks; give numbers from 1 up, for example --depth 6,9,12"),
        ("6,8,06", "--depth: 6 is there twice; name each number once"),
        ("6,13", "--depth: 13 is not between 1 and the 12 blocks of this model"),
    ],
)
def test_mistakes(text, line):
    with pytest.raises(UsageError) as raised:
        choose_depths(Path("nowhere"), parse_depths(text), "first", ModelConfig(num_hidden_layers=12))
    assert str(raised.value) == line


def test_keep_probabilities_come_from_the_run(tmp_path):
    config = tiny_config("pld.theta_bar=0.4", "pld.schedule=constant", "model.num_hidden_layers=4")
    (tmp_path / "run" / "checkpoints" / "step-00000001").mkdir(parents=True)
    (tmp_path / "run" / "config.yaml").write_text(dump(config))
    for place in ("run", "run/model", "run/checkpoints/step-00000001"):
        found = keep_probs_of(tmp_path / place, 4)
        assert found.probs == pytest.approx((0.85, 0.7, 0.55, 0.4))
        assert found.origin.endswith("at its last step (constant schedule, paper rule)")
    growing = tiny_config("pld.theta_bar=0.4", "pld.schedule=growing", "pld.recovery_fraction=0.1", "model.num_hidden_layers=4")
    (tmp_path / "run" / "config.yaml").write_text(dump(growing))
    found = keep_probs_of(tmp_path / "run", 4)
    assert 1 > found.probs[0] > found.probs[1] > found.probs[2] > found.probs[3] > 0.4, "at its last step all are 1 and tell nothing"
    assert found.origin.startswith("mean keep probabilities of ")


def test_a_model_that_has_not_grown_yet_has_keep_probabilities_of_its_own_blocks(tmp_path):
    stages = "pld.depth_stages=[{until: 0.25, blocks: 2}, {until: 0.75, blocks: 3}]"
    config = tiny_config("pld.schedule=expansion", stages, "model.num_hidden_layers=5", "train.total_steps=12")
    (tmp_path / "config.yaml").write_text(dump(config))
    whole = {2: (1.0, 1.0), 3: (1.0, 0.75, 1.0), 5: (1.0, 0.25, 0.75, 0.25, 1.0)}
    for blocks, shares in whole.items():
        found = keep_probs_of(tmp_path, blocks)
        assert found.probs == pytest.approx(shares) and "the part of the run in which" in found.origin
    assert "not known" in keep_probs_of(tmp_path, 4).origin


def test_without_a_run_the_papers_rule_is_taken_and_said(tmp_path):
    unknown = keep_probs_of(tmp_path, 4)
    assert unknown.probs == pytest.approx((0.875, 0.75, 0.625, 0.5)) and "not known" in unknown.origin
    (tmp_path / "config.yaml").write_text(dump(tiny_config("model.num_hidden_layers=4", "pld.theta_bar=1.0")))
    assert "without layer dropping" in keep_probs_of(tmp_path, 4).origin
    assert "not known" in keep_probs_of(tmp_path, 3).origin, "of another model"
    (tmp_path / "config.yaml").write_text("of: something else")
    assert "not known" in keep_probs_of(tmp_path, 4).origin


def test_speed_is_measured_against_the_whole_model():
    calls = []

    def forward(gates):
        calls.append(gates)
        time.sleep(0.02 * sum(gates))
        return 1000

    half, whole = (True, False), (True, True)
    choice = DepthChoice((half,), "why")
    report = measure_depths(Measure(lambda gates: {"score": sum(gates), "more": 0.0}, forward), choice, Runtime(torch.device("cpu")))
    (score,) = report.scores
    assert (report.num_blocks, report.reason, score.num_blocks, score.values) == (2, "why", 1, {"score": 1, "more": 0.0})
    assert score.relative_speed == pytest.approx(2.0, rel=0.25) and score.tokens_per_second == pytest.approx(50_000, rel=0.25)
    assert calls[:4] == [half, whole, half, whole], "in turn, the first of each to warm up"
    both = measure_depths(Measure(lambda _: {"score": 1.0}, forward), DepthChoice((whole, half), ""), Runtime(torch.device("cpu")))
    assert both.scores[0].relative_speed == 1.0
