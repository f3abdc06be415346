"""A corpus of real English that every machine has: the documentation strings of the Python and packages installed."""

from __future__ import annotations

import ast
import inspect
import sysconfig
import warnings
from collections.abc import Iterator
from pathlib import Path

__all__ = ["docstring_corpus"]

_LEAST_CHARACTERS = 200
_LEAST_LETTERS = 0.6
"""Share of letters and spaces below which a docstring is a table or a listing."""
_SKIPPED = {"test", "tests", "idlelib", "lib2to3", "__pycache__"}


def docstring_corpus(most_bytes: int) -> list[str]:
    """Collect distinct documentation strings, at least a paragraph each.

    Args:
        most_bytes: Where to stop, in UTF-8.

    Returns:
        Documents without blank lines inside, in an order that depends only on what is installed.
    """
    documents: dict[str, None] = {}
    size = 0
    for path in _modules():
        for text in _docstrings(path):
            if text not in documents:
                documents[text] = None
                size += len(text.encode())
        if size >= most_bytes:
            break
    return list(documents)


def _modules() -> Iterator[Path]:
    """Walk the standard library, then installed packages, by name."""
    standard, installed = (Path(sysconfig.get_paths()[name]) for name in ("stdlib", "purelib"))
    for root in (standard, installed):
        for path in sorted(root.rglob("*.py")):
            parts = path.relative_to(root).parts
            if not _SKIPPED.intersection(parts) and not (root == standard and parts[0] == "site-packages"):
                yield path


def _docstrings(path: Path) -> Iterator[str]:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # other people's escape sequences
            tree = ast.parse(path.read_bytes())
    except (SyntaxError, ValueError, OSError, RecursionError):
        return
    for node in ast.walk(tree):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            text = ast.get_docstring(node, clean=False)
            if text and len(text) >= _LEAST_CHARACTERS:
                lines = [line.strip() for line in inspect.cleandoc(text).splitlines() if line.strip()]
                joined = "\n".join(lines)
                readable = sum(character.isalpha() or character.isspace() for character in joined)
                if readable >= _LEAST_LETTERS * len(joined):
                    yield joined
