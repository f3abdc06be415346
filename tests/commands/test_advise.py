from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from pldcli import presets
from pldcli.commands import pretrain
from tests.conftest import Outcome
from tests.typed_commands import three_steps


def test_advice_on_real_text_is_a_preset_that_trains(
    pld: Callable[..., Outcome], prepared: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pldcli.bench.budget._STEPS", 5)
    place = tmp_path / "auto.yaml"
    done = pld("advise", "--budget", "2s", "--data", prepared, "--out", place, "data.seq_len=32", "model.local_attention=32")
    assert done.code == 0, done.err
    assert "validation loss to expect (unigram baseline" in done.out
    assert f"preset {place}" in done.out and f"next: pld pretrain --preset {place} --data {prepared}" in done.out
    assert "depth and width:" in done.out and "recipe:" in done.out and "timing" in done.err
    config = presets.resolve(str(place)).config
    assert config.train.total_steps >= 1
    assert place.read_text(encoding="utf-8").startswith("# Chosen by: pld")


def test_auto_trains_what_is_advised_and_resumes(
    pld: Callable[..., Outcome], prepared: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pldcli.advice.advise.calibrate", three_steps)
    line = ("pretrain", "--preset", "auto", "--data", prepared, "--out", tmp_path / "run", "data.seq_len=32", "model.local_attention=32")
    done = pld(*line, "--budget", "1s")
    assert done.code == 0, done.err
    chosen = tmp_path / "run.yaml"
    total_steps = presets.resolve(str(chosen)).config.train.total_steps
    assert f"finished {total_steps:,} steps" in done.out and f"preset {chosen}" in done.out
    stored = (tmp_path / "run" / "config.yaml").read_text(encoding="utf-8")
    again = pld(*line, "--budget", "30s")
    assert again.code == 0 and "is finished" in again.out and "timing" not in again.err
    assert (tmp_path / "run" / "config.yaml").read_text(encoding="utf-8") == stored


def test_a_preset_that_is_there_is_kept(pld: Callable[..., Outcome], tmp_path: Path) -> None:
    place = tmp_path / "mine.yaml"
    place.write_text("mine", encoding="utf-8")
    done = pld("advise", "--budget", "1h", "--data", "nowhere", "--out", place)
    assert done.code == 7 and f"{place}: is already there; add --overwrite" in done.err.replace("\n", " ")
    assert pld("advise", "--budget", "1h", "--data", "nowhere", "--out", place, "--overwrite").code == 3
    assert place.read_text(encoding="utf-8") == "mine"


def test_auto_where_one_stands(prepared: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "run").mkdir()
    monkeypatch.chdir(tmp_path / "run")
    monkeypatch.setattr("pldcli.commands.advise.write_advice", lambda out, **named: None)
    assert pretrain._advised(prepared, Path(), "1h", [], resume="auto", dry_run=False) == str(tmp_path / "run.yaml")
    assert pretrain._advised(prepared, Path("it"), "1h", [], resume="auto", dry_run=False) == "it.yaml"


def test_auto_leaves_a_file_alone_that_advice_did_not_write(pld: Callable[..., Outcome], tmp_path: Path) -> None:
    mine = tmp_path / "mine.yaml"
    mine.write_text("extends: [bert-tiny-pld]\n", encoding="utf-8")
    done = pld("pretrain", "--preset", "auto", "--budget", "1h", "--data", "nowhere", "--out", tmp_path / "mine")
    assert done.code == 7 and f"{mine}: is there, and `pld advise` did not write it" in done.err.replace("\n", " ")
    mine.write_text("# Chosen by: pld advise\n", encoding="utf-8")
    done = pld("pretrain", "--preset", "auto", "--budget", "1h", "--data", "nowhere", "--out", tmp_path / "mine")
    assert done.code == 3 and "nowhere" in done.err


@pytest.mark.parametrize(
    ("words", "code", "message"),
    [
        (("advise", "--budget", "soon"), 2, "--budget: 'soon' is not a time"),
        (("advise", "--budget", "1h", "--data", "nowhere"), 3, "nowhere: no such directory of prepared data"),
        (("advise", "--budget", "1h", "--out", "auto"), 2, "--out auto: must end in .yaml, as presets do"),
        (("advise", "--budget", "1h", "train.total_steps=9"), 2, "train.total_steps: is what --budget finds; leave one of them out"),
        (("pretrain", "--preset", "auto", "--budget", "1h", "train.total_steps=9"), 2, "train.total_steps: is what --budget finds"),
        (("pretrain", "--budget", "1h", "train.total_steps=9"), 2, "train.total_steps: is what --budget finds"),
        (("pretrain", "--preset", "auto"), 2, "--preset auto: needs a --budget of time"),
        (("pretrain", "--preset", "auto", "--budget", "1h", "--dry-run"), 2, "--preset auto: --dry-run says nothing about it"),
    ],
)
def test_refusals(
    pld: Callable[..., Outcome], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, words: tuple[str, ...], code: int, message: str
) -> None:
    monkeypatch.chdir(tmp_path)
    done = pld(*words)
    assert done.code == code
    assert message in done.err
    assert list(tmp_path.iterdir()) == []
