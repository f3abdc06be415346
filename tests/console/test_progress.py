import io

from rich.console import Console

from pldcli.console import progress
from pldcli.console.progress import Progress


def run(*, terminal=False, quiet=False, every_seconds=0.0, unit="bytes"):
    console = Console(file=io.StringIO(), force_terminal=terminal, width=100)
    with Progress("Reading", total=2e6, unit=unit, quiet=quiet, every_seconds=every_seconds, console=console) as shown:
        shown.update(1e6)
        shown.advance(1e6)
        shown.describe("Other")
    assert shown.completed == 2e6
    return console.file.getvalue()


def test_lines_where_there_is_no_terminal(monkeypatch):
    clock = iter(range(100))
    monkeypatch.setattr(progress.time, "monotonic", lambda: next(clock))
    lines = run().splitlines()
    assert lines[0] == "Reading: 50 % of 2.0 MB, 1.0 MB/s, 1 s left"
    assert lines[1] == "Reading: 100 % of 2.0 MB, 1.0 MB/s"


def test_other_units(monkeypatch):
    clock = iter(range(100))
    monkeypatch.setattr(progress.time, "monotonic", lambda: next(clock))
    assert run(unit="steps").startswith("Reading: 50 % of 2,000,000 steps, 1,000,000 steps/s")


def test_a_bar_on_a_terminal():
    assert "\x1b[" in run(terminal=True)


def test_nothing_when_quiet_or_quick():
    assert run(quiet=True) == run(quiet=True, terminal=True) == run(every_seconds=60) == ""


def test_standard_error_is_the_default(capsys):
    with Progress("Reading", every_seconds=0.0) as shown:
        shown.update(5)
    captured = capsys.readouterr()
    assert captured.out == ""
    assert "Reading: 5" in captured.err


def test_the_end_is_said_once(capsys):
    with Progress("work", total=10, unit="steps", every_seconds=0.0) as progress:
        progress.update(10)
    assert capsys.readouterr().err.count("100 %") == 1
