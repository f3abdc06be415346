import json

from pldcli.runs.run_directory import RunDirectory
from tests.runs.test_run_directory import make


def test_no_runs(pld, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    outcome = pld("runs")
    assert outcome.code == 0 and outcome.out.startswith("no runs in runs; start one with `pld pretrain")
    assert json.loads(pld("runs", "--json").out) == []
    assert pld("runs", tmp_path).code == 0


def test_every_state(pld, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    row = {"step": 1234567, "train/loss": 3.0, "eval/mlm_loss": 2.5, "progress/train_seconds": 425.0}
    make(tmp_path / "runs" / "a-stopped", rows=[row], checkpoints=[1])
    make(tmp_path / "runs" / "b-new")
    make(tmp_path / "runs" / "c-done", rows=[{"step": 12}], model=True, card=True)
    (tmp_path / "runs" / "d-broken").mkdir()
    (tmp_path / "runs" / "d-broken" / "config.yaml").write_text("model: {hidden_size: many}")
    make(tmp_path / "runs" / "e-busy", rows=[row])
    with RunDirectory(tmp_path / "runs" / "e-busy").lock():
        text, listed = pld("runs").out, json.loads(pld("runs", "--json").out)
    assert {run["path"]: run["state"] for run in listed} == {
        "runs/a-stopped": "stopped", "runs/b-new": "not started", "runs/c-done": "finished", "runs/d-broken": "unreadable",
        "runs/e-busy": "running",
    }  # fmt: skip
    expected = {"step": 1234567, "total_steps": 12, "train_loss": 3.0, "eval_loss": 2.5, "train_seconds": 425.0}
    assert expected.items() <= listed[0].items() and listed[0].keys() == {"path", "state", "next_action", *expected}
    lines = [" ".join(line.split()) for line in text.splitlines()]
    assert "a-stopped stopped 1,234,567 12 3.0000 2.5000 7 min 05 s" in lines
    assert "b-new not started 0 12 - - 0 s" in lines
    assert "c-done: pld evaluate runs/c-done" in lines
    assert "e-busy: wait, or follow it in metrics.jsonl" in lines
    assert any(line.startswith("a-stopped: the same `pld pretrain` line again (resumes") for line in lines)
    assert any(line.startswith("d-broken: ") and "hidden_size" in line for line in lines)


def test_a_narrow_screen_cuts_nothing(pld, tmp_path, monkeypatch):
    make(tmp_path / "a-run-with-a-rather-long-name", rows=[{"step": 1, "train/loss": 3.0, "progress/train_seconds": 425.0}])
    monkeypatch.setenv("COLUMNS", "80")
    outcome = pld("runs", tmp_path)
    for part in ("stopped", "3.0000", "7 min 05 s"):
        assert part in outcome.out
    assert "…" not in outcome.out
