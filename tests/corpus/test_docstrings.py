from __future__ import annotations

from pathlib import Path

import pytest

from pldcli.corpus import docstrings

PROSE = "This paragraph says in plain words what the function does, and says it long enough to be worth reading. " * 3
MODULE = f'''"""{PROSE}

Another paragraph.
"""

def one():
    """Too short."""

def two():
    """{PROSE}"""

class Three:
    """{"0123456789 | " * 40}"""
    def four(self):
        r"""{PROSE} It has a second sentence.\\d"""
'''


@pytest.fixture
def library(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An installation with one good module, one broken, and one of tests."""
    standard, installed = tmp_path / "lib", tmp_path / "lib" / "site-packages"
    (installed / "package" / "tests").mkdir(parents=True)
    (standard / "a.py").write_text(MODULE)
    (standard / "broken.py").write_text("def (:")
    (installed / "package" / "b.py").write_text(f'"""{PROSE} Installed."""\nx = "\\d"\n')
    (installed / "package" / "tests" / "c.py").write_text(f'"""{PROSE} A test."""')
    monkeypatch.setattr(docstrings.sysconfig, "get_paths", lambda: {"stdlib": str(standard), "purelib": str(installed)})
    return tmp_path


def test_collects_long_distinct_prose_without_blank_lines(library: Path) -> None:
    prose = PROSE.strip()
    assert docstrings.docstring_corpus(10**6) == [
        f"{prose}\nAnother paragraph.",
        prose,
        f"{PROSE} It has a second sentence.\\d",
        f"{PROSE} Installed.",
    ]


def test_stops_when_there_is_enough(library: Path) -> None:
    assert len(docstrings.docstring_corpus(1)) == 3


def test_this_python_has_a_corpus() -> None:
    documents = docstrings.docstring_corpus(100_000)
    assert sum(map(len, documents)) >= 100_000
    assert len(set(documents)) == len(documents)
