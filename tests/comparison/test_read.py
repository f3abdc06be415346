from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from statistics import fmean
from typing import Any

import pytest

from pldcli import presets
from pldcli.comparison.read import read_runs
from pldcli.errors import CheckpointError, DataError, UsageError
from pldcli.runs.run_directory import RunDirectory
from tests.comparison.test_runs import START
from tests.conftest import tiny_config


def write_run(
    place: Path,
    *changes: str,
    losses: Sequence[float | None],
    seconds_per_step: float = 2.0,
    until: int | None = None,
    starts: Sequence[dict[str, Any]] | None = None,
    finished: bool = True,
    **start: Any,
) -> Path:
    """Write what `pld pretrain` would: a validation every 10 steps with these losses, a log row every 5 steps.

    Tokens are 256 per step, executed FLOPs 1000 per token; the training loss is the validation loss of the same stretch plus 1.
    """
    config = tiny_config("train.total_steps=40", "eval.every_steps=10", "train.log_every_steps=5", *changes)
    total = config.train.total_steps if until is None else until
    rows: list[dict[str, Any]] = []
    for step in range(5, total + 1, 5):
        tokens = step * config.train.global_batch_size * config.data.seq_len
        spent = {
            "progress/sequences": step * config.train.global_batch_size,
            "progress/tokens": tokens,
            "progress/train_seconds": step * seconds_per_step,
            "progress/wall_seconds": step * seconds_per_step + 1.0,
            "progress/executed_flops": 1000.0 * tokens,
        }
        loss = losses[min((step - 1) // 10, len(losses) - 1)]
        rate = config.optim.learning_rate * (1 - (step - 1) / config.train.total_steps)
        rows.append({"step": step, "train/loss": None if loss is None else loss + 1, "optim/learning_rate": rate, **spent})
        if step % 10 == 0 and step // 10 <= len(losses):
            rows.append({"step": step, "eval/mlm_loss": loss, "eval/mlm_accuracy": 0.1, "eval/frequency_loss": 3.25, **spent})
    place.mkdir(parents=True)
    (place / "config.yaml").write_text(presets.dump(config))
    (place / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    written = [{**START, **start}] if starts is None else list(starts)
    (place / "environment.json").write_text(json.dumps({"starts": written}))
    if finished:
        (place / "model").mkdir()
        (place / "model" / "config.json").write_text("{}")
        (place / "README.md").write_text("")
    return place


def write_results(
    place: Path,
    *,
    task: str,
    start: Path | str,
    scores: Sequence[Sequence[float | None]],
    cells: Sequence[str] = (),
    data: str = "",
    from_scratch: bool = False,
) -> None:
    """Write what `pld finetune` would: a group per setting with its scores over seeds, None for a seed that diverged."""
    place.mkdir(parents=True)
    groups: list[dict[str, Any]] = []
    for seeds in scores:
        values = [value for value in seeds if value is not None]
        groups.append({"score": {"values": values, "mean": fmean(values)} if values else None, "diverged": len(seeds) - len(values)})
    content = {"task": task, "start": str(start), "groups": groups, "cells": {name: {} for name in cells}}
    (place / "results.json").write_text(json.dumps(content))
    about = {"experiment": {"from_scratch": from_scratch}, "fingerprints": {"data": data, "model": "m"}}
    (place / "experiment.json").write_text(json.dumps(about))


def test_a_run_is_read(tmp_path: Path) -> None:
    place = write_run(tmp_path / "runs" / "a", losses=(4.0, 3.0, 2.0, 1.5), seconds_per_step=2.0)
    other = write_run(tmp_path / "runs" / "b", losses=(4.0, 3.0, 2.0, 1.0))
    run, _ = read_runs([place, other], finetuned=tmp_path / "finetuned")
    assert (run.name, run.path, run.state, run.seed, run.wall_seconds) == ("a", str(place), "finished", 0, 81.0)
    assert [(row.step, row.loss) for row in run.validation] == [(10, 4.0), (20, 3.0), (30, 2.0), (40, 1.5)]
    assert run.frequency_loss == 3.25
    assert (run.final.tokens, run.final.train_seconds, run.final.executed_flops) == (40 * 256, 80.0, 40 * 256e3)
    assert [row.step for row in run.training] == [5, 10, 15, 20, 25, 30, 35, 40]
    assert run.training[0].loss == 5.0
    assert run.learning_rate_share(20) == pytest.approx(1 - 19 / 40)
    assert (run.start["hardware"], run.unreadable_lines, run.finetuned) == ("a processor, 2 cores", 0, {})
    assert run.config == presets.load(RunDirectory(place).config)


def test_of_two_losses_that_of_masked_words_counts(tmp_path: Path) -> None:
    place = write_run(tmp_path / "a", losses=(4.0,))
    rows = [json.loads(line) for line in (place / "metrics.jsonl").read_text().splitlines()]
    rows = [row | {"train/mlm_loss": 0.25} if "train/loss" in row else row for row in rows]
    (place / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    [run] = read_runs([place], finetuned=tmp_path)
    assert {row.loss for row in run.training} == {0.25}


def test_names_tell_runs_apart(tmp_path: Path) -> None:
    places = [write_run(tmp_path / name, losses=(4.0,)) for name in ("one/a", "two/a", "two/b", "three/two/a")]
    assert [run.name for run in read_runs(places, finetuned=tmp_path)][2] == "b"
    names = [run.name for run in read_runs(places, finetuned=tmp_path)]
    assert names[0] == "one/a" and names[3] == "three/two/a" and len(set(names)) == 4


def test_a_metrics_file_that_is_cut_off(tmp_path: Path) -> None:
    place = write_run(tmp_path / "a", losses=(4.0, 3.0, 2.0, 1.0))
    text = (place / "metrics.jsonl").read_text()
    (place / "metrics.jsonl").write_text(text[:-30])
    [run] = read_runs([place], finetuned=tmp_path)
    assert (run.final.step, run.unreadable_lines, run.is_complete) == (30, 1, False)
    assert run.last_step == 40  # the training loss of the last step was written before it


def test_what_is_not_finite(tmp_path: Path) -> None:
    place = write_run(tmp_path / "a", losses=(4.0, None, 2.0))
    with (place / "metrics.jsonl").open("a") as file:
        spent = {"progress/tokens": 1, "progress/executed_flops": 1, "progress/train_seconds": 1}
        file.write(json.dumps({"step": 40, "eval/mlm_loss": float("nan"), **spent}) + "\n")
    [run] = read_runs([place], finetuned=tmp_path)
    assert [row.loss for row in run.validation] == [4.0, None, 2.0, None]
    assert run.training[2].loss is None


@pytest.mark.parametrize("name", ["progress/tokens", "progress/train_seconds", "progress/executed_flops", "eval/mlm_loss"])
@pytest.mark.parametrize("value", ["many", "missing"])
def test_a_row_without_a_number(name: str, value: str, tmp_path: Path) -> None:
    row = {"step": 10, "eval/mlm_loss": 1.0, "progress/tokens": 5, "progress/executed_flops": 1, "progress/train_seconds": 1, name: value}
    place = write_run(tmp_path / "a", losses=(4.0,))
    if value == "missing" and name != "eval/mlm_loss":
        del row[name]
    (place / "metrics.jsonl").write_text(json.dumps(row) + "\n")
    with pytest.raises(DataError, match=f"metrics.jsonl: step 10 has no number under {name}; leave this run out"):
        read_runs([place], finetuned=tmp_path)


def test_a_run_without_validations(tmp_path: Path) -> None:
    place = write_run(tmp_path / "a", losses=(4.0,), until=5, finished=False)
    with pytest.raises(
        DataError, match=r"a: has no validation yet \(step 5 of 40, validated every 10\); train it further, or leave it out"
    ):
        read_runs([place], finetuned=tmp_path)
    (place / "metrics.jsonl").unlink()
    with pytest.raises(DataError, match="has no validation yet"):
        read_runs([place], finetuned=tmp_path)


def test_what_is_no_run(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="no such run; `pld runs` lists the runs here"):
        read_runs([tmp_path / "nowhere"], finetuned=tmp_path)
    with pytest.raises(CheckpointError, match=r"is not a run directory: it has no config\.yaml"):
        read_runs([tmp_path], finetuned=tmp_path)
    (tmp_path / "config.yaml").write_text("model: [")
    with pytest.raises(UsageError, match="cannot be read as YAML"):
        read_runs([tmp_path], finetuned=tmp_path)


def test_a_run_named_twice(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    place = write_run(tmp_path / "a", losses=(4.0,))
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UsageError, match="a: the same run is named twice"):
        read_runs([place, Path("a")], finetuned=tmp_path)


def test_surroundings_that_were_not_written_down(tmp_path: Path) -> None:
    place = write_run(tmp_path / "a", losses=(4.0,))
    (place / "environment.json").unlink()
    [run] = read_runs([place], finetuned=tmp_path)
    assert (run.starts, dict(run.start)) == ((), {})


def test_fine_tuning_of_the_run_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    write_run(Path("runs/a"), losses=(4.0,))
    root = Path("finetuned")
    write_results(root / "a" / "rte", task="glue/rte", start="runs/a/model", scores=[[0.5, 0.6], [0.7, 0.6], []])
    write_results(root / "a" / "cola", task="glue/cola", start="elsewhere/that/is/gone", scores=[[0.25]])
    write_results(root / "a" / "diverged", task="diverged", start="runs/a/model", scores=[[None]])
    write_results(root / "a" / "sst2", task="glue/sst2", start=root, scores=[[0.9]])  # began with another model that is still there
    write_results(root / "a-from-scratch" / "rte", task="glue/rte", start="random", scores=[[0.1]])
    [run] = read_runs([Path("runs/a")], finetuned=root)
    assert run.finetuned == {"glue/cola": (0.25,), "glue/rte": (0.7, 0.6), "diverged": ()}
    assert read_runs([Path("runs/a")], finetuned=Path("nowhere"))[0].finetuned == {}


@pytest.mark.parametrize(
    "content", ["{", "[]", '{"task": "a", "start": "b"}', '{"task": "a", "start": "b", "groups": [{"score": {"values": ["x"]}}]}']
)
def test_damaged_fine_tuning_results(content: str, tmp_path: Path) -> None:
    place = write_run(tmp_path / "a", losses=(4.0,))
    (tmp_path / "finetuned" / "a" / "rte").mkdir(parents=True)
    (tmp_path / "finetuned" / "a" / "rte" / "results.json").write_text(content)
    with pytest.raises(DataError, match=r"rte/results\.json: cannot be read as fine-tuning results"):
        read_runs([place], finetuned=tmp_path / "finetuned")


def test_reading_needs_no_torch(tmp_path: Path) -> None:
    places = [write_run(tmp_path / name, losses=(4.0,)) for name in ("a", "b")]
    program = f"""
import sys
from pathlib import Path
from pldcli.comparison.comparison import compare_runs
from pldcli.comparison.read import read_runs
compare_runs(read_runs([Path(place) for place in {[str(place) for place in places]!r}], finetuned=Path("nowhere")))
assert "torch" not in sys.modules
"""
    subprocess.run([sys.executable, "-c", program], check=True)
