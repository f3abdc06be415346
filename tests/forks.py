"""Python processes that need not import torch: each is a fork of a server that has, and a child of the process that wants it."""

from __future__ import annotations

import ctypes
import gc
import importlib
import inspect
import json
import os
import runpy
import socket
import subprocess
import sys
import threading
import time
import types
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, NoReturn

PRELOAD = (
    "pldcli.cli",
    "pldcli.pretraining.pretrain",
    "pldcli.finetuning.finetune",
    "pldcli.finetuning.workers",
    "pldcli.evaluation.evaluate",
    "pldcli.study.study",
    "tests.conftest",
    "torch.distributed.fsdp",
    "torch.distributed.launcher.api",
    "torch.utils.tensorboard",
    "matplotlib.figure",
    "matplotlib.backends.backend_agg",
    "transformers.models.roberta_prelayernorm.modeling_roberta_prelayernorm",
)
"""What training imports, what reads a model back, and what tests import."""
BELOW = "PLD_TEST_FORKS"
"""Variable of a process that starts others in the same way."""
RANKED = "rank"
"""Name, before its number, of one of several that train together."""
_HANDLER = "torch.distributed.elastic.multiprocessing.subprocess_handler.subprocess_handler"
_SET_CHILD_SUBREAPER = 36
"""Of prctl(2): orphans below this process become its children."""
_SET_NAME = 15
_MOST_BYTES = 1 << 20


class Forks:
    """The way to a server; elsewhere than on Linux there is none, and Python starts anew.

    Args:
        channel: A connection to it.
    """

    Popen: type[subprocess.Popen[Any]] = subprocess.Popen
    _server: subprocess.Popen[bytes] | None = None

    def __init__(self, channel: socket.socket | None) -> None:
        self._channel = channel
        if channel is None:
            return
        lock, prctl = threading.Lock(), ctypes.CDLL(None).prctl

        class Popen(subprocess.Popen):  # type: ignore[type-arg]
            """As the one of `subprocess`, but that Python is not started anew."""

            def _execute_child(self, *given: Any) -> None:
                named = inspect.signature(super()._execute_child).bind(*given).arguments
                words = [os.fspath(word) for word in named["args"] if word != "-u"]
                if words[0] != sys.executable or named["pass_fds"] or (words[1][0] == "-" and words[1] not in ("-c", "-m")):
                    super()._execute_child(*given)
                    return
                ends = [named[name] for name in ("p2cread", "c2pwrite", "errwrite")]
                task = {
                    "words": words[1:],
                    "cwd": os.fspath(named["cwd"] or Path.cwd()),
                    "environment": dict(os.environ if named["env"] is None else named["env"]),
                    "new_session": named["start_new_session"],
                }
                with lock:
                    prctl(_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
                    socket.send_fds(channel, [json.dumps(task).encode()], [plain if end == -1 else end for plain, end in enumerate(ends)])
                    self.pid = int(channel.recv(_MOST_BYTES))
                    prctl(_SET_CHILD_SUBREAPER, 0, 0, 0, 0)  # what tests leave behind is for init to bury
                self._child_created = True
                self._close_pipe_fds(*(named[f"{pipe}{end}"] for pipe in ("p2c", "c2p", "err") for end in ("read", "write")))

        self.Popen = Popen

    def install(self, setattr: Callable[[Any, str, Any], None] = setattr) -> None:
        """Let this process start others so, torch's agent included."""
        setattr(subprocess, "Popen", self.Popen)
        setattr(importlib.import_module(_HANDLER), "Popen", self.Popen)

    @classmethod
    def start(cls) -> Forks:
        """Start a server that has imported what training needs."""
        if sys.platform != "linux":
            return cls(None)
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        code = f"import socket; from tests import forks; forks.serve(socket.socket(fileno={theirs.fileno()}), forks.PRELOAD)"
        environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(Path(__file__).parents[1]), *sys.path]), "OMP_NUM_THREADS": "1"}
        forks = cls(ours)
        forks._server = subprocess.Popen([sys.executable, "-c", code], pass_fds=[theirs.fileno()], env=environment)
        theirs.close()
        return forks

    @classmethod
    def fork(cls) -> Forks:
        """Make a fork of this process the server, before there are threads."""
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        if not os.fork():
            ours.close()
            serve(theirs)
        theirs.close()
        return cls(ours)

    def close(self) -> None:
        """End a server that was started."""
        if self._channel and self._server:
            self._channel.close()
            self._server.wait()


def serve(channel: socket.socket, modules: Sequence[str] = ()) -> NoReturn:
    """Fork for each task that comes through a channel, until it closes."""
    for name in modules:
        importlib.import_module(name)
    if "tests.conftest" in modules:
        sys.modules["tests.conftest"].leave_pictures_blank()
    gc.freeze()
    while True:
        message, pipes, _, _ = socket.recv_fds(channel, _MOST_BYTES, 3)
        if not message:
            os._exit(0)
        between = os.fork()
        if not between:
            between = os.getpid()
            if os.fork():
                os._exit(0)  # so that the other one is a child of whoever wants it
            while os.getppid() == between:
                time.sleep(0.001)
            _run(json.loads(message), pipes, channel)
        os.waitpid(between, 0)
        for pipe in pipes:
            os.close(pipe)


def _run(task: dict[str, Any], pipes: Sequence[int], channel: socket.socket) -> NoReturn:
    """Do what a fresh interpreter would, but for tidying up at the end, which takes longer than many a test."""
    if task["new_session"]:
        os.setsid()
    for number, pipe in enumerate(pipes):
        os.dup2(pipe, number)
        os.close(pipe)
    sys.stdin, sys.stdout = os.fdopen(0, closefd=False), os.fdopen(1, "w", closefd=False)
    sys.stderr = os.fdopen(2, "w", buffering=1, errors="backslashreplace", closefd=False)
    os.chdir(task["cwd"])
    os.environ.clear()
    os.environ.update(task["environment"])
    channel.send(str(os.getpid()).encode())
    channel.close()
    if threads := os.environ.get("OMP_NUM_THREADS"):
        sys.modules["torch"].set_num_threads(int(threads))
    if rank := os.environ.get("RANK"):
        ctypes.CDLL(None).prctl(_SET_NAME, f"{RANKED} {rank}".encode(), 0, 0, 0)
    if os.environ.pop(BELOW, None):
        Forks.fork().install()
    code: object = 0
    try:
        _as_main(*task["words"])
    except SystemExit as stop:
        code = stop.code or 0
    except BaseException:  # noqa: BLE001 - as an interpreter does
        sys.excepthook(*sys.exc_info())
        code = 1
    if not isinstance(code, int):
        print(code, file=sys.stderr)
        code = 1
    sys.stdout.flush()
    os._exit(code)


def _as_main(what: str, *arguments: str) -> None:
    sys.path[:0] = ["" if what == "-c" else str(Path(what).parent), *os.environ.get("PYTHONPATH", "").split(os.pathsep)]
    sys.modules.pop("sitecustomize", None)
    with suppress(ModuleNotFoundError):
        importlib.import_module("sitecustomize")
    if what == "-c":
        sys.argv = [what, *arguments[1:]]
        sys.modules["__main__"] = main = types.ModuleType("__main__")
        exec(arguments[0], main.__dict__)
    elif what == "-m":
        sys.argv = list(arguments)
        runpy.run_module(arguments[0], run_name="__main__", alter_sys=True)
    else:
        sys.argv = [what, *arguments]
        runpy.run_path(what, run_name="__main__")
