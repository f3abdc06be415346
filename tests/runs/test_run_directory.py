import errno
import fcntl
import json
import os
import platform
import re
import shlex
import threading
import time

import pytest

from pldcli import presets
from pldcli.errors import OutputError
from pldcli.runs.run_directory import RunDirectory, list_runs, summarise
from pldcli.system.machine import boot_id
from tests.conftest import TINY, tiny_config, wait_for


def make(place, *, rows=(), checkpoints=(), model=False, card=False):
    (place / "checkpoints").mkdir(parents=True)
    (place / "config.yaml").write_text(presets.dump(tiny_config()))
    (place / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    for step in checkpoints:
        (place / "checkpoints" / f"step-{step:08d}").mkdir()
    if model:
        (place / "model").mkdir()
        (place / "model" / "config.json").write_text("{}")
    if card:
        (place / "README.md").write_text("")
    return RunDirectory(place)


def test_states(tmp_path):
    trained = [
        {"step": 6, "train/loss": 3.0, "progress/train_seconds": 4.5},
        {"step": 6, "eval/mlm_loss": 2.5},
        {"step": 9, "train/loss": None},
    ]
    last = [*trained, {"step": 12, "train/loss": 2.0, "progress/train_seconds": 9.0}]
    runs = {
        "not started": make(tmp_path / "a"),
        "stopped": make(tmp_path / "b", rows=trained, checkpoints=[6]),
        "finished": make(tmp_path / "c", rows=last, checkpoints=[12], model=True, card=True),
    }
    for state, run in runs.items():
        assert summarise(run).state == state
    assert summarise(make(tmp_path / "d", rows=last, checkpoints=[12], model=True)).state == "stopped", "killed before its card"
    assert summarise(make(tmp_path / "e", rows=trained, model=True, card=True)).state == "stopped", "set back after it had finished"
    assert summarise(make(tmp_path / "f", checkpoints=[5])).state == "stopped"
    stopped = summarise(runs["stopped"])
    assert (stopped.step, stopped.total_steps, stopped.train_loss, stopped.eval_loss, stopped.train_seconds) == (9, 12, 3.0, 2.5, 4.5)
    assert summarise(runs["finished"]).next_action == f"pld evaluate {tmp_path / 'c'}"
    with runs["stopped"].lock():
        assert summarise(runs["stopped"]).state == "running"
    assert summarise(runs["stopped"]).state == "stopped"
    (tmp_path / "g").mkdir()
    (tmp_path / "g" / "config.yaml").write_text("model: [")
    assert summarise(RunDirectory(tmp_path / "g")).state == "unreadable"
    (tmp_path / "h").mkdir()
    (tmp_path / "file").write_text("")
    assert [run.path.name for run in list_runs(tmp_path)] == ["a", "b", "c", "d", "e", "f", "g"]
    assert list_runs(tmp_path / "nowhere") == []


@pytest.mark.parametrize(
    ("there", "state", "step"),
    [
        ({"checkpoints": [12], "model": True, "card": True}, "finished", 12),
        ({"model": True, "card": True}, "finished", 12),
        ({"model": True}, "finished", 12),
        ({"rows": [{"step": 12}], "model": True}, "finished", 12),
        ({"rows": [{"step": 6}], "checkpoints": [9]}, "stopped", 9),
    ],
)
def test_the_state_is_what_starting_again_would_find_when_files_are_gone(tmp_path, there, state, step):
    run = summarise(make(tmp_path / "a", **there))
    assert (run.state, run.step) == (state, step)


def test_a_line_to_type_is_quoted(tmp_path):
    run = summarise(make(tmp_path / "a b", model=True, card=True))
    assert shlex.split(run.next_action) == ["pld", "evaluate", str(tmp_path / "a b")]


def test_the_lock(tmp_path):
    run = RunDirectory(tmp_path / "deep" / "run")
    assert not run.is_locked
    with run.lock():
        assert run.is_locked
        with pytest.raises(OutputError, match="another process is training here") as caught, run.lock():
            pytest.fail("held twice")
        assert caught.value.exit_code == 7
    assert not run.is_locked
    with run.lock():
        pass


def test_whoever_looks_at_the_lock_keeps_nobody_from_taking_it(tmp_path):
    """Looking holds the lock for a moment: taking it then waits, instead of refusing to train."""
    run, taken = RunDirectory(tmp_path), []
    with run.lock():
        pass
    looking = (tmp_path / ".lock").open("r")
    fcntl.flock(looking, fcntl.LOCK_SH)
    assert not run.is_locked, "two may look at once"
    trainer = threading.Thread(target=lambda: taken.append(run.lock().__enter__()))
    trainer.start()
    time.sleep(0.1)
    assert not taken
    looking.close()
    trainer.join(10)
    assert taken == [None]


def test_the_lock_of_another_process(tmp_path, processes):
    run = RunDirectory(tmp_path)
    code = f"""
import time
from pathlib import Path
from pldcli.runs.run_directory import RunDirectory
with RunDirectory(Path({str(tmp_path)!r})).lock():
    time.sleep(60)
"""
    process = processes.python(code)
    wait_for(lambda: run.is_locked and (tmp_path / ".lock").read_text() != "")
    named = rf"another process is training here \(process {process.number} on {re.escape(platform.node())}, boot {boot_id()}\); wait for it"
    with pytest.raises(OutputError, match=named), run.lock():
        pytest.fail("held twice")
    os.kill(process.number, 9)
    process.wait()
    assert not run.is_locked
    with run.lock():
        assert json.loads((tmp_path / ".lock").read_text()) == {"host": platform.node(), "boot_id": boot_id(), "process": os.getpid()}


@pytest.mark.parametrize("text", ["", "{", "[]", '{"host": "h"}', "[" * 10**5])
def test_a_lock_that_does_not_say_whose_it_is(tmp_path, text):
    with (tmp_path / ".lock").open("w") as other:
        other.write(text)
        other.flush()
        fcntl.flock(other, fcntl.LOCK_EX)
        with pytest.raises(OutputError, match=r"another process is training here; wait for it"), RunDirectory(tmp_path).lock():
            pytest.fail("held twice")


def test_a_file_system_without_locks(tmp_path, monkeypatch, pld, prepared):
    def flock(file, kind):
        raise OSError(errno.EOPNOTSUPP, "Operation not supported")

    monkeypatch.setattr(fcntl, "flock", flock)
    done = pld("pretrain", "--preset", "bert-tiny-pld", *TINY, "--data", prepared, "--out", tmp_path / "run")
    assert done.code == 7 and done.err.count("\n") == 1
    assert f"{tmp_path / 'run'}: its file system cannot lock it (operation not supported): a second process" in done.err


def test_a_full_disk_does_not_keep_the_lock_from_being_taken(tmp_path, monkeypatch):
    def write(descriptor, content):
        raise OSError(errno.ENOSPC, "No space left on device")

    run = RunDirectory(tmp_path)
    monkeypatch.setattr(os, "write", write)
    with run.lock():
        assert run.is_locked


def test_setting_aside(tmp_path):
    run = RunDirectory(tmp_path / "run")
    assert run.set_aside() is None
    for number in (1, 2):
        make(run.path)
        assert run.set_aside() == tmp_path / f"run.{number}"
        assert (tmp_path / f"run.{number}" / "config.yaml").is_file() and not run.path.exists()
    make(run.path)
    with run.lock(), pytest.raises(OutputError, match="another process"):
        run.set_aside()
    assert run.path.is_dir()


def test_a_run_in_which_one_stands_is_not_set_aside(tmp_path, monkeypatch, pld, prepared):
    make(tmp_path / "run", checkpoints=[3])
    monkeypatch.chdir(tmp_path / "run")
    before = sorted(tmp_path.rglob("*"))
    outcome = pld("pretrain", "--preset", "bert-tiny-pld", *TINY, "--data", prepared, "--out", ".", "--resume", "never")
    assert outcome.code == 7 and outcome.err == (
        "error: .: cannot be set aside under this name; change to another directory and give its path from there\n"
    )
    assert {path.name for path in set(tmp_path.rglob("*")) - set(before)} <= {".lock"}


def test_what_may_be_used(tmp_path):
    RunDirectory(tmp_path / "new").check_usable()
    make(tmp_path / "run").check_usable()
    (tmp_path / "empty").mkdir()
    RunDirectory(tmp_path / "empty").check_usable()
    for name in (".lock", ".config.yaml.tmp-77"):
        (tmp_path / "empty" / name).touch()
        RunDirectory(tmp_path / "empty").check_usable()
    (tmp_path / "empty" / ".git").mkdir()
    for place in (tmp_path / "empty", tmp_path / "empty" / ".lock", tmp_path):
        with pytest.raises(OutputError, match="choose another place with --out"):
            RunDirectory(place).check_usable()


def test_a_run_without_its_configuration_is_told_where_a_copy_lies(tmp_path):
    run = make(tmp_path / "a", checkpoints=[6, 9])
    copy = run.checkpoints / "step-00000009" / "config.yaml"
    run.config.rename(copy)
    with pytest.raises(OutputError, match=f"its config.yaml is missing; copy {copy} there"):
        run.check_usable()


def test_what_to_do_next_is_the_line_that_was_typed(tmp_path):
    run = make(tmp_path / "a", rows=[{"step": 3, "train/loss": 1.0}], checkpoints=[3])
    run.environment.write_text(json.dumps({"starts": [{"command": "pld first"}, {"command": "pld pretrain --data 'my data'"}]}))
    assert summarise(run).next_action == "pld pretrain --data 'my data' (resumes from the newest checkpoint)"


@pytest.mark.parametrize(
    ("typed", "expected"),
    [
        ("--out old --data d", "--out {} --data d"),
        ("--data d --out='an old one'", "--data d --out {}"),
        ("--preset presets/a.yaml", "--preset presets/a.yaml"),
        ("--preset b", "--preset b --out {}"),
    ],
)
def test_what_to_do_next_is_done_where_the_run_is(tmp_path, typed, expected):
    run = make(tmp_path / "a", rows=[{"step": 3, "train/loss": 1.0}], checkpoints=[3])
    run.environment.write_text(json.dumps({"starts": [{"command": f"pld pretrain {typed}"}]}))
    assert summarise(run).next_action == f"pld pretrain {expected.format(run.path)} (resumes from the newest checkpoint)"


@pytest.mark.parametrize("resume", [["--resume", "never"], ["--resume=never"], ["--resume", "it's/checkpoints/step 3"], []])
def test_what_to_do_next_keeps_what_is_there(tmp_path, resume):
    typed = ["pld", "pretrain", *resume, "--data", "my data"]
    rest = "pld pretrain --data 'my data'"
    run = make(tmp_path / "a", rows=[{"step": 3, "train/loss": 1.0}], checkpoints=[3])
    gone = make(tmp_path / "b", rows=[{"step": 6, "train/loss": 1.0}], model=True, card=True)
    early = make(tmp_path / "c", rows=[{"step": 1, "train/loss": 1.0}])
    for one in (run, gone, early):
        one.environment.write_text(json.dumps({"starts": [{"command": shlex.join(typed)}]}))
    assert summarise(run).next_action == f"{rest} (resumes from the newest checkpoint)"
    assert summarise(gone).next_action == f"{rest}, with --resume never (its checkpoints are gone)"
    assert summarise(early).next_action.startswith(shlex.join(typed)), "it has no checkpoint of its own yet"


def test_what_to_do_next_where_there_is_no_checkpoint(tmp_path):
    every = tiny_config().checkpoint.every_steps
    early = make(tmp_path / "a", rows=[{"step": every, "train/loss": 1.0}])
    assert summarise(early).next_action.endswith(" (starts over: it was stopped before its first checkpoint)")
    for run in (
        make(tmp_path / "b", rows=[{"step": every + 1, "train/loss": 1.0}]),
        make(tmp_path / "c", rows=[{"step": 6, "train/loss": 1.0}], model=True, card=True),
    ):
        assert summarise(run).next_action.endswith(", with --resume never (its checkpoints are gone)")
