from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from pldcli.corpus.docstrings import docstring_corpus
from pldcli.data.prepared import open_prepared

TEXTS = docstring_corpus(60_000)


def prepare(place: Path, *words: str, given: bytes = b"") -> subprocess.CompletedProcess[bytes]:
    line = [sys.executable, "-m", "pldcli", "prepare-data", *words, "--out", str(place), "--vocab-size", "300", "--processes", "1"]
    return subprocess.run(line, input=given, capture_output=True, check=False)


def test_standard_input_is_a_corpus_like_a_file(tmp_path: Path) -> None:
    text = "\n\n".join(TEXTS).encode()
    (tmp_path / "a.txt").write_bytes(text)
    for name, words in (("file", [str(tmp_path / "a.txt")]), ("pipe", ["-"])):
        done = prepare(tmp_path / name, *words, given=text if name == "pipe" else b"")
        assert done.returncode == 0, done.stderr.decode()
    ours, theirs = open_prepared(tmp_path / "pipe"), open_prepared(tmp_path / "file")
    assert (ours.data_fingerprint, ours.fingerprint) == (theirs.data_fingerprint, theirs.fingerprint)
    assert not list(tmp_path.glob(".*")), "what was kept is gone"


def test_json_lines_are_told_from_text(tmp_path: Path) -> None:
    lines = "\n".join(json.dumps({"text": text}) for text in TEXTS).encode()
    done = prepare(tmp_path / "pipe", "-", given=lines)
    assert done.returncode == 0, done.stderr.decode()
    counts = open_prepared(tmp_path / "pipe").manifest["counts"]
    assert counts["train"]["documents"] + counts["validation"]["documents"] == len(TEXTS)


@pytest.mark.parametrize(
    ("words", "message"),
    [(("-", "-"), b"error: -: standard input can be read once; pipe text into the command, or name files"), (("-",), b"is empty")],
)
def test_refusals_leave_nothing(tmp_path: Path, words: tuple[str, ...], message: bytes) -> None:
    done = prepare(tmp_path / "pipe", *words)
    assert done.returncode in (2, 3) and message in done.stderr
    assert list(tmp_path.iterdir()) == []
