from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from pldcli.errors import UsageError
from pldcli.finetuning.experiment import Experiment, data_fingerprint
from pldcli.finetuning.inputs import RunInputs
from pldcli.study import finetuning, jobs
from pldcli.study.finetuning import PlannedFinetuning, PlannedPairs, plan_scorings
from pldcli.study.jobs import Outcome, Slot, State, run_jobs
from pldcli.study.spec import Spec
from pldcli.system.seal import paths_sha256
from pldcli.system.signals import StopRequest
from tests.finetuning.conftest import rivers, tiny, words_tokenizer
from tests.study.conftest import plan_of, spec_of

__all__ = ["rivers", "spec_of", "tiny", "words_tokenizer"]


PRELN, PLD = {"preset": "bert-tiny-preln"}, {"preset": "bert-tiny-pld"}


def test_every_run_on_every_task(spec_of: Callable[..., Spec], tmp_path: Path) -> None:
    own = tmp_path / "reviews.csv"
    own.touch()
    finetune = {"tasks": ["glue/RTE", str(own)], "data_dir": "glue", "systems": ["preln"], "seeds": [0, 1]}
    spec = spec_of(seeds=[0, 1], finetune=finetune)
    finetunings = plan_scorings(spec, plan_of(spec).runs())
    assert [planned.name for planned in finetunings] == ["preln-seed0/rte", "preln-seed0/reviews", "preln-seed1/rte", "preln-seed1/reviews"]
    # Files of one's own do not lie in the directory of the tasks with names.
    assert [(planned.task, planned.data_dir) for planned in finetunings[:2]] == [("glue/RTE", "glue"), (str(own), None)]
    assert {planned.settings for planned in finetunings} == {("seed=0,1",)}


def test_of_a_halving_the_last_rung_alone(spec_of: Callable[..., Spec]) -> None:
    halving = {"candidates": ["a", "b"], "rungs": [{"fraction": 0.5}, {"fraction": 1, "keep": 1, "seeds": [0, 1]}]}
    spec = spec_of({"preln": PRELN, "a": PLD, "b": PLD}, halving=halving, finetune={"tasks": ["glue/rte"]})
    plan = plan_of(spec)
    runs = [*plan.runs(), *plan.rung(0, ("a", "b")), *plan.rung(1, ("b",))]
    assert [planned.run.name for planned in plan_scorings(spec, runs)] == ["preln-seed0", "b-rung2-seed0", "b-rung2-seed1"]


def test_without_tasks_there_is_nothing_to_do(spec_of: Callable[..., Spec]) -> None:
    spec = spec_of()
    assert plan_scorings(spec, plan_of(spec).runs()) == []


@pytest.fixture
def finetunings(spec_of: Callable[..., Any]) -> list[Any]:
    """Two systems, two tasks."""
    finetune = {"tasks": ["glue/rte", "glue/mrpc"], "data_dir": "glue", "seeds": [0, 1], "set": {"epochs": 1}}
    spec = spec_of(finetune=finetune)
    return plan_scorings(spec, plan_of(spec).runs())


def write_results(place: Path, *scores: float, cells: tuple[str, ...] = ("epochs=1.0,seed=0", "epochs=1.0,seed=1")) -> None:
    """Write what `pld finetune` writes, as far as a study reads it; no scores for runs that diverged."""
    score = {"mean": sum(scores) / len(scores), "values": scores} if scores else None
    content = {"task": place.name, "start": "gone", "groups": [{"score": score}], "cells": {name: {} for name in cells}}
    place.mkdir(parents=True)
    (place / "results.json").write_text(json.dumps(content))
    about = {"experiment": {}, "fingerprints": {"data": "of the data", "model": "of the model"}}
    (place / "experiment.json").write_text(json.dumps(about))


def test_what_counts_as_done(finetunings: list[PlannedFinetuning], tmp_path: Path) -> None:
    first, second, third, fourth = finetunings
    write_results(tmp_path / "finetuned/preln-seed0/rte", 0.5, 0.6)
    write_results(tmp_path / "finetuned/preln-seed0/mrpc")
    write_results(tmp_path / "finetuned/pld-seed0/rte", 0.5, cells=("epochs=1.0,seed=0",))
    (tmp_path / "finetuned/pld-seed0/mrpc").mkdir()
    (tmp_path / "finetuned/pld-seed0/mrpc/results.json").write_text("{")
    assert first.outcome(tmp_path) == Outcome(State.FINISHED, score=pytest.approx(0.55))
    assert second.outcome(tmp_path) == Outcome(State.FINISHED)
    # A seed more is wanted now; a file that was cut short.
    assert third.outcome(tmp_path) == fourth.outcome(tmp_path) == Outcome(State.NOT_STARTED)


def test_minimal_pairs_of_every_finished_run(spec_of: Callable[..., Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("pairs").mkdir()
    Path("more.jsonl").write_text("")
    spec = spec_of({"preln": PRELN}, seeds=[0, 1], minimal_pairs=["pairs", "more.jsonl"])
    one, other = plan_scorings(spec, plan_of(spec).runs())
    assert isinstance(one, PlannedPairs) and [one.name, other.name] == ["preln-seed0/minimal-pairs", "preln-seed1/minimal-pairs"]
    assert one.outcome(tmp_path) == Outcome(State.NOT_STARTED)
    words, pairs = one.job(tmp_path).arguments, ("--minimal-pairs", "pairs", "--minimal-pairs", "more.jsonl")
    place = tmp_path / "finetuned" / "preln-seed0" / "minimal-pairs.json"
    assert words == ("evaluate", str(tmp_path / "runs" / "preln-seed0"), *pairs, "--save", str(place))
    place.parent.mkdir(parents=True)
    weights = tmp_path / "runs" / "preln-seed0" / "model" / "model.safetensors"
    weights.parent.mkdir(parents=True)
    weights.write_text("weights")
    prints = {"data": paths_sha256([Path("pairs"), Path("more.jsonl")]), "model": paths_sha256([weights])}
    place.write_text(json.dumps({"inputs": ["pairs", "more.jsonl"], "fingerprints": prints, "mean_accuracy": 0.625}))
    assert one.outcome(tmp_path) == Outcome(State.FINISHED, score=0.625)
    (weights.parent / "config.json").write_text("{}")
    os.utime(weights.parent / "config.json", ns=(2**62, 2**62))
    assert one.outcome(tmp_path).state == State.FINISHED, "as after copying: younger, but the same"
    weights.write_text("others")
    assert one.outcome(tmp_path) == Outcome(State.NOT_STARTED, note="what is there is of an earlier training of this run")
    weights.write_text("weights")
    Path("pairs/one.jsonl").write_text("{}")
    assert one.outcome(tmp_path) == Outcome(State.NOT_STARTED, note="what is there was scored on other data")
    with pytest.raises(UsageError, match="minimal_pairs: there is no file none"):
        spec_of({"preln": PRELN}, minimal_pairs=["none"])


def test_each_is_the_ordinary_command(finetunings: list[PlannedFinetuning], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One does well, one diverges on every seed, one fails, and one is stopped."""
    begun: list[list[str]] = []
    codes = {"preln-seed0/rte": "0", "preln-seed0/mrpc": "6", "pld-seed0/rte": "print('error: glue: no such directory'); exit(3)",
             "pld-seed0/mrpc": "print('error: interrupted'); exit(130)"}  # fmt: skip

    def start(arguments: list[str], *, log: Any, threads: int | None, environment: dict[str, str]) -> Any:
        begun.append(list(arguments))
        place = Path(arguments[arguments.index("--out") + 1])
        name = f"{place.parent.name}/{place.name}"
        if codes[name] in ("0", "6"):
            write_results(place, *[0.75, 0.25][: 2 if codes[name] == "0" else 0])
        code = codes[name] if "exit" in codes[name] else f"exit({codes[name]})"
        return subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=log, stderr=log)

    monkeypatch.setattr(jobs, "start_command", start)
    told: list[str] = []
    outcomes = run_jobs(
        [planned.job(tmp_path) for planned in finetunings],
        slots=[Slot({}, 1)],
        stop=StopRequest(),
        tell=lambda name, end: told.append(f"{name} {end or 'begins'}"),
    )
    assert begun[0] == [
        "finetune", "glue/rte", "--model", str(tmp_path / "runs/preln-seed0"), "--data-dir", "glue",
        "--out", str(tmp_path / "finetuned/preln-seed0/rte"), "--jobs", "1", "epochs=1", "seed=0,1",
    ]  # fmt: skip
    assert (tmp_path / "logs/preln-seed0-rte.log").read_text().startswith("$ pld finetune glue/rte --model ")
    assert list(outcomes.values()) == [
        Outcome(State.FINISHED, score=0.5),
        Outcome(State.FINISHED),
        Outcome(State.FAILED, note="error: glue: no such directory", exit_code=3),
        Outcome(State.STOPPED, note="error: interrupted", exit_code=130),
    ]
    assert told[:4] == ["preln-seed0/rte begins", "preln-seed0/rte score 50.00", "preln-seed0/mrpc begins", "preln-seed0/mrpc diverged"]


def test_the_score_of_a_run_that_was_trained_anew_does_not_count(
    finetunings: list[Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    planned = finetunings[0]
    place = tmp_path / "finetuned" / planned.name
    write_results(place, 0.5, 0.7)
    assert planned.outcome(tmp_path).state == State.FINISHED and "--overwrite" not in planned.job(tmp_path).arguments
    model = tmp_path / "runs" / planned.run.name / "model"
    model.mkdir(parents=True)
    (model / "config.json").write_text("{}")
    os.utime(model / "config.json", ns=(2**62, 2**62))
    monkeypatch.setattr(finetuning, "_model_now", lambda path, _: "of the model" if path == model else "another")
    assert planned.outcome(tmp_path).state == State.FINISHED, "as after copying: younger, but the same"
    assert "--overwrite" not in planned.job(tmp_path).arguments
    monkeypatch.setattr(finetuning, "_model_now", lambda *_: "another")
    assert planned.outcome(tmp_path) == Outcome(State.NOT_STARTED, note="what is there is of an earlier training of this run")
    assert "--overwrite" in planned.job(tmp_path).arguments
    os.utime(model / "config.json", ns=(0, 0))
    assert planned.outcome(tmp_path).state == State.FINISHED


def test_scores_on_data_that_changed_do_not_count(spec_of: Callable[..., Any], tmp_path: Path) -> None:
    own = tmp_path / "reviews.csv"
    own.write_text("text,label\n" + "".join(f"{'good' if i % 2 else 'bad'} {i},{i % 2}\n" for i in range(24)))
    spec = spec_of({"preln": PRELN}, finetune={"tasks": [str(own)]})
    [planned] = plan_scorings(spec, plan_of(spec).runs())
    place = tmp_path / "finetuned" / planned.name
    write_results(place, 0.5, cells=("seed=0",))
    fingerprints = {"data": data_fingerprint(Experiment(str(own), "").load_data()), "model": "m"}
    (place / "experiment.json").write_text(json.dumps({"fingerprints": fingerprints}))
    assert planned.outcome(tmp_path).state == State.FINISHED
    before = own.read_text()
    own.write_text(before.replace("good 1,1", "good 1,0"))
    assert planned.outcome(tmp_path) == Outcome(State.NOT_STARTED, note="what is there was scored on other data")
    assert "--overwrite" in planned.job(tmp_path).arguments
    own.unlink()
    assert planned.outcome(tmp_path).state == State.FINISHED, "a report is written where the data are not"


def test_data_and_model_are_hashed_as_fine_tuning_hashes_them(tiny: Path, rivers: Path) -> None:
    path = str(rivers / "train.jsonl")
    wanted = RunInputs(Experiment(path, str(tiny))).fingerprints
    assert wanted == {"data": finetuning._data_now(path, None), "model": finetuning._model_now(tiny, ())}
