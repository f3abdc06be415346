"""Divergence: the run goes back to its last checkpoint and passes over what it had read since."""

from __future__ import annotations

import math
import shutil
from collections.abc import Callable, Container
from pathlib import Path
from typing import Any

import pytest
import torch

from pldcli.data.step_batches import StepBatches
from pldcli.engine.trainer import Trainer
from pldcli.errors import DivergedError, PldError
from pldcli.pretraining.recorder import RunRecorder
from pldcli.runs.checkpoint import list_checkpoints, read
from pldcli.runs.metrics import read_metrics
from pldcli.system.signals import StopRequest
from tests.conftest import TINY, Outcome

RUN = (
    *TINY,
    "train.log_every_steps=1",
    "checkpoint.every_steps=4",
    "checkpoint.keep=9",
    "train.micro_batch_size=8",
    "pld.draws_per_step=1",
)


def line(prepared: Path, out: Path, *more: str) -> list[str]:
    return ["pretrain", "--preset", "bert-tiny-pld", *RUN, "--data", str(prepared), "--out", str(out), *more]


def poisoned(monkeypatch: pytest.MonkeyPatch, sequences: Container[int]) -> list[int]:
    """Let some sequences of the run's order give a loss that is not a number; return the first sequence of each batch that was built."""
    batch, forward_backward = StepBatches.batch, Trainer.forward_backward
    bad: list[torch.Tensor] = []
    first: list[int] = []

    def build(self: StepBatches, step: int, start: int, size: int) -> Any:
        built = batch(self, step, start, size)
        first.append(start)
        if start in sequences:
            bad.append(built.input_ids)
        return built

    def spoil(self: Any, host_batch: Any, *rest: Any) -> torch.Tensor:
        sums = forward_backward(self, host_batch, *rest)
        return sums * (math.nan if any(torch.equal(host_batch.input_ids, one) for one in bad) else 1.0)

    monkeypatch.setattr(StepBatches, "batch", build)
    monkeypatch.setattr(Trainer, "forward_backward", spoil)
    return first


def test_what_was_read_since_the_checkpoint_is_passed_over(
    pld: Callable[..., Outcome], prepared: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Sequences 48 to 55, of step 6 of 8 each: back to step 4, which then reads sequence 56 and following."""
    out = tmp_path / "run"
    with monkeypatch.context() as patch:
        first = poisoned(patch, range(48, 56))
        done = pld(*line(prepared, out, "train.on_divergence=rollback"))
    assert done.code == 0, done.err
    assert "step 6 (sequences 48 to 55 of the run): training diverged" in done.out
    assert "; back to step 4, passing over 24 sequences" in done.out
    assert set(range(0, 48, 8)) <= set(first) and {56, 64, 112} <= set(first)
    assert [row["step"] for row in read_metrics(out / "metrics.jsonl") if "train/loss" in row] == list(range(1, 13)), "each step once"
    seconds = [row["progress/train_seconds"] for row in read_metrics(out / "metrics.jsonl")]
    assert seconds == sorted(seconds), "the time that was lost counts"
    last = read(list_checkpoints(out / "checkpoints")[-1]).position
    assert (last.step, last.shifted_sequences) == (12, 24)


def test_a_resumed_run_still_passes_over_them(
    pld: Callable[..., Outcome], prepared: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "run"
    with monkeypatch.context() as patch:
        poisoned(patch, range(48, 56))
        assert pld(*line(prepared, out, "train.on_divergence=rollback")).code == 0
    whole = (out / "model" / "model.safetensors").read_bytes()
    for name in ("step-00000012", "../model", "../README.md"):
        place = out / "checkpoints" / name
        shutil.rmtree(place) if place.is_dir() else place.unlink()
    assert pld(*line(prepared, out, "train.on_divergence=stop")).code == 0
    assert (out / "model" / "model.safetensors").read_bytes() == whole


def test_a_run_that_is_restarted_after_a_rollback_passes_over_them(
    pld: Callable[..., Outcome], prepared: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The first run ends at once after it went back, before its next checkpoint."""
    with monkeypatch.context() as patch:
        poisoned(patch, [48, 72])
        first = pld(*line(prepared, tmp_path / "run", "train.on_divergence=rollback", "checkpoint.keep=1"))
    assert first.code == 0
    whole = (tmp_path / "run" / "model" / "model.safetensors").read_bytes()
    train, calls = RunRecorder.train, []

    def killed(self: RunRecorder, stop: StopRequest) -> None:
        if calls:
            raise PldError("killed")
        calls.append(None)
        train(self, stop)

    with monkeypatch.context() as patch:
        poisoned(patch, [48, 72])
        patch.setattr(RunRecorder, "train", killed)
        assert pld(*line(prepared, tmp_path / "killed", "--on-divergence", "rollback")).code == 1
        saved = read(list_checkpoints(tmp_path / "killed" / "checkpoints")[-1]).position
        assert (saved.step, saved.rollbacks, saved.shifted_sequences) == (4, 1, 24)
        patch.setattr(RunRecorder, "train", train)
        assert pld(*line(prepared, tmp_path / "killed", "--on-divergence", "rollback")).code == 0
    assert (tmp_path / "killed" / "model" / "model.safetensors").read_bytes() == whole
    assert read(list_checkpoints(tmp_path / "killed" / "checkpoints")[-1]).position.rollbacks == 2


def test_a_second_divergence_names_what_was_read(
    pld: Callable[..., Outcome], prepared: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """After 24 sequences are passed over, step 6 reads 72 to 79."""
    with monkeypatch.context() as patch:
        poisoned(patch, [48, 72])
        done = pld(*line(prepared, tmp_path / "run", "train.on_divergence=rollback"))
    assert done.code == 0
    named = [text.partition("):")[0] for text in done.out.splitlines() if "training diverged" in text]
    assert named == [f"warning: step 6 (sequences {first} to {first + 7} of the run" for first in (48, 72)]


def test_steps_in_a_row_are_counted_anew(
    pld: Callable[..., Outcome], prepared: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Steps 2 to 4 are three in a row; back at step 4, one more is the first of another row."""
    with monkeypatch.context() as patch:
        poisoned(patch, range(16, 48))
        changes = ("train.total_steps=40", "train.max_skipped_steps=3", "train.on_divergence=rollback")
        done = pld(*line(prepared, tmp_path / "run", *changes))
    assert done.code == 0 and done.out.count("training diverged") == 1
    assert "steps 2 to 4 (sequences 16 to 39 of the run)" in done.out


def test_a_damaged_checkpoint_is_named_and_passed_over(
    pld: Callable[..., Outcome], prepared: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    weights, roll_back = tmp_path / "run" / "checkpoints" / "step-00000008" / "model.safetensors", RunRecorder.roll_back

    def damaged(self: RunRecorder, error: DivergedError) -> None:
        weights.write_bytes(weights.read_bytes()[:-1])
        roll_back(self, error)

    with monkeypatch.context() as patch:
        patch.setattr(RunRecorder, "roll_back", damaged)
        poisoned(patch, range(80, 88))
        done = pld(*line(prepared, tmp_path / "run", "train.on_divergence=rollback"))
    assert done.code == 0, done.err
    assert f"warning: {weights}: is damaged: it differs from its checksum; skipped\n" in done.out
    assert "; back to step 4, passing over 56 sequences" in done.out


def test_three_times_at_most_and_not_without_a_checkpoint(
    pld: Callable[..., Outcome], prepared: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        poisoned(patch, range(48, 10**6))
        done = pld(*line(prepared, tmp_path / "run", "train.on_divergence=rollback"))
        again = pld(*line(prepared, tmp_path / "run", "--on-divergence", "rollback"))
    assert done.code == 6 and done.out.count("; back to step 4") == 3
    assert again.code == 6 and "resuming after step 4" in again.out and "back to step" not in again.out, "restarts count"
    with monkeypatch.context() as patch:
        poisoned(patch, range(8, 16))
        done = pld(*line(prepared, tmp_path / "early", "train.on_divergence=rollback"))
    assert done.code == 6 and "back to step" not in done.out and "sequences 8 to 15" in done.err
