"""Checkpoints that are written while training goes on."""

from __future__ import annotations

import errno
import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from pldcli.runs import checkpoint
from pldcli.runs.checkpoint import list_checkpoints, verify
from pldcli.runs.metrics import read_metrics
from tests.conftest import TINY, Outcome

RUN = (*TINY, "train.log_every_steps=1", "checkpoint.every_steps=3", "checkpoint.keep=9", "eval.every_steps=12")


def line(prepared: Path, out: Path, *more: str) -> list[str]:
    return ["pretrain", "--preset", "bert-tiny-pld", *RUN, "--data", str(prepared), "--out", str(out), *more]


def slowly(monkeypatch: pytest.MonkeyPatch, out: Path, seconds: float = 0.3) -> dict[int, int]:
    """Let every checkpoint take a while; return, by its step, the last step in the metrics when it was there."""
    write, reached = checkpoint.write, {}

    def slow(directory: Path, held: checkpoint.Held, **named: Any) -> Path:
        time.sleep(seconds)
        path = write(directory, held, **named)
        reached[held.position.step] = read_metrics(out / "metrics.jsonl")[-1]["step"]
        return path

    monkeypatch.setattr(checkpoint, "write", slow)
    return reached


def test_training_goes_on_and_a_checkpoint_holds_the_step_that_it_names(
    pld: Callable[..., Outcome], prepared: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ahead, behind = tmp_path / "foreground", tmp_path / "background"
    assert pld(*line(prepared, ahead, "checkpoint.background=off")).code == 0
    with monkeypatch.context() as patch:
        reached = slowly(patch, behind)
        assert pld(*line(prepared, behind, "checkpoint.background=on")).code == 0
    assert list(reached) == [3, 6, 9, 12], "one after another, the last before the end"
    assert reached[3] > 3, "the run did not wait"
    ours, theirs = (list_checkpoints(run / "checkpoints") for run in (behind, ahead))
    assert [path.name for path in ours] == [path.name for path in theirs] and len(ours) == 4
    for one, other in zip(ours, theirs, strict=True):
        for name in ("model.safetensors", "optimizer.safetensors"):
            assert (one / name).read_bytes() == (other / name).read_bytes()
    assert {path.name for path in (behind / "checkpoints").iterdir()} == {path.name for path in ours}, "no mark stays"


def test_a_disk_that_fills_up_behind_the_run_is_told(
    pld: Callable[..., Outcome], prepared: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write = checkpoint.write_sealed

    def full(path: Path, *rest: Any, **named: Any) -> None:
        if path.name.endswith("6"):
            raise OSError(errno.ENOSPC, "No space left on device", str(path))
        write(path, *rest, **named)

    monkeypatch.setattr(checkpoint, "write_sealed", full)
    done = pld(*line(prepared, tmp_path / "run", "checkpoint.background=on"))
    assert done.code == 7 and "the disk is full" in done.err
    assert [path.name[-1] for path in list_checkpoints(tmp_path / "run" / "checkpoints")] == ["3"]
    verify(tmp_path / "run" / "checkpoints" / "step-00000003")


def test_a_run_killed_during_its_first_save_begins_anew(pld: Callable[..., Outcome], prepared: Path, tmp_path: Path) -> None:
    """Its metrics have gone on beyond the step that was being saved: without the mark its checkpoints would be taken for lost."""
    run = tmp_path / "run"
    assert pld(*line(prepared, run)).code == 0
    shutil.rmtree(run / "checkpoints")
    shutil.rmtree(run / "model")
    (run / "README.md").unlink()
    refused = pld(*line(prepared, run))
    assert refused.code == 4 and "put its checkpoints back" in refused.err
    (run / "checkpoints").mkdir()
    (run / "checkpoints" / ".saving").touch()
    assert "starts over: it was stopped before its first checkpoint" in pld("runs", tmp_path).out
    done = pld(*line(prepared, run))
    assert done.code == 0 and "the 12 steps done here left no checkpoint" in done.out
