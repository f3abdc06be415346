from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from pldcli import __version__
from pldcli.corpus.decoding import EncodingError
from pldcli.errors import DataError, PldError, UsageError
from pldcli.system.workers import as_error, close_pipe, describe_error, end_with_parent, start_command

__all__ = ["end_with_parent"]


def test_a_worker_ends_when_its_pipe_closes() -> None:
    code = f"import time; from {end_with_parent.__module__} import end_with_parent as e; e(); print('on', flush=True); time.sleep(60)"
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(path for path in sys.path if path)}
    worker = subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=environment)
    assert worker.stdout is not None and worker.stdout.readline() == b"on\n"
    close_pipe(worker.stdin)
    assert worker.wait(20) == -signal.SIGTERM
    worker.stdout.close()


@pytest.mark.parametrize(
    ("arguments", "code", "line"), [(["--version"], 0, f"pld {__version__}\n"), (["zzz"], 2, "error: No such command")]
)
def test_a_command_line_of_its_own(tmp_path: Path, arguments: list[str], code: int, line: str) -> None:
    with (tmp_path / "log").open("wb") as log:
        process = start_command(arguments, log=log, threads=3, environment={"COLUMNS": "80"})
    assert process.wait(60) == code
    close_pipe(process.stdin)
    assert (tmp_path / "log").read_text().startswith(line)


@pytest.mark.parametrize("error", [UsageError("unknown key", where="a.b", hint="look"), DataError("is empty")])
def test_errors_pass_through_a_pipe(error: PldError) -> None:
    again = as_error(describe_error(error))
    assert type(again) is type(error) and str(again) == str(error)


def test_an_error_of_another_module_passes_as_its_kind_in_the_table() -> None:
    assert type(as_error(describe_error(EncodingError("is not UTF-8")))) is DataError
