from __future__ import annotations

import csv
import io
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from pldcli.plots import schedules as pictures

Run = Callable[..., Any]


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def schedules(pld: Run, *arguments: str) -> list[dict[str, Any]]:
    outcome = pld("plot-schedule", "--format", "json", *arguments)
    assert (outcome.code, outcome.err) == (0, "")
    content = json.loads(outcome.out)
    assert list(content) == ["schedules"]
    return content["schedules"]  # type: ignore[no-any-return]


def test_as_typed_it_draws_the_default_preset_here(pld: Run, folder: Path) -> None:
    outcome = pld("plot-schedule")
    assert (outcome.code, outcome.err) == (0, "")
    assert [path.name for path in folder.iterdir()] == ["schedule.png"]
    assert outcome.out.splitlines()[-1] == "picture written to schedule.png"
    assert outcome.out.startswith("bert-base-pld: 200,000 steps, 12 blocks, theta 1 to 0.5\n")
    assert "half on at step 1,387 (0.69%), 99 % on at step 9,211 (4.61%)" in outcome.out
    assert "8.78 of 12 blocks run on average, which saves 25.7% of all FLOPs" in outcome.out
    assert "█" in outcome.out


@pytest.mark.parametrize("columns", ["80", "120"])
@pytest.mark.parametrize("names", [["bert-base-pld"], ["bert-base-pld-paper", "bert-large-pld", "bert-tiny-preln"]])
def test_the_terminal_picture_fits(columns: str, names: list[str], pld: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", columns)
    monkeypatch.setattr(pictures, "plot_schedules", lambda schedules, path: None)
    outcome = pld("plot-schedule", *(word for name in names for word in ("--preset", name)))
    assert max(map(len, outcome.out.splitlines())) <= int(columns)
    for name in names:
        assert f"{name}: " in outcome.out


def test_json_of_the_default(pld: Run, folder: Path) -> None:
    (default,) = schedules(pld)
    assert list(default) == [
        "preset",
        "total_steps",
        "num_blocks",
        "mean_kept_fraction",
        "block_flops_saved",
        "total_flops_saved",
        "step_half_on",
        "step_99_on",
        "steps",
    ]
    assert (default["preset"], default["total_steps"], default["num_blocks"]) == ("bert-base-pld", 200_000, 12)
    assert (default["step_half_on"], default["step_99_on"]) == (1387, 9211)
    assert default["mean_kept_fraction"] == pytest.approx(0.7318757, abs=1e-7)
    assert default["block_flops_saved"] == pytest.approx(0.2681243, abs=1e-7)
    assert default["total_flops_saved"] == pytest.approx(0.257488, abs=1e-5)
    steps = default["steps"]
    assert (steps[0]["step"], steps[-1]["step"], len(steps)) == (0, 199_999, 401)
    assert steps[0] == {
        "step": 0, "theta": 1.0, "keep_probs": [1.0] * 12, "expected_kept_blocks": 12.0, "num_sequences": 4096, "seq_len": 128,
    }  # fmt: skip
    assert steps[-1]["theta"] == pytest.approx(0.5)
    assert steps[-1]["keep_probs"] == pytest.approx([1 - 0.5 * block / 12 for block in range(1, 13)])
    assert steps[-1]["expected_kept_blocks"] == pytest.approx(8.75)
    assert list(folder.iterdir()) == []


def test_means_in_json_are_those_of_all_steps(pld: Run) -> None:
    (run,) = schedules(pld, "--preset", "bert-tiny-pld", "train.total_steps=200", "--points", "200")
    kept = [step["expected_kept_blocks"] for step in run["steps"]]
    assert [step["step"] for step in run["steps"]] == list(range(200))
    assert run["mean_kept_fraction"] == pytest.approx(sum(kept) / 200 / 8, abs=1e-12)


@pytest.mark.parametrize(("points", "steps"), [("2", [0, 9]), ("4", [0, 3, 6, 9]), ("10", list(range(10))), ("5000", list(range(10)))])
def test_points_choose_steps(points: str, steps: list[int], pld: Run) -> None:
    (run,) = schedules(pld, "train.total_steps=10", "--points", points)
    assert [step["step"] for step in run["steps"]] == steps


def test_changes_apply_and_several_presets_come_in_order(pld: Run) -> None:
    first, second = schedules(pld, "--preset", "bert-tiny-pld", "--preset", "bert-base-preln", "train.total_steps=50", "pld.theta_bar=0.9")
    assert (first["preset"], second["preset"]) == ("bert-tiny-pld", "bert-base-preln")
    assert first["steps"][-1]["keep_probs"][-1] == pytest.approx(0.9)
    assert second["total_steps"] == 50


@pytest.mark.parametrize("changes", [["pld.theta_bar=1"], ["pld.schedule=growing"], ["pld.gamma=0"]])
def test_half_on_is_null_where_it_means_nothing(changes: list[str], pld: Run) -> None:
    (run,) = schedules(pld, *changes)
    assert (run["step_half_on"], run["step_99_on"]) == (None, None)


def test_nothing_dropped_saves_exactly_nothing(pld: Run) -> None:
    (run,) = schedules(pld, "--preset", "bert-base-preln")
    assert (run["mean_kept_fraction"], run["block_flops_saved"], run["total_flops_saved"]) == (1.0, 0.0, 0.0)


def test_csv(pld: Run, folder: Path) -> None:
    outcome = pld("plot-schedule", "--format", "csv", "--preset", "bert-tiny-pld", "--preset", "bert-base-pld", "--points", "3")
    rows = list(csv.DictReader(io.StringIO(outcome.out)))
    assert (outcome.err, len(rows), len(rows[0])) == ("", 6, 16)
    assert list(rows[0])[:5] == ["preset", "step", "theta", "expected_kept_blocks", "keep_prob_1"]
    assert [row["preset"] for row in rows] == ["bert-tiny-pld"] * 3 + ["bert-base-pld"] * 3
    assert (rows[0]["keep_prob_8"], rows[0]["keep_prob_9"], rows[3]["keep_prob_12"]) == ("1.0", "", "1.0")
    assert float(rows[5]["keep_prob_12"]) == pytest.approx(0.5)
    assert list(folder.iterdir()) == []


def test_table(pld: Run, folder: Path) -> None:
    outcome = pld("plot-schedule", "--format", "table", "--points", "3")
    lines = [line.split() for line in outcome.out.splitlines()]
    assert ["0", "1.0000", "1.0000", "1.0000", "12.00", "0.0%"] in lines
    assert ["199,999", "0.5000", "0.9583", "0.5000", "8.75", "25.7%"] in lines
    assert list(folder.iterdir()) == []


@pytest.mark.parametrize("kind", ["json", "csv", "table"])
@pytest.mark.usefixtures("drawn")
def test_numbers_stay_alone_on_stdout_beside_a_picture(kind: str, pld: Run, folder: Path) -> None:
    alone = pld("plot-schedule", "--format", kind)
    both = pld("plot-schedule", "--format", kind, "--out", "deep/x.svg")
    assert both.out == alone.out
    assert both.err == "picture written to deep/x.svg\n"
    assert (folder / "deep/x.svg").read_bytes().startswith(b"<?xml")


@pytest.mark.parametrize(
    ("arguments", "code", "line"),
    [
        (["--out", "x.pdf"], 2, "x.pdf: a picture's name must end in .png or .svg"),
        (["--out", "x"], 2, "x: a picture's name must end in .png or .svg"),
        (["--out", ""], 2, ".: a picture's name must end in .png or .svg"),
        (["--out", "file/x.png"], 7, "file/x.png: cannot be written (not a directory); choose another place with --out"),
        (["--out", "folder.png"], 7, "folder.png: cannot be written (is a directory); choose another place with --out"),
        (["--points", "1"], 2, "--points: must be at least 2 (the first and the last step), not 1"),
        (["--points", "-3", "--format", "json"], 2, "--points: must be at least 2 (the first and the last step), not -3"),
        (["--points", "3"], 2, "--points does nothing without --format table, json or csv; leave it out"),
        (["--preset", "bert"], 2, "unknown preset 'bert'; `pld config list` shows them"),
        (["pld.theta_bar=0"], 2, "pld.theta_bar: must be greater than 0, not 0"),
        (["pld.thta_bar=0.5"], 2, "pld.thta_bar: unknown key; did you mean pld.theta_bar?"),
        (["bert-base-pld"], 2, "'bert-base-pld' is not KEY=VALUE; for example train.total_steps=1000"),
    ],
)
def test_bad_input_is_one_line_and_leaves_nothing(arguments: list[str], code: int, line: str, pld: Run, folder: Path) -> None:
    (folder / "file").write_text("x", encoding="utf-8")
    (folder / "folder.png").mkdir()
    outcome = pld("plot-schedule", *arguments)
    assert (outcome.code, outcome.err) == (code, f"error: {line}\n")
    assert sorted(path.name for path in folder.iterdir()) == ["file", "folder.png"]
