import csv
import io

import pytest

from pldcli.console.section import Section, bullets, code_block, csv_text, html, markdown, markdown_table, markdown_text


def test_names_stay_one_cell_of_plain_text() -> None:
    table = markdown_table(["run", "loss"], [["a|b\nc <script>alert(1)</script>", "1.0"]])
    assert table.splitlines() == ["| run | loss |", "| --- | --- |", "| a\\|b c &lt;script>alert(1)&lt;/script> | 1.0 |"]


@pytest.mark.parametrize(
    ("text", "written"),
    [
        ("a\\| b", "a\\\\\\| b"),
        ("[x](javascript:alert(1))", "\\[x\\](javascript:alert(1))"),
        ("![i](http://elsewhere/x.png)", "!\\[i\\](http://elsewhere/x.png)"),
        ("<img src=x onerror=alert(1)>", "&lt;img src=x onerror=alert(1)>"),
        ("&#60;b&gt; R&D", "\\&#60;b\\&gt; R&D"),
        ("one\n\n# two\u2028three", "one  # two three"),
        ("`pld runs` of bert_tiny, 1.5 * 2", "`pld runs` of bert_tiny, 1.5 * 2"),
    ],
)
def test_text_means_nothing_to_markdown(text: str, written: str) -> None:
    assert markdown_text(text) == written
    assert bullets([text, "b"]) == f"- {written}\n- b"
    section = markdown(Section(text, (text,), ((text,),), notes=(f"{text}",)))
    assert section.count(written[1:]) == 4 and section.splitlines()[0] == f"## {written}"


def test_nothing_ends_a_code_block() -> None:
    assert code_block("a: 1", "yaml") == "```yaml\na: 1\n```"
    assert code_block("# x\n````\n<script>") == "`````\n# x\n````\n<script>\n`````"


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


def test_no_head_is_a_formula() -> None:
    assert csv_text([{"=cmd|' /C calc'!A0": "\n=1+1", "b": 1}]).splitlines() == ["'=cmd|' /C calc'!A0,b", "\"'", '=1+1",1']
