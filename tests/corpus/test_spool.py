from __future__ import annotations

import gzip
import io
import json
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import fsspec
import pyarrow as pa
import pytest

from pldcli.corpus.addresses import Address
from pldcli.corpus.docstrings import docstring_corpus
from pldcli.corpus.spool import Spool, spooled
from pldcli.data.prepared import open_prepared
from pldcli.system import locks

TEXTS = docstring_corpus(60_000)


def prepare(place: Path, *words: str, given: bytes = b"") -> subprocess.CompletedProcess[bytes]:
    line = [sys.executable, "-m", "pldcli", "prepare-data", *words, "--out", str(place), "--vocab-size", "300", "--processes", "1"]
    return subprocess.run(line, input=given, capture_output=True, check=False)


@contextmanager
def started(place: Path, *words: str) -> Iterator[subprocess.Popen[bytes]]:
    """Start the command, its standard input open."""
    line = [sys.executable, "-m", "pldcli", "prepare-data", *words, "--out", str(place)]
    with subprocess.Popen(line, stdin=subprocess.PIPE, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE) as process:
        try:
            yield process
        finally:
            process.kill()


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
    done = prepare(tmp_path / "text", "-", given=b"{braces} are text\n\n" + "\n\n".join(TEXTS).encode())
    assert done.returncode == 0, done.stderr.decode()


@pytest.mark.parametrize(
    ("words", "message"),
    [(("-", "-"), b"error: -: standard input can be read once; pipe text into the command, or name files"), (("-",), b"is empty")],
)
def test_refusals_leave_nothing(tmp_path: Path, words: tuple[str, ...], message: bytes) -> None:
    done = prepare(tmp_path / "pipe", *words)
    assert done.returncode in (2, 3) and message in done.stderr
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("--encoding", "martian"), b"no text encoding is called 'martian'"),
        (("--tokenizer", "none.json"), b"none.json"),
        (("--min-words", "5", "--max-words", "4"), b"leaves no document"),
    ],
)
def test_settings_are_refused_before_standard_input_is_read(tmp_path: Path, words: tuple[str, ...], message: bytes) -> None:
    with started(tmp_path / "pipe", "-", *words) as process:
        assert process.wait(60) in (2, 3), "though its end never came"
        assert process.stderr is not None and message in process.stderr.read()
    assert list(tmp_path.iterdir()) == []


def test_a_signal_while_standard_input_is_read_leaves_nothing(tmp_path: Path) -> None:
    with started(tmp_path / "pipe", "-") as process:
        while not list(tmp_path.glob(".pipe.stdin/*.txt")):
            assert process.poll() is None
            time.sleep(0.05)
        process.terminate()
        assert process.wait(30) == 75
    assert list(tmp_path.iterdir()) == []


def test_standard_input_of_another_command_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("\n\n".join(TEXTS), encoding="utf-8")
    theirs = tmp_path / ".data.stdin" / "standard-input.txt"
    with locks.locked(theirs.parent, "reading standard input"):
        theirs.write_text("theirs")
        done = prepare(tmp_path / "data", str(tmp_path / "a.txt"))
        assert done.returncode == 0, done.stderr.decode()
        done = prepare(tmp_path / "data", "-", "--overwrite", given=b"ours")
        assert done.returncode == 7 and b".data.stdin: another process is reading standard input here" in done.stderr
        assert theirs.read_text() == "theirs"


@pytest.mark.parametrize(
    "words",
    [
        ("-", "--share", "0/2"),
        ("a.txt", "--source", "-=2", "--share", "0/2"),
        ("-", "--share", "2", "--emit", "slurm"),
        ("a.txt", "--source=-=2", "--share", "2", "--emit", "k8s"),
    ],
)
def test_standard_input_cannot_be_shared(tmp_path: Path, words: tuple[str, ...]) -> None:
    done = prepare(tmp_path / "data", *words, given=b"text")
    assert done.returncode == 2 and done.stderr.startswith(b"error: -: standard input is read by one process alone; write the text to")
    assert done.stderr.count(b"\n") == 1 and list(tmp_path.iterdir()) == []


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


def fetch(out: Path, *addresses: str) -> list[Path]:
    with spooled(out, overwrite=False, keep=True) as spool:
        return spool.local(list(map(Path, addresses)))


def test_processes_fetch_one_after_the_other_and_every_file_once(store: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    copied, original = [], Spool._copy

    def slow(self: Spool, address: Address, *more: Any) -> None:
        copied.append(address.name)
        time.sleep(0.2)
        original(self, address, *more)

    monkeypatch.setattr(Spool, "_copy", slow)
    monkeypatch.setattr(locks, "_WITHIN_SECONDS", 0.05)
    with ThreadPoolExecutor(2) as threads:
        ours, theirs = threads.map(lambda _: fetch(tmp_path / "data", "memory://bucket/*.jsonl"), range(2))
    assert ours == theirs and copied == ["0.jsonl", "1.jsonl"]


def test_places_that_differ_in_what_is_not_shown(store: Any, tmp_path: Path) -> None:
    for name in "ab":
        store.pipe(f"/bucket/get?file={name}", name.encode())
    files = fetch(tmp_path / "data", "memory://bucket/get?file=a", "memory://bucket/get?file=b")
    assert [file.name for file in files] == ["get", "get"] and [file.read_text() for file in files] == ["a", "b"]


def test_a_file_that_changed_is_fetched_again(store: Any, tmp_path: Path) -> None:
    for text in ("old", "new"):
        store.pipe("/bucket/text.txt", text.encode())
        assert [file.read_text() for file in fetch(tmp_path / "data", "memory://bucket/text.txt")] == [text]


def test_a_file_that_comes_short_is_fetched_again(store: Any, pld: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    line = ["prepare-data", "memory://bucket/0.jsonl", "--out", tmp_path / "data", "--vocab-size", 100, "--processes", 1]
    with monkeypatch.context() as patch:
        patch.setattr(Address, "open", lambda *_, **__: io.BytesIO(b"short"))
        outcome = pld(*line)
    assert outcome.code == 3 and "bucket/0.jsonl: came with 5 bytes instead of" in outcome.err
    outcome = pld(*line)
    assert outcome.code == 0, outcome.err


@pytest.mark.parametrize("more", [(), ("--stream",)])
@pytest.mark.parametrize("address", ["memory://bucket", "memory://bucket/**"])
def test_what_stands_beside_text_is_left_out_as_in_folders(store: Any, pld: Any, tmp_path: Path, address: str, more: tuple[str]) -> None:
    for name in ("_SUCCESS", ".gitattributes", ".git/config", "saved/state.json", "saved/dataset_info.json", "dataset_dict.json"):
        store.pipe(f"/bucket/{name}", b"" if name == "_SUCCESS" else b"no text")
    sink, table = pa.BufferOutputStream(), pa.table({"text": ["words of a saved data set"]})
    with pa.ipc.new_file(sink, table.schema) as writer:
        writer.write_table(table)
    store.pipe("/bucket/saved/data.arrow", sink.getvalue().to_pybytes())
    outcome = pld("prepare-data", address, "--out", tmp_path / "data", "--vocab-size", 100, "--processes", 1, *more)
    assert outcome.code == 0, outcome.err
    manifest = open_prepared(tmp_path / "data").manifest
    assert {source["name"].rpartition("/")[2] for source in manifest["sources"]} == {"0.jsonl", "1.jsonl", "notes.txt.gz", "data.arrow"}
    assert manifest["skipped"]["empty file"] == 1


@pytest.mark.parametrize("more", [(), ("--stream",)])
def test_a_file_that_a_pattern_names_too_has_its_own_weight(store: Any, pld: Any, tmp_path: Path, more: tuple[str, ...]) -> None:
    line = ["prepare-data", "memory://bucket/*.jsonl", "--source", "memory://bucket/1.jsonl=2", *more]
    outcome = pld(*line, "--out", tmp_path / "data", "--vocab-size", 100, "--processes", 1)
    assert outcome.code == 0, outcome.err
    manifest = open_prepared(tmp_path / "data").manifest
    assert [source.get("weight") for source in manifest["sources"]] == [None, 2.0] and manifest["skipped"]["file named twice"] == 1
