from __future__ import annotations

import json
from pathlib import Path

import pytest

from pldcli.bench.step_time import StepTime
from pldcli.errors import UsageError
from pldcli.study.timings import ShapeTime, Timings, read_timings, write_plan

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
