from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from pldcli.bench.step_time import StepTime
from pldcli.study import calibration
from pldcli.study.plan import Plan, make_plan, shapes
from pldcli.study.read_spec import read_spec
from pldcli.study.spec import Spec
from tests.conftest import TINY

FROM_DATA = {"model.vocab_size": 64}
SMALL = [*TINY, "eval.every_steps=10", "train.log_every_steps=5", "train.total_steps=40"]
"""What `write_run` of tests/comparison/test_read.py writes: 40 steps, validated every 10."""


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    """Measure steps in the fewest rounds, however they differ: beside other tests they do."""
    for limit in ("_ENOUGH_SECONDS", "_MOST_SECONDS"):
        monkeypatch.setattr(calibration, limit, 0.0)


@pytest.fixture
def spec_of(tmp_path: Path) -> Callable[..., Spec]:
    """Write a file and read it: the systems given, and other keys of the study."""

    def build(systems: dict[str, Any] | None = None, **more: Any) -> Spec:
        default = {"preln": {"preset": "bert-tiny-preln"}, "pld": {"preset": "bert-tiny-pld"}}
        content = {"name": "try", "data": "data", "set": SMALL, "systems": systems or default, **more}
        path = tmp_path / "spec.yaml"
        path.write_text(yaml.safe_dump(content, sort_keys=False), encoding="utf-8")
        return read_spec(path)

    return build


def plan_of(spec: Spec, *, dense: float = 1.0, block: float = 0.2) -> Plan:
    """Plan a study in which every shape of model takes as long."""
    return make_plan(spec, FROM_DATA, {shape.key: StepTime(dense, block) for shape in shapes(spec, FROM_DATA)})
