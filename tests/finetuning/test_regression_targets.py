"""Regression on targets that are far from 0: prices of texts, by the words that stand in them."""

from __future__ import annotations

import json
import random
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pldcli.errors import DataError, PreemptedError
from pldcli.evaluation.task import TaskSource, evaluate_task
from pldcli.finetuning.experiment import Experiment
from pldcli.finetuning.target_scale import TargetScale
from pldcli.tasks.registry import find_task
from pldcli.tasks.task import Examples, Task
from tests.finetuning.conftest import WORDS, write_rows
from tests.finetuning.test_finetune import lines, outcomes, weights
from tests.finetuning.test_finetune_goes_on import stop_at


def priced(number: int, seed: int, *, unit: float = 1.0) -> list[dict[str, Any]]:
    draw = random.Random(seed)
    texts = [[draw.choice(WORDS[:8]) for _ in range(6)] for _ in range(number)]
    prices = [100_000.5 + 25_000 * words.count("river") + 10_000 * words.count("engine") for words in texts]
    return [{"text": " ".join(words), "price": price * unit} for words, price in zip(texts, prices, strict=True)]


@pytest.fixture(scope="module")
def prices(tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("prices")
    write_rows(place / "train.jsonl", priced(200, 1))
    write_rows(place / "validation.jsonl", priced(60, 2))
    write_rows(place / "test.jsonl", [{"text": row["text"]} for row in priced(10, 3)])
    return place


@pytest.fixture(scope="module")
def experiment(prices: Path, tiny: Path) -> Experiment:
    files = {name: str(prices / f"{name}.jsonl") for name in ("validation", "test")}
    return Experiment(str(prices / "train.jsonl"), str(tiny), files=files, text_columns=("text",), label_column="price", kind="regression")


@pytest.fixture(scope="module")
def learned_prices(experiment: Experiment, learn: Any, tmp_path_factory: pytest.TempPathFactory) -> Any:
    return learn(experiment, tmp_path_factory.mktemp("learned-prices") / "out")


def test_prices_are_learned_and_errors_are_in_their_units(learned_prices: Any, prices: Path) -> None:
    scores = learned_prices.cells[learned_prices.best]["scores"]["validation"]
    assert list(scores) == ["pearson", "spearman", "mae", "rmse"] and scores["pearson"] > 0.9
    targets = np.array([row["price"] for row in lines(prices / "validation.jsonl")])
    predicted = np.array([row["label"] for row in lines(learned_prices.out / "predictions-validation.jsonl")])
    assert scores["mae"] == pytest.approx(np.abs(targets - predicted).mean()) and scores["mae"] < 8_000 < targets.std()
    assert scores["rmse"] == pytest.approx(np.sqrt(((targets - predicted) ** 2).mean()))
    cell = learned_prices.cells[learned_prices.best]
    assert cell["score"] == pytest.approx((scores["pearson"] + scores["spearman"]) / 2), "errors are no part of the score"
    train = np.array([row["price"] for row in lines(prices / "train.jsonl")])
    assert cell["targets"] == {"mean": pytest.approx(train.mean()), "std": pytest.approx(train.std())}
    assert learned_prices.notes == []


def test_tables_show_errors_as_they_are(learned_prices: Any) -> None:
    scores = learned_prices.cells[learned_prices.best]["scores"]["validation"]
    mae, pearson = f"{scores['mae']:,.5g}", f"{100 * scores['pearson']:.2f}"
    for path in (learned_prices.out / "results.md", learned_prices.model / "README.md"):
        text = path.read_text(encoding="utf-8")
        assert f"| {mae} |" in text and f"| {pearson} |" in text and "in the units of price" in text, path


def test_the_exported_model_gives_prices_to_anyone(learned_prices: Any, prices: Path) -> None:
    transformers = pytest.importorskip("transformers")
    import torch

    model = transformers.AutoModelForSequenceClassification.from_pretrained(learned_prices.model).eval()
    tokenizer = transformers.AutoTokenizer.from_pretrained(learned_prices.model)
    for name in ("validation", "test"):
        texts = [row["text"] for row in lines(prices / f"{name}.jsonl")]
        with torch.no_grad():
            theirs = model(**tokenizer(texts, padding=True, return_tensors="pt")).logits[:, 0]
        ours = [row["label"] for row in lines(learned_prices.out / f"predictions-{name}.jsonl")]
        assert theirs.tolist() == pytest.approx(ours, rel=1e-5)
    assert learned_prices.read_back.difference < 1e-5


@pytest.mark.usefixtures("forked")
def test_evaluation_and_workers_agree(learned_prices: Any, experiment: Experiment, prices: Path, learn: Any, tmp_path: Path) -> None:
    found = evaluate_task(learned_prices.model, TaskSource(str(prices / "validation.jsonl")), device="cpu")
    assert found.splits["validation"][1].scores == learned_prices.cells[learned_prices.best]["scores"]["validation"]
    both = learn(experiment, tmp_path / "out", seeds=2, jobs=2)
    assert both.cells[learned_prices.best]["scores"] == learned_prices.cells[learned_prices.best]["scores"]


def test_a_stop_changes_nothing(experiment: Experiment, learn: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is stopped behind its first evaluation, whose weights are the best until then."""
    changes = ("epochs=3", "dropout=0.1")
    with monkeypatch.context() as patch:
        stop_at(patch, 20, 15)
        with pytest.raises(PreemptedError):
            learn(experiment, tmp_path / "out", *changes)
    done, whole = learn(experiment, tmp_path / "out", *changes), learn(experiment, tmp_path / "whole", *changes)
    assert outcomes(done) == outcomes(whole) and weights(done) == weights(whole)


def test_the_unit_of_the_target_does_not_matter(experiment: Experiment, learn: Any, tiny: Path, tmp_path: Path) -> None:
    found = []
    for name, unit in (("cents", 100.0), ("millions", 1e-6)):
        train, validation = (write_rows(tmp_path / f"{name}-{seed}.jsonl", priced(120, seed, unit=unit)) for seed in (1, 2))
        one = Experiment(
            str(train), str(tiny), files={"validation": str(validation)}, text_columns=("text",), label_column="price", kind="regression"
        )
        done = learn(one, tmp_path / name, "epochs=2")
        scores = done.cells[done.best]["scores"]["validation"]
        found.append((scores["pearson"], scores["mae"] / unit))
    assert found[0] == pytest.approx(found[1], rel=1e-3)


def test_predictions_that_do_not_vary_are_said(experiment: Experiment, learn: Any, tiny: Path, tmp_path: Path) -> None:
    """The training targets vary little beside those of validation."""
    train = write_rows(tmp_path / "train.jsonl", [row | {"price": 7.5 + i / 1000} for i, row in enumerate(priced(40, 1))])
    validation = write_rows(tmp_path / "validation.jsonl", priced(30, 2))
    one = Experiment(
        str(train), str(tiny), files={"validation": str(validation)}, text_columns=("text",), label_column="price", kind="regression"
    )
    done = learn(one, tmp_path / "out", "epochs=4")
    [note] = done.notes
    assert note.startswith("predictions hardly vary in validation: ") and "where the targets are 100,000 to " in note
    found = evaluate_task(done.model, TaskSource(str(validation)), device="cpu")
    assert [line for line in found.notes if line.startswith("predictions hardly vary in validation")]


def test_where_validation_has_one_target_the_lowest_error_is_the_best(experiment: Experiment, learn: Any, tmp_path: Path) -> None:
    dearest = max(priced(60, 2), key=lambda row: row["price"])
    for rows, whose in (([dearest], "the target of the only example"), ([dearest] * 3, "every target")):
        validation = write_rows(tmp_path / "validation.jsonl", rows)
        done = learn(replace(experiment, files={"validation": str(validation)}), tmp_path / f"out-{len(rows)}")
        cell = done.cells[done.best]
        errors = [row["eval/validation/rmse"] for row in cell["history"]]
        assert cell["score"] == 0.0 and errors.index(min(errors)) > 0
        assert cell["best_step"] == cell["history"][errors.index(min(errors))]["step"]
        what = f"{whose} in validation is {dearest['price']:,.6g}"
        assert done.notes == [f"{what}: correlations are 0 whatever is predicted, so the lowest rmse is the best"]


def test_results_from_before_targets_were_standardised_are_done_again(
    learned_prices: Any, experiment: Experiment, learn: Any, tmp_path: Path
) -> None:
    done = learn(experiment, tmp_path / "out", "epochs=0.1")
    path = done.out / "cells" / done.best / "result.json"
    path.write_text(json.dumps({key: value for key, value in json.loads(path.read_text()).items() if key != "targets"}))
    assert learn(experiment, tmp_path / "out", "epochs=0.1").done_before == 0


def test_tasks_with_published_recipes_learn_their_numbers_as_they_are(tiny: Path, tmp_path: Path) -> None:
    examples = Examples("train", "x", (["a"], ["b"]), [4.25], [0])
    assert TargetScale.of(find_task("glue/stsb"), examples) is None


@pytest.mark.parametrize(
    ("targets", "what"),
    [
        ([7.5, 7.5, 7.5], "prices.csv: all targets are 7.5: nothing to learn; name another --label-column"),
        ([0.1] * 10, "prices.csv: all targets are 0.1: nothing to learn; name another --label-column"),
        (
            [1e9, 1e9 + 0.001, 1e9 + 0.002],
            "prices.csv: the targets vary by 0.00082 around 1e+09, less than the steps of float32 there; subtract a constant from them",
        ),
    ],
)
def test_targets_that_no_model_could_tell_apart_are_refused(targets: list[float], what: str) -> None:
    task = Task("x", "regression", ("text",), "price")
    examples = Examples("train", "prices.csv", (["a"] * len(targets),), targets, list(range(len(targets))))
    with pytest.raises(DataError) as error:
        TargetScale.of(task, examples)
    assert str(error.value) == what
    assert TargetScale.of(task, replace(examples, labels=[1e-9 * number for number in range(len(targets))])) is not None
