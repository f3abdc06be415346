"""What the Markdown of README.md and docs/ holds: commands, the files that they need, and what they printed.

A `bash` block holds commands, a block with `title="NAME"` is a file, and a `text` block below `<!-- output ... -->` is what the
commands of the `bash` block before it print, shortened as the comment says:

    <!-- output -->                   all of it
    <!-- output first=9 last=2 -->    its first 9 lines and its last 2, with `...` between
    <!-- output exact first=9 -->     the same on every machine: a test compares it
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import yaml

ROOT = Path(__file__).parents[1]
_BLOCK = re.compile(
    r"^(?:<!-- output(?P<how>[^>]*?) -->\n+)?```(?P<language>[a-z]*)(?: title=\"(?P<title>[^\"]+)\")?\n(?P<body>.*?)^```$",
    re.MULTILINE | re.DOTALL,
)


@dataclass(frozen=True, kw_only=True)
class Block:
    """One fenced block of a page."""

    language: str
    body: str
    title: str | None
    how: str | None
    """What stands in the comment of an output; None for other blocks."""

    @property
    def commands(self) -> list[str]:
        """The command lines of a `bash` block."""
        return self.body.splitlines() if self.language == "bash" else []

    @property
    def is_exact(self) -> bool:
        """Whether the output is the same on every machine."""
        return self.how is not None and "exact" in self.how.split()

    def shortened(self, printed: str) -> str:
        """Cut an output as the comment says."""
        limits = {name: int(value) for name, _, value in (part.partition("=") for part in (self.how or "").split()) if value}
        lines = [line.rstrip() for line in printed.strip("\n").splitlines()]
        first, last = limits.get("first", len(lines)), limits.get("last", 0)
        if first + last < len(lines):
            lines = [*lines[:first], "...", *lines[len(lines) - last :]]
        return "".join(f"{line}\n" for line in lines)


def read_blocks(page: Path) -> list[Block]:
    """Read the fenced blocks of a page, in their order."""
    return [Block(**found.groupdict()) for found in _BLOCK.finditer(page.read_text(encoding="utf-8"))]


def pages() -> list[Path]:
    """List the pages of the documentation in the order of their navigation."""
    config = yaml.safe_load((ROOT / "mkdocs.yml").read_text(encoding="utf-8"))
    return [ROOT / "docs" / name for name in _names(config["nav"])]


def commands(page: Path) -> list[str]:
    """List the command lines of a page."""
    return [line for block in read_blocks(page) for line in block.commands]


def write_files(blocks: Sequence[Block], directory: Path) -> None:
    """Write the files that blocks with a title are."""
    for block in blocks:
        if block.title:
            (directory / block.title).write_text(block.body, encoding="utf-8")


def replace_outputs(page: Path, output_of: Callable[[Block, list[str]], str | None]) -> str:
    """Return a page's text with new outputs.

    Args:
        page: The page; it is not written.
        output_of: From a block of output and the commands before it to what they print; None keeps what is there.
    """
    last: list[str] = []

    def renew(found: re.Match[str]) -> str:
        nonlocal last
        block = Block(**found.groupdict())
        last = block.commands or last
        printed = output_of(block, last) if block.how is not None else None
        if printed is None:
            return found[0]
        start, end = found.start("body") - found.start(), found.end("body") - found.start()
        return found[0][:start] + block.shortened(printed) + found[0][end:]

    return _BLOCK.sub(renew, page.read_text(encoding="utf-8"))


def _names(entries: Sequence[object]) -> list[str]:
    """Flatten the navigation of mkdocs."""
    names: list[str] = []
    for entry in entries:
        value = next(iter(entry.values())) if isinstance(entry, dict) else entry
        names.extend(_names(value) if isinstance(value, list) else [str(value)])
    return names
