from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from pldcli.bench.result import Bench, Mode
from pldcli.bench.step_time import StepTime
from pldcli.errors import DataError, DeviceError
from pldcli.study import calibration as module
from pldcli.study.calibration import measure_shapes
from pldcli.study.plan import shapes
from tests.study.conftest import spec_of

__all__ = ["spec_of"]


def test_shapes_are_really_measured(spec_of: Callable[..., Any], prepared: Path) -> None:
    spec = spec_of(
        {"preln": {"preset": "bert-tiny-preln"}, "shallow": {"preset": "bert-tiny-preln", "set": {"model.num_hidden_layers": 2}}}
    )
    wanted = shapes(spec, {"model.vocab_size": 512})
    told: list[str] = []
    found = measure_shapes(wanted, data=prepared, threads=1, environment={}, report=told.append)
    assert list(found.shapes) == [shape.key for shape in wanted]
    deep = found.shapes[wanted[0].key]
    assert 0 < deep.least_seconds <= deep.time.dense_seconds <= deep.most_seconds < 10
    assert 0 < deep.time.block_seconds < deep.time.dense_seconds
    assert deep.label == "3 blocks of 32, Pre-LN, 8 x 32 tokens, fp32" and deep.steps >= 15
    assert (found.machine["threads"], found.machine["device"], found.machine["cores"]) == (1, "cpu", os.cpu_count())
    assert found.machine["packages"]["torch"]
    rounds = len(told) // 2
    assert rounds >= 3 and told[0].endswith("ms a step (round 1)")
    assert [line.partition(":")[0] for line in told] == [wanted[0].label, wanted[1].label] * rounds  # in turn


def test_what_goes_wrong_there_is_said_here(spec_of: Callable[..., Any], tmp_path: Path) -> None:
    wanted = shapes(spec_of(), {"model.vocab_size": 512})
    with pytest.raises(DataError, match="no such directory of prepared data"):
        measure_shapes(wanted, data=tmp_path / "nowhere", threads=1, environment={}, report=lambda line: None)


def measured(dense: tuple[float, ...], dropped: tuple[float, ...], kept: tuple[float, ...], config: Any) -> Bench:
    """Two modes of a part per number; a step of the run has four forward passes of the measured one."""
    flops = config.flops

    def mode(name: str, seconds: tuple[float, ...], blocks: tuple[float, ...]) -> Mode:
        phases: Any = {"optimizer": 0.1}
        return Mode(name, seconds, 10.0, tuple(10.0 * flops.executed(block) for block in blocks), blocks, phases, 1)

    modes = (mode("dense", dense, (3.0,) * len(dense)), mode("dropped", dropped, kept))
    return Bench(modes, 2, (), 5, 3, 2, 32, "fp32", False, "a machine", 1, 1, 1e9, "made up", 0.1, "data")


def test_each_part_counts_with_the_blocks_that_ran_in_it(spec_of: Callable[..., Any]) -> None:
    [shape] = shapes(spec_of(), {"model.vocab_size": 64})
    # Part 2 was disturbed, dense and dropped alike; of three blocks one or two ran.
    bench = measured((0.5, 0.9, 0.5), (0.3, 0.7, 0.4), (1.0, 1.0, 2.0), shape.config)
    parts = module._parts(shape.config, bench)
    assert parts == [pytest.approx((1.7, 0.4)), pytest.approx((3.3, 0.4)), pytest.approx((1.7, 0.4))]
    found = module._summarise("label", [parts, parts[:1]], 4)
    assert (found.time, found.steps) == (StepTime(pytest.approx(1.7), pytest.approx(0.4)), 4)
    assert (found.least_seconds, found.most_seconds) == (pytest.approx(1.7), pytest.approx(1.7))


def test_rounds_that_differ_are_told_apart() -> None:
    steady, disturbed = [[(1.0, 0.1), (9.0, 0.1), (1.0, 0.1)], [(1.09, 0.1)]], [[(1.0, 0.1)], [(1.2, 0.1)]]
    assert module._are_alike([steady, steady]) and not module._are_alike([steady, disturbed]) and module._are_alike([[]])


def test_parts_in_which_nothing_was_dropped_say_nothing(spec_of: Callable[..., Any]) -> None:
    [shape] = shapes(spec_of(), {"model.vocab_size": 64})
    bench = measured((0.5, 0.5), (0.5, 0.3), (3.0, 1.0), shape.config)
    assert len(module._parts(shape.config, bench)) == 1
    with pytest.raises(DeviceError, match="label: a step could not be measured with blocks dropped"):
        module._summarise("label", [[]], 0)


@pytest.mark.parametrize(("seconds", "steps"), [(0.5, 5), (0.02, 25), (0.001, 50)])
def test_short_steps_are_measured_more_often(
    spec_of: Callable[..., Any], monkeypatch: pytest.MonkeyPatch, seconds: float, steps: int
) -> None:
    [shape] = shapes(spec_of(), {"model.vocab_size": 64})
    asked: list[int] = []

    def bench(config: Any, *, data: Path, steps: int) -> Bench:
        asked.append(steps)
        return replace(measured((seconds,) * 5, (seconds / 2,) * 5, (1.5,) * 5, shape.config), steps=steps)

    monkeypatch.setattr("pldcli.bench.bench.bench", bench)
    _, taken, _ = module._take_turns({shape.key: shape.config}, Path("data"), lambda **_: None)
    assert taken == {shape.key: sum(asked)}
    assert asked[0] == 5 and set(asked[1:]) == {steps}
