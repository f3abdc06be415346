"""Work that is there is never overwritten: what the same line does where checkpoints are gone."""

from __future__ import annotations

import json
import os
import shutil
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from pldcli import cli
from pldcli.engine.runtime import Runtime
from pldcli.preparation.prepare import prepare
from pldcli.pretraining.starting_point import resume_of_restart
from pldcli.runs.checkpoint import list_checkpoints
from pldcli.runs.run_directory import RunDirectory
from tests.conftest import TINY, Outcome, wait_for
from tests.pretraining.test_pretrain import SLOW, arguments, everything_below, rows, steps, stop_in_step, weights
from tests.pretraining.test_pretrain_init import save_source

Pld = Callable[..., Outcome]


@pytest.fixture(scope="module")
def finished(prepared: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("runs") / "run"
    assert cli.run(arguments(prepared, out)) == 0
    return out


@pytest.fixture
def slimmed(finished: Path, tmp_path: Path) -> Path:
    """The finished run without its checkpoints."""
    shutil.copytree(finished, tmp_path / "run")
    shutil.rmtree(tmp_path / "run" / "checkpoints")
    return tmp_path / "run"


@pytest.fixture
def stopped(pld: Pld, prepared: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A run stopped in its eighth step; it saves every fifth."""
    with monkeypatch.context() as patch:
        stop_in_step(patch, 7)
        assert pld(*arguments(prepared, tmp_path / "stopped")).code == 75
    return tmp_path / "stopped"


def content(run: Path) -> dict[Path, bytes]:
    return {path: (run / path).read_bytes() for path in everything_below(run) if (run / path).is_file() and path.name != ".lock"}


def refused(outcome: Outcome, *messages: str) -> bool:
    return outcome.code == 4 and outcome.err.count("\n") == 1 and all(message in outcome.err for message in messages)


def other_data(prepared: Path, tmp_path: Path) -> Path:
    (tmp_path / "other.txt").write_text("\n".join(f"a line of text with number {n}" for n in range(3000)))
    tokenizer = prepared / "tokenizer.json"
    return prepare([tmp_path / "other.txt"], tmp_path / "other", document_per="line", tokenizer=tokenizer, processes=1, quiet=True).path


@pytest.mark.parametrize("lost", [(), ("metrics.jsonl",), ("README.md",), ("environment.json", "metrics.jsonl", "README.md")])
@pytest.mark.parametrize("is_empty", [False, True])
def test_a_finished_run_without_checkpoints_is_finished(
    pld: Pld, prepared: Path, slimmed: Path, lost: tuple[str, ...], is_empty: bool
) -> None:
    for name in lost:
        (slimmed / name).unlink()
    if is_empty:
        (slimmed / "checkpoints").mkdir()
    before = content(slimmed)
    for control in ((), ("train.log_every_steps=5", "runtime.checkpoint_activations=true"), ("--budget", "1h")):
        words = arguments(prepared, slimmed, *control)
        outcome = pld(*[word for word in words if "--budget" not in control or not str(word).startswith("train.total_steps=")])
        assert outcome.code == 0, outcome.err
        assert outcome.out.startswith(f"{slimmed} is finished: 12 steps, model in {slimmed / 'model'}; next: pld evaluate ")
        assert content(slimmed) == before


def test_a_finished_run_keeps_its_model_when_its_last_checkpoint_is_gone(pld: Pld, prepared: Path, finished: Path, tmp_path: Path) -> None:
    shutil.copytree(finished, tmp_path / "run")
    shutil.rmtree(list_checkpoints(tmp_path / "run" / "checkpoints")[-1])
    before = content(tmp_path / "run")
    outcome = pld(*arguments(prepared, tmp_path / "run"))
    assert outcome.code == 0 and "is finished: 12 steps" in outcome.out
    assert content(tmp_path / "run") == before


def test_another_run_in_the_place_of_a_finished_one_is_refused(pld: Pld, prepared: Path, slimmed: Path, tmp_path: Path) -> None:
    before = content(slimmed)
    assert refused(pld(*arguments(prepared, slimmed, "train.total_steps=24")), str(slimmed), "train.total_steps 12 -> 24", "--resume never")
    assert refused(pld(*arguments(other_data(prepared, tmp_path), slimmed)), f"{slimmed}: was trained on other prepared data")
    assert content(slimmed) == before
    outcome = pld(*arguments(prepared, slimmed, "train.total_steps=1", "--resume", "never"))
    assert outcome.code == 0
    assert content(slimmed.with_name("run.1")) == before and [row["step"] for row in rows(slimmed)] == [1]


def test_a_stopped_run_without_checkpoints_is_not_begun_anew(pld: Pld, prepared: Path, stopped: Path) -> None:
    shutil.rmtree(stopped / "checkpoints")
    before = content(stopped)
    outcome = pld(*arguments(prepared, stopped))
    assert refused(
        outcome, f"{stopped}: holds metrics up to step 6, but no checkpoint to resume from", "or set it aside with --resume never"
    )
    assert content(stopped) == before
    assert "with --resume never (its checkpoints are gone)" in pld("runs", stopped.parent).out


def test_a_model_of_a_run_that_was_set_back_is_not_replaced(pld: Pld, prepared: Path, slimmed: Path) -> None:
    kept = [row for row in rows(slimmed, "step") if row["step"] <= 4]
    (slimmed / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in kept))
    before = content(slimmed)
    assert refused(pld(*arguments(prepared, slimmed)), "holds metrics up to step 4 and a model, but no checkpoint to resume from")
    assert content(slimmed) == before


@pytest.mark.parametrize("name", ["metrics.jsonl", "model", "environment.json"])
def test_remains_without_a_configuration_are_no_run(pld: Pld, prepared: Path, slimmed: Path, name: str) -> None:
    for entry in slimmed.iterdir():
        if entry.name != name:
            (shutil.rmtree if entry.is_dir() else Path.unlink)(entry)
    before = content(slimmed)
    for how in ("auto", "never"):
        outcome = pld(*arguments(prepared, slimmed, "--resume", how))
        assert outcome.code == 7 and f"{slimmed}: is not a run directory" in outcome.err
    assert content(slimmed) == before


def test_killed_before_the_first_checkpoint(processes: Any, pld: Pld, prepared: Path, tmp_path: Path, finished: Path) -> None:
    """It cannot go on and starts anew, but what it wrote down stays, and it says so."""
    out = tmp_path / "run"
    line = arguments(prepared, out, "train.log_every_steps=1", "checkpoint.every_steps=100", "eval.every_steps=100")
    process = processes.python(SLOW.format(arguments=line))
    wait_for(lambda: (out / "metrics.jsonl").is_file() and '"step": 2' in (out / "metrics.jsonl").read_text())
    process.kill(signal.SIGKILL)
    process.wait()
    before, last = (out / "metrics.jsonl").read_bytes(), rows(out)[-1]["step"]
    assert refused(pld(*line, "train.seed=1"), "train.seed 0 -> 1", "--resume never"), "its metrics would belong to nothing"
    assert (out / "metrics.jsonl").read_bytes() == before
    outcome = pld(*line)
    assert outcome.code == 0, outcome.err
    assert f"warning: the {last} steps done here left no checkpoint; their metrics are now {out / 'metrics.jsonl.1'}\n" in outcome.out
    assert (out / "metrics.jsonl.1").read_bytes() == before
    assert [row["step"] for row in rows(out)] == list(range(1, 13)) and weights(out) == weights(finished)


def test_a_checkpoint_of_another_run_does_not_replace_a_run(pld: Pld, prepared: Path, stopped: Path, slimmed: Path) -> None:
    before = content(slimmed)
    outcome = pld(*arguments(prepared, slimmed, "--resume", stopped))
    assert refused(outcome, f"{slimmed}: holds a run already", "resume that one with --resume auto")
    assert content(slimmed) == before
    for name in ("model", "README.md"):
        (shutil.rmtree if (slimmed / name).is_dir() else Path.unlink)(slimmed / name)
    metrics = (slimmed / "metrics.jsonl").read_bytes()
    assert pld(*arguments(prepared, slimmed, "--resume", stopped)).code == 0
    assert (slimmed / "metrics.jsonl.1").read_bytes() == metrics


def test_a_damaged_checkpoint_of_another_run_is_named(pld: Pld, prepared: Path, finished: Path, tmp_path: Path) -> None:
    """It is continued from the one before; where none verifies, that is said."""
    other = Path(shutil.copytree(finished, tmp_path / "other"))
    *older, last = list_checkpoints(other / "checkpoints")
    (last / "state.json").write_text("{}")
    outcome = pld(*arguments(prepared, tmp_path / "run", "--resume", other))
    assert outcome.code == 0, outcome.err
    assert f"warning: {last / 'state.json'}: is damaged: it differs from its checksum; skipped\n" in outcome.out
    assert f"resuming after step {int(older[-1].name[5:])}\n" in outcome.out
    for path in older:
        (path / "state.json").write_text("{}")
    outcome = pld(*arguments(prepared, tmp_path / "second", "--resume", other))
    assert refused(outcome, f"{other / 'checkpoints'}: no checkpoint verifies; name another run")
    assert outcome.out.count("; skipped\n") == len(older) + 1


def test_a_finished_run_needs_the_model_it_began_with_no_more(pld: Pld, prepared: Path, tmp_path: Path) -> None:
    source, out = save_source(tmp_path / "source", prepared, "pre"), tmp_path / "run"
    settings = [change for change in TINY if not change.startswith("model.")]
    line = ["pretrain", "--preset", "bert-tiny-pld", *settings, "data.seq_len=24", "train.total_steps=2", "--init-from", source]
    line += ["--data", prepared, "--out", out]
    assert pld(*line).code == 0
    shutil.rmtree(out / "checkpoints")
    shutil.rmtree(source)
    before = content(out)
    outcome = pld(*line)
    assert outcome.code == 0, outcome.err
    assert "is finished: 2 steps" in outcome.out and content(out) == before


@pytest.mark.parametrize(
    ("job", "restarts", "on_record", "is_restart"),
    [
        ("", 0, None, False),
        ("", 0, "", False),
        ("a", 0, "a", True),
        ("a", 0, "b", False),
        ("none", 0, "none", False),
        ("none", 1, "none", True),
    ],
)
def test_a_job_that_is_restarted_resumes_what_it_began(
    tmp_path: Path, job: str, restarts: int, on_record: str | None, is_restart: bool
) -> None:
    run, is_ours = RunDirectory(tmp_path), Runtime(torch.device("cpu"), job=job, restarts=restarts).is_of_this_job
    path = str(tmp_path / "checkpoints" / "step-00000005")

    def resumes() -> list[str]:
        return [resume_of_restart(run, told, is_of_this_job=is_ours) for told in ("auto", "never", path)]

    assert resumes() == ["auto", "never", path], "nothing began yet"
    start = {} if on_record is None else {"job": on_record}
    run.environment.write_text(json.dumps({"starts": [{"job": "a"}, start]}))
    assert resumes() == (["auto", "auto", path] if is_restart else ["auto", "never", path]), "where it began is still to be read"
    Path(path).mkdir(parents=True)
    assert resumes() == (["auto"] * 3 if is_restart else ["auto", "never", path])


KILLED_ONCE = """
import os, signal
if os.environ.get("RANK") == str(int(os.environ.get("WORLD_SIZE", "0")) - 1) and os.environ["TORCHELASTIC_RESTART_COUNT"] == "0":
    from pldcli.engine.trainer import Trainer
    step, calls = Trainer._step, iter(range(100))
    def killed(self, *arguments, **named):
        if next(calls) == 6:
            os.kill(os.getpid(), signal.SIGKILL)
        return step(self, *arguments, **named)
    Trainer._step = killed
"""


@pytest.mark.parametrize("count", [1, 2])
def test_a_new_call_of_torchrun_under_the_same_name_is_no_restart(processes: Any, prepared: Path, tmp_path: Path, count: int) -> None:
    """In each call the last process is killed behind the checkpoint of step 5, and all begin anew."""
    out, place = tmp_path / "runs" / "run", tmp_path / "code"
    place.mkdir()
    (place / "sitecustomize.py").write_text(KILLED_ONCE)
    path = {"PYTHONPATH": os.pathsep.join([str(place), *sys.path])}
    meeting = ["--rdzv-id", "one", "--rdzv-backend", "c10d", "--rdzv-endpoint", "localhost:0"]
    line = arguments(prepared, out, "--resume", "never", "checkpoint.every_steps=5", "eval.every_steps=12")
    words = ["--nproc-per-node", str(count), *meeting, "--max-restarts", "1", "-m", "pldcli", *map(str, line)]
    for names in ({"run"}, {"run", "run.1"}):
        process = processes.python(f"from torch.distributed.run import main; main({words})", environment=path)
        assert process.wait() == 0, process.err
        starts = json.loads((out / "environment.json").read_text())["starts"]
        assert len(starts) == 2 and len({start["job"] for start in starts}) == 1, "the second start is a restart of the first"
        assert {path.name for path in out.parent.iterdir()} == names


def test_all_processes_decide_the_same(processes: Any, prepared: Path, slimmed: Path, tmp_path: Path, stopped: Path) -> None:
    """Two processes: a finished run ends at once, and one killed before its first checkpoint trains to its end."""
    torchrun = ["--nproc-per-node", "2", "--master-port", "0", "--standalone", "-m", "pldcli"]
    early = tmp_path / "early"
    shutil.copytree(stopped, early)
    shutil.rmtree(early / "checkpoints")
    (early / "metrics.jsonl").write_text('{"step": 4, "train/loss": 1.0}\n')
    for run, said in ((slimmed, f"{slimmed} is finished: 12 steps"), (early, f"are now {early / 'metrics.jsonl.1'}")):
        words = [str(word) for word in (*torchrun, *arguments(prepared, run))]
        process = processes.python(f"from torch.distributed.run import main; main({words})")
        assert process.wait() == 0, process.err
        assert process.out.count(said) == 1
    assert steps(early) == [10, 12]
