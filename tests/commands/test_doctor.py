from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from pldcli import doctor as engine
from pldcli.doctor import Check

Run = Callable[..., Any]
GOOD = Check("python", "ok", "3.11.7")
SO_SO = Check("transformers", "warn", "not [installed]", "pip install transformers")
BAD = Check("disk speed", "fail", "cannot write", "choose another place")


@pytest.fixture
def found(monkeypatch: pytest.MonkeyPatch) -> Callable[..., list[Path]]:
    def pretend(*results: Check) -> list[Path]:
        asked: list[Path] = []

        def checks(path: Path) -> Iterator[tuple[str, Callable[[], Check]]]:
            asked.append(path)
            for result in results:
                yield result.name, lambda result=result: result  # type: ignore[misc]

        monkeypatch.setattr(engine, "checks", checks)
        return asked

    return pretend


def test_warnings_do_not_fail(found: Callable[..., list[Path]], pld: Run, tmp_path: Path) -> None:
    asked = found(GOOD, SO_SO)
    outcome = pld("doctor", "--path", str(tmp_path))
    assert (outcome.code, asked) == (0, [tmp_path])
    lines = [line.split() for line in outcome.out.splitlines()]
    assert ["ok", "python", "3.11.7"] in lines
    assert ["warn", "transformers", "not", "[installed]"] in lines
    assert ["→", "pip", "install", "transformers"] in lines


def test_a_failure_is_exit_code_5(found: Callable[..., list[Path]], pld: Run) -> None:
    found(GOOD, BAD, SO_SO)
    outcome = pld("doctor")
    assert outcome.code == 5
    assert outcome.err.splitlines()[-1] == "error: 1 of 3 checks failed: disk speed"
    assert "→ choose another place" in outcome.out


def test_json(found: Callable[..., list[Path]], pld: Run) -> None:
    found(GOOD, BAD)
    outcome = pld("doctor", "--json")
    assert outcome.code == 5
    assert json.loads(outcome.out) == {
        "ok": False,
        "checks": [
            {"name": "python", "status": "ok", "detail": "3.11.7", "hint": ""},
            {"name": "disk speed", "status": "fail", "detail": "cannot write", "hint": "choose another place"},
        ],
    }


def test_a_path_that_is_no_directory_is_refused(pld: Run, tmp_path: Path) -> None:
    outcome = pld("doctor", "--path", str(tmp_path / "none"))
    assert (outcome.code, outcome.err) == (2, f"error: --path {tmp_path / 'none'}: is no directory\n")
