from __future__ import annotations

import bz2
import tracemalloc
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest

from pldcli.corpus import reader as module
from pldcli.corpus.reader import Reader
from pldcli.corpus.sources import find_sources
from pldcli.data.prepared import open_prepared
from pldcli.errors import DataError

pytestmark = pytest.mark.skipif(find_spec("mwparserfromhell") is None, reason="mwparserfromhell is not installed")

HEAD = """<mediawiki xmlns="http://www.mediawiki.org/xml/export-0.11/" version="0.11" xml:lang="de">
  <siteinfo><sitename>Wikipedia</sitename><namespaces>
    <namespace key="0" case="first-letter" />
    <namespace key="6" case="first-letter">Datei</namespace>
    <namespace key="14" case="first-letter">Kategorie</namespace>
  </namespaces></siteinfo>
"""
RIVER = """{{Infobox river|length=[[km]] 12}}'''Anna''' is a [[river|stream]] in [[France]].&lt;ref name="a"&gt;Smith, {{cite}}&lt;/ref&gt;
[[Datei:a.jpg|thumb|A [[caption]] of it]] [[File:b.jpg]] [[Kategorie:Rivers]] [[Category:Streams]]
{| class="x"
! length
|-
| 12
|}
== Course ==
It flows&amp;nbsp;on &lt;!-- unseen --&gt; &lt;math&gt;x^2&lt;/math&gt; past H&lt;sub&gt;2&lt;/sub&gt;O.
* [[Loire]], a ''river''
[https://example.org a page] &lt;gallery&gt;a.jpg&lt;/gallery&gt;
"""
SEEN = "Anna is a stream in France.\nCourse\nIt flows on past H2O.\nLoire, a river\na page"


def page(text: str, *, title: str = "T", ns: int = 0, more: str = "", model: str = "wikitext") -> str:
    revision = f'<revision><id>1</id><model>{model}</model><text bytes="9" xml:space="preserve">{text}</text></revision>'
    return f"<page><title>{title}</title><ns>{ns}</ns><id>1</id>{more}{revision}</page>\n"


def dump(*pages: str) -> str:
    return f"{HEAD}{''.join(pages)}</mediawiki>\n"


ALL = dump(
    page(RIVER), page("#REDIRECT [[Anna]]", more='<redirect title="Anna" />'), page("Talk", ns=1), page("x{}", model="json"),
    page("Second article, with &lt;b&gt;bold&lt;/b&gt; words."), page("{{only a template}}"),
)  # fmt: skip


def read(path: Path, **settings: Any) -> tuple[list[str], dict[str, int]]:
    reader = Reader(find_sources([path])[0][0], **settings)
    documents, text = [], ""
    for piece, last in reader.pieces():
        text += piece
        if last:
            documents, text = [*documents, text], ""
    return documents, dict(reader.skipped)


@pytest.mark.parametrize("name", ["dump.xml", "dump.xml.bz2", "several-streams.xml.bz2"])
@pytest.mark.parametrize("chunk", [7, 1 << 20])
def test_articles_come_as_a_reader_sees_them(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, chunk: int) -> None:
    monkeypatch.setattr(module, "CHUNK_BYTES", chunk)
    raw, half = ALL.encode(), len(ALL) // 2
    content = {"dump.xml": raw, "dump.xml.bz2": bz2.compress(raw)}.get(name, bz2.compress(raw[:half]) + bz2.compress(raw[half:]))
    (tmp_path / name).write_bytes(content)
    documents, skipped = read(tmp_path / name)
    assert documents == [SEEN, "Second article, with bold words."]
    assert skipped == {"page that is no article": 3, "empty document": 1}


def test_a_dump_is_prepared_like_other_text(pld: Any, tmp_path: Path) -> None:
    pages = [page(f"Article {number} tells of '''river''' {number % 7}, [[France]] and its {number} bridges.") for number in range(400)]
    (tmp_path / "wiki.xml.bz2").write_bytes(bz2.compress(dump(*pages).encode()))
    outcome = pld("prepare-data", tmp_path / "wiki.xml.bz2", "--vocab-size", 200, "--out", tmp_path / "data", "--processes", 1)
    assert outcome.code == 0, outcome.err
    counts = open_prepared(tmp_path / "data").manifest["counts"]
    assert counts["train"]["documents"] + counts["validation"]["documents"] == 400


BOMB = '<!DOCTYPE m [<!ENTITY a "aaaaaaaaaa">' + "".join(
    f'<!ENTITY {name} "{f"&{before};" * 10}">' for before, name in zip("abcdefghi", "bcdefghij", strict=True)
)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (ALL[:-200], "is truncated or damaged (unclosed token"),
        (ALL.replace("</title>", "</titel>", 1), "is truncated or damaged (mismatched tag"),
        ("<html><body>x</body></html>", "is XML, but no export of a wiki"),
        ("no XML at all", "is truncated or damaged (syntax error"),
        (f"{BOMB}]>{dump(page('&j;'))}", "is truncated or damaged (limit on input amplification"),
        (dump(page("x" * 3_000_000)), "has a page of more than 1,000,000 characters"),
    ],
)
def test_what_is_no_dump(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, content: str, message: str) -> None:
    monkeypatch.setattr(module, "MAX_RECORD_BYTES", 4_000_000)
    (tmp_path / "a.xml").write_text(content, encoding="utf-8")
    with pytest.raises(DataError) as caught:
        read(tmp_path / "a.xml")
    assert f"a.xml: {message}" in str(caught.value)


def test_a_page_that_cannot_be_parsed_is_counted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import mwparserfromhell

    parse = mwparserfromhell.parse

    def failing(text: str) -> Any:
        if "Anna" in text:
            raise mwparserfromhell.parser.ParserError("lost")
        return parse(text)

    monkeypatch.setattr(mwparserfromhell, "parse", failing)
    (tmp_path / "a.xml").write_text(ALL, encoding="utf-8")
    documents, skipped = read(tmp_path / "a.xml")
    assert documents == ["Second article, with bold words."] and skipped["page whose wikitext cannot be parsed"] == 1
    nested = "{{" * 5000 + "[[" * 5000
    (tmp_path / "a.xml").write_text(dump(page(nested), page("Plain.")), encoding="utf-8")
    assert read(tmp_path / "a.xml")[0][-1] == "Plain."


def test_pages_are_not_kept(tmp_path: Path) -> None:
    with (tmp_path / "a.xml").open("w", encoding="utf-8") as file:
        file.write(HEAD)
        file.writelines(page("Talk " * 2000, ns=1) for _ in range(4000))
        file.write("</mediawiki>")
    assert (tmp_path / "a.xml").stat().st_size > 38e6
    tracemalloc.start()
    try:
        assert read(tmp_path / "a.xml")[1] == {"page that is no article": 4000}
        assert tracemalloc.get_traced_memory()[1] < 16e6
    finally:
        tracemalloc.stop()


def test_bad_bytes_are_replaced_and_counted(tmp_path: Path) -> None:
    (tmp_path / "a.xml").write_bytes(dump(page("caf\u00e9 and more text")).encode("latin-1"))
    documents, _ = read(tmp_path / "a.xml")
    assert documents == ["caf\ufffd and more text"]
    with pytest.raises(DataError, match="is not UTF-8"):
        read(tmp_path / "a.xml", strict=True)


def test_switches_variants_of_scripts_and_files_by_names_that_the_dump_does_not_list(tmp_path: Path) -> None:
    text = "__NOTOC__\nBefore [[Bild:a b.JPG|thumb|200px|its caption]] and -{zh-hans:计算机; zh-hant:電腦}-, -{T|a title}--{kept}-."
    path = tmp_path / "a.xml"
    path.write_text(dump(page(text)), encoding="utf-8")
    assert read(path)[0] == ["Before and 计算机, kept."]
    text = "The method __init__ is run, -{http://x.org/a;b}- and -{H|foo}--{foo=>zh-hans:计算机}-. __无目录__"
    path.write_text(dump(page(text)), encoding="utf-8")
    assert read(path)[0] == ["The method __init__ is run, http://x.org/a and 计算机."]


def test_words_of_two_lines_stay_apart(tmp_path: Path) -> None:
    text = "One<br>two<br/>three <p>four</p><p>five</p>\n* six<br />seven\n<div>eight</div>nine <b>t</b>en <ul><li>a</li><li>b</li></ul>"
    (tmp_path / "a.xml").write_text(dump(page(text.replace("<", "&lt;"))), encoding="utf-8")
    lines = ["One", "two", "three", "four", "five", "six", "seven", "eight", "nine ten", "a", "b"]
    assert read(tmp_path / "a.xml")[0][0].split("\n") == lines


def test_what_is_left_out_of_a_dump_that_is_cut_is_named_in_words(tmp_path: Path) -> None:
    (tmp_path / "a.xml").write_text(ALL[:-200], encoding="utf-8")
    reader = Reader(find_sources([tmp_path / "a.xml"])[0][0], skip_bad=True)
    assert list(reader.readable_pieces()) and reader.skipped["file that is truncated or damaged"] == 1
