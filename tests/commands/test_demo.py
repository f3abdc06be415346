from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from pldcli import demo as engine
from pldcli.demo import Demo, DemoRun, FilledMask
from pldcli.engine.validation import LmScore
from pldcli.runs.checkpoint import Position

DENSE = DemoRun(
    "modern-tiny-preln",
    Position(250, tokens=1_000_000, train_seconds=50.0, executed_flops=2e12),
    LmScore(loss=5.5, accuracy=0.2, num_targets=1, num_tokens=1, seconds=1.0),
    kept_fraction=1.0,
    predicted_saving=0.0,
)
DROPPED = DemoRun(
    "modern-tiny-pld",
    replace(DENSE.position, train_seconds=37.0, executed_flops=1.46e12),
    replace(DENSE.score, loss=5.6),
    kept_fraction=0.725,
    predicted_saving=0.27,
)
MASK = FilledMask("of the [MASK] it is", "file", ((("file", 0.5), ("list", 0.25)), (("[list]", 0.4), ("file", 0.1))))
SHOWN = Demo((DENSE, DROPPED), 6.0, (MASK,), 454_000, 146.0)


def show(pld: Callable[..., Any], monkeypatch: pytest.MonkeyPatch, shown: Demo) -> str:
    calls = []

    def fake(out: Path, *, steps: int | None) -> Demo:
        calls.append((out, steps))
        return shown

    monkeypatch.setattr(engine, "demo", fake)
    outcome = pld("demo", "--out", "here", "--steps", "7")
    assert outcome.code == 0, outcome.err
    assert calls == [(Path("here"), 7)]
    return str(outcome.out)


def test_arguments_reach_the_engine_and_the_table_compares(pld: Callable[..., Any], monkeypatch: pytest.MonkeyPatch) -> None:
    out = show(pld, monkeypatch, SHOWN)
    lines = {line.split("  ")[0]: line for line in out.splitlines()}
    assert "equal" in lines["tokens seen"]
    assert "+0.1000" in lines["validation loss"]
    assert lines["unigram baseline"].count("6.0000") == 2
    assert lines["loss below it"].split()[-2:] == ["0.5000", "0.4000"]
    assert "200.0 ms" in lines["time per step"]
    assert "-26.0%" in lines["time per step"]
    assert "72.5%" in lines["blocks that ran"]
    assert "-27.0%" in lines["FLOPs executed"]
    assert "27.0%" in lines["FLOPs saved by schedule"]
    assert "file 50%" in lines["of the [MASK] it is"]
    assert "[list] 40%" in lines["of the [MASK] it is"]
    assert "note:" not in out
    assert "250 steps, 2 min 26 s in all" in out
    assert "pld prepare-data your-text.txt" in out


def test_models_that_are_not_below_the_unigram_baseline_are_named(pld: Callable[..., Any], monkeypatch: pytest.MonkeyPatch) -> None:
    out = show(pld, monkeypatch, replace(SHOWN, unigram_loss=5.65))
    assert "note: modern-tiny-pld not clearly below the unigram baseline" in out
    out = show(pld, monkeypatch, replace(SHOWN, unigram_loss=5.3))
    assert "note: modern-tiny-preln and modern-tiny-pld not clearly below" in out


def test_every_number_is_readable_in_80_columns(pld: Callable[..., Any], monkeypatch: pytest.MonkeyPatch) -> None:
    whole = show(pld, monkeypatch, SHOWN)
    monkeypatch.setenv("COLUMNS", "80")
    monkeypatch.setattr(engine, "demo", lambda out, *, steps: SHOWN)
    narrow = pld("demo").out
    table = whole[: whole.index("masks filled")]
    assert [line.split() for line in narrow[: narrow.index("masks filled")].splitlines()] == [line.split() for line in table.splitlines()]
    assert all(len(line) <= 80 for line in narrow.splitlines())


def test_an_existing_place_is_an_output_error(pld: Callable[..., Any], tmp_path: Path) -> None:
    outcome = pld("demo", "--out", tmp_path)
    assert outcome.code == 7
    assert outcome.err.startswith("error: ")
    assert outcome.err.count("\n") == 1
