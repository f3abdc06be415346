from __future__ import annotations

import gzip
import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import fsspec
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


@pytest.fixture
def store() -> Iterator[Any]:
    """Files at addresses, in memory."""
    system = fsspec.filesystem("memory")
    for number, part in enumerate((TEXTS[::2], TEXTS[1::2])):
        system.pipe(f"/bucket/{number}.jsonl", "\n".join(json.dumps({"text": text}) for text in part).encode())
    system.pipe("/bucket/deep/notes.txt.gz", gzip.compress(b"a note on text"))
    yield system
    system.rm("/bucket", recursive=True)


ADDRESSES = {"memory://bucket/*.jsonl": 2, "memory://bucket": 3, "memory://bucket/**/*.txt.gz": 1, "memory://bucket/1.jsonl": 1}


@pytest.mark.parametrize("address", ADDRESSES)
def test_addresses_are_fetched_and_named_in_the_manifest(store: Any, pld: Any, tmp_path: Path, address: str) -> None:
    outcome = pld("prepare-data", address, "--out", tmp_path / "data", "--vocab-size", 100, "--processes", 1)
    assert outcome.code == 0, outcome.err
    sources = open_prepared(tmp_path / "data").manifest["sources"]
    assert len(sources) == ADDRESSES[address]
    assert all(source["name"].startswith("memory://") and "bucket/" in source["name"] for source in sources)
    assert not list(tmp_path.glob(".*")), "what was fetched is gone"


def test_addresses_with_weights_for_validation_and_in_shares(store: Any, pld: Any, tmp_path: Path) -> None:
    line = ["prepare-data", "memory://bucket/0.jsonl", "--source", "memory://bucket/1.jsonl=2", "--validation", "memory://bucket/deep"]
    line += ["--out", tmp_path / "data", "--vocab-size", 100, "--processes", 1]
    for share in ("0/2", "1/2", "0/2", "1/2"):
        assert pld(*line, "--share", share).code == 0
    fetched = tmp_path / ".data.inputs"
    assert len(list(fetched.rglob("*.jsonl"))) == 2, "kept, since all shares read the same files"
    outcome = pld(*line)
    assert outcome.code == 0, outcome.err
    sources = {source["name"].rpartition("/")[2]: source for source in open_prepared(tmp_path / "data").manifest["sources"]}
    assert sources["1.jsonl"]["weight"] == 2 and sources["notes.txt.gz"]["split"] == "validation"
    assert not fetched.exists()


def test_what_was_fetched_is_not_fetched_again(store: Any, pld: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store.pipe("/bucket/2.jsonl", b"no JSON\n")
    line = ["prepare-data", "memory://bucket/*.jsonl", "--out", tmp_path / "data", "--vocab-size", 100, "--processes", 1]
    failed = pld(*line)
    assert failed.code == 3 and "2.jsonl:1: is not JSON" in failed.err
    opened = []
    original = type(store).open
    monkeypatch.setattr(type(store), "open", lambda self, path, *more, **named: opened.append(path) or original(self, path, *more, **named))
    store.pipe("/bucket/2.jsonl", b'{"text": "mended"}\n')
    opened.clear()
    outcome = pld(*line)
    assert outcome.code == 0, outcome.err
    assert [path.rpartition("/")[2] for path in opened] == ["2.jsonl"]


@pytest.mark.parametrize(
    ("address", "message"),
    [
        ("memory://bucket/none.txt", "memory://bucket/none.txt: no such file"),
        ("memory://bucket/*.csv", "memory://bucket/*.csv: there is nothing"),
        ("nonsense://user:secret@bucket/a.txt?key=secret", "nonsense://bucket/a.txt: cannot be read here"),
    ],
)
def test_addresses_where_there_is_nothing(store: Any, pld: Any, tmp_path: Path, address: str, message: str) -> None:
    outcome = pld("prepare-data", address, "--out", tmp_path / "data")
    assert outcome.code in (2, 3) and f"error: {message}" in outcome.err and "secret" not in outcome.err
    assert outcome.err.count("\n") == 1
