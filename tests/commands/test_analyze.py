from __future__ import annotations

import csv
import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from pldcli.analysis import analyze as engine
from pldcli.analysis.analyze import Settings
from tests.analysis.test_analyze import train
from tests.analysis.test_results import made_up_analysis, made_up_run

Run = Callable[..., Any]
NUMBERS = ["analysis.json", "blocks.csv", "removal.csv"]


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """Record what reaches the engine, and answer with two made-up runs."""
    found: list[Any] = []

    def record(targets: Any, **options: Any) -> Any:
        found.append((targets, options))
        return made_up_analysis(gates=options["settings"].gates, notes=("mind this",))

    monkeypatch.setattr(engine, "analyze", record)
    return found


def test_the_arguments_that_reach_the_engine(pld: Run, calls: list[Any]) -> None:
    assert pld("analyze", "a", "b").code == 0
    line = ["a", "--data", "d", "--gates", "0.5", "--draws", "3", "--sequences", "5", "--batch-size", "2", "--device", "cpu"]
    assert pld("analyze", *line).code == 0
    assert pld("analyze", "a", "--gates", "schedule").code == 0
    assert calls == [
        ([Path("a"), Path("b")], {"data": None, "settings": Settings()}),
        ([Path("a")], {"data": Path("d"), "settings": Settings(5, 2, 0.5, 3, "cpu")}),
        ([Path("a")], {"data": None, "settings": Settings(gates="schedule")}),
    ]


def squeezed(text: str) -> list[str]:
    return [" ".join(line.split()) for line in text.splitlines()]


def test_tables_have_columns_per_run(pld: Run, calls: list[Any]) -> None:
    outcome = pld("analyze", "a", "b", "--gates", "0.5")
    lines = squeezed(outcome.out)
    assert outcome.err == "note: mind this\n"
    assert lines[0] == "post (Post-LN): 3 blocks, 3 moments from step 0 to 20, on 64 sequences of 128 tokens of data"
    assert "20 5.3333 0.333 1.00 0.0333 0.100 0.00667 13.3° 7.0000" in lines
    whole = lines.index("Norms of gradients of the trained models, every block running")
    assert lines[whole + 1 : whole + 6] == [
        "post post pre pre",
        "block weights input weights input",
        "1 0.333 0.0333 0.333 0.0333",
        "2 0.667 0.0667 0.667 0.0667",
        "3 1.00 0.100 1.00 0.100",
    ]
    dropped = lines.index("Norms of gradients of the trained models, blocks dropped")
    assert lines[dropped + 4] == "2 2.67 0.400 2.67 0.400"
    assert lines[dropped + 5] == "3 - 0.600 - 0.600"
    assert lines[dropped + 6] == "keep probability 0.5 in every block, mean of 2 draws; a block's weights over the draws that run it"
    changes = lines.index("Input and output of each block of the trained models")
    assert lines[changes + 3] == "1 3.33 0.00333 6.7° 3.33 0.00333 6.7°"
    left_out = lines.index("Blocks left out of the trained models: increase of the validation loss")
    assert lines[left_out + 3] == "1 +0.5000 +4.0000 +0.5000 +4.0000"


def test_without_gates_nothing_is_said_of_them(pld: Run, calls: list[Any]) -> None:
    assert "dropped" not in pld("analyze", "a").out


def test_it_fits_80_columns_and_cuts_nothing(pld: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    names = ["bert-small-postln-at-a-low-rate", "pre", "[red]x[/]", "four"]
    monkeypatch.setattr(engine, "analyze", lambda *_, **__: made_up_analysis(*(made_up_run(name) for name in names)))
    monkeypatch.setenv("COLUMNS", "80")
    outcome = pld("analyze", "a", "--gates", "0.5")
    assert max(map(len, outcome.out.splitlines())) <= 80
    assert "…" not in outcome.out
    headings = [line for line in squeezed(outcome.out) if line.startswith(("Input and output", "Blocks left out"))]
    assert len(headings) > 2, "runs that do not fit come in further tables"
    values = re.findall(r"\+\d\.\d{4}", outcome.out)
    assert len(values) == 4 * 6
    assert "[red]x[/]" in outcome.out


def test_runs_of_different_depth_stand_in_one_table(pld: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    from dataclasses import replace

    deep, state = made_up_run("deep", draws=False), made_up_run().states[0]
    shallow = replace(state, whole=replace(state.whole, blocks=state.whole.blocks[:2]), draws=())
    other = replace(deep, name="shallow", states=(shallow,), removal=replace(deep.removal, alone=(5.5, 5.5), from_here=(5.5, 5.5)))
    monkeypatch.setattr(engine, "analyze", lambda *_, **__: made_up_analysis(deep, other, gates=None))
    lines = squeezed(pld("analyze", "a", "b").out)
    assert "2 +0.2500 +1.0000 +0.5000 +0.5000" in lines
    assert "3 +0.1250 +0.1250" in lines


def test_json_stands_alone(pld: Run, calls: list[Any], tmp_path: Path) -> None:
    outcome = pld("analyze", "a", "--json", "--out", tmp_path / "out")
    content = json.loads(outcome.out)
    assert [run["name"] for run in content["runs"]] == ["post", "pre"]
    assert content["notes"] == ["mind this"]
    assert outcome.err.splitlines()[-1].startswith(f"written to {tmp_path / 'out'}: analysis.json, ")
    assert json.loads((tmp_path / "out" / "analysis.json").read_text()) == content


@pytest.mark.parametrize("gates", [[], ["--gates", "0.5"]])
@pytest.mark.usefixtures("drawn")
def test_out_has_numbers_and_two_files_per_figure(gates: list[str], pld: Run, calls: list[Any], tmp_path: Path) -> None:
    outcome = pld("analyze", "a", "b", "--out", tmp_path / "out", *gates)
    figures = ["gradients", "removal", "similarity", *(["gradients-dropped"] if gates else [])]
    expected = sorted([*NUMBERS, *(f"{name}.{kind}" for name in figures for kind in ("png", "svg"))])
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == expected
    assert sorted(outcome.out.splitlines()[-1].partition(": ")[2].split(", ")) == expected
    if gates:
        pictures = [(tmp_path / "out" / f"{name}.svg").read_text() for name in ("gradients", "gradients-dropped")]
        assert ["keep probability 0.5" in picture for picture in pictures] == [False, True]


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        ([], 2, "Missing argument 'RUN'"),
        (["nowhere"], 4, "nowhere: no such run; `pld runs` lists the runs here"),
        (["empty"], 4, "empty: is not a run directory: it has no config.yaml"),
        (["empty", "--gates", "half"], 2, "--gates: 'half' is neither `schedule` nor a keep probability between 0 and 1"),
        (["empty", "--draws", "3"], 2, "--draws does nothing without --gates; leave it out"),
        (["empty", "--gates", "0.5", "--draws", "0"], 2, "--draws: must be at least 1, not 0"),
        (["empty", "--sequences", "0"], 2, "--sequences: must be at least 1, not 0"),
        (["empty", "--batch-size", "-1"], 2, "--batch-size: must be at least 1, not -1"),
        (["empty", "--device", "tpu"], 2, "Invalid value for '--device'"),
    ],
)
def test_bad_input_is_one_line(
    arguments: list[str], code: int, message: str, pld: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("empty").mkdir()
    outcome = pld("analyze", *arguments)
    assert (outcome.code, outcome.out) == (code, "")
    assert outcome.err.startswith(f"error: {message}") and outcome.err.count("\n") == 1


def test_a_place_that_cannot_be_written(pld: Run, calls: list[Any], tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    outcome = pld("analyze", "a", "--out", tmp_path / "file")
    assert (outcome.code, outcome.out) == (7, "")
    assert outcome.err.startswith(f"error: {tmp_path / 'file' / 'analysis.json'}: cannot be written")


def test_the_whole_command_on_real_runs(pld: Run, prepared: Path, tmp_path: Path) -> None:
    """Post-LN against Pre-LN, half of the blocks dropped at random in training and in the analysis."""
    half = ("pld.schedule=constant", "pld.depth_rule=uniform", "pld.theta_bar=0.5", "train.total_steps=8")
    runs = [train(tmp_path / name, prepared, *half, f"model.norm={name}") for name in ("post", "pre")]
    outcome = pld("analyze", *runs, "--data", prepared, "--gates", "0.5", "--draws", "2", "--sequences", "6", "--out", tmp_path / "out")
    assert outcome.code == 0, outcome.err
    assert "post (Post-LN): 3 blocks, 3 moments from step 0 to 8, on 6 sequences of 32 tokens" in outcome.out
    rows = list(csv.DictReader((tmp_path / "out" / "blocks.csv").read_text().splitlines()))
    assert len(rows) == 2 * 3 * 3 * 3
    running = [row for row in rows if row["runs"] == "1"]
    assert all(float(row["weight_gradient_norm"]) > 0 and 0 < float(row["angle_degrees"]) < 180 for row in running)
    assert (tmp_path / "out" / "gradients-dropped.png").read_bytes().startswith(b"\x89PNG")
