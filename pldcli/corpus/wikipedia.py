"""Articles of a MediaWiki export, such as Wikipedia's dumps: out of the XML, and from wikitext to text.

Of an article stay the words that a reader sees in running text: no templates, tables, references, galleries, formulas, files or
categories. Wikitext is parsed by mwparserfromhell.

Source: MediaWiki's help, "Export format"; its namespaces 0 (articles), 6 (files) and 14 (categories).
"""

from __future__ import annotations

import re
import xml.etree.ElementTree as ET
from collections.abc import Iterable, Iterator
from contextlib import suppress
from typing import Any, cast

from pldcli.corpus.addresses import Location
from pldcli.errors import DataError

__all__ = ["article_texts"]

NO_ARTICLE = "page that is no article"
UNREADABLE = "page whose wikitext cannot be parsed"
_ROOT, _ARTICLES, _HIDDEN = "mediawiki", "0", ("6", "14")
_USUAL_NAMES = ("file", "image", "category")
"""What these namespaces are called in every wiki, beside its own names for them."""
_HIDDEN_TAGS = ("ref", "table", "gallery", "math", "chem", "timeline", "score", "graph", "imagemap", "templatedata")
_LINE_TAGS = ("br", "hr", "p", "div", "center", "blockquote", "ul", "ol", "li", "dl", "dt", "dd", "h1", "h2", "h3", "h4", "h5", "h6")
_LINE_END = "\v"
"""Where a tag begins or ends a line: a character that no XML holds, and the parser does not strip."""
_SPACES = re.compile(r"[^\S\n]+")
_SWITCH = re.compile(r"__[^\W\d_a-z]+__")
"""As in __NOTOC__, and not as in __init__."""
_VARIANTS = re.compile(r"-\{(?:([^{}|]*)\|)?([^{}]*)\}-")
"""Words of a language with several scripts, perhaps with flags before them: -{zh-hans:A; zh-hant:B}-."""
_UNSEEN_FLAGS = ("H", "T", "-")
_MEDIA = re.compile(r":[^|:]*\.(?:jpe?g|png|gif|svg|webp|tiff?|xcf|pdf|djvu|og[gav]|oga|opus|mp3|wav|flac|webm|mid)\s*$", re.IGNORECASE)
"""The end of the name of a file, behind a name of its namespace that the dump may not list."""


def article_texts(chunks: Iterable[str], path: Location, *, most_characters: int) -> Iterator[tuple[str, str]]:
    """Yield the text of each page, or why there is none: it is a redirect, a talk page or a template, or cannot be parsed.

    Args:
        chunks: Of the XML.
        path: For errors.
        most_characters: Of a page; it is held in memory whole.

    Raises:
        DataError: It is no such export, damaged, or has a longer page.
    """
    parser: ET.XMLPullParser[ET.Element] = ET.XMLPullParser(("start", "end"))
    hidden, held = set(_USUAL_NAMES), 0
    root: ET.Element | None = None
    try:
        for chunk in chunks:
            parser.feed(chunk)
            held += len(chunk)
            for event, element in cast(Iterable[tuple[str, ET.Element]], parser.read_events()):
                if root is None:
                    root = element
                    if _name(element) != _ROOT:
                        hint = "name text, JSON lines, tables, or a MediaWiki export"
                        raise DataError("is XML, but no export of a wiki", where=str(path), hint=hint)
                if event == "start":
                    continue
                name = _name(element)
                if name == "namespace" and element.get("key") in _HIDDEN and element.text:
                    hidden.add(element.text.lower())
                elif name == "page":
                    yield _page(element, hidden)
                    root.clear()
                    held = 0
            if held > most_characters:
                raise DataError(f"has a page of more than {most_characters:,} characters", where=str(path), hint="leave the file out")
        parser.close()
    except ET.ParseError as error:
        raise DataError(f"is truncated or damaged ({error})", where=str(path), hint="fetch it again") from error


def _page(page: ET.Element, hidden: set[str]) -> tuple[str, str]:
    parts = {_name(part): part for part in page}
    revision = {_name(part): part.text or "" for part in parts.get("revision", ())}
    is_article = "redirect" not in parts and "ns" in parts and parts["ns"].text == _ARTICLES
    if not is_article or revision.get("model", "wikitext") != "wikitext":
        return "", NO_ARTICLE
    from mwparserfromhell.parser import ParserError

    try:
        return _plain(revision.get("text", ""), hidden), ""
    except (ParserError, RecursionError):
        return "", UNREADABLE


def _plain(wikitext: str, hidden: set[str]) -> str:
    """Return what a reader sees of wikitext: paragraphs, headings and list items, a line each."""
    import mwparserfromhell

    code: Any = mwparserfromhell.parse(_VARIANTS.sub(_first_variant, _SWITCH.sub("", wikitext)))
    unseen = [link for link in code.filter_wikilinks() if _namespace(title := str(link.title)) in hidden or _MEDIA.search(title)]
    for tag in code.filter_tags():
        name = str(tag.tag).strip().lower()
        if name in _HIDDEN_TAGS:
            unseen.append(tag)
        elif name in _LINE_TAGS and not tag.wiki_markup:  # marks of wikitext stand on lines of their own already
            if tag.contents is None:
                tag.contents = ""
            tag.contents.insert(0, _LINE_END)
            tag.contents.append(_LINE_END)
    for node in unseen:
        with suppress(ValueError):  # it stood in one that is gone
            code.remove(node)
    lines = (_SPACES.sub(" ", line).strip() for line in code.strip_code(normalize=True, collapse=True).replace(_LINE_END, "\n").split("\n"))
    return "\n".join(line for line in lines if line)


def _first_variant(found: re.Match[str]) -> str:
    flags, words = found[1] or "", found[2]
    return "" if flags.strip() in _UNSEEN_FLAGS else re.split(r"(?:^|=>)\s*[a-z-]+\s*:(?!//)", words.partition(";")[0])[-1].strip()


def _namespace(title: str) -> str:
    """Return what stands before the colon of a title; empty where there is none."""
    before, colon, _ = title.partition(":")
    return before.strip().lower() if colon else ""


def _name(element: ET.Element) -> str:
    """Return the name of an element without the version of the export, which is its namespace."""
    return element.tag.rpartition("}")[2]
