from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from pldcli.engine import demo as engine
from pldcli.engine.demo import DemoRun

DENSE = DemoRun("bert-tiny-preln", 1_000_000, 50.0, 0.2, 1.0, 2e12, 5.5, 0.2, 0.0)
DROPPED = replace(
    DENSE,
    name="bert-tiny-pld",
    train_seconds=37.0,
    seconds_per_step=0.148,
    kept_fraction=0.725,
    executed_flops=1.46e12,
    mlm_loss=5.6,
    predicted_saving=0.27,
)


def test_arguments_reach_the_engine_and_the_table_compares(pld: Callable[..., Any], monkeypatch: pytest.MonkeyPatch) -> None:
    calls = []

    def fake(out: Path, *, steps: int | None) -> list[DemoRun]:
        calls.append((out, steps))
        return [DENSE, DROPPED]

    monkeypatch.setattr(engine, "demo", fake)
    outcome = pld("demo", "--out", "here", "--steps", "7")
    assert outcome.code == 0, outcome.err
    assert calls == [(Path("here"), 7)]
    lines = {line.split("  ")[0]: line for line in outcome.out.splitlines()}
    assert "+0.1000" in lines["validation loss"]
    assert "-26.0%" in lines["time per step"]
    assert "72.5%" in lines["blocks kept"]
    assert "-27.0% (schedule: -27.0%)" in lines["operations executed"]


def test_an_existing_place_is_an_output_error(pld: Callable[..., Any], tmp_path: Path) -> None:
    outcome = pld("demo", "--out", tmp_path)
    assert outcome.code == 7
    assert outcome.err.startswith("error: ")
    assert outcome.err.count("\n") == 1
