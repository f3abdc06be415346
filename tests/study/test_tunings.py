from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from pldcli.study import jobs as study_commands
from pldcli.study.jobs import Slot
from pldcli.study.tunings import PlannedTuning, TuningOutcome, plan_tunings, read_tuning, tune_runs
from pldcli.system.signals import StopRequest
from tests.study.conftest import plan_of, spec_of

__all__ = ["spec_of"]


@pytest.fixture
def tunings(spec_of: Callable[..., Any]) -> list[PlannedTuning]:
    """Two systems, two tasks."""
    finetune = {"tasks": ["glue/rte", "glue/mrpc"], "data_dir": "glue", "seeds": [0, 1], "set": {"epochs": 1}}
    spec = spec_of(finetune=finetune)
    return plan_tunings(spec, plan_of(spec).runs())


def write_results(place: Path, *scores: float, cells: tuple[str, ...] = ("epochs=1.0,seed=0", "epochs=1.0,seed=1")) -> None:
    """Write what `pld finetune` writes, as far as a study reads it; no scores for runs that diverged."""
    score = {"mean": sum(scores) / len(scores), "values": scores} if scores else None
    content = {"task": place.name, "start": "gone", "groups": [{"score": score}], "cells": {name: {} for name in cells}}
    place.mkdir(parents=True)
    (place / "results.json").write_text(json.dumps(content))


def test_what_counts_as_done(tunings: list[PlannedTuning], tmp_path: Path) -> None:
    first, second, third, fourth = tunings
    write_results(tmp_path / "finetuned/preln-seed0/rte", 0.5, 0.6)
    write_results(tmp_path / "finetuned/preln-seed0/mrpc")
    write_results(tmp_path / "finetuned/pld-seed0/rte", 0.5, cells=("epochs=1.0,seed=0",))
    (tmp_path / "finetuned/pld-seed0/mrpc").mkdir()
    (tmp_path / "finetuned/pld-seed0/mrpc/results.json").write_text("{")
    assert read_tuning(first, tmp_path) == TuningOutcome("finished", pytest.approx(0.55))
    assert read_tuning(second, tmp_path) == TuningOutcome("finished", None)
    # A seed more is wanted now; a file that was cut short.
    assert read_tuning(third, tmp_path) == read_tuning(fourth, tmp_path) == TuningOutcome("not started")


def test_each_is_the_ordinary_command(tunings: list[PlannedTuning], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One does well, one diverges on every seed, one fails, and one is stopped."""
    begun: list[list[str]] = []
    codes = {"preln-seed0/rte": "0", "preln-seed0/mrpc": "6", "pld-seed0/rte": "print('error: glue: no such directory'); exit(3)",
             "pld-seed0/mrpc": "print('error: interrupted'); exit(130)"}  # fmt: skip

    def start(arguments: list[str], *, log: Any, threads: int | None, environment: dict[str, str]) -> Any:
        begun.append(list(arguments))
        place = Path(arguments[arguments.index("--out") + 1])
        name = f"{place.parent.name}/{place.name}"
        if codes[name] in ("0", "6"):
            write_results(place, *[0.75, 0.25][: 2 if codes[name] == "0" else 0])
        code = codes[name] if "exit" in codes[name] else f"exit({codes[name]})"
        return subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=log, stderr=log)

    monkeypatch.setattr(study_commands, "start_command", start)
    told: list[str] = []
    outcomes = tune_runs(
        tunings, out=tmp_path, slots=[Slot({}, 1)], stop=StopRequest(), tell=lambda one, end: told.append(f"{one.name} {end or 'begins'}")
    )
    assert begun[0] == [
        "finetune", "glue/rte", "--model", str(tmp_path / "runs/preln-seed0"), "--data-dir", "glue",
        "--out", str(tmp_path / "finetuned/preln-seed0/rte"), "--jobs", "1", "epochs=1", "seed=0,1",
    ]  # fmt: skip
    assert (tmp_path / "logs/preln-seed0-rte.log").read_text().startswith("$ pld finetune glue/rte --model ")
    assert list(outcomes.values()) == [
        TuningOutcome("finished", 0.5),
        TuningOutcome("finished", None),
        TuningOutcome("failed", note="error: glue: no such directory", exit_code=3),
        TuningOutcome("stopped", note="error: interrupted", exit_code=130),
    ]
    assert told[:4] == ["preln-seed0/rte begins", "preln-seed0/rte score 50.00", "preln-seed0/mrpc begins", "preln-seed0/mrpc diverged"]
