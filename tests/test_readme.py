from __future__ import annotations

import re
import tomllib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.typed_commands import README, ROOT, load, run_all, write_inputs

pages = load("pages")

TEXT = README.read_text(encoding="utf-8")
COMMANDS = pages.commands(README)
SETUP = [line for line in COMMANDS if line.startswith("python3 -m venv")]
STARTED = ROOT / "docs" / "getting-started.md"


def test_it_is_short() -> None:
    assert len(TEXT.splitlines()) <= 150


def test_the_set_up_lines_install_what_there_is() -> None:
    assert len(SETUP) == 2
    assert SETUP[0].endswith("pip install -c constraints.txt . && pld demo")
    assert SETUP[1].endswith("pip install -c constraints.txt -e '.[dev]' && pytest")
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    extras = project["optional-dependencies"]
    pinned = set(re.findall(r"^([\w.-]+)==", (ROOT / "constraints.txt").read_text(encoding="utf-8"), re.MULTILINE))
    wanted = {re.split(r"[<>=]", name)[0] for name in project["dependencies"] + extras["dev"] + extras["docs"]}
    assert {name.lower() for name in wanted} <= {name.lower() for name in pinned}


def test_the_lines_that_must_work_as_typed_are_in_getting_started() -> None:
    assert {"pld prepare-data corpus.txt", "pld pretrain --preset bert-base-pld", "pld finetune glue/mnli", "pld plot-schedule"} <= set(
        pages.commands(STARTED)
    )


@pytest.mark.usefixtures("drawn")
def test_every_command_of_it_and_of_getting_started_works(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, pld: Callable[..., Any]) -> None:
    monkeypatch.chdir(tmp_path)
    write_inputs(monkeypatch)
    run_all((line for line in COMMANDS + pages.commands(STARTED) if line not in SETUP), pld)
    assert {path.name for path in Path("runs").iterdir()} == {"mine", "mine.yaml", "dense", "dropping", "bert-base-pld"}
    assert Path("comparison", "index.html").is_file()
    pictures = [Path("schedule.png"), *Path("runs", "dropping", "plots").iterdir()]
    assert len(pictures) == 5 and all(picture.stat().st_size > 10_000 for picture in pictures), "drawn, not blank"


def test_every_link_leads_somewhere() -> None:
    links = re.findall(r"\]\((?!https://)([^)#]*)(?:#([^)]+))?\)", TEXT)
    assert links
    for target, anchor in links:
        page = ROOT / target
        assert page.exists(), target
        headings = re.findall(r"^#+ (.+)$", page.read_text(encoding="utf-8"), re.MULTILINE) if anchor else []
        slugs = {re.sub(r"[^\w -]", "", heading).lower().replace(" ", "-") for heading in headings}
        assert not anchor or anchor in slugs, f"{target}#{anchor}"
