from __future__ import annotations

import json
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from pldcli.system.error_file import Ending, count_lost, final_ending, read_endings, write_ending
from tests.conftest import ROOT, TINY

TORCHRUN = (sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2", "--standalone", "--max-restarts", "1", "-m", "pldcli")


def told(place: Path, **values: Any) -> Path:
    place.parent.mkdir(parents=True, exist_ok=True)
    place.write_text(json.dumps(values))
    return place


def test_the_first_word_stays(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("TORCHELASTIC_ERROR_FILE", str(tmp_path / "0" / "error.json"))
    write_ending("no such directory is no failure", exit_code=7)
    (tmp_path / "0").mkdir()
    write_ending("first", exit_code=3)
    write_ending("second", exit_code=4)
    assert read_endings(tmp_path) == [Ending("first", 3)] and len(list((tmp_path / "0").iterdir())) == 1


def test_without_an_agent_nothing_is_written(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("TORCHELASTIC_ERROR_FILE", "")
    write_ending("why", exit_code=3)
    monkeypatch.delenv("TORCHELASTIC_ERROR_FILE")
    write_ending("why", exit_code=3)
    assert not list(tmp_path.iterdir()) and final_ending() is None


def test_what_had_begun_and_told_nothing_is_lost(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, prepared: Path, pld: Any) -> None:
    """Training and evaluation begin once they have read what they were told."""
    run, line = tmp_path / "run", ("pretrain", "--preset", "bert-tiny-pld", *TINY, "train.total_steps=1", "--data", prepared)
    told = (tmp_path / "0" / "error.json", tmp_path / "1" / "error.json")
    for file, words, code in (
        (told[0], (*line, "--out", run, "model.vocab_size=100"), 2),
        (told[0], (*line, "--out", run), 0),
        (told[1], ("evaluate", run, "--top", "3"), 2),
        (told[1], ("evaluate", run), 0),
    ):
        file.parent.mkdir(exist_ok=True)
        monkeypatch.setenv("TORCHELASTIC_ERROR_FILE", str(file))
        assert pld(*words).code == code
        assert file.with_name("begun").exists() == (code == 0)
        file.unlink(missing_ok=True)
    assert count_lost(tmp_path) == 2
    write_ending("stopped", exit_code=75)
    assert count_lost(tmp_path) == 1


@pytest.mark.parametrize("code", [1, 2, 3, 4, 5, 6, 7, 75, 130])
def test_what_no_restart_can_mend_ends_the_next_attempt(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, code: int) -> None:
    told(tmp_path / "attempt_0" / "0" / "error.json", message="lost", lost={"hung": False})
    told(tmp_path / "attempt_0" / "1" / "error.json", message="why", exit_code=code)
    monkeypatch.setenv("TORCHELASTIC_ERROR_FILE", str(tmp_path / "attempt_1" / "0" / "error.json"))
    endings = []
    for attempt in ("0", "1", "2"):
        monkeypatch.setenv("TORCHELASTIC_RESTART_COUNT", attempt)
        endings.append(final_ending())
    assert endings == [None, None if code in (1, 5) else Ending("why", code), None]


def test_torchrun_does_not_undo_a_stop(prepared: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    line = ["pretrain", "--preset", "bert-tiny-pld", *TINY, "--data", str(prepared), "--out", str(out), "--stop-after", "0.001s"]
    done = subprocess.run([*TORCHRUN, *line], capture_output=True, text=True, cwd=ROOT, check=False)
    assert done.returncode == 1
    assert done.stderr.count(f"error: {out}: time is up, nothing to save yet") > 1, "the next attempt says so, too"
    [start] = json.loads((out / "environment.json").read_text())["starts"]
    assert start["command"] == shlex.join(["python", *TORCHRUN[1:], *line]), "torchrun's options too"
