from __future__ import annotations

import csv
import io
import json
import math
from dataclasses import replace
from typing import Any

from pldcli.analysis.files import as_json, blocks_csv, removal_csv
from pldcli.analysis.results import Removal
from tests.analysis.test_results import made_up_analysis, made_up_run


def rows(text: str) -> list[dict[str, Any]]:
    return list(csv.DictReader(io.StringIO(text)))


def test_blocks_have_a_row_per_run_step_draw_and_block() -> None:
    found = rows(blocks_csv(made_up_analysis()))
    assert len(found) == 2 * 3 * (1 + 2) * 3
    first = found[0]
    assert (first["run"], first["norm"], first["step"], first["gates"], first["draw"], first["block"]) == ("post", "post", "0", "", "", "1")
    assert (first["runs"], first["loss"], first["weight_gradient_norm"], first["angle_degrees"]) == ("1", "6.0", "1.0", "20.0")
    [dropped] = [row for row in found if (row["run"], row["step"], row["draw"], row["block"]) == ("pre", "20", "2", "2")]
    assert (dropped["gates"], dropped["runs"], dropped["weight_gradient_norm"], dropped["distance"]) == ("0.5", "0", "", "")
    assert float(dropped["input_gradient_norm"]) == 8 / 3 * 2 / 10


def test_removal_has_a_row_per_run_and_block() -> None:
    found = rows(removal_csv(made_up_analysis()))
    assert [(row["run"], row["block"]) for row in found] == [(name, str(block)) for name in ("post", "pre") for block in (1, 2, 3)]
    assert {name: found[3][name] for name in ("step", "loss", "loss_without", "increase")} == {
        "step": "20",
        "loss": "5.0",
        "loss_without": "5.5",
        "increase": "0.5",
    }
    assert (found[3]["loss_without_from_here"], found[3]["increase_from_here"]) == ("9.0", "4.0")


def test_json_holds_every_number_and_no_nan() -> None:
    broken = replace(made_up_run(), removal=Removal(20, math.nan, (math.inf, 1.0, 2.0), (1.0, 2.0, 3.0)))
    content = json.loads(json.dumps(as_json(made_up_analysis(broken, notes=("mind this",))), allow_nan=False))
    assert (content["gates"], content["num_draws"], content["notes"]) == (0.5, 2, ["mind this"])
    [run] = content["runs"]
    assert (run["name"], run["norm"], run["num_blocks"], run["num_sequences"], run["seq_len"]) == ("runs/a", "pre", 3, 64, 128)
    assert run["removal"] == {"step": 20, "loss": None, "alone": [None, 1.0, 2.0], "from_here": [1.0, 2.0, 3.0]}
    state = run["states"][1]
    assert (state["step"], state["source"], state["whole"]["loss"], state["whole"]["blocks"][1]["distance"]) == (10, "step-10", 5.5, 10.0)
    assert state["draws"][1]["gates"] == [True, False, False]
    assert state["draws"][1]["blocks"][2]["angle_degrees"] is None
