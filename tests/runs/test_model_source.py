"""Which data a run's is, whatever directory the reader stands in, and whatever lies there now."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from pldcli.errors import CheckpointError, DataError
from pldcli.preparation.prepare import prepare
from pldcli.runs.model_source import open_model, recorded_data
from tests.conftest import TINY, Outcome

Pld = Callable[..., Outcome]


@pytest.fixture
def project(pld: Pld, prepared: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A project with data/ and runs/a, trained with relative paths."""
    place = tmp_path / "project"
    shutil.copytree(prepared, place / "data")
    monkeypatch.chdir(place)
    line = ["pretrain", "--preset", "bert-tiny-pld", *TINY, "train.total_steps=1", "--data", "data", "--out", "runs/a"]
    assert pld(*line).code == 0
    return place


def other_data(place: Path, tokenizer: Path | None = None) -> Path:
    """Prepare other text."""
    text = place.with_name("other.txt")
    text.parent.mkdir(exist_ok=True)
    text.write_text("\n".join(f"a line of text with number {n}" for n in range(3000)))
    return prepare([text], place, document_per="line", vocab_size=100, tokenizer=tokenizer, processes=1, quiet=True).path


def test_it_is_found_from_any_directory(pld: Pld, project: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Even where another `data` lies in the reader's own."""
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    other_data(tmp_path / "elsewhere" / "data")
    for target in ("", "model", "checkpoints/step-00000001"):
        assert recorded_data(project / "runs" / "a" / target) == project / "data"
    outcome = pld("evaluate", project / "runs" / "a", "--json")
    assert outcome.code == 0, outcome.err


def test_a_project_that_was_moved_as_a_whole(project: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    project.rename(tmp_path / "moved")
    run = tmp_path / "moved" / "runs" / "a"
    assert recorded_data(run) == recorded_data(Path("moved/runs/a/model")) == tmp_path / "moved" / "data"
    assert open_model(run / "checkpoints" / "step-00000001").settings.num_hidden_layers == 3
    other_data(tmp_path / "project" / "data")
    assert recorded_data(run) == tmp_path / "moved" / "data", "what lies at the old place now is not it"
    shutil.rmtree(tmp_path / "moved" / "data")
    shutil.rmtree(tmp_path / "project")
    assert recorded_data(run) == tmp_path / "project" / "data", "whoever opens it says that it is not there"


@pytest.mark.parametrize("is_old_record", [False, True])
def test_other_data_in_its_place_is_refused(pld: Pld, project: Path, is_old_record: bool) -> None:
    """An older record says `data` as it was typed; its fingerprint was there already."""
    record = project / "runs" / "a" / "environment.json"
    if is_old_record:
        [start] = json.loads(record.read_text())["starts"]
        del start["data_from_run"]
        record.write_text(json.dumps({"starts": [start | {"data": "data"}]}))
        assert recorded_data(Path("runs/a")) == Path("data")
    (project / "data").rename(project / "kept")
    other_data(project / "data", project / "kept" / "tokenizer.json")
    for command in ("evaluate", "analyze"):
        outcome = pld(command, "runs/a", *(["--out", "analysis"] if command == "analyze" else []))
        assert outcome.code == 3 and outcome.err.count("\n") == 1, outcome.err
        assert "data: is not the data that runs/a was trained on; name the right one with --data" in outcome.err
    assert open_model(Path("runs/a/checkpoints/step-00000001")).tokenizer.vocab_size == 512, "the tokenizer is the same"
    assert pld("evaluate", "runs/a", "--data", "data").code == 0, "named, other data may be"
    shutil.rmtree("data")
    other_data(project / "data")
    with pytest.raises(DataError, match="data: has not the tokenizer of the data that"):
        open_model(Path("runs/a/checkpoints/step-00000001"))


def test_a_damaged_checkpoint_of_a_run_without_a_model_is_named(project: Path, pld: Pld) -> None:
    shutil.rmtree("runs/a/model")
    shutil.copytree("runs/a/checkpoints/step-00000001", "runs/a/checkpoints/step-00000002")
    weights = Path("runs/a/checkpoints/step-00000002/model.safetensors")
    weights.write_bytes(weights.read_bytes()[:-1])
    named = f"{weights}: is damaged: it differs from its checksum; skipped"
    assert open_model(Path("runs/a")).notes == (named,)
    shape = [change for change in TINY if not change.startswith("model.")]
    for line in (
        ["evaluate", "runs/a"],
        ["export", "runs/a", "--out", "exported"],
        [
            "pretrain",
            "--preset",
            "bert-tiny-pld",
            *shape,
            "train.total_steps=1",
            "--init-from",
            "runs/a",
            "--data",
            "data",
            "--out",
            "runs/b",
        ],
    ):
        done = pld(*line)
        assert done.code == 0 and done.err.count(f"note: {named}\n") == 1, (line, done.err)
    Path("runs/a/checkpoints/step-00000001/state.json").unlink()
    done = pld("evaluate", "runs/a")
    assert done.code == 4 and named in done.err and "runs/a/checkpoints/step-00000001/state.json: " in done.err


def test_a_damaged_tokenizer_of_a_checkpoints_data_is_noticed(project: Path) -> None:
    """Its vocabulary alone would still be the same."""
    text = Path("data/tokenizer.json").read_text(encoding="utf-8")
    changed = text.replace('"ignore_merges":false', '"ignore_merges":true')
    assert changed != text
    Path("data/tokenizer.json").write_text(changed, encoding="utf-8")
    with pytest.raises(CheckpointError, match=r"tokenizer.json: is not the tokenizer that the data was made with\); name the data"):
        open_model(Path("runs/a/checkpoints/step-00000001"))
