from __future__ import annotations

import json
import os
import re
import shlex
import shutil
import signal
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file
from torch.distributed.elastic.multiprocessing.errors import ChildFailedError, ProcessFailure

from pldcli.errors import DeviceError, PldError, PreemptedError, StoppedError
from pldcli.runs.checkpoint import list_checkpoints, verify
from pldcli.runs.run_directory import RunDirectory
from pldcli.system import launcher, workers
from pldcli.system.error_file import note_beginning
from tests.conftest import wait_for
from tests.forks import BELOW, RANKED

pytestmark = pytest.mark.skipif(not Path("/proc/self/environ").exists(), reason="reads /proc")

MODEL = ("model.hidden_size=32", "model.num_hidden_layers=3", "model.intermediate_size=64", "data.seq_len=32", "train.global_batch_size=8")
RUN = (*MODEL, "pld.draws_per_step=2", "train.total_steps=60", "checkpoint.every_steps=10", "eval.every_steps=60", "eval.max_sequences=8")


def line(prepared: Path, out: Path, *more: str) -> list[str]:
    return [
        "pretrain",
        "--preset",
        "bert-tiny-pld",
        *RUN,
        "--data",
        str(prepared),
        "--out",
        str(out),
        "--gpus",
        "2",
        "--device",
        "cpu",
        *more,
    ]


def ranks(parent: int) -> dict[int, int]:
    """Find the processes below one, by RANK; /proc has the environment with which a fork's server began."""
    found: dict[int, int] = {}
    for place in Path("/proc").iterdir():
        try:
            if place.name.isdecimal() and int((place / "stat").read_text().rpartition(")")[2].split()[1]) == parent:
                name, _, rank = (place / "comm").read_text().strip().partition(" ")
                variables = dict(entry.partition("=")[::2] for entry in (place / "environ").read_text().split("\0"))
                if name == RANKED:
                    found[int(rank)] = int(place.name)
                elif "RANK" in variables and variables.get("WORLD_SIZE", "1") != "1":
                    found[int(variables["RANK"])] = int(place.name)
        except (OSError, ValueError):
            continue
    return found


def alive(process: int) -> bool:
    return Path(f"/proc/{process}").exists() and Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0] != "Z"


def has_saved(out: Path) -> bool:
    return bool(list_checkpoints(out / "checkpoints"))


def weights(out: Path) -> dict[str, Any]:
    return {name: tensor.tolist() for name, tensor in load_file(out / "model" / "model.safetensors").items()}


@pytest.fixture(scope="module")
def whole(processes: Any, prepared: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run in two processes that nothing happened to; these are started as torch's agent does."""
    out = tmp_path_factory.mktemp("two") / "run"
    process = processes.pld(*line(prepared, out), environment={BELOW: ""})
    assert process.wait() == 0, process.err
    return out


def test_one_command_trains_in_two_processes(whole: Path, prepared: Path) -> None:
    [start] = json.loads((whole / "environment.json").read_text())["starts"]
    assert start["processes"] == 2
    assert start["command"] == shlex.join(["pld", *line(prepared, whole)]), "what was typed, not what the processes were told"


def test_a_process_that_is_killed_ends_all_by_name(processes: Any, prepared: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    process = processes.pld(*line(prepared, out))
    wait_for(lambda: has_saved(out))
    below = ranks(process.number)
    assert set(below) == {0, 1}
    os.kill(below[1], signal.SIGKILL)
    began = time.monotonic()
    assert process.wait() == 5
    assert time.monotonic() - began < 45
    assert "error: process 1 of 2 was ended by SIGKILL; run the same command again to resume" in process.err
    wait_for(lambda: not any(map(alive, below.values())), seconds=5)
    for path in list_checkpoints(out / "checkpoints"):
        verify(path)


def test_a_process_that_hangs_is_named_and_ended(processes: Any, prepared: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    process = processes.pld(*line(prepared, out, "train.total_steps=100000", "runtime.timeout_seconds=4"))
    wait_for(lambda: has_saved(out))
    below = ranks(process.number)
    os.kill(below[1], signal.SIGSTOP)
    began = time.monotonic()
    assert process.wait() == 5
    assert time.monotonic() - began < 30, "not the half minute more that the agent waits"
    assert "error: process 0: process 1 of 2 did not answer for 4 s; raise runtime.timeout_seconds" in process.err
    assert "error: process 1 of 2 did not answer for 4 s; run the same command again to resume" in process.err
    assert "SIGKILL" not in process.err
    wait_for(lambda: not any(map(alive, below.values())), seconds=5)


FULL_DISK = """
import os
if os.environ.get("RANK") == "1":
    import pldcli.runs.checkpoint as module
    write = module.write_sealed
    def full(path, *arguments, **named):
        if "step-00000020" in path.name:
            raise OSError(28, "No space left on device", str(path))
        return write(path, *arguments, **named)
    module.write_sealed = full
"""


@pytest.mark.parametrize("background", ["off", "on"])
def test_a_part_that_cannot_be_written_ends_all_with_its_cause(processes: Any, prepared: Path, tmp_path: Path, background: str) -> None:
    out = tmp_path / "run"
    (tmp_path / "sitecustomize.py").write_text(FULL_DISK)
    more = ("runtime.sharding=full", "runtime.timeout_seconds=60", f"checkpoint.background={background}", "train.log_every_steps=1")
    path = os.pathsep.join([str(tmp_path), *sys.path])
    process = processes.pld(*line(prepared, out, *more), environment={"PYTHONPATH": path})
    wait_for(lambda: has_saved(out))
    assert process.wait() == 7, process.err
    assert "error: the disk is full" in process.err and "SIGKILL" not in process.err
    assert [path.name for path in (out / "checkpoints").glob("step-*")] == ["step-00000010"]


def failing(*codes: int | str) -> ChildFailedError:
    """Make the agent's error of processes that end one after another: by an exit code, or for having lost one that `died` or `hung`."""
    failures = {}
    for rank, code in enumerate(codes):
        failure = ProcessFailure(local_rank=rank, pid=1, exitcode=code if isinstance(code, int) else 5, error_file="")
        if isinstance(code, str):
            failure.message, failure.error_file_data = "process 9 did not answer", {"lost": {"hung": code == "hung"}}
        failures[rank] = failure
    return ChildFailedError("pld", failures)


@pytest.mark.parametrize(
    ("codes", "code", "what"),
    [
        ((-9, "died"), 5, "process 0 of 2 was ended by SIGKILL"),
        (("died", -9), 5, "process 1 of 2 was ended by SIGKILL"),
        (("hung", -9), 5, "process 9 did not answer"),
        (("died", 7), 7, ""),
        ((7, -9), 7, ""),
        ((-15, 3), 3, ""),
        ((75, 75), 75, ""),
        ((75, 7), 7, ""),
        ((75, -9), 5, "process 1 of 2 was ended by SIGKILL"),
        (("died", "died"), 5, ""),
    ],
)
def test_the_cause_is_what_failed_by_itself(codes: tuple[int | str, ...], code: int, what: str) -> None:
    found, said = launcher._cause(failing(*codes), len(codes))
    assert found == code and (said.startswith(what) if what else not said)


STARTING = -1


def ended(place: Path, *codes: int | None) -> Path:
    """Write what processes told of their end; of one that was killed None, or STARTING where it had not begun to work."""
    for rank, code in enumerate(codes):
        told = place / "job_x" / "attempt_0" / str(rank) / "error.json"
        told.parent.mkdir(parents=True)
        if code != STARTING:
            with pytest.MonkeyPatch.context() as patch:
                patch.setenv("TORCHELASTIC_ERROR_FILE", str(told))
                note_beginning()
        if code not in (None, STARTING):
            told.write_text(json.dumps({"message": "why", "exit_code": code}))
    return place


@pytest.mark.parametrize(
    ("number", "codes", "kind", "what"),
    [
        (signal.SIGTERM, (75, 75), PreemptedError, "all 2 processes have ended after SIGTERM"),
        (signal.SIGINT, (130, 130), StoppedError, "all 2 processes have ended after SIGINT"),
        (signal.SIGTERM, (75, None), DeviceError, "1 of 2 processes ended after SIGTERM without having saved, kept; run the same"),
        (signal.SIGTERM, (None, None), DeviceError, "2 of 2 processes ended after SIGTERM without having saved, kept"),
        (signal.SIGTERM, (STARTING, STARTING), PreemptedError, "2 of 2 processes were still starting when SIGTERM arrived; run the same"),
        (signal.SIGTERM, (75, STARTING), PreemptedError, "1 of 2 processes were still starting when SIGTERM arrived"),
        (signal.SIGTERM, (None, STARTING), DeviceError, "2 of 2 processes ended after SIGTERM without having saved, kept"),
        (signal.SIGINT, (STARTING, STARTING), StoppedError, "2 of 2 processes were still starting when SIGINT arrived"),
        (signal.SIGINT, (None, 130), StoppedError, "1 of 2 processes ended after SIGINT without having saved, kept"),
    ],
)
def test_a_signal_is_a_stop_where_nothing_is_lost(
    tmp_path: Path, number: signal.Signals, codes: tuple[int | None, ...], kind: type[PldError], what: str
) -> None:
    with pytest.raises(PldError) as caught:
        launcher._after_signal(number, len(codes), ended(tmp_path, *codes), lambda: "kept")
    assert type(caught.value) is kind and str(caught.value).startswith(what)


@pytest.mark.parametrize(("codes", "code"), [((0, 0), 0), ((7, 75), 7), ((None, 7), 7)])
def test_what_failed_or_finished_after_a_signal_has_its_own_code(tmp_path: Path, codes: tuple[int | None, ...], code: int) -> None:
    assert launcher._after_signal(signal.SIGTERM, len(codes), ended(tmp_path, *codes), lambda: "kept") == code


def test_a_signal_saves_in_all(processes: Any, prepared: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    process = processes.pld(*line(prepared, out, "checkpoint.every_steps=1000"))
    wait_for(lambda: (out / "metrics.jsonl").is_file() and "train/loss" in (out / "metrics.jsonl").read_text())
    below = ranks(process.number)
    process.kill(signal.SIGUSR1)
    assert process.wait() == 75
    assert re.search(r"terminated, saved at step \d+", process.err) and "all 2 processes have ended after SIGTERM" in process.err
    assert not any(map(alive, below.values())) and has_saved(out)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGUSR1, signal.SIGINT])
def test_a_signal_while_they_start_is_a_stop(processes: Any, prepared: Path, tmp_path: Path, number: signal.Signals) -> None:
    out = tmp_path / "run"
    process = processes.pld(*line(prepared, out))
    wait_for(lambda: len(ranks(process.number)) == 2)
    process.kill(number)
    assert process.wait() == (130 if number == signal.SIGINT else 75), process.err
    assert number == signal.SIGINT or "processes were still starting when SIGTERM arrived; run the same command again" in process.err


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGUSR1])
def test_a_signal_before_the_agent_answers_is_a_stop(monkeypatch: pytest.MonkeyPatch, number: signal.Signals) -> None:
    before = [signal.getsignal(one) for one in (signal.SIGTERM, signal.SIGUSR1)]
    monkeypatch.setattr(launcher, "_run_once", lambda *_: signal.raise_signal(number))
    with pytest.raises(PreemptedError, match="2 of 2 processes were still starting when SIGTERM arrived"):
        launcher.run_processes(2, list, kept=str)
    assert [signal.getsignal(one) for one in (signal.SIGTERM, signal.SIGUSR1)] == before


@pytest.mark.parametrize("has_checkpoint", [False, True])
def test_where_work_is_lost_the_last_checkpoint_is_named(tmp_path: Path, whole: Path, has_checkpoint: bool) -> None:
    run = RunDirectory(whole if has_checkpoint else tmp_path / "run")
    there = f"the last checkpoint is {run.checkpoints / 'step-00000060'}" if has_checkpoint else f"{run.path} has no checkpoint"
    with pytest.raises(
        DeviceError, match=f"2 of 2 processes ended after SIGTERM without having saved, {there}; run the same command again"
    ):
        launcher._after_signal(signal.SIGTERM, 2, ended(tmp_path, None, None), lambda: run.what_is_saved)


def test_without_their_parent_they_save_and_end(processes: Any, prepared: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    process = processes.pld(*line(prepared, out, "checkpoint.every_steps=1000", "train.total_steps=100000"))
    wait_for(lambda: (out / "metrics.jsonl").is_file() and "train/loss" in (out / "metrics.jsonl").read_text())
    below = ranks(process.number)
    process.kill(signal.SIGKILL)
    process.wait()
    wait_for(lambda: not any(map(alive, below.values())), seconds=30)
    [path] = list_checkpoints(out / "checkpoints")
    verify(path)


def test_the_others_begin_anew_and_end_where_nothing_had_happened(processes: Any, prepared: Path, tmp_path: Path, whole: Path) -> None:
    out = tmp_path / "run"
    process = processes.pld(*line(prepared, out, "--max-restarts", "1"))
    wait_for(lambda: has_saved(out))
    os.kill(ranks(process.number)[0], signal.SIGKILL)
    assert process.wait() == 0, process.err
    assert len(json.loads((out / "environment.json").read_text())["starts"]) == 2
    assert weights(out) == weights(whole)


def test_a_run_that_was_to_begin_afresh_is_not_begun_afresh_again(processes: Any, prepared: Path, tmp_path: Path, whole: Path) -> None:
    out, aside = tmp_path / "run", tmp_path / "run.1"
    shutil.copytree(whole, out)
    process = processes.pld(*line(prepared, out, "--max-restarts", "1", "--resume", "never"))
    wait_for(lambda: aside.exists() and has_saved(out))
    os.kill(ranks(process.number)[1], signal.SIGKILL)
    assert process.wait() == 0, process.err
    assert "warning: process 1 of 2 was ended by SIGKILL; all 2 begin anew, 0 more restarts" in process.err
    assert len(json.loads((out / "environment.json").read_text())["starts"]) == 2 and weights(out) == weights(whole)
    assert {path.name for path in tmp_path.iterdir()} == {"run", "run.1"} and weights(aside) == weights(whole)


def test_a_stop_is_no_failure(processes: Any, prepared: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    process = processes.pld(*line(prepared, out, "train.total_steps=100000", "--stop-after", "8s", "--max-restarts", "2"))
    assert process.wait() == 75, process.err
    assert len(json.loads((out / "environment.json").read_text())["starts"]) == 1 and process.err.count("time is up") == 1


@pytest.mark.parametrize(
    ("codes", "attempts"), [([code], 1) for code in (0, 2, 3, 4, 6, 7, 75, 130)] + [([1, 5, 1], 3), ([1, 7], 2), ([5, 0], 2)]
)
def test_what_would_fail_alike_is_not_tried_again(monkeypatch: pytest.MonkeyPatch, codes: list[int], attempts: int) -> None:
    left, seen, said = iter(codes), [], []

    def run_once(count: int, arguments: list[str], job: str, endings: Path) -> tuple[int, str]:
        seen.append((arguments, job))
        return next(left), ""

    monkeypatch.setattr(launcher, "_run_once", run_once)
    code = launcher.run_processes(2, lambda: [f"attempt {len(seen)}"], kept=str, max_restarts=2, say=said.append)
    assert code == codes[-1]
    assert [arguments for arguments, _ in seen] == [[f"attempt {number}"] for number in range(attempts)]
    assert len({job for _, job in seen}) == 1, "all attempts are one job"
    assert len(said) == attempts - 1


@pytest.mark.parametrize(
    ("count", "cores", "chosen", "threads"), [(2, 7, None, "3"), (8, 2, None, "1"), (2, 7, "5", "5")], ids=["share", "one", "chosen"]
)
def test_each_computes_on_its_share_of_the_cores(
    monkeypatch: pytest.MonkeyPatch, count: int, cores: int, chosen: str | None, threads: str
) -> None:
    seen = []
    monkeypatch.setattr(workers, "available_cores", lambda: cores)
    monkeypatch.setattr(launcher, "elastic_launch", lambda *_: lambda *_: seen.append(os.environ.get("OMP_NUM_THREADS")))
    monkeypatch.delenv("OMP_NUM_THREADS")
    if chosen:
        monkeypatch.setenv("OMP_NUM_THREADS", chosen)
    assert launcher.run_processes(count, list, kept=str) == 0
    assert seen == [threads] and os.environ.get("OMP_NUM_THREADS") == chosen


def test_what_is_wrong_is_said_once(processes: Any, prepared: Path, tmp_path: Path) -> None:
    process = processes.pld(*line(prepared, tmp_path / "run", "model.hidden_size=33"))
    assert process.wait() == 2 and process.err.count("error:") == 1
    process = processes.pld(*line(prepared, tmp_path / "run", "--budget", "1h"))
    assert process.wait() == 2 and "--budget with --gpus: steps are timed in one process" in process.err
    process = processes.pld("pretrain", "--max-restarts", "1", "--data", prepared)
    assert process.wait() == 2 and "--max-restarts does nothing without --gpus" in process.err
    assert not (tmp_path / "run").exists() and sys.platform == "linux"
