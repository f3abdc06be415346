"""The processes that fine-tune cells side by side: which GPU each gets, and what happens when one talks nonsense or dies."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from pldcli.errors import DeviceError
from pldcli.finetuning import workers as module
from pldcli.finetuning.config import FinetuneConfig
from pldcli.finetuning.experiment import Experiment
from pldcli.finetuning.workers import Job, run_jobs
from pldcli.system.signals import StopRequest

ANSWERS = """
import os, sys
from pldcli.system.workers import answering
{before}
answer = answering()
for line in sys.stdin:
    {first}
    answer(result={{"gpu": os.environ.get("CUDA_VISIBLE_DEVICES")}})
"""


def run(
    monkeypatch: pytest.MonkeyPatch, *, before: str = "", first: str = "pass", num_gpus: int = 0, cells: int = 1, at_once: int = 1
) -> Any:
    """Do some cells in workers that do `before` when they start and `first` with each job, then answer."""

    def start(*_: Any, environment: Mapping[str, str], **__: Any) -> subprocess.Popen[bytes]:
        path = os.pathsep.join(one for one in sys.path if one)
        return subprocess.Popen(
            [sys.executable, "-c", ANSWERS.format(before=before, first=first)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env={**os.environ, "PYTHONPATH": path, **environment},
        )

    monkeypatch.setattr(module, "start_worker", start)
    jobs = [Job(f"cell {number}", FinetuneConfig(seed=number), Path("nowhere")) for number in range(cells)]
    stop = StopRequest()
    watchdog = threading.Timer(30, setattr, (stop, "signal_number", 15))
    watchdog.start()
    experiment = Experiment("task", "model")
    try:
        return list(run_jobs(experiment, jobs, at_once=at_once, threads=1, device="cpu", num_gpus=num_gpus, report=print, stop=stop))
    finally:
        watchdog.cancel()


@pytest.mark.parametrize(
    ("named", "expected"),
    [
        (None, ["0", "1"]),
        ("4,5", ["4", "5"]),
        ("7, 3 ,5", ["7", "3"]),
        ("GPU-8932f937-d72c,MIG-GPU-1/1/0", ["GPU-8932f937-d72c", "MIG-GPU-1/1/0"]),
        ("6", ["6", "6"]),
    ],
)
def test_workers_take_the_gpus_that_were_left_to_the_program(monkeypatch, named, expected):
    if named is None:
        monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    else:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", named)
    found = run(monkeypatch, num_gpus=1 if named == "6" else 2, cells=2, at_once=2, first="import time; time.sleep(0.3)")
    assert sorted(result["gpu"] for _, result in found) == sorted(expected)


def test_without_gpus_the_environment_stays(monkeypatch):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    [(_, result)] = run(monkeypatch)
    assert result["gpu"] == ""


@pytest.mark.parametrize(
    ("before", "first"),
    [
        ("", "os.write(1, b'a word of a C library\\n')"),
        ("", "print('a word of a Python library', flush=True)"),
        ("os.write(1, b'before it is a worker\\n[1]\\n\\xff\\n')", "pass"),
    ],
    ids=["C library", "Python library", "at the start"],
)
def test_other_words_on_standard_output_are_passed_on(monkeypatch, capfd, before, first):
    assert len(run(monkeypatch, before=before, first=first, cells=2)) == 2
    assert ("before it is a worker" if before else "a word of a") in capfd.readouterr().err


@pytest.mark.parametrize(
    ("first", "how"), [("os._exit(3)", r"\(exit code 3\)"), ("os.kill(os.getpid(), 9)", r"\(signal 9\)")], ids=["exit", "killed"]
)
@pytest.mark.parametrize("pipe_is_held", [False, True], ids=["alone", "pipe held by a child"])
def test_a_worker_that_dies_is_not_waited_for(monkeypatch, first, how, pipe_is_held):
    before = "import subprocess; subprocess.Popen(['sleep', '5'])" if pipe_is_held else ""
    with pytest.raises(DeviceError, match=rf"a process that fine-tunes died {how}; try --jobs 1"):
        run(monkeypatch, before=before, first=first)
