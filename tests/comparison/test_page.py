from __future__ import annotations

import re
from functools import cache
from html.parser import HTMLParser

import pytest

from pldcli.comparison.comparison import compare_runs
from pldcli.comparison.page import render_page
from pldcli.comparison.plots import draw_curves
from pldcli.console.section import Section
from tests.comparison.test_runs import made_up_run

pytestmark = pytest.mark.usefixtures("drawn")

VOID = {"meta", "br", "img", "link", "input", "hr"}


class Outline(HTMLParser):
    """Follow what opens and closes, and keep texts."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.texts: list[str] = []
        self.ids: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.ids += [str(value) for name, value in attrs if name == "id"]
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.ids += [str(value) for name, value in attrs if name == "id"]

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.texts.append(data.strip())


@cache
def page(name: str = "pld") -> str:
    comparison = compare_runs([made_up_run("pre", "pld.theta_bar=1", losses=(5.0, 4.0, 3.0, 2.5)), made_up_run(name)])
    return render_page(
        "Two <runs>",
        summary=["one & two"],
        warnings=["mind <this>"],
        sections=[Section("Losses", ("system", "loss"), (("pre", "2.5"), (name, "1.0")), notes=("in nats",))],
        words=[("pld", ["drops"])],
        figures=[(f"about {kind}", draw_curves(comparison, kind)) for kind in ("validation", "training")],  # type: ignore[arg-type]
        footer="the end",
    )


def test_the_page_is_whole_and_says_everything() -> None:
    outline = Outline()
    outline.feed(page())
    assert outline.open == []
    for text in ("Two <runs>", "one & two", "mind <this>", "Losses", "2.5", "in nats", "drops", "about training", "the end"):
        assert text in outline.texts


def test_nothing_is_fetched() -> None:
    text = page()
    assert not re.search(r"https?:|//\w|@import|<script|<link|<img|\bsrc=", text)
    assert set(re.findall(r'href="([^"])', text)) == {"#"}


def test_ids_are_unique_and_every_reference_has_its_target() -> None:
    text, outline = page(), Outline()
    outline.feed(text)
    assert len(outline.ids) == len(set(outline.ids)) > 10
    targets = re.findall(r'(?:href="#|url\(#)([^")]+)', text)
    assert targets and set(targets) <= set(outline.ids)


def test_names_cannot_write_html() -> None:
    text = page("<script>alert(1)</script>")
    assert "<script" not in text and "&lt;script&gt;" in text


def test_words_stand_left_and_numbers_right() -> None:
    text = page()
    assert '<td class="word">pre</td><td>2.5</td>' in text


def test_without_warnings_there_is_no_box() -> None:
    text = render_page("t", summary=[], warnings=[], sections=[], words=[], figures=[], footer="f")
    assert '<div class="warnings">' not in text and "What differs" not in text
