from __future__ import annotations

from pathlib import Path

import pytest

from pldcli.comparison.comparison import compare_runs
from pldcli.comparison.files import as_json, runs_csv
from pldcli.comparison.read import read_runs
from pldcli.comparison.scores import best_group
from pldcli.comparison.tables import finetuned
from tests.comparison.test_read import write_results, write_run

DENSE = "pld.theta_bar=1"


@pytest.fixture
def two(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[Path]:
    """Two runs that differ in what they drop."""
    monkeypatch.chdir(tmp_path)
    return [write_run(Path("runs/dense"), DENSE, losses=(4.0, 3.0, 2.0, 1.5)), write_run(Path("runs/pld"), losses=(4.0, 3.0, 2.0, 1.0))]


def test_a_setting_with_a_seed_that_diverged_comes_last() -> None:
    groups = [
        {"score": {"mean": 0.80, "values": [0.80]}, "diverged": 2},
        {"score": {"mean": 0.78, "values": [0.77, 0.79]}, "diverged": 0},
        {"score": None, "diverged": 3},
    ]
    assert best_group(groups) is groups[1] and best_group(groups[::2]) is groups[0] and best_group(groups[2:]) is None


def test_of_several_results_on_a_task_the_usual_place_counts(two: list[Path]) -> None:
    for number, name in enumerate(("a-rte", "rte", "rte-b")):
        write_results(Path("finetuned/dense", name), task="glue/rte", start="runs/dense/model", scores=[[0.5 + number / 10]])
    write_results(Path("finetuned/pld/one"), task="glue/rte", start="runs/pld/model", scores=[[0.9]])
    dense, pld = read_runs(two, finetuned=Path("finetuned"))
    assert (dense.finetuned, pld.finetuned, pld.score_notes) == ({"glue/rte": (0.6,)}, {"glue/rte": (0.9,)}, ())
    left_out = [f"left out finetuned/dense/{name}: finetuned/dense/rte holds results on glue/rte too" for name in ("a-rte", "rte-b")]
    assert list(dense.score_notes) == left_out
    assert set(left_out) <= set(compare_runs([dense, pld]).warnings)


def test_random_weights_are_no_score_of_the_run(two: list[Path]) -> None:
    start = "random weights shaped like dense"
    write_results(Path("finetuned/dense/rte-scratch"), task="glue/rte", start=start, scores=[[0.5]], from_scratch=True)
    assert [run.finetuned for run in read_runs(two, finetuned=Path("finetuned"))] == [{}, {}]


def test_scores_under_other_settings_or_of_other_data_are_told(two: list[Path]) -> None:
    grid = ["learning_rate=1e-05,seed=0", "learning_rate=1e-05,seed=1", "learning_rate=3e-05,seed=0"]
    write_results(Path("finetuned/dense/rte"), task="glue/rte", start="runs/dense", scores=[[0.5]], cells=grid, data="one" * 20)
    write_results(Path("finetuned/pld/rte"), task="glue/rte", start="runs/pld", scores=[[0.5]], cells=["seed=0"], data="two" * 20)
    write_results(Path("finetuned/dense/cola"), task="glue/cola", start="runs/dense", scores=[[0.5]], cells=["seed=0", "seed=1"], data="d")
    write_results(Path("finetuned/pld/cola"), task="glue/cola", start="runs/pld", scores=[[0.5]], cells=["seed=0"], data="d")
    told = [line for line in compare_runs(read_runs(two, finetuned=Path("finetuned"))).warnings if line.startswith("scores on")]
    assert told == [
        "scores on glue/rte do not compare: settings are not the same for all runs "
        "(dense: learning_rate=1e-05; learning_rate=3e-05 | pld: the defaults)",
        "scores on glue/rte do not compare: data are not the same for all runs (dense: oneoneoneone | pld: twotwotwotwo)",
    ]


def test_fine_tunings_that_diverged_are_told(two: list[Path]) -> None:
    write_results(Path("finetuned/dense/rte"), task="glue/rte", start="runs/dense", scores=[[0.5, None, 0.7]])
    write_results(Path("finetuned/pld/rte"), task="glue/rte", start="runs/pld", scores=[[None, None]])
    comparison = compare_runs(read_runs(two, finetuned=Path("finetuned")))
    table = finetuned(comparison)
    assert table is not None
    assert [row[:4] for row in table.rows] == [("glue/rte", "dense", "60.00", "2"), ("glue/rte", "pld", "diverged", "0")]
    assert {
        "finetuned/dense/rte: 1 of 3 fine-tunings with the best setting diverged",
        "finetuned/pld/rte: all fine-tunings diverged",
    } <= set(comparison.warnings)
    assert [system["finetuned"]["glue/rte"]["mean"] for system in as_json(comparison)["systems"]] == [pytest.approx(0.6), None]
    assert "finetuned glue/rte" in runs_csv(comparison).splitlines()[0] and not comparison.contrasts[0].finetuned
