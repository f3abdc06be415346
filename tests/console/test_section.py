import csv
import io

import pytest

from pldcli.console.section import Section, csv_text, html, markdown, markdown_table


def test_names_stay_one_cell_of_plain_text() -> None:
    table = markdown_table(["run", "loss"], [["a|b\nc <script>alert(1)</script>", "1.0"]])
    assert table.splitlines() == ["| run | loss |", "| --- | --- |", "| a\\|b c &lt;script>alert(1)&lt;/script> | 1.0 |"]


def test_a_page_holds_no_tag_of_a_name() -> None:
    section = Section("<b>title", ("<i>run",), (("<img src=x onerror=alert(1)>",),), notes=("<script>",))
    assert not {"<b>", "<i>", "<img", "<script"} & {
        html(section)[place : place + size] for size in (3, 4, 7) for place in range(len(html(section)))
    }
    assert "<script>" not in markdown(section).partition("|")[2].partition("\n\n")[0]


@pytest.mark.parametrize(
    ("value", "written"),
    [
        ("=HYPERLINK(1)", "'=HYPERLINK(1)"),
        ("+cmd|' /C calc'!A0", "'+cmd|' /C calc'!A0"),
        ("@SUM(1)", "'@SUM(1)"),
        ("-name", "'-name"),
        ("\t=1", "'\t=1"),
        ("-0.5", "-0.5"),
        ("+1e-3", "+1e-3"),
        ("plain = text", "plain = text"),
        (-0.5, "-0.5"),
        (None, ""),
    ],
)
def test_no_cell_is_a_formula(value: object, written: str) -> None:
    [row] = csv.DictReader(io.StringIO(csv_text([{"run": value}])))
    assert row["run"] == written
