from __future__ import annotations

import io
from pathlib import Path

import pytest
from rich.console import Console

from pldcli.engine import demo as engine
from pldcli.engine.demo import demo
from pldcli.engine.metrics import read_metrics
from pldcli.errors import OutputError


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    """A demonstration of seconds."""
    changes = engine._changes
    smaller = [
        "model.hidden_size=32",
        "model.intermediate_size=64",
        "data.seq_len=32",
        "runtime.precision=fp32",
        "train.global_batch_size=8",
    ]
    monkeypatch.setattr(engine, "_changes", lambda steps: [*changes(steps), *smaller])
    monkeypatch.setattr(engine, "_CORPUS_BYTES", 300_000)


def test_both_runs_see_equal_tokens_and_only_one_drops(small: None, tmp_path: Path) -> None:
    shown = io.StringIO()
    dense, dropped = demo(tmp_path / "demo", steps=30, console=Console(file=shown, width=200))
    assert dense.tokens == dropped.tokens == 30 * 8 * 32
    assert dense.kept_fraction == pytest.approx(1.0)
    assert dense.predicted_saving == 0.0
    assert 0.6 < dropped.kept_fraction < 0.85
    assert dropped.executed_flops < 0.9 * dense.executed_flops
    assert dense.mlm_loss != dropped.mlm_loss
    for system in ("preln", "pld"):
        rows = read_metrics(tmp_path / "demo" / "runs" / system / "metrics.jsonl")
        assert rows[-1]["step"] == 30
        assert (tmp_path / "demo" / "runs" / system / "model" / "model.safetensors").is_file()
    for name in ("loss_by_tokens.png", "loss_by_train_seconds.png"):
        assert (tmp_path / "demo" / name).read_bytes().startswith(b"\x89PNG")
    assert "pld pretrain --preset bert-tiny-pld" in shown.getvalue()


def test_does_not_write_over_anything(tmp_path: Path) -> None:
    with pytest.raises(OutputError, match="already there"):
        demo(tmp_path)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(("seconds_per_step", "steps"), [(10.0, 200), (0.25, 260), (0.001, 4000)])
def test_chooses_steps_by_the_machine(seconds_per_step: float, steps: int, monkeypatch: pytest.MonkeyPatch, prepared: Path) -> None:
    class Measured:
        class estimate:  # noqa: N801
            seconds = 100 * seconds_per_step

    monkeypatch.setattr(engine, "dry_run", lambda config, data: Measured)
    assert engine._affordable_steps(prepared) == steps
