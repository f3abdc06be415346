from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from pldcli.engine.metrics import read_metrics
from pldcli.errors import PldError
from pldcli.huggingface import save as save_module
from tests.conftest import TINY

Run = Callable[..., Any]


def test_a_model_that_comes_back_different_is_not_kept(pld: Run, prepared: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(save_module, "largest_difference", lambda *_: 0.5)
    outcome = pld("pretrain", "--preset", "bert-tiny-pld", *TINY, "train.total_steps=1", "--data", prepared, "--out", tmp_path / "run")
    assert outcome.code == PldError.exit_code and "differs by 0.5 when transformers reads it back" in outcome.err
    assert not (tmp_path / "run" / "model").exists()


def test_the_books_follow_their_own_rhythms(pld: Run, prepared: Path, tmp_path: Path) -> None:
    """Logging every 4, validating every 5 and saving every 6 of 12 steps: each at its own steps, the last step always."""
    rhythm = ("train.log_every_steps=4", "eval.every_steps=5", "checkpoint.every_steps=6", "checkpoint.keep=9")
    out = tmp_path / "run"
    assert pld("pretrain", "--preset", "bert-tiny-pld", *TINY, *rhythm, "--data", prepared, "--out", out).code == 0
    found = read_metrics(out / "metrics.jsonl")
    assert [row["step"] for row in found if "train/loss" in row] == [4, 8, 12]
    assert [row["step"] for row in found if "eval/mlm_loss" in row] == [5, 10, 12]
    assert sorted(path.name for path in (out / "checkpoints").iterdir()) == ["step-00000006", "step-00000012"]
    seconds = [row["progress/train_seconds"] for row in found]
    assert seconds == sorted(seconds)
    assert all(row["progress/wall_seconds"] >= row["progress/train_seconds"] for row in found)


def test_the_phases_of_a_row_hold_the_time_since_the_last_row(pld: Run, prepared: Path, tmp_path: Path) -> None:
    """A validation between two rows looks at the run too: what it saw still counts."""
    rhythm = ("train.log_every_steps=6", "eval.every_steps=5")
    assert pld("pretrain", "--preset", "bert-tiny-pld", *TINY, *rhythm, "--data", prepared, "--out", tmp_path / "run").code == 0
    first = next(row for row in read_metrics(tmp_path / "run" / "metrics.jsonl") if "train/loss" in row)
    assert sum(value for name, value in first.items() if name.startswith("speed/") and name.endswith("_fraction")) > 0.8
