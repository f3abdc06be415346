import json
import sys
from pathlib import Path

import pytest

from pldcli.errors import OutputError
from pldcli.finetuning import finetune as single
from pldcli.finetuning import glue, submission
from pldcli.finetuning.config import FinetuneConfig
from pldcli.finetuning.experiment import Experiment
from pldcli.finetuning.finetune import Finetuned
from pldcli.finetuning.glue import GlueResult
from pldcli.finetuning.results import group_cells
from pldcli.huggingface.read_back import ReadBack
from pldcli.runs import model_source
from pldcli.tasks.registry import find_task, glue_tasks

CELL = {
    "settings": {"seed": 0, "learning_rate": 1e-5},
    "score": 0.75,
    "scores": {"validation": {"f1": 0.8, "accuracy": 0.7}},
    "train_seconds": 90.0,
}


def finetuned(name="glue/mrpc", **changes):
    cells = {"seed=0": CELL, "seed=1": CELL | {"settings": {"seed": 1, "learning_rate": 1e-5}, "score": 0.65}}
    given = {
        "out": Path("finetuned/m") / name.rpartition("/")[2],
        "task": find_task(name),
        "start": "runs/m/model",
        "cells": cells,
        "groups": group_cells(list(cells.values())),
        "best": "seed=0",
        "read_back": ReadBack(3e-7),
        "notes": [],
    }
    return Finetuned(**(given | changes))


@pytest.fixture
def calls(monkeypatch, tmp_path):
    """What reaches the engine, and what it answers."""
    found = {"finetune": [], "glue": [], "submit": [], "result": finetuned(), "missing": []}

    def recorder(name):
        def record(*args, **kwargs):
            found[name].append((args, {key: value for key, value in kwargs.items() if key != "console"}))
            assert kwargs["console"].stderr, "--json stays alone on stdout"
            return found["result"]

        return record

    def submit(*args, device):
        found["submit"].append((*args, device))
        return found["missing"]

    monkeypatch.setattr(single, "finetune", recorder("finetune"))
    monkeypatch.setattr(glue, "finetune_glue", recorder("glue"))
    monkeypatch.setattr(submission, "submit", submit)
    monkeypatch.setattr(model_source, "latest_run", lambda: Path("runs/latest"))
    monkeypatch.chdir(tmp_path)
    return found


DEFAULTS = {"jobs": "auto", "device": "auto", "overwrite": False}


def test_defaults_and_the_latest_run(pld, calls):
    outcome = pld("finetune", "glue/mrpc")
    assert outcome.code == 0
    assert outcome.err == "starting from runs/latest, the latest run\n"
    assert calls["finetune"] == [
        ((Experiment("glue/mrpc", "runs/latest"), [FinetuneConfig()]), {**DEFAULTS, "out": Path("finetuned/latest/mrpc")}),
    ]
    assert not calls["submit"]


def test_every_option(pld, calls):
    line = ["finetune", "my.csv", "epochs=2", "--model", "some/run/model", "--data-dir", "d", "--train", "t.csv", "--validation", "v.csv"]
    line += ["--test", "x.csv", "--text-column", "a", "--text-column", "b", "--label-column", "c", "--kind", "regression", "--seeds", "2"]
    line += ["--grid", "learning_rate=1e-5,3e-5", "--jobs", "3", "--out", "o", "--overwrite", "--from-scratch", "--skip-bad"]
    line += ["--allow-bin", "--device", "cpu"]
    outcome = pld(*line)
    assert outcome.code == 0, outcome.err
    experiment = Experiment(
        "my.csv", "some/run/model", data_dir="d", files={"train": "t.csv", "validation": "v.csv", "test": "x.csv"}, text_columns=("a", "b"),
        label_column="c", kind="regression", skip_bad=True, allow_bin=True, from_scratch=True,
    )  # fmt: skip
    settings = [FinetuneConfig(epochs=2.0, learning_rate=rate, seed=seed) for rate in (1e-5, 3e-5) for seed in (0, 1)]
    given = {"out": Path("o"), "jobs": 3, "device": "cpu", "overwrite": True}
    assert calls["finetune"] == [((experiment, settings), given)]
    assert outcome.err == "" and not calls["submit"] and not calls["glue"]


def test_only_all_of_glue_enters_its_own_engine(pld, calls):
    calls["result"] = GlueResult([finetuned()])
    assert pld("finetune", "glue/ALL", "--model", "m", "--from-mnli").code == 0
    assert pld("finetune", "glue/all", "--model", "m", "--from-scratch", "--out", "o").code == 0
    [(_, first), (_, second)] = calls["glue"]
    assert first == {**DEFAULTS, "base": Path("finetuned/m"), "from_mnli": True}
    assert second == {**DEFAULTS, "base": Path("o"), "from_mnli": False} and not calls["finetune"]


@pytest.mark.parametrize(
    "line",
    [
        ["glue/rte", "--grid", "batch_size=16,32", "epochs=1,2"],
        ["glue/rte", "--grid", "batch_size=16,32", "--grid", "epochs=1,2"],
        ["glue/rte", "epochs=1,2", "batch_size=16,32"],
    ],
)
def test_a_grid_may_be_written_in_several_ways(pld, calls, line):
    assert pld("finetune", *line, "--model", "m").code == 0
    [((_, settings), _)] = calls["finetune"]
    assert {(one.epochs, one.batch_size) for one in settings} == {(1.0, 16), (1.0, 32), (2.0, 16), (2.0, 32)}
    assert len(settings) == 4


@pytest.mark.parametrize(
    ("line", "message"),
    [
        (["glue/rte", "learning_rat=1"], "learning_rat: unknown key; did you mean learning_rate?"),
        (["glue/rte", "--grid", "epochs=0,1"], "epochs: must be greater than 0, not 0"),
        (["glue/rte", "seed=1,2", "--seeds", "2"], "seed: a list of seeds and --seeds exclude each other; leave one of them out"),
        (["glue/rte", "--grid", "epochs=1", "--grid", "epochs=2"], "epochs: is named twice; write one axis: epochs=1.0,2"),
        (["glue/rte", "3e-5"], "'3e-5' is not KEY=VALUE"),
        (["my.csv", "--submission", "s.zip"], "--submission for my.csv: the GLUE server has no such task; leave it out"),
        (["glue/rte", "--submission", "s.zip", "--gpus", "2"], "--submission: is written by one process; leave it out here"),
        (["glue/rte", "--jobs", "2", "--gpus", "2"], "--jobs and --gpus exclude each other; --jobs 2 does two runs at once"),
        (["glue/rte", "--gpus", "0"], "--gpus"),
        (["glue/rte", "--seeds", "0"], "--seeds"),
        (["glue/rte", "--jobs", "0"], "--jobs"),
        (["glue/rte", "--kind", "ranking"], "--kind"),
        (["glue/rte", "--colum", "x"], "--colum"),
        ([], "TASK"),
    ],
)
def test_mistakes_never_reach_the_engine(pld, calls, line, message):
    outcome = pld("finetune", *line)
    assert outcome.code == 2 and message in outcome.err and outcome.err.count("\n") == 1
    assert not calls["finetune"]


def test_what_it_says(pld, calls):
    calls["result"] = finetuned(notes=["longer than a row and cut: 3 of 9 in train"])
    lines = pld("finetune", "glue/mrpc", "--model", "m").out.splitlines()
    assert "glue/mrpc from runs/m/model" in lines
    words = [line.split() for line in lines]
    assert ["seeds", "score", "std", "median", "min", "max", "f1", "accuracy", "time"] in words
    assert any(row[:6] == ["2", "70.00", "7.07", "70.00", "65.00", "75.00"] for row in words)
    assert "note: longer than a row and cut: 3 of 9 in train" in lines
    check = "(read back with transformers, outputs differ by at most 3e-07)"
    assert f"model finetuned/m/mrpc/model, of the best single run, seed=0 {check}" in lines
    assert "tables finetuned/m/mrpc/results.md, .csv, .json; spread finetuned/m/mrpc/spread.png" in lines


def test_without_transformers_it_says_that_nothing_was_read_back(pld, calls):
    calls["result"] = finetuned(read_back=ReadBack())
    assert "(not read back: transformers is not installed)" in pld("finetune", "glue/mrpc", "--model", "m").out


def test_a_check_that_failed_is_a_warning(pld, calls):
    failed = "transformers cannot read it back: ImportError: no"
    calls["result"] = finetuned(read_back=ReadBack(None, failed))
    outcome = pld("finetune", "glue/mrpc", "--model", "m")
    assert outcome.code == 0 and outcome.err == f"warning: finetuned/m/mrpc/model: {failed}\n"


def test_several_tasks(pld, calls):
    tasks = [finetuned(), finetuned("glue/rte")]
    calls["result"] = GlueResult(tasks, ["glue/cola: no such folder"])
    out = pld("finetune", "glue/all", "--model", "m").out
    assert "left out: glue/cola: no such folder\n" in out and "no GLUE average: it takes all nine tasks\n" in out
    metrics = dict.fromkeys(("accuracy", "f1", "matthews", "pearson", "spearman", "accuracy_mismatched"), 0.7712)
    groups = group_cells([CELL | {"scores": {"validation": metrics}}])
    calls["result"] = GlueResult([finetuned(task.name, groups=groups) for task in glue_tasks() if task.name != "glue/ax"])
    out = pld("finetune", "glue/all", "--model", "m").out
    assert "GLUE average as the leaderboard computes it 77.12\n" in out
    assert "geometric mean of the 12 numbers in the PLD paper's table 77.12\n" in out
    assert "left out" not in out


def test_the_submission(pld, calls):
    calls["missing"] = ["CoLA.tsv", "AX.tsv"]
    assert (
        "submission s.zip; the server still needs CoLA.tsv, AX.tsv\n"
        in pld("finetune", "glue/mrpc", "--model", "m", "--submission", "s.zip").out
    )
    calls["missing"] = []
    assert calls["submit"] == [([calls["result"]], Experiment("glue/mrpc", "m"), Path("s.zip"), "auto")]
    assert "submission s.zip, complete\n" in pld("finetune", "glue/mrpc", "--model", "m", "--submission", "s.zip").out


@pytest.mark.parametrize("form", [[], ["--json"]])
def test_a_submission_that_cannot_be_written_takes_no_results_away(pld, calls, monkeypatch, form):
    def full(*args, device):
        raise OutputError("the disk is full", where="s.zip")

    monkeypatch.setattr(submission, "submit", full)
    outcome = pld("finetune", "glue/mrpc", "--model", "m", "--submission", "s.zip", *form)
    assert outcome.code == 7 and "finetuned/m/mrpc/model" in outcome.out and "s.zip: the disk is full" in outcome.err
    assert "submission" not in outcome.out


def test_json(pld, calls):
    calls["missing"] = ["CoLA.tsv"]
    outcome = pld("finetune", "glue/mrpc", "--json", "--submission", "s.zip")
    found = json.loads(outcome.out)
    assert found["server_still_needs"] == ["CoLA.tsv"]
    assert (found["leaderboard_average"], found["paper_geometric_mean"], found["skipped"]) == (None, None, [])
    task = found["tasks"]["glue/mrpc"]
    assert (task["out"], task["model"], task["start"]) == ("finetuned/m/mrpc", "finetuned/m/mrpc/model", "runs/m/model")
    assert (task["best"], task["score"], task["groups"][0]["score"]["values"]) == ("seed=0", 0.75, [0.75, 0.65])
    assert "server_still_needs" not in json.loads(pld("finetune", "glue/mrpc", "--json").out)


def test_only_the_first_of_several_processes_speaks(pld, calls):
    calls["result"] = finetuned(is_main=False)
    outcome = pld("finetune", "glue/mrpc", "--model", "m", "--submission", "s.zip", "--json")
    assert (outcome.code, outcome.out) == (0, "") and not calls["submit"]


def test_several_processes_do_what_was_typed(pld, calls, monkeypatch):
    """The command starts them; each does the work, and the first one says where it starts from."""
    from pldcli.system import launcher

    line = ["finetune", "glue/mrpc", "--gpus", "3"]
    monkeypatch.setattr(sys, "argv", ["pld", *line])
    started = []

    def run_processes(count, arguments, *, kept):
        started.append((count, arguments(), kept()))
        return 7

    monkeypatch.setattr(launcher, "run_processes", run_processes)
    assert pld(*line).code == 7 and not calls["finetune"]
    assert started == [(3, line, "finetuned/latest has the runs that are finished")]
    monkeypatch.setenv("WORLD_SIZE", "3")
    said = []
    for rank in ("0", "1"):
        monkeypatch.setenv("RANK", rank)
        said.append(pld(*line).err)
    assert said == ["starting from runs/latest, the latest run\n", ""] and len(calls["finetune"]) == 2 and len(started) == 1
