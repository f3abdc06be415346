from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from pldcli import doctor as engine
from pldcli.doctor import Check

Run = Callable[..., Any]
GOOD = {"python": Check("ok", "3.11.7")}
SO_SO = {"transformers": Check("warn", "not [installed]", "pip install transformers")}
BAD = {"disk speed": Check("fail", "cannot write", "choose another place")}


@pytest.fixture
def found(monkeypatch: pytest.MonkeyPatch) -> Callable[..., list[Path]]:
    def pretend(results: dict[str, Check]) -> list[Path]:
        asked: list[Path] = []

        def checks(path: Path) -> dict[str, Callable[[], Check]]:
            asked.append(path)
            return {name: lambda result=result: result for name, result in results.items()}  # type: ignore[misc]

        monkeypatch.setattr(engine, "checks", checks)
        return asked

    return pretend


def test_warnings_do_not_fail(found: Callable[..., list[Path]], pld: Run, tmp_path: Path) -> None:
    asked = found(GOOD | SO_SO)
    outcome = pld("doctor", "--path", str(tmp_path))
    assert (outcome.code, asked) == (0, [tmp_path])
    lines = [line.split() for line in outcome.out.splitlines()]
    assert ["ok", "python", "3.11.7"] in lines
    assert ["warn", "transformers", "not", "[installed]"] in lines
    assert ["→", "pip", "install", "transformers"] in lines


def test_a_failure_is_exit_code_5(found: Callable[..., list[Path]], pld: Run) -> None:
    found(GOOD | BAD | SO_SO)
    outcome = pld("doctor")
    assert outcome.code == 5
    assert outcome.err.splitlines()[-1] == "error: 1 of 3 checks failed: disk speed"
    assert "→ choose another place" in outcome.out


def test_json(found: Callable[..., list[Path]], pld: Run) -> None:
    found(GOOD | BAD)
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
    assert (outcome.code, outcome.err) == (2, f"error: --path {tmp_path / 'none'}: is not a directory\n")
