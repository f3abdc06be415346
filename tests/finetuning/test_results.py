from __future__ import annotations

import csv
import io
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from pldcli.finetuning import results
from pldcli.finetuning.card import task_card
from pldcli.finetuning.config import FinetuneConfig
from pldcli.finetuning.results import as_table, best_cell, flat_scores, group_cells, write_results
from pldcli.tasks.registry import find_task

MRPC, MNLI = find_task("glue/mrpc"), find_task("glue/mnli")


def cell(score: float | None, *, seed: int = 0, rate: float = 1e-5, seconds: float = 30.0, micro: Any = "auto") -> dict[str, Any]:
    """A cell of MRPC whose F1 is a tenth above its accuracy."""
    scores = {} if score is None else {"validation": {"f1": score + 0.05, "accuracy": score - 0.05}}
    return {
        "task": "glue/mrpc",
        "settings": {"learning_rate": rate, "epochs": 3.0, "micro_batch_size": micro, "seed": seed},
        "score": score,
        "scores": scores,
        "best_step": None if score is None else 7,
        "total_steps": 10,
        "train_seconds": seconds,
        "tokens_per_second": 1234.5,
        "error": None if score is not None else "training diverged: no finite loss",
        "history": [{"step": 7}],
    }


GRID = {
    "a": cell(0.7),
    "b": cell(0.8, seed=1, seconds=60),
    "c": cell(0.6, rate=3e-5),
    "d": cell(None, seed=1, rate=3e-5, seconds=0.0),
    "e": cell(None, rate=5e-5, seconds=0.0),
}


def test_groups_are_cells_that_differ_in_their_seed() -> None:
    first, second, third = group_cells(list(GRID.values()))
    assert [group.label for group in (first, second, third)] == ["learning_rate=1e-05", "learning_rate=3e-05", "learning_rate=5e-05"]
    assert (first.settings, first.seeds, first.diverged, first.train_seconds) == ({"learning_rate": 1e-5}, [0, 1], 0, 45.0)
    assert first.score is not None and second.score is not None
    assert (first.score.mean, first.score.std, first.score.median) == (pytest.approx(0.75), pytest.approx(0.0707107), pytest.approx(0.75))
    assert (first.score.minimum, first.score.maximum, first.score.values) == (0.7, 0.8, (0.7, 0.8))
    assert first.metrics["f1"].mean == pytest.approx(0.8) and first.metrics["accuracy"].mean == pytest.approx(0.7)
    assert (second.seeds, second.diverged, second.score.values) == ([0, 1], 1, (0.6,)), "means are over those that did not diverge"
    assert (third.score, third.metrics, third.diverged) == (None, {}, 1)
    assert (second.train_seconds, third.train_seconds) == (30.0, None), "and so are times: nobody knows what a run that diverged took"


def test_groups_keep_the_order_of_the_cells() -> None:
    mixed = [GRID[name] for name in "cbade"]
    assert [(group.label, group.seeds) for group in group_cells(mixed)] == [
        ("learning_rate=3e-05", [0, 1]), ("learning_rate=1e-05", [1, 0]), ("learning_rate=5e-05", [0]),
    ]  # fmt: skip
    assert group_cells([]) == []


def test_the_size_of_a_forward_pass_makes_no_group() -> None:
    [group] = group_cells([cell(0.5), cell(0.6, seed=1, micro=4)])
    assert (group.label, group.settings, group.seeds) == ("", {}, [0, 1])


def test_the_best_cell() -> None:
    assert best_cell(GRID) == "b"
    assert best_cell({"x": cell(0.5), "y": cell(0.5)}) == "x", "the first of equals"
    assert best_cell({"x": cell(-0.5), "y": cell(None), "z": cell(-0.2)}) == "z"
    assert best_cell({"x": cell(None)}) is None
    assert best_cell({}) is None
    errors = {name: cell(0.0) | {"scores": {"validation": {"pearson": 0.0, "rmse": rmse}}} for name, rmse in (("x", 2.0), ("y", 1.0))}
    assert best_cell(errors) == "y", "of equal scores the lowest error"


def test_metrics_of_a_second_split_have_its_name() -> None:
    scores = {"validation_matched": {"accuracy": 0.5}, "validation_mismatched": {"accuracy": 0.25}}
    assert flat_scores({"scores": scores}) == {"accuracy": 0.5, "accuracy_mismatched": 0.25}
    assert flat_scores({"scores": {"validation": {"f1": 0.5, "accuracy": 0.25}}}) == {"f1": 0.5, "accuracy": 0.25}


def test_the_table_of_a_grid() -> None:
    headings, rows = as_table(group_cells(list(GRID.values())))
    assert headings == ["learning_rate", "seeds", "score", "std", "median", "min", "max", "f1", "accuracy", "time"]
    assert rows[0][:9] == ["1e-05", "2", "75.00", "7.07", "75.00", "70.00", "80.00", "80.00 ± 7.07", "70.00 ± 7.07"]
    assert rows[1][:9] == ["3e-05", "1 of 2", "60.00", "0.00", "60.00", "60.00", "60.00", "65.00 ± 0.00", "55.00 ± 0.00"]
    assert rows[2][:3] == ["5e-05", "0 of 1", "diverged"] and rows[2][3:] == [*[""] * 6, "-"]
    assert {len(row) for row in rows} == {len(headings)} and all(row[-1] for row in rows)


def test_the_table_of_one_run_and_of_one_metric() -> None:
    headings, [row] = as_table(group_cells([cell(0.7)]))
    assert (headings, row[:-1]) == (["seeds", "score", "f1", "accuracy", "time"], ["1", "70.00", "75.00", "65.00"])
    one = cell(0.7) | {"scores": {"validation": {"matthews": 0.7}}}
    headings, [row] = as_table(group_cells([one]))
    assert (headings, row[:-1]) == (["seeds", "matthews", "time"], ["1", "70.00"]), "the score is that metric: it is not said twice"
    headings, [row] = as_table(group_cells([cell(None)]))
    assert headings == ["seeds", "score", "time"] and row[1] == "diverged"
    assert as_table([]) == (["seeds", "score", "time"], [])


def test_the_picture_says_where_seeds_diverged(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    drawn: list[str] = []
    monkeypatch.setattr(results, "plot_spread", lambda series, *_, **__: drawn.extend(label for label, _ in series))
    write_results(tmp_path, MRPC, "start", GRID)
    assert drawn == ["learning_rate=1e-05", "learning_rate=3e-05 (1 of 2)"]


def test_the_files(tmp_path: Path) -> None:
    write_results(tmp_path, MRPC, "runs/mine/model", GRID)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["results.csv", "results.json", "results.md", "spread.png"]
    assert (tmp_path / "spread.png").read_bytes().startswith(b"\x89PNG")
    found = json.loads((tmp_path / "results.json").read_text())
    assert (found["task"], found["start"], found["best"], found["metrics"]) == ("glue/mrpc", "runs/mine/model", "b", ["f1", "accuracy"])
    assert found["cells"] == {name: {key: value for key, value in one.items() if key != "history"} for name, one in GRID.items()}
    assert [group["score"] and group["score"]["mean"] for group in found["groups"]] == [pytest.approx(0.75), 0.6, None]


def test_the_csv_has_every_run(tmp_path: Path) -> None:
    write_results(tmp_path, MRPC, "start", GRID)
    text = (tmp_path / "results.csv").read_text()
    rows = list(csv.DictReader(io.StringIO(text)))
    assert list(rows[0]) == [
        "cell", "learning_rate", "epochs", "micro_batch_size", "seed", "score", "f1", "accuracy", "best_step", "total_steps",
        "train_seconds",        "tokens_per_second", "error",
    ]  # fmt: skip
    assert [row["cell"] for row in rows] == list("abcde")
    assert (float(rows[1]["score"]), float(rows[1]["f1"]), rows[1]["seed"], rows[1]["best_step"], rows[1]["error"]) == (
        0.8,
        0.8 + 0.05,
        "1",
        "7",
        "",
    )
    assert (rows[4]["score"], rows[4]["f1"], rows[4]["error"]) == ("", "", "training diverged: no finite loss")
    assert "\r" not in text and text.endswith("\n")


def test_the_markdown(tmp_path: Path) -> None:
    write_results(tmp_path, MRPC, "runs/mine/model", GRID)
    lines = (tmp_path / "results.md").read_text().splitlines()
    assert lines[0] == "# glue/mrpc from runs/mine/model"
    assert lines[2] == "Score: mean of f1, accuracy, x 100, on validation examples."
    assert lines[4].startswith("| learning_rate | seeds | score | std |") and lines[5] == "|" + "---|" * 10
    assert lines[6].startswith("| 1e-05 | 2 | 75.00 | 7.07 |")
    assert {line.count("|") for line in lines[4:9]} == {11}
    assert lines[-1] == "The model is that of the best single run: b."


def test_names_are_text(tmp_path: Path) -> None:
    task = replace(MRPC, name="a|<script>[x](y)", labels=("<img src=x onerror=alert(1)>", "b\n\n# c"))
    write_results(tmp_path, task, "<b>\n|", GRID)
    lines = (tmp_path / "results.md").read_text().splitlines()
    assert lines[0] == "# a\\|&lt;script>\\[x\\](y) from &lt;b> \\|"
    best = cell(0.5) | {"settings": dict(FinetuneConfig()), "examples": {"train": 3}, "precision": "fp32", "hardware": "<i>"}
    text = task_card(task, "<b>\n|", best | {"pldcli": "0", "torch": "2"}, 1)
    assert "# a\\|&lt;script>" in text and "Labels: &lt;img src=x onerror=alert(1)>, b  # c.\n" in text and "fp32 on &lt;i>;" in text
    assert not {"<script", "<img", "<b>", "<i>", "\n# c"} & {text[at : at + size] for size in (3, 4, 7) for at in range(len(text))}


def test_nothing_good(tmp_path: Path) -> None:
    """All diverged: the tables say so, there is nothing to draw."""
    write_results(tmp_path, MRPC, "start", {"x": cell(None), "y": cell(None, seed=1)})
    assert not (tmp_path / "spread.png").exists()
    assert "best single run: none, all diverged." in (tmp_path / "results.md").read_text()
    assert json.loads((tmp_path / "results.json").read_text())["best"] is None
    assert len((tmp_path / "results.csv").read_text().splitlines()) == 3


def test_mnli_has_two_numbers(tmp_path: Path) -> None:
    scores = {"validation_matched": {"accuracy": 0.5}, "validation_mismatched": {"accuracy": 0.25}}
    write_results(tmp_path, MNLI, "start", {"x": cell(0.375) | {"scores": scores}})
    [row] = csv.DictReader(io.StringIO((tmp_path / "results.csv").read_text()))
    assert (row["score"], row["accuracy"], row["accuracy_mismatched"]) == ("0.375", "0.5", "0.25")
    assert "| seeds | score | accuracy | accuracy_mismatched | time |" in (tmp_path / "results.md").read_text()
