from __future__ import annotations

import json
import re
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from pldcli import presets
from pldcli.bench.step_time import StepTime
from pldcli.comparison.metrics_table import read_table
from pldcli.runs.run_directory import RunDirectory, read_starts
from pldcli.study import jobs as study_commands
from pldcli.study.calibration import ShapeTime, Timings, write_plan
from pldcli.study.jobs import last_step
from pldcli.study.plan import Plan, make_plan, shapes
from pldcli.study.read_spec import read_spec
from tests.comparison.test_read import write_results, write_run
from tests.conftest import Outcome, Processes, wait_for
from tests.study.conftest import SMALL, impatient

__all__ = ["impatient"]

Run = Callable[..., Outcome]
PRELN, PLD = {"preset": "bert-tiny-preln"}, {"preset": "bert-tiny-pld"}


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def write_spec(data: Path, systems: dict[str, Any], *, small: list[str] = SMALL, **more: Any) -> Path:
    content = {"name": "try", "data": str(data), "set": small, "systems": systems, **more}
    path = Path("spec.yaml")
    path.write_text(yaml.safe_dump(content, sort_keys=False))
    return path


def begin(path: Path, data: Path) -> Plan:
    """Write the plan of a study whose steps take 0.1 s for each block, so that nothing has to be measured."""
    spec = read_spec(path)
    from pldcli.data.prepared import open_prepared

    prepared = open_prepared(data)
    from_data = {"model.vocab_size": prepared.vocab_size}
    found = {
        shape.key: ShapeTime(shape.label, StepTime(0.1 * shape.config.model.num_hidden_layers, 0.1), 0.25, 0.35, 15)
        for shape in shapes(spec, from_data)
    }
    timings = Timings(prepared.data_fingerprint, {"hardware": "a machine", "device": "cpu", "packages": {"torch": "2.13"}}, found)
    write_plan(Path("studies/try/plan.json"), timings, {})
    return make_plan(spec, from_data, timings.times)


def finish(plan: Plan, losses: dict[str, float]) -> None:
    """Write runs as if they had trained, each to its loss."""
    for run in plan.runs():
        if run.name in losses:
            total = run.config.train.total_steps
            every = max(10, total // 10 * 10)
            place = write_run(
                Path("studies/try/runs", run.name),
                f"train.total_steps={every}",
                losses=[losses[run.name] + 1] * (every // 10 - 1) + [losses[run.name]],
            )
            (place / "config.yaml").write_text(presets.dump(run.config))


def lines_of(text: str) -> list[str]:
    return [" ".join(line.split()) for line in text.splitlines()]


SYSTEMS = {
    "preln": PRELN,
    "shallow": PRELN | {"set": {"model.num_hidden_layers": 2}},
    "pld": PLD,
    "lr": PLD | {"grid": {"optim.learning_rate": ["1e-3", "4e-3", "16e-3"]}, "seeds": [0], "baseline": "lr-1e-3"},
}
CHECK = {"better": "preln", "than": "shallow", "by_seed_deviations": 3}
LOSSES = {
    "preln-seed0": 3.0, "preln-seed1": 3.02, "shallow-seed0": 3.2, "shallow-seed1": 3.22, "pld-seed0": 2.9, "pld-seed1": 2.93,
    "lr-1e-3-seed0": 3.0, "lr-4e-3-seed0": 2.5,
}  # fmt: skip


@pytest.fixture
def half_done(folder: Path, prepared: Path) -> Path:
    """A study of which one run diverged; everything else is finished."""
    path = write_spec(prepared, SYSTEMS, seeds=[0, 1], checks=[CHECK])
    plan = begin(path, prepared)
    finish(plan, LOSSES)
    [gone] = [run for run in plan.runs() if run.name == "lr-16e-3-seed0"]
    place = write_run(Path("studies/try/runs", gone.name), losses=(4.0,), until=10, finished=False)
    (place / "config.yaml").write_text(presets.dump(gone.config))
    (place / "diverged.json").write_text(json.dumps({"step": 12, "reason": "training diverged: the loss is not finite"}))
    return path


def test_the_report_of_what_is_there(half_done: Path, pld: Run) -> None:
    outcome = pld("study", half_done, "--report-only")
    assert (outcome.code, outcome.err) == (0, "")
    assert "preln 0, 1 40 10.2 k 10.2 M 12 s 3.0100 ± 0.0141" in lines_of(outcome.out)
    assert any(line.startswith("pld preln better at equal tokens -0.0950 -0.1585 to -0.0315 2") for line in lines_of(outcome.out))
    passed = "Passed: preln must beat shallow by more than 3 standard deviations over seeds; it is +0.2000 over 2 seed(s), 14.1 times"
    assert passed in outcome.out
    report = Path("studies/try/report")
    text = (report / "report.md").read_text()
    assert "8 of 9 runs finished, 1 diverged." in text and passed in text
    row = (
        "| pld | 0, 1 | 40 | 10.2 k | 10.2 M | 8 s | 2.9150 ± 0.0212 | -0.0950 | -0.1585 to -0.0315 | 2 | preln | better at equal tokens |"
    )
    assert row in text
    assert "| lr-16e-3 | 0 | 40 | - | - | 8 s | diverged at step 12 |" in text
    assert "| 16e-3 | diverged at step 12 |" in text and "- lr-16e-3-seed0: diverged: training diverged: the loss is not finite" in text
    assert "rounds differ by 40%: THE MACHINE WAS NOT QUIET" in text.replace("Rounds", "rounds")
    assert "measured on a machine" in text and "torch 2.13" in text and half_done.read_text().strip() in text
    names = {path.name for path in report.iterdir()}
    assert names >= {"index.html", "comparison.json", "comparison.png", "sensitivity-optim.learning_rate.png", "against-lr-1e-3"}
    assert set(read_table(report / "metrics.csv.gz")) == {*LOSSES, "lr-16e-3-seed0"}
    assert [system["name"] for system in json.loads((report / "comparison.json").read_text())["systems"]] == ["preln", "shallow", "pld"]
    assert "Seconds are steps x step time" in (report / "index.html").read_text()
    for link in re.findall(r"\]\(([^)]+)\)", text):
        assert (report / link).is_file(), link


def test_a_study_that_extends_a_file_goes_on_from_its_own_directory(folder: Path, prepared: Path, pld: Run) -> None:
    shared = write_spec(prepared, {"preln": PRELN}, seeds=[0]).rename("shared.yaml")
    own = Path("own.yaml")
    own.write_text("name: try\nextends: shared.yaml\nset: {model.dropout: 0.1}\n")
    plan = begin(own, prepared)
    finish(plan, {"preln-seed0": 3.0})
    assert pld("study", own).code == 0
    shared.unlink()
    own.unlink()
    outcome = pld("study", "studies/try/spec.yaml")
    assert outcome.code == 0, outcome.err
    assert any(line.startswith("preln 0 40 ") and " 3.0000" in line for line in lines_of(outcome.out)), outcome.out
    assert "model.dropout: 0.1" in Path("studies/try/report/report.md").read_text()


def test_a_check_that_fails_is_said_loudly(folder: Path, prepared: Path, pld: Run) -> None:
    path = write_spec(prepared, {"preln": PRELN, "shallow": SYSTEMS["shallow"]}, seeds=[0, 1], checks=[CHECK])
    finish(begin(path, prepared), LOSSES | {"shallow-seed0": 3.03, "shallow-seed1": 3.03})
    outcome = pld("study", path, "--report-only")
    assert "NOT PASSED, SO THIS SIZE CANNOT ANSWER: preln must beat shallow" in outcome.out
    assert "NOT PASSED, SO THIS SIZE CANNOT ANSWER: preln" in Path("studies/try/report/report.md").read_text()
    content = json.loads(pld("study", path, "--report-only", "--json").out)
    [check] = content["checks"]
    assert (check["num_seeds"], check["passed"], check["difference"]) == (2, False, pytest.approx(0.02))
    assert [run["validation_loss"] for run in content["runs"]] == [3.0, 3.03, 3.02, 3.03]
    assert content["systems"][1]["verdict"] == "no difference seen at equal tokens" and content["is_complete"] is True


def test_a_halving_is_reported(folder: Path, prepared: Path, pld: Run) -> None:
    halving = {"candidates": ["a", "b"], "rungs": [{"fraction": 0.25}, {"fraction": 1, "keep": 1, "seeds": [0, 1]}]}
    path = write_spec(prepared, {"preln": PRELN, "a": PLD, "b": PLD}, halving=halving)
    plan = begin(path, prepared)
    rows = lines_of(pld("study", path, "--dry-run").out)
    assert "a-rung1 0 10 2.56 k 2 s not started" in rows and "best 1 of rung 1 0, 1 1 of whole not known yet" in rows
    for run, loss in zip(plan.rung(0, ("a", "b")), (3.0, 2.0), strict=True):
        place = write_run(Path("studies/try/runs", run.name), "train.total_steps=10", losses=[loss])
        (place / "config.yaml").write_text(presets.dump(run.config))
    outcome = pld("study", path, "--report-only")
    text = Path("studies/try/report/report.md").read_text()
    assert outcome.code == 0 and "| candidate | rung 1: 0.25, seeds 0 | rung 2: 1, seeds 0, 1 |" in text
    assert "| b | 1. 2.0000 | to do |" in text and "| a | 2. 3.0000 |  |" in text
    assert "2 of 5 runs finished, 3 not done yet." in text


def test_only_scores_that_the_study_counts_are_reported(folder: Path, prepared: Path, pld: Run) -> None:
    systems = {"preln": PRELN, "pld": PLD, "other": PRELN | {"set": {"model.num_hidden_layers": 2}}}
    path = write_spec(prepared, systems, finetune={"tasks": ["glue/rte"], "data_dir": "nowhere"})
    finish(begin(path, prepared), {f"{name}-seed0": 3.0 for name in systems})
    place = Path("studies/try/finetuned")
    for name, scores, cell in (("preln", [0.5], "seed=0"), ("pld", [0.75], "epochs=1.0,seed=0"), ("other", [None], "seed=0")):
        start = f"studies/try/runs/{name}-seed0/model"
        write_results(place / f"{name}-seed0" / "rte", task="glue/rte", start=start, scores=[scores], cells=[cell])
    outcome = pld("study", path, "--report-only")
    text = Path("studies/try/report/report.md").read_text()
    assert "glue/rte preln 50.00 1" in lines_of(outcome.out) and "glue/rte other diverged 0" in lines_of(outcome.out)
    assert "75.00" not in outcome.out + text
    assert "- pld-seed0/rte: not started" in text and "- other-seed0/rte: diverged" in text


def test_a_dry_run_says_what_is_left(half_done: Path, pld: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    before = sorted(Path().rglob("*"))
    outcome = pld("study", half_done, "--dry-run")
    assert outcome.code == 0 and "pld 1 40 10.2 k 8 s finished, loss 2.9300" in lines_of(outcome.out)
    assert "9 of 9 runs are done; about 0 s of training left, from measured steps" in outcome.out
    assert sorted(Path().rglob("*")) == before
    content = json.loads(pld("study", half_done, "--dry-run", "--json").out)
    assert content["runs"][0] == {
        "run": "preln-seed0", "system": "preln", "seed": 0, "total_steps": 40, "tokens": 10240, "seconds": pytest.approx(12.0),
        "state": "finished", "step": 40, "validation_loss": 3.0, "note": "",
    }  # fmt: skip
    monkeypatch.setenv("COLUMNS", "80")
    assert "…" not in pld("study", half_done, "--dry-run").out


@pytest.mark.parametrize(
    ("words", "code", "message"),
    [
        (("--jobs", "0"), 2, "Invalid value for '--jobs'"),
        (("--dry-run", "--report-only"), 2, "--dry-run and --report-only: exclude each other"),
        (("--data", "nowhere"), 3, "nowhere: no such directory of prepared data"),
        (("--report-only",), 2, "studies/try: nothing was trained for this file yet"),
    ],
)
def test_refusals(folder: Path, prepared: Path, pld: Run, words: tuple[str, ...], code: int, message: str) -> None:
    outcome = pld("study", write_spec(prepared, {"preln": PRELN}), *words)
    assert outcome.code == code and message in outcome.err and not Path("studies").exists()


@pytest.mark.usefixtures("forked", "impatient")
def test_a_whole_study(folder: Path, prepared: Path, pld: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    """Measured, trained side by side, one run diverging, fine-tuned, and reported; typed again nothing trains; a seed more trains alone."""
    small = [*SMALL, "train.total_steps=24", "eval.every_steps=12"]  # of fewer, half a step more may be more than equal time allows
    systems = {"preln": PRELN, "time": PLD | {"equal_time": "preln"}, "hot": PLD | {"set": {"optim.learning_rate": "1e6"}, "seeds": [0]}}
    Path("reviews.csv").write_text("text,label\n" + "".join(f"{'good' if i % 2 else 'bad'} {i},{i % 2}\n" for i in range(24)))
    finetune = {"tasks": ["reviews.csv"], "systems": ["preln"], "set": {"epochs": 1}}
    rows = [{"sentence_good": f"word {number} and so on", "sentence_bad": f"and {number} so word on"} for number in range(6)]
    Path("pairs.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    more = {"finetune": finetune, "minimal_pairs": ["pairs.jsonl"]}
    path = write_spec(prepared, systems, small=small, seeds=[0, 1], **more)
    outcome = pld("study", path, "--jobs", 2)
    assert outcome.code == 0, outcome.err
    assert "note: runs at once slow each other" in outcome.err and "hot-seed0: diverged at step" in outcome.err
    assert "5 runs, 0 done" in outcome.err and "(5 of 5 runs done)" in outcome.err
    assert "6 scores, 0 done" in outcome.err and "(6 of 6 scores done)" in outcome.err
    assert {path.parent.name for path in Path("studies/try/finetuned").glob("*/reviews")} == {"preln-seed0", "preln-seed1"}
    told = lines_of(outcome.out)
    assert any(line.startswith("reviews preln ") for line in told)
    assert sum(line.startswith(("minimal-pairs preln ", "minimal-pairs time ")) for line in told) == 2
    runs = Path("studies/try/runs")
    plan = json.loads(Path("studies/try/plan.json").read_text())
    steps = plan["systems"]["time"]["total_steps"]
    assert steps > 24
    assert presets.load(runs / "time-seed1" / "config.yaml").train.total_steps == steps
    [start] = read_starts(RunDirectory(runs / "time-seed1").environment)
    assert start["threads"] == 1 and start["command"].startswith("pld pretrain --preset bert-tiny-pld")
    text = Path("studies/try/report/report.md").read_text()
    assert "4 of 5 runs finished, 1 diverged." in text and "| hot | 0 | 24 | - | - | " in text
    assert re.search(r"\| time \| 0, 1 \| \d+ \|.* \| 2 \| preln \| (better|worse|no difference seen) at equal time \|", text)

    def never(*_: Any, **__: Any) -> None:
        raise AssertionError("nothing is left to train")

    began = study_commands.start_command
    monkeypatch.setattr(study_commands, "start_command", never)
    assert pld("study", path).code == 0
    started: list[str] = []

    def begin_one(arguments: list[str], **options: Any) -> Any:
        started.append(Path(arguments[arguments.index("--out") + 1]).name)
        return began(["--version"], **options)  # leaves no run behind

    monkeypatch.setattr(study_commands, "start_command", begin_one)
    systems["hot"]["seeds"] = [0, 5]
    outcome = pld("study", write_spec(prepared, systems, small=small, seeds=[0, 1], **more))
    assert outcome.code == 1 and started == ["hot-seed5"] and "error: hot-seed5 failed at step 0" in outcome.err


def test_a_fine_tuning_that_fails_is_named_at_the_end(folder: Path, prepared: Path, pld: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write_spec(prepared, {"preln": PRELN}, finetune={"tasks": ["glue/rte"], "data_dir": "nowhere"})
    finish(begin(path, prepared), {"preln-seed0": 3.0})
    dry = pld("study", path, "--dry-run").out
    assert "Then finished runs are fine-tuned on glue/rte; how long that takes is not in these times." in dry
    outcome = pld("study", path)
    assert outcome.code > 0 and "error: preln-seed0/rte failed: " in outcome.err
    assert "- preln-seed0/rte: failed: error: " in Path("studies/try/report/report.md").read_text()
    content = json.loads(pld("study", path, "--report-only", "--json").out)
    assert content["is_complete"] is False
    assert content["scores"] == [{"run": "preln-seed0", "task": "glue/rte", "state": "not started", "score": None, "note": ""}]


@pytest.mark.usefixtures("forked")
def test_a_run_that_fails_is_named_at_the_end(folder: Path, prepared: Path, pld: Run) -> None:
    """A micro-batch that does not divide shows in the run's own process alone."""
    path = write_spec(prepared, {"odd": PLD | {"set": {"train.micro_batch_size": 3}}, "preln": PRELN | {"steps": 2}})
    begin(path, prepared)
    outcome = pld("study", path)
    assert outcome.code == 2
    assert "error: odd-seed0 failed at step 0: train.micro_batch_size: 3 does not divide the 8 sequences" in outcome.err
    assert "1 of 2 runs finished, 1 failed." in Path("studies/try/report/report.md").read_text()


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 75), (signal.SIGKILL, -9)])
def test_a_killed_study_goes_on(folder: Path, prepared: Path, processes: Processes, number: int, code: int) -> None:
    small = [*SMALL, "train.total_steps=400", "train.log_every_steps=1", "eval.every_steps=200"]
    path = write_spec(prepared, {"pld": PLD | {"seeds": [0]}}, small=small).resolve()
    begin(path, prepared)
    out = folder / "studies" / "try"
    metrics, environment = out / "runs" / "pld-seed0" / "metrics.jsonl", out / "runs" / "pld-seed0" / "environment.json"
    study = processes.pld("study", path, "--out", out)
    wait_for(lambda: last_step(metrics.parent) > 3, seconds=600)
    study.kill(number)
    assert study.wait() == code
    if number != signal.SIGKILL:
        assert ", 0 of 1 runs done, the others saved; run the same command again to resume" in study.err
    wait_for(lambda: not RunDirectory(metrics.parent).is_locked, seconds=600)
    assert any((metrics.parent / "checkpoints").iterdir())
    again = processes.pld("study", path, "--out", out)
    assert again.wait() == 0, again.err
    assert "resumes after step" in again.err and len(read_starts(environment)) == 2
    steps = [json.loads(line)["step"] for line in metrics.read_text().splitlines() if "train/loss" in line]
    assert steps == sorted(set(steps)) and steps[-1] == 400
