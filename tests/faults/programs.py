"""Kills of the other programs that take long: `prepare-data`, and those that start many runs, `finetune` with a grid and `study`."""

from __future__ import annotations

import json
import shutil
import signal
import time
from collections.abc import Callable
from pathlib import Path

from pldcli.data.prepared import verify_prepared
from tests.conftest import TINY
from tests.faults.ground import Ground, Tally, digest

__all__ = ["finetune_killed", "prepare_killed", "study_killed"]

_KILLS_IN_A_ROW = 3


def prepare_killed(ground: Ground, trials: int) -> Tally:
    """SIGKILL at a random moment of `prepare-data`; the same command then makes the same bytes."""

    def outcome(out: Path) -> str:
        verify_prepared(out)
        return digest(out)

    return _killed(ground, trials, ["prepare-data", str(ground.corpus), "--vocab-size", "512", "--processes", "1"], outcome, is_atomic=True)


def finetune_killed(ground: Ground, trials: int) -> Tally:
    """SIGKILL at a random moment of `finetune` with a grid; the same command then ends with the same scores and the same model."""
    table = ground.directory / "labels.csv"
    rows = [f"{ground.draw.choice(['one', 'two'])} {ground.draw.choice(['value', 'name'])} {number},{number % 2}" for number in range(60)]
    table.write_text("\n".join(["text,label", *rows, ""]), encoding="utf-8")
    line = [
        "finetune",
        str(table),
        "--model",
        str(ground.whole / "model"),
        "learning_rate=1e-3,2e-3",
        "seed=0,1",
        "epochs=2",
        "--jobs",
        "1",
    ]

    def outcome(out: Path) -> object:
        cells = json.loads((out / "results.json").read_text(encoding="utf-8"))["cells"]
        scores = {name: cell["score"] for name, cell in cells.items()}
        return scores, digest(out / "model" / "model.safetensors"), [path.name for path in (out / "cells").iterdir() if path.name[0] == "."]

    return _killed(ground, trials, line, outcome)


def study_killed(ground: Ground, trials: int) -> Tally:
    """SIGKILL at a random moment of `study`; the same command then ends with the same models."""
    spec = ground.directory / "study.yaml"
    changes = [change for change in (*TINY, "model.dropout=0.1") if not change.startswith("train.total_steps")]
    systems = {name: {"preset": f"bert-tiny-{name}", "steps": 12} for name in ("preln", "pld")}
    content = {
        "name": "s",
        "data": str(ground.data),
        "set": [*changes, "checkpoint.every_steps=3"],
        "baseline": "preln",
        "systems": systems,
    }
    spec.write_text(json.dumps({**content, "seeds": [0]}), encoding="utf-8")  # JSON is YAML

    def outcome(out: Path) -> object:
        return [digest(out / "runs" / f"{name}-seed0" / "model" / "model.safetensors") for name in systems]

    return _killed(ground, trials, ["study", str(spec)], outcome)


def _killed(ground: Ground, trials: int, line: list[str], outcome: Callable[[Path], object], *, is_atomic: bool = False) -> Tally:
    """Kill a command a few times, and let it end then; what comes of it is what comes of one that nobody killed.

    Args:
        ground: Where.
        trials: Kills.
        line: The command, without `--out`.
        outcome: Says what came of it.
        is_atomic: What it writes is whole, or not there.
    """
    tally = Tally()
    whole = ground.directory / "of-nobody-killed"
    shutil.rmtree(whole, ignore_errors=True)
    began = time.monotonic()
    process = ground.processes.pld(*line, "--out", str(whole))
    if code := process.wait():
        raise RuntimeError(f"without a fault it ended with {code}: {process.err}")
    seconds, expected = time.monotonic() - began, outcome(whole)
    while tally.trials < trials:
        with ground.fresh() as out:
            for _ in range(_KILLS_IN_A_ROW):
                process = ground.processes.pld(*line, "--out", str(out))
                time.sleep(ground.draw.uniform(0.0, 1.1 * seconds))
                process.kill(signal.SIGKILL)
                if process.wait() == 0:
                    break
                is_half = is_atomic and out.exists() and outcome(out) != expected
                tally.count("something stands under the final name" if is_half else "")
            process = ground.processes.pld(*line, "--out", str(out))
            code = process.wait()
            if code and not (is_atomic and out.exists()):
                tally.failures.append(f"the same command ended with {code}: {process.err.strip()[-300:]}")
            elif (found := outcome(out)) != expected:
                tally.failures.append(f"ended otherwise than without the fault: {found} instead of {expected}"[:300])
    return tally
