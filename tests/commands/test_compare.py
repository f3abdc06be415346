from __future__ import annotations

import csv
import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from pldcli.comparison.report import FILES
from tests.comparison.test_read import write_results, write_run

Run = Callable[..., Any]
DENSE = "pld.theta_bar=1"


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Three pairs of runs and a longer one, here."""
    monkeypatch.chdir(tmp_path)
    for seed, noise in enumerate((0.0, 0.01, 0.03)):
        common = {"started": f"2026-03-0{seed + 1}T08:00:00+00:00"}
        later = {"started": f"2026-03-0{seed + 4}T08:00:00+00:00"}
        losses = [loss + noise for loss in (5.0, 4.0, 3.0, 2.5)]
        write_run(Path(f"preln-seed{seed}"), DENSE, f"train.seed={seed}", losses=losses, seconds_per_step=4.0, **common)
        losses = [loss + 1.5 * noise for loss in (4.0, 3.0, 2.0, 1.0)]
        write_run(Path(f"pld-seed{seed}"), f"train.seed={seed}", losses=losses, seconds_per_step=3.0, **later)
    return tmp_path


PRELN, PLD = ([f"{name}-seed{seed}" for seed in range(3)] for name in ("preln", "pld"))


def compared(pld: Run, *arguments: str) -> dict[str, Any]:
    outcome = pld("compare", *arguments, "--json")
    assert outcome.code == 0, outcome.err
    return json.loads(outcome.out)  # type: ignore[no-any-return]


def lines_of(text: str) -> list[str]:
    return [" ".join(line.split()) for line in text.splitlines()]


def test_as_typed_it_says_what_came_out(pld: Run, folder: Path) -> None:
    before = sorted(folder.rglob("*"))
    outcome = pld("compare", *PRELN, *PLD)
    assert (outcome.code, outcome.err) == (0, "")
    lines = lines_of(outcome.out)
    said = " ".join(lines).partition(" Final losses ")[0]
    assert said.startswith("pld ends 1.4933 ± 0.0190 below the validation loss of preln (3 pairs by seed, 95 % interval), at equal tokens.")
    assert "All 3 runs reach that loss after 63% of the tokens and 47% of the training time (2.13x as fast) on average." in said
    assert "SCHEDULES NOT FINISHED there." in said
    assert "Per token it takes 25.0% less time (median step) and 0.0% fewer FLOPs; " in said
    assert "preln 3 40 10.2 k 10.2 M 2 min 40 s 2.5133 ± 0.0153 3.5133" in lines
    assert "pld -1.4933 -1.5123 to -1.4744 3 tokens" in lines
    assert "pld-seed0* 2.5000 6.4 k 1 min 15 s 62% 62% 47% 2.13x" in lines
    assert any(
        line.startswith("pld-seed0: * SCHEDULE NOT FINISHED: read at 62% of its steps, learning rate at 40% of its peak") for line in lines
    )
    assert "preln 4,000.0 64 1 k" in lines
    assert any(line.startswith("dropping: exponential to theta_bar 0.5") for line in lines)
    assert "nothing else in the configuration differs" in lines
    assert "warning:" not in outcome.out
    assert sorted(folder.rglob("*")) == before


def test_json_stands_alone_and_the_baseline_can_be_named(pld: Run) -> None:
    content = compared(pld, *PRELN, *PLD, "--baseline", "pld-seed1")
    assert content["baseline"] == "pld"
    [one] = content["comparisons"]
    assert (one["system"], one["final_validation_loss_difference"]["num_pairs"]) == ("preln", 3)
    assert [reach["reached"] for reach in one["reaches"]] == [False] * 3
    assert one["saving_per_token"]["step_time"] == pytest.approx(1 - 4 / 3)


def test_two_runs_have_no_interval(pld: Run) -> None:
    outcome = pld("compare", PRELN[0], PLD[0])
    assert "(one pair of runs: no interval)" in outcome.out
    assert "fewer than two pairs: no interval, and the difference may be chance" in outcome.out
    assert "pld-seed0 -1.5000 none 1 tokens" in lines_of(outcome.out)


def test_not_reached(pld: Run) -> None:
    outcome = pld("compare", PLD[0], PRELN[0])
    assert "It does not reach that loss." in lines_of(outcome.out)[0]
    assert "preln-seed0 1.0000 - not reached - - - -" in lines_of(outcome.out)


def test_seeds_of_one_system_alone(pld: Run) -> None:
    outcome = pld("compare", *PLD)
    assert outcome.code == 0
    assert lines_of(outcome.out)[0] == ("All 3 runs are one system, pld: there is nothing to compare it with, standard deviation 0.0229.")
    assert "To the final validation loss" not in outcome.out


def test_everything_is_written(pld: Run, folder: Path) -> None:
    outcome = pld("compare", *PRELN, *PLD, "--out", "comparison", "--csv", "rows.csv", "--plot", "curves.png")
    assert outcome.code == 0, outcome.err
    assert lines_of(outcome.out)[-3:] == ["written: rows.csv", "written: curves.png", "written: comparison/index.html"]
    assert {path.name for path in Path("comparison").iterdir()} == set(FILES)
    assert json.loads(Path("comparison/comparison.json").read_text()) == compared(pld, *PRELN, *PLD)
    assert Path("comparison/comparison.csv").read_text() == Path("rows.csv").read_text()
    assert len(list(csv.DictReader(Path("rows.csv").read_text().splitlines()))) == 6
    assert Path("comparison/comparison.png").read_bytes() == Path("curves.png").read_bytes()
    page = Path("comparison/index.html").read_text()
    assert page.count("<svg") == 2 and page.count("<table>") == 5
    assert not re.search(r"https?:|<script|<link|<img|\bsrc=", page)
    for text in ("Compared: preln, pld", "-1.5123 to -1.4744", "SCHEDULE NOT FINISHED", "nothing else in the configuration differs"):
        assert text in page
    again = pld("compare", *PLD, "--out", "comparison", "--json")
    assert (again.code, again.err) == (0, "written: comparison/index.html\n")
    assert json.loads(again.out)["baseline"] == json.loads(Path("comparison/comparison.json").read_text())["baseline"] == "pld"


def test_a_table_of_runs_is_compared_as_the_runs_are(pld: Run) -> None:
    write_results(Path("finetuned/pld-seed0/rte"), task="glue/rte", start="pld-seed0/model", scores=[[0.5, 0.625]])
    outcome = pld("compare", *PRELN, *PLD, "--out", "first", "--json")
    again = pld("compare", "first/metrics.csv.gz", "--out", "second", "--json")
    assert (again.code, again.out) == (0, outcome.out)
    for name in FILES:
        assert Path("second", name).read_bytes() == Path("first", name).read_bytes(), name
    assert pld("compare", "first/metrics.csv.gz").out == pld("compare", *PRELN, *PLD).out


def test_runs_can_be_left_out_and_tables_stand_beside_directories(pld: Run) -> None:
    assert pld("compare", *PRELN, *PLD, "--out", "all").code == 0
    some = compared(pld, "all/metrics.csv.gz", "--only", "preln-seed?", "--only", "pld-seed0")
    assert [run["run"] for run in some["runs"]] == [*PRELN, "pld-seed0"]
    assert some == compared(pld, *PRELN, "pld-seed0")
    assert compared(pld, "all/metrics.csv.gz", "--only", "preln-seed0", "--only", "pld-seed0", "--baseline", "pld-seed0")["baseline"]
    write_run(Path("other"), "model.dropout=0.2", losses=(4.0, 3.0, 2.0, 1.5))
    assert [run["run"] for run in compared(pld, "other", "all/metrics.csv.gz")["runs"]] == ["other", *PRELN, *PLD]
    names = [run["run"] for run in compared(pld, "all/metrics.csv.gz", "preln-seed0")["runs"]]
    assert "all/preln-seed0" in names and len(set(names)) == 7


def test_fine_tuning_is_shown_where_there_is_any(pld: Run) -> None:
    assert "After fine-tuning" not in pld("compare", PRELN[0], PLD[0]).out
    write_results(Path("finetuned/pld-seed0/rte"), task="glue/rte", start="pld-seed0/model", scores=[[0.5, 0.625]])
    write_results(Path("elsewhere/preln-seed0/rte"), task="glue/rte", start="preln-seed0/model", scores=[[0.75]])
    assert "glue/rte pld-seed0 56.25 2" in lines_of(pld("compare", PRELN[0], PLD[0]).out)
    assert "glue/rte preln-seed0 75.00 1" in lines_of(pld("compare", PRELN[0], PLD[0], "--finetuned", "elsewhere").out)


def test_warnings_come_last_on_the_screen_and_first_on_the_page(pld: Run) -> None:
    write_run(
        Path("other"), DENSE, "train.total_steps=80", losses=(4.0, 3.0), until=20, finished=False, data_fingerprint="e" * 64, threads=2
    )
    outcome = pld("compare", PRELN[0], "other", "--out", "comparison")
    wanted = [
        "the losses of other and preln-seed0 do not compare: other prepared data",
        "other is not finished: its last validation is at step 20 of 80, its learning rate not yet decayed",
        "other sees 20,480 tokens, preln-seed0 10,240: their final losses are not at equal tokens",
        "seconds do not compare: threads is not the same for all runs (1; 2)",
    ]
    lines = lines_of(outcome.out)
    assert lines.index(f"warning: {wanted[0]}") > lines.index("What differs")
    page = Path("comparison/index.html").read_text()
    for line in wanted:
        assert f"warning: {line}" in lines
        assert page.index(line) < page.index("<p>")
    assert "other does not compare - - neither" in lines
    assert "other 1 20/80 5.12 k 5.12 M 40 s 3.0000 4.0000" in lines


def test_an_unfinished_run_is_marked_everywhere(pld: Run) -> None:
    write_run(Path("short"), DENSE, "model.dropout=0.2", losses=(4.0, 2.0), until=20, finished=False)
    lines = lines_of(pld("compare", PRELN[0], "short").out)
    assert "short -0.5000 unfinished none 1 neither" in lines
    assert lines[0].startswith("short stands, unfinished, 0.5000 below the validation loss of preln-seed0")
    assert any("* UNFINISHED: this run or preln-seed0 has not come to its end" in line for line in lines)


@pytest.mark.parametrize("extra", [[], ["a-system-with-quite-a-long-name-of-its-own"]])
def test_it_fits_80_columns_and_cuts_nothing(extra: list[str], pld: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in extra:
        write_run(Path(name), "optim.learning_rate=2e-3", "train.total_steps=80", losses=(4.0, 2.0), until=20, seconds_per_step=9000)
    monkeypatch.setenv("COLUMNS", "80")
    outcome = pld("compare", *PRELN, *PLD, *extra)
    assert max(map(len, outcome.out.splitlines())) <= 80
    assert "…" not in outcome.out
    joined = "".join(outcome.out.split())
    for part in ("2.5133±0.0153", "-1.5123to-1.4744", *extra):
        assert part in joined


def test_names_with_brackets_are_not_markup(pld: Run) -> None:
    write_run(Path("[red]x[bold]"), "model.dropout=0.2", losses=(4.0, 3.0, 2.0, 1.5))
    assert "[red]x[bold] ends" in pld("compare", PRELN[0], "[red]x[bold]").out
    assert "Final validation loss less that of [red]x[bold]" in pld("compare", "[red]x[bold]", PRELN[0]).out


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["pld-seed0"], 2, "a comparison needs two runs, there is only pld-seed0; name the run to compare with"),
        ([], 2, "Missing argument 'RUN'"),
        (["pld-seed0", "nowhere"], 4, "nowhere: no such run; `pld runs` lists the runs here"),
        (["pld-seed0", "empty"], 4, "empty: is not a run directory: it has no config.yaml"),
        (["pld-seed0", "pld-seed0"], 2, "pld-seed0: the same run is named twice"),
        (["pld-seed0", "preln-seed0", "--baseline", "x"], 2, "--baseline: no run called x is among those to compare"),
        (["pld-seed0", "preln-seed0", "--plot", "a.pdf"], 2, "a.pdf: a picture's name must end in .png or .svg"),
        (["pld-seed0", "preln-seed0", "--finetuned", "nowhere"], 2, "--finetuned nowhere: no such directory"),
        (["pld-seed0", "preln-seed0", "--out", "file"], 7, "file/comparison.json: cannot be written"),
        (
            ["pld-seed0", "preln-seed0", "--only", "p*", "--only", "x*"],
            2,
            "--only x*: no run has such a name; choose from pld-seed0,",
        ),
        (["file"], 3, "file: is no table of runs: it has no column run, about, step"),
        (["pld-seed0", "fresh"], 3, "fresh: has no validation yet (step 5 of 40, validated every 10)"),
    ],
)
def test_bad_input_is_one_line(arguments: list[str], code: int, message: str, pld: Run) -> None:
    Path("empty").mkdir()
    Path("file").write_text("")
    write_run(Path("fresh"), losses=(4.0,), until=5, finished=False)
    outcome = pld("compare", *arguments)
    assert (outcome.code, outcome.out) == (code, "")
    assert outcome.err.startswith(f"error: {message}") and outcome.err.count("\n") == 1
