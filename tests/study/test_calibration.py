from __future__ import annotations

import json
import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from pldcli.bench.result import Bench, Mode
from pldcli.bench.step_time import StepTime
from pldcli.errors import DataError, DeviceError, UsageError
from pldcli.study.calibration import ShapeTime, Timings, measure_in_turn, measure_shapes, read_timings, write_plan
from pldcli.study.jobs import Slot
from pldcli.study.plan import shapes
from tests.study.conftest import impatient, spec_of

__all__ = ["impatient", "spec_of"]


@pytest.mark.usefixtures("forked", "impatient")
def test_shapes_are_really_measured(spec_of: Callable[..., Any], prepared: Path) -> None:
    spec = spec_of(
        {"preln": {"preset": "bert-tiny-preln"}, "shallow": {"preset": "bert-tiny-preln", "set": {"model.num_hidden_layers": 2}}}
    )
    wanted = shapes(spec, {"model.vocab_size": 512})
    told: list[str] = []
    found, machine = measure_shapes(wanted, data=prepared, slot=Slot({}, 1), report=told.append)
    assert list(found) == [shape.key for shape in wanted]
    deep = found[wanted[0].key]
    assert 0 < deep.least_seconds <= deep.time.dense_seconds <= deep.most_seconds < 10
    assert 0 < deep.time.block_seconds < deep.time.dense_seconds
    assert deep.label == "3 blocks of 32, Pre-LN, 8 x 32 tokens, fp32" and deep.steps >= 15
    assert (machine["threads"], machine["device"], machine["cores"]) == (1, "cpu", os.cpu_count())
    assert machine["packages"]["torch"]
    rounds = len(told) // 2
    assert rounds == 3 and told[0].endswith("ms a step (round 1)")
    assert [line.partition(":")[0] for line in told] == [wanted[0].label, wanted[1].label] * rounds  # in turn


@pytest.mark.usefixtures("forked")
def test_what_goes_wrong_there_is_said_here(spec_of: Callable[..., Any], tmp_path: Path) -> None:
    wanted = shapes(spec_of(), {"model.vocab_size": 512})
    with pytest.raises(DataError, match="no such directory of prepared data"):
        measure_shapes(wanted, data=tmp_path / "nowhere", slot=Slot({}, 1), report=lambda line: None)


def measured(dense: tuple[float, ...], dropped: tuple[float, ...], kept: tuple[float, ...], config: Any) -> Bench:
    """Two modes of a part per number; a step of the run has four forward passes of the measured one."""
    flops = config.flops

    def mode(name: str, seconds: tuple[float, ...], blocks: tuple[float, ...]) -> Mode:
        phases: Any = {"optimizer": 0.1}
        return Mode(name, seconds, 10.0, tuple(10.0 * flops.executed(block) for block in blocks), blocks, phases, 1)

    modes = (mode("dense", dense, (3.0,) * len(dense)), mode("dropped", dropped, kept))
    return Bench(modes, 2, (), 5, 3, 2, 32, "fp32", False, "a machine", 1, 1, 1e9, "made up", 0.1, "data")


def test_the_median_of_all_parts_counts_and_rounds_tell_how_steady_it_was() -> None:
    rounds = [[(1.7, 0.4), (3.3, 0.4), (1.7, 0.2)], [], [(2.0, 0.4)]]  # one part was disturbed; nothing was dropped in a whole round
    found = ShapeTime.of_rounds("label", rounds, 4)
    assert (found.time, found.steps) == (StepTime(pytest.approx(1.85), pytest.approx(0.4)), 4)
    assert (found.least_seconds, found.most_seconds) == (pytest.approx(1.7), pytest.approx(2.0))
    with pytest.raises(DeviceError, match="label: a step could not be measured with blocks dropped"):
        ShapeTime.of_rounds("label", [[]], 0)


@pytest.mark.parametrize(("disturbed", "rounds"), [(0.05, 3), (0.2, 5)])
def test_rounds_that_differ_are_followed_by_more(
    spec_of: Callable[..., Any], monkeypatch: pytest.MonkeyPatch, disturbed: float, rounds: int
) -> None:
    """A round takes 15 s; 20 s are enough where rounds are alike, and 60 s where not."""
    [shape] = shapes(spec_of(), {"model.vocab_size": 64})
    seconds: list[float] = []

    def bench(config: Any, *, data: Path, steps: int) -> Bench:
        seconds.append(0.5 * (1 + disturbed * (len(seconds) % 2)))
        return measured((seconds[-1],) * 5, (seconds[-1] / 2,) * 5, (1.5,) * 5, shape.config)

    monkeypatch.setattr("pldcli.bench.bench.bench", bench)
    monkeypatch.setattr("time.monotonic", lambda: 15.0 * len(seconds))
    samples, _, _ = measure_in_turn({shape.key: shape.config}, Path("data"), lambda **_: None)
    assert len(samples[shape.key]) == rounds


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
    _, taken, _ = measure_in_turn({shape.key: shape.config}, Path("data"), lambda **_: None)
    assert taken == {shape.key: sum(asked)}
    assert asked[0] == 5 and set(asked[1:]) == {steps}


SHAPE = ShapeTime("3 blocks", StepTime(0.5, 0.1), 0.4, 0.6, 15)


def test_what_is_written_is_read(tmp_path: Path) -> None:
    timings = Timings("d" * 64, {"hardware": "a machine"}, {"abc": SHAPE})
    write_plan(tmp_path / "plan.json", timings, {"preln": {"total_steps": 40}})
    assert read_timings(tmp_path / "plan.json") == timings
    assert json.loads((tmp_path / "plan.json").read_text())["systems"] == {"preln": {"total_steps": 40}}
    assert timings.times == {"abc": StepTime(0.5, 0.1)}


def test_nothing_is_there(tmp_path: Path) -> None:
    assert read_timings(tmp_path / "plan.json") is None


@pytest.mark.parametrize(
    "text", ["", "[]", "{}", '{"data_fingerprint": "d", "calibration": {"machine": {}, "shapes": {"a": {"time": {}}}}}']
)
def test_a_damaged_plan(tmp_path: Path, text: str) -> None:
    (tmp_path / "plan.json").write_text(text)
    with pytest.raises(UsageError, match=r"plan\.json: cannot be read as the plan of a study .*; choose another --out, or remove it"):
        read_timings(tmp_path / "plan.json")


def test_times_are_brought_to_another_speed() -> None:
    half = SHAPE.scaled(0.5)
    assert half == ShapeTime("3 blocks", StepTime(0.25, 0.05), 0.2, 0.3, 15, 0.5)
    assert half.scaled(0.5).scaled_by == 0.25
