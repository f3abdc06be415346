from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from pldcli.huggingface import read_back
from pldcli.huggingface.load import load_pretrained
from pldcli.pretraining.recorder import find_straggler, record_start
from pldcli.runs.metrics import read_metrics
from pldcli.runs.run_directory import read_starts
from tests.conftest import TINY, MadeUpData, tiny_trainer

Run = Callable[..., Any]


@pytest.mark.parametrize(
    ("found", "said"),
    [
        (0.5, "the exported model differs by 0.5 when transformers reads it back"),
        (float("nan"), "the exported model differs by nan when transformers reads it back"),
        (ImportError("no\nbackend"), "transformers cannot read it back: ImportError: no backend"),
        (AttributeError("BertForMaskedLM"), "transformers cannot read it back: AttributeError: BertForMaskedLM"),
        (RuntimeError("size mismatch"), "transformers cannot read it back: RuntimeError: size mismatch"),
        (OSError(2, "No such file", "weights"), "transformers cannot read it back: FileNotFoundError: [Errno 2] No such file: 'weights'"),
        (SystemExit("needs another Python"), "transformers cannot read it back: SystemExit: needs another Python"),
    ],
)
def test_a_model_is_kept_whatever_transformers_makes_of_it(
    pld: Run, prepared: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, found: float | BaseException, said: str
) -> None:
    def check(*_: object) -> float:
        assert (tmp_path / "run" / "model" / "model.safetensors").is_file(), "it has to be there before the check"
        if isinstance(found, BaseException):
            raise found
        return found

    monkeypatch.setattr(read_back, "largest_difference", check)
    outcome = pld("pretrain", "--preset", "bert-tiny-pld", *TINY, "train.total_steps=1", "--data", prepared, "--out", tmp_path / "run")
    model = tmp_path / "run" / "model"
    assert outcome.code == 0 and outcome.err == f"warning: {model}: {said}\n"
    assert f"model {model} (the check with transformers failed)\n" in outcome.out
    assert load_pretrained(model).settings.num_hidden_layers == 3 and (tmp_path / "run" / "README.md").is_file()


@pytest.mark.parametrize(
    ("seconds", "found", "times"),
    [
        ([4.0], None, 1.0),
        ([4.0, 5.0], None, 1.25),
        ([4.0, 8.0], 1, 2.0),
        ([9.0, 3.0, 3.1, 2.9], 0, 3.0),
        ([3.0, 3.0, 3.0, 4.4], None, 4.4 / 3),
        ([0.0, 1e-4], None, 0.1),
    ],
)
def test_the_process_that_keeps_the_others_waiting(seconds: list[float], found: int | None, times: float) -> None:
    assert find_straggler(seconds) == (found, pytest.approx(times))


def test_metrics_validations_and_checkpoints_follow_their_own_rhythms(pld: Run, prepared: Path, tmp_path: Path) -> None:
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


def test_every_start_is_recorded(tmp_path: Path) -> None:
    path = tmp_path / "environment.json"
    for command in ("first", "second"):
        record_start(path, command, tiny_trainer("train.micro_batch_size=2"), MadeUpData())
    starts = read_starts(path)
    assert [start["command"] for start in starts] == ["first", "second"]
    assert {"torch", "numpy", "tokenizers"} <= starts[0]["packages"].keys()
    assert (starts[0]["micro_batch_size"], starts[0]["micro_steps_per_group"], starts[0]["data_fingerprint"]) == (2, 4, "data")


def test_a_start_says_what_a_token_of_its_rows_attends_to(tmp_path: Path) -> None:
    trainer = tiny_trainer("data.packing=documents")
    record_start(tmp_path / "environment.json", "command", trainer, MadeUpData())
    [start] = read_starts(tmp_path / "environment.json")
    assert start["attended_tokens"] == trainer.batches.samples[32].attended_tokens < 32


def test_the_data_is_recorded_for_readers_in_any_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "here" / "runs" / "a").mkdir(parents=True)
    monkeypatch.chdir(tmp_path / "here")
    record_start(Path("runs/a/environment.json"), "now", tiny_trainer(), MadeUpData())
    [start] = read_starts(tmp_path / "here" / "runs" / "a" / "environment.json")
    assert (start["data"], start["data_from_run"]) == (str(tmp_path / "here" / "made-up"), "../../made-up")


def test_an_unreadable_record_starts_anew(tmp_path: Path) -> None:
    path = tmp_path / "environment.json"
    for content in (b"{", b"[]", b'{"starts": 3}', b"\xff"):
        path.write_bytes(content)
        assert read_starts(path) == []
    assert read_starts(tmp_path / "none.json") == []
    record_start(path, "now", tiny_trainer(), MadeUpData())
    assert len(json.loads(path.read_text())["starts"]) == 1
