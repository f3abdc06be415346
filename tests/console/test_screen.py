from __future__ import annotations

import pytest

from pldcli.console.screen import print_sections, screen, table
from pldcli.console.section import Section

HEADINGS = ("split", "examples", "exact match", "squad f1", "has answer exact match", "has answer f1", "no answer accuracy", "tokens/s")
ROW = ("validation", "11,873", "0.8123", "0.8456", "0.7912", "0.8345", "0.8334", "45,123")


@pytest.mark.parametrize("columns", [80, 100, 120])
def test_numbers_are_whole_however_narrow_the_screen_is(
    columns: int, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("COLUMNS", str(columns))
    screen().print(table(HEADINGS, [ROW], right=HEADINGS[1:], fold=["split"]))
    print_sections(screen(), [Section("A table", HEADINGS, (ROW,))])
    lines = capsys.readouterr().out.splitlines()
    rows = [line.split() for line in lines if "0.8123" in line]
    assert [row[1:] for row in rows] == [list(ROW[1:])] * 2
    assert max(map(len, lines)) <= columns


def test_where_there_is_room_only_words_wrap(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setenv("COLUMNS", "40")
    screen().print(
        table(["[bold]a name[/]", "a long heading"], [["word " * 12, "0.5"]], right=["a long heading"], fold=["[bold]a name[/]"])
    )
    head, *rows = capsys.readouterr().out.splitlines()
    assert head.split("  ")[0].strip() == "a name" and head.endswith("a long heading") and len(rows) == 3
