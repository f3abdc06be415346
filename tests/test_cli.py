from __future__ import annotations

import errno
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import typer

from pldcli import __version__, cli
from pldcli.errors import CheckpointError, PldError, PreemptedError, UsageError

HEAVY = ("torch", "datasets", "numpy", "pyarrow", "matplotlib", "transformers", "tokenizers", "sentencepiece", "pandas")
Run = Callable[..., Any]
BUG = "this is a bug in pld: run the same command again with --traceback and report what it shows"


def failing(error: BaseException) -> cli.Entry:
    def command() -> None:
        """Fail."""
        raise error

    return cli.Entry("fail", command, "Tests", "pld fail")


@pytest.fixture
def fail(monkeypatch: pytest.MonkeyPatch, pld: Run) -> Run:
    """Run a command that raises what is given."""

    def call(error: BaseException, *arguments: str) -> Any:
        monkeypatch.setattr(cli, "app", cli._build((failing(error), *cli.COMMANDS)))
        return pld(*(arguments or ("fail",)))

    return call


@pytest.mark.parametrize(
    ("error", "code", "line"),
    [
        (UsageError("unknown key", where="pld.theta", hint="did you mean?"), 2, "error: pld.theta: unknown key; did you mean?"),
        (CheckpointError("[red]is[/] damaged", where="/a/[b]"), 4, "error: /a/[b]: [red]is[/] damaged"),
        (PreemptedError("x" * 300), 75, "error: " + "x" * 300),
        (KeyboardInterrupt(), 130, "error: interrupted"),
        (typer.Abort(), 130, "error: interrupted"),
        (
            MemoryError(),
            5,
            "error: out of memory; close other programs, or make the work smaller (train.micro_batch_size for training)",
        ),
        (OSError(errno.ENOSPC, "No space left", "/out/x"), 7, "error: the disk is full (/out/x)"),
        (
            OSError(errno.EIO, "Input/output error", "/in/x"),
            7,
            "error: /in/x: cannot be used (input/output error); choose another place, or ask for the right to it",
        ),
        (
            ZeroDivisionError("division by\nzero"),
            1,
            f"error: ZeroDivisionError: division by zero; {BUG}",
        ),
        (
            PldError("bare"),
            1,
            f"error: PldError: bare; {BUG}",
        ),
        (typer.Exit(9), 9, ""),
        (SystemExit(6), 6, ""),
        (SystemExit("a library's\nlast words"), 1, "error: a library's last words"),
    ],
)
def test_every_error_ends_as_one_line_and_a_code(error: BaseException, code: int, line: str, fail: Run) -> None:
    outcome = fail(error)
    assert (outcome.code, outcome.out, outcome.err) == (code, "", line + "\n" * bool(line))


@pytest.mark.parametrize("arguments", [("--traceback", "fail"), ("fail", "--traceback")])
def test_traceback_is_shown_when_asked_for(arguments: tuple[str, ...], fail: Run) -> None:
    outcome = fail(ZeroDivisionError("here"), *arguments)
    assert outcome.code == 1
    assert "Traceback (most recent call last)" in outcome.err
    assert "raise error" in outcome.err
    assert outcome.err.splitlines()[-1].startswith("error: ZeroDivisionError: here")
    assert os.environ["PLD_TRACEBACK"] == "1", "processes that are started show theirs, too"


@pytest.mark.parametrize(("value", "shown"), [("1", True), ("0", False), ("", False)])
def test_traceback_by_environment(value: str, shown: bool, fail: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    fail(ZeroDivisionError())
    monkeypatch.setenv("PLD_TRACEBACK", value)
    assert ("Traceback" in fail(ZeroDivisionError()).err) is shown


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        (["zzz"], "error: No such command 'zzz'; see `pld -h`"),
        (["--nope"], "error: No such option: --nope; see `pld -h`"),
        (["config", "show"], "error: Missing argument 'PRESET'; see `pld config show -h`"),
        (["config", "shw"], "error: No such command 'shw'. Did you mean 'show'?; see `pld config -h`"),
        (["plot-schedule", "--points", "many"], "error: Invalid value for '--points'"),
        (["plot-schedule", "--format", "pdf"], "error: Invalid value for '--format'"),
        (["doctor", "extra"], "error: Got unexpected extra argument"),
    ],
)
def test_a_wrong_command_line_is_one_line_with_code_2(arguments: list[str], line: str, pld: Run) -> None:
    outcome = pld(*arguments)
    assert (outcome.code, outcome.out) == (2, "")
    assert outcome.err.startswith(line)
    assert outcome.err.count("\n") == 1


def test_version(pld: Run) -> None:
    assert pld("--version").out == f"pld {__version__}\n"


@pytest.mark.parametrize("arguments", [[], ["-h"], ["--help"], ["config"], ["config", "-h"]])
def test_help_is_no_error(arguments: list[str], pld: Run) -> None:
    outcome = pld(*arguments)
    assert (outcome.code, outcome.err) == (0, "")
    assert "Usage: pld" in outcome.out


@pytest.mark.parametrize("entry", cli.COMMANDS, ids=lambda entry: entry.name)
def test_every_command_is_listed_and_explained_with_an_example(entry: cli.Entry, pld: Run) -> None:
    group, _, name = entry.name.rpartition(" ")
    overview = pld("-h").out
    assert entry.panel in overview
    assert f" {group or name} " in overview
    for flag in ("-h", "--help"):
        text = pld(*entry.name.split(), flag).out
        assert "Example:" in text
        assert f"pld {entry.name}" in text.partition("Example:")[2]
        assert "Args:" not in text
    assert entry.example.startswith(f"pld {entry.name}")


def test_names_are_unique() -> None:
    names = [entry.name for entry in cli.COMMANDS]
    assert len(set(names)) == len(names)


def environment(**more: str) -> dict[str, str]:
    return {**os.environ, "PYTHONPATH": str(Path(cli.__file__).parents[1]), "COLUMNS": "80", **more}


def test_help_and_completion_import_nothing_heavy() -> None:
    program = f"""
import sys
from pldcli import cli
names = [entry.name.split() for entry in cli.COMMANDS]
for arguments in [["-h"], *([*name, "-h"] for name in names), ["--version"]]:
    assert cli.run(arguments) == 0, arguments
print("CONFIGURATION", [name for name in ("pldcli.config", "yaml") if name in sys.modules])
for arguments in [["config", "list"], ["config", "show", "bert-tiny-pld"], ["plot-schedule", "--format", "json"]]:
    assert cli.run(arguments) == 0, arguments
for arguments in [["evaluate", "a", "--depth", "b"], ["export", "a", "--out", "b", "--blocks", "first"]]:
    assert cli.run(arguments) == 2, arguments
print("HEAVY", [name for name in {HEAVY!r} if name in sys.modules])
"""
    done = subprocess.run([sys.executable, "-W", "error", "-c", program], capture_output=True, text=True, env=environment(), check=True)
    lines = done.stdout.splitlines()
    assert lines[-1] == "HEAVY []" and "CONFIGURATION []" in lines
    assert [line.partition(": ")[0] for line in done.stderr.splitlines()] == ["error"] * 2


def test_completion_offers_presets_without_torch() -> None:
    program = f"""
import atexit, sys
atexit.register(lambda: print("HEAVY", [name for name in {HEAVY!r} if name in sys.modules]))
from pldcli.cli import main
main()
"""
    asked = environment(_PLD_COMPLETE="complete_bash", COMP_WORDS="pld plot-schedule --preset bert-base-p", COMP_CWORD="3")
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, env=asked, check=False)
    *offered, heavy = done.stdout.splitlines()
    assert [line for line in offered if line] == [
        "bert-base-pld",
        "bert-base-pld-paper",
        "bert-base-postln",
        "bert-base-preln",
        "bert-base-preln-low-lr",
    ]
    assert heavy == "HEAVY []"


def test_a_closed_pipe_is_quiet() -> None:
    command = [sys.executable, "-m", "pldcli", "plot-schedule", "--format", "csv", "--points", "100000"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=environment()) as process:
        assert process.stdout is not None and process.stderr is not None
        process.stdout.readline()
        process.stdout.close()
        assert process.stderr.read() == b""
        assert process.wait() == 141


def test_a_pipe_closed_before_the_last_flush_is_quiet() -> None:
    reading, writing = os.pipe()
    os.close(reading)
    command = [sys.executable, "-m", "pldcli", "plot-schedule", "--format", "csv", "--points", "2"]
    done = subprocess.run(command, stdout=writing, stderr=subprocess.PIPE, env=environment(), check=False)
    os.close(writing)
    assert (done.returncode, done.stderr) == (141, b"")


def test_the_exit_code_reaches_the_shell() -> None:
    command = [sys.executable, "-m", "pldcli", "config", "validate", "bert-tiny-pld", "pld.theta_bar=2"]
    done = subprocess.run(command, capture_output=True, text=True, env=environment(), check=False)
    line = "error: pld.theta_bar: must be at most 1, not 2\n"
    assert (done.returncode, done.stdout, done.stderr) == (2, "", line)


def test_a_terminal_without_block_characters_is_no_error(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "pldcli", "plot-schedule"]
    asked = environment(PYTHONIOENCODING="latin-1")
    done = subprocess.run(command, capture_output=True, text=True, env=asked, cwd=tmp_path, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    assert "???" in done.stdout
