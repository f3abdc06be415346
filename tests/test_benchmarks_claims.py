from __future__ import annotations

import re
import shlex
import sys
from pathlib import Path
from typing import Any

import pytest

from pldcli.comparison.comparison import compare_runs
from pldcli.comparison.metrics_table import read_table
from pldcli.comparison.read import read_runs
from pldcli.comparison.tables import summary
from tests.benchmark_scripts import BENCHMARKS, load

claims, keep_study = load("claims"), load("keep_study")

RESULTS = BENCHMARKS / "results"
TABLES = sorted(RESULTS.glob("*/metrics.csv.gz"))
REPORTS = sorted(RESULTS.glob("*/report.md"))

pytestmark = pytest.mark.skipif(not RESULTS.is_dir(), reason="benchmarks/results is in the repository only, not in a source distribution")


def test_committed_results_stay_small() -> None:
    files = [path for path in RESULTS.rglob("*") if path.is_file()]
    assert len(files) <= 100 and sum(path.stat().st_size for path in files) <= 3_000_000
    assert {path.suffix for path in files} <= {".md", ".gz", ".csv", ".json", ".png", ".svg"}, "pages are made by `pld compare`"


def test_every_link_and_picture_of_a_committed_text_is_there() -> None:
    texts = list(RESULTS.rglob("*.md"))
    links = [(text, link) for text in texts for link in re.findall(r"\]\((?!https?:)([^)#]+)", text.read_text(encoding="utf-8"))]
    assert len(links) > 20 and [(text.name, link) for text, link in links if not (text.parent / link).is_file()] == []


@pytest.mark.parametrize("path", TABLES, ids=lambda path: path.parent.name)
def test_every_committed_table_is_read(path: Path) -> None:
    runs = read_table(path)
    assert len(runs) > 1 and all(run.is_complete and run.final.train_seconds > 0 for run in runs.values())


def comparisons_of(report: Path) -> list[tuple[str, list[str]]]:
    """The part of a report below each baseline, and the command that it names for its page."""
    parts = report.read_text(encoding="utf-8").split("\n## Against ")[1:]
    commands = [re.search(r"`pld compare (metrics\.csv\.gz [^`]*) --out DIR`", part)[1] for part in parts]
    return [(part.partition("\n## ")[0], shlex.split(command)) for part, command in zip(parts, commands, strict=True)]


@pytest.mark.parametrize("report", REPORTS, ids=lambda report: report.parent.name)
def test_what_a_report_says_comes_out_of_its_table_again(report: Path) -> None:
    """By the very command that it names; a system of one run has that run's name there."""
    assert comparisons_of(report)
    for text, (_, _, baseline, *only) in comparisons_of(report):
        runs = read_runs([report.parent / "metrics.csv.gz"], finetuned=Path("nowhere"), only=only[1::2])
        said = [re.sub(r"-seed\d+", "", line) for line in summary(compare_runs(runs, baseline=baseline))]
        assert said and [line for line in said if f"- {line}\n" not in re.sub(r"-seed\d+", "", text) + "\n"] == []


def test_pages_are_made_from_a_committed_table(tmp_path: Path, pld: Any) -> None:
    report = RESULTS / "study-theta-bar" / "report.md"
    [(text, arguments)] = comparisons_of(report)
    outcome = pld("compare", report.parent / "metrics.csv.gz", *arguments[1:], "--out", tmp_path / "page")
    assert outcome.code == 0, outcome.err
    page = (tmp_path / "page" / "index.html").read_text(encoding="utf-8")
    assert page.count("<svg") == 2 and "0.1083" in page and "0.1083" in text


def test_every_table_of_readme_and_docs_says_what_committed_files_say(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run_claims(monkeypatch, "--check") == 0, capsys.readouterr().out


def run_claims(monkeypatch: pytest.MonkeyPatch, *words: object) -> int:
    monkeypatch.setattr(sys, "argv", ["benchmarks/claims.py", *map(str, words)])
    try:
        claims.main()
    except SystemExit as ended:
        return int(ended.code or 0)
    return 0


def test_what_differs_is_named_by_file_line_and_cell_and_written_anew(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = [("system", "loss"), ("a", "1.25"), ("b", "2.50")]
    monkeypatch.setitem(claims.CLAIMS, "made-up", lambda: rows)
    (tmp_path / "docs" / "guides").mkdir(parents=True)
    right = "# A\n\n<!-- claims: made-up -->\n| system | loss |\n|---|---|\n| a | 1.25 |\n| b | 2.50 |\n\nEnd.\n"
    wrong = right.replace("-->\n", "-->\n\n").replace("2.50", "2.49")
    (tmp_path / "README.md").write_text(right)
    (tmp_path / "docs" / "guides" / "page.md").write_text(wrong)
    assert run_claims(monkeypatch, "--check", "--root", tmp_path) == 1
    assert capsys.readouterr().out == "docs/guides/page.md:8: loss of b: '2.49' is written, '2.50' is computed\n"
    rows.append(("c", "3.75"))
    assert run_claims(monkeypatch, "--write", "--check", "--root", tmp_path) == 0
    assert capsys.readouterr().out == "written: README.md:4\nwritten: docs/guides/page.md:5\n2 tables say what is computed\n"
    assert (tmp_path / "README.md").read_text() == right.replace("2.50 |\n", "2.50 |\n| c | 3.75 |\n")
    assert run_claims(monkeypatch, "--write", "--root", tmp_path) == 0 and capsys.readouterr().out == ""


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("| a | b |\n|---|---|\n| x | 12 % |", "README.md:1: a table holds numbers: put <!-- claims: NAME --> above it"),
        ("| a | 12 |\n|---|---|\n| x | `--jobs 2`, [arXiv 2010.13369](https://arxiv.org/abs/2010.13369) |", ""),
        ("<!-- claims: none, sizes of presets -->\n| a |\n|---|\n| 12 |", ""),
        ("<!-- claims: none -->\n| a |\n|---|\n| 12 |", "README.md:2: <!-- claims: none --> does not say why"),
        ("<!-- claims: droping -->\n| a |\n|---|\n| x |", "README.md:2: no claims are called droping: choose from dropping"),
        ("<!-- claims: none, far away -->\n\nText.\n\n| a |\n|---|\n| 12 |", "README.md:5: a table holds numbers"),
        ("```\n| a |\n|---|\n| 12 |\n```", ""),
    ],
)
def test_a_table_with_numbers_needs_a_mark(
    text: str, message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "README.md").write_text(text + "\n")
    assert run_claims(monkeypatch, "--check", "--root", tmp_path) == bool(message)
    assert capsys.readouterr().out.startswith(message or "0 tables say what is computed")


def test_the_table_of_what_dropping_bought_is_that_of_the_studies() -> None:
    """Read off study-tiny/report.md and study-tiny-36m/report.md: 83 % and 25.3 %, 17.9 % less; never reached."""
    pld = next(row for row in claims.dropping() if row[0] == "PLD")
    assert (pld[1], pld[3], pld[5]) == ("75 % / 82 %", "83 %", "never")


def test_of_a_study_the_text_one_picture_and_the_table_are_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    report = tmp_path / "report"
    report.mkdir()
    source = RESULTS / "study-theta-bar"
    for name in ("comparison.png", "other.png"):
        (report / name).write_bytes((source / "sensitivity-pld.theta_bar.png").read_bytes())
    (report / "index.html").write_text("a page")
    (report / "metrics.csv.gz").write_bytes((source / "metrics.csv.gz").read_bytes())
    text = "# S\n\nEvery curve: [index.html](index.html), or `pld compare x`.\n\n![losses](comparison.png)\n\n![other](other.png)\n\nEnd.\n"
    (report / "report.md").write_text(text)
    monkeypatch.setattr(sys, "argv", ["benchmarks/keep_study.py", str(report), str(tmp_path / "kept")])
    keep_study.main()
    kept = tmp_path / "kept"
    assert {path.name for path in kept.iterdir()} == {"report.md", "comparison.png", "metrics.csv.gz"}
    assert (kept / "report.md").read_text() == "# S\n\nEvery curve: `pld compare x`.\n\n![losses](comparison.png)\n\nEnd.\n"
    assert read_table(kept / "metrics.csv.gz") == read_table(source / "metrics.csv.gz")
