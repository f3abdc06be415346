from __future__ import annotations

import csv
import io
import json

import pytest

from pldcli.comparison.comparison import Comparison, compare_runs
from pldcli.comparison.files import as_json, curves_csv, runs_csv
from tests.comparison.test_runs import made_up_run


def comparison() -> Comparison:
    runs = [made_up_run(f"pre-{seed}", "pld.theta_bar=1", f"train.seed={seed}", losses=(5.0, 4.0, 3.0, 2.5)) for seed in (0, 1)]
    runs += [
        made_up_run("pld-0", losses=(4.0, 3.0, 2.0, 1.0), finetuned={"glue/rte": (0.5, 0.7)}),
        made_up_run("pld-1", "train.seed=1", losses=(4.0, 3.5, 3.25, 2.75)),
        made_up_run("hot", "optim.learning_rate=9", losses=(4.0, None)),
    ]
    return compare_runs(runs)


def test_json_holds_every_number() -> None:
    content = as_json(comparison())
    assert json.loads(json.dumps(content, allow_nan=False)) == content
    assert (content["baseline"], [system["name"] for system in content["systems"]]) == ("pre", ["pre", "pld", "hot"])
    pld, hot = content["comparisons"]
    assert pld["final_validation_loss_difference"] == {
        "mean": pytest.approx(-0.625),
        "confidence": 0.95,
        "low": pytest.approx(-0.625 - 12.7062 * 0.875, rel=1e-5),
        "high": pytest.approx(-0.625 + 12.7062 * 0.875, rel=1e-5),
        "num_pairs": 2,
        "seeds": [0, 1],
        "is_complete": True,
    }
    reached, missed = pld["reaches"]
    assert (reached["reached"], reached["reached_at_tokens"], reached["reached_at_step"]) == (True, 6400.0, 25)
    assert (reached["tokens_ratio"], reached["seconds_ratio"], reached["flops_ratio"]) == (0.625, 0.625, 0.625)
    assert (reached["schedule_finished"], reached["target_loss"]) == (False, 2.5)
    assert (missed["reached"], missed["reached_at_tokens"], missed["tokens_ratio"], missed["schedule_finished"]) == (
        False,
        None,
        None,
        None,
    )
    assert hot["final_validation_loss_difference"] is None
    assert (pld["finetuned_difference"], hot["finetuned_difference"]) == ({}, {})
    assert content["systems"][1]["finetuned"] == {"glue/rte": {"mean": pytest.approx(0.6), "n": 2}}
    run = next(run for run in content["runs"] if run["run"] == "hot")
    assert run["curves"]["validation"][1] == {"step": 20, "tokens": 5120.0, "executed_flops": 5.12e6, "train_seconds": 40.0, "loss": None}
    assert any(line.startswith("hot diverged") for line in content["warnings"])


def test_csv_has_a_row_per_run() -> None:
    rows = list(csv.DictReader(io.StringIO(runs_csv(comparison()))))
    assert [(row["run"], row["system"], row["seed"]) for row in rows] == [
        ("pre-0", "pre", "0"), ("pre-1", "pre", "1"), ("pld-0", "pld", "0"), ("pld-1", "pld", "1"), ("hot", "hot", "0"),
    ]  # fmt: skip
    assert [row["validation_loss"] for row in rows] == ["2.5", "2.5", "1.0", "2.75", ""]
    assert [row["reached"] for row in rows] == ["", "", "True", "False", "False"]
    assert [row["tokens_ratio"] for row in rows] == ["", "", "0.625", "", ""]
    assert [row["finetuned glue/rte"] for row in rows] == ["", "", "0.6", "", ""]
    assert {row["seconds_per_step"] for row in rows} == {"2.0"}


def test_csv_of_curves_has_a_row_per_loss() -> None:
    rows = list(csv.DictReader(io.StringIO(curves_csv(comparison()))))
    assert list(rows[0]) == ["run", "system", "seed", "kind", "step", "tokens", "executed_flops", "train_seconds", "loss"]
    mine = [row for row in rows if row["run"] == "pld-0"]
    assert [(row["step"], row["loss"]) for row in mine if row["kind"] == "validation"] == [
        ("10", "4.0"), ("20", "3.0"), ("30", "2.0"), ("40", "1.0"),
    ]  # fmt: skip
    assert [row["loss"] for row in mine if row["kind"] == "training_smoothed"] == ["5.0", "5.0", "4.0", "4.0", "3.0", "3.0", "2.0", "2.0"]
