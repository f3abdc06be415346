"""One HTML page that holds everything: tables, words and curves, nothing fetched from anywhere."""

from __future__ import annotations

import re
from collections.abc import Sequence
from html import escape

from pldcli.console.section import Section, html

__all__ = ["render_page"]


_STYLE = """
:root { color-scheme: light; }
body { font: 16px/1.5 system-ui, -apple-system, "Segoe UI", Roboto, sans-serif; color: #1c1c1c; background: #fff;
  max-width: 62rem; margin: 0 auto; padding: 1.5rem 1rem 4rem; }
h1 { font-size: 1.6rem; line-height: 1.25; margin: 0 0 .75rem; }
h2 { font-size: 1.15rem; margin: 2.2rem 0 .5rem; }
h3 { font-size: 1rem; margin: 1.2rem 0 .2rem; }
ul { margin: .2rem 0; padding-left: 1.2rem; }
.warnings { background: #fff6e5; border-left: 4px solid #d1812a; padding: .6rem 1rem; margin: 1rem 0; }
.warnings strong { display: block; }
.scroll { overflow-x: auto; }
table { border-collapse: collapse; font-size: .92rem; font-variant-numeric: tabular-nums; }
th, td { padding: .3rem .9rem .3rem 0; text-align: right; white-space: nowrap; border-bottom: 1px solid #e4e4e4; vertical-align: top; }
th { font-weight: 600; border-bottom: 2px solid #bdbdbd; }
.word { text-align: left; }
.note { color: #555; font-size: .9rem; margin: .3rem 0; }
figure { margin: 1rem 0; }
figure svg { width: 100%; height: auto; }
figcaption { color: #555; font-size: .9rem; }
footer { margin-top: 3rem; color: #777; font-size: .85rem; }
""".strip()


def render_page(
    title: str,
    *,
    summary: Sequence[str],
    warnings: Sequence[str],
    sections: Sequence[Section],
    words: Sequence[tuple[str, Sequence[str]]],
    figures: Sequence[tuple[str, str]],
    footer: str,
) -> str:
    """Build the page.

    Args:
        title: Heading.
        summary: What came out, a paragraph each.
        warnings: What must be known before the numbers.
        sections: Tables.
        words: Headings, each with lines below it.
        figures: Caption and SVG of each picture.
        footer: Last line.
    """
    parts = [f"<h1>{escape(title)}</h1>"]
    if warnings:
        parts.append(f'<div class="warnings"><strong>Read this first</strong>{_list(warnings)}</div>')
    parts += [f"<p>{escape(line)}</p>" for line in summary]
    parts += [
        f"<figure>{_inline(svg, f'figure{number}-')}<figcaption>{escape(caption)}</figcaption></figure>"
        for number, (caption, svg) in enumerate(figures, 1)
    ]
    parts += [html(section) for section in sections]
    if words:
        parts.append("<h2>What differs</h2>")
        parts += [f"<h3>{escape(heading)}</h3>{_list(lines)}" for heading, lines in words]
    parts.append(f"<footer>{escape(footer)}</footer>")
    return (
        '<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{escape(title)}</title>\n<style>\n{_STYLE}\n</style>\n</head>\n<body>\n" + "\n".join(parts) + "\n</body>\n</html>\n"
    )


def _list(lines: Sequence[str]) -> str:
    return "<ul>" + "".join(f"<li>{escape(line)}</li>" for line in lines) + "</ul>"


def _inline(svg: str, prefix: str) -> str:
    """Keep the element alone, and give its ids a prefix, so that two pictures on a page do not share one."""
    body = svg[svg.index("<svg") :]
    body = re.sub(r'\bid="', f'id="{prefix}', body)
    body = re.sub(r'(href="#|url\(#)', rf"\g<1>{prefix}", body)
    # Of no use inside HTML, and the only addresses in it.
    return re.sub(r'\s+xmlns(:\w+)?="[^"]*"|<metadata>.*?</metadata>', "", body, flags=re.DOTALL)
