"""Files as users have them, each with what is right: which documents it holds, what is counted, or the line that says what is wrong."""

from __future__ import annotations

import bz2
import gzip
import hashlib
import io
import json
import lzma
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.ipc
import pyarrow.parquet
import pytest

from pldcli.corpus.reader import EMPTY_DOCUMENT, NUL, Reader
from pldcli.corpus.sources import EMPTY_FILE, FILE_TWICE, FOLDER_TWICE, IRREGULAR_FILE, LINK_TO_NOTHING, find_sources
from pldcli.data.prepared import open_prepared
from pldcli.errors import DataError
from pldcli.preparation.prepare import prepare
from tests.conftest import ROOT
from tests.preparation.test_prepare import LATIN

TWO = "first line\nsecond line\n\nthe other\n"
BOTH = ["first line\nsecond line", "the other"]
PROTEIN = "MKTAYIAKQRQISFVKSHFSRQ" * 400
SMILES = "CC(C)Cc1ccc(cc1)C(C)C(=O)O." * 300


def lines(*records: Any) -> bytes:
    return "".join(f"{json.dumps(record, ensure_ascii=False)}\n" for record in records).encode()


def parquet(values: list[Any], name: str = "text") -> bytes:
    file = io.BytesIO()
    pyarrow.parquet.write_table(pa.table({name: pa.array(values, pa.string())}), file)
    return file.getvalue()


def compressed(content: bytes, how: str) -> bytes:
    sink = pa.BufferOutputStream()
    with pa.CompressedOutputStream(sink, how) as stream:
        stream.write(content)
    return bytes(sink.getvalue())


GOOD: dict[str, tuple[bytes, list[str], dict[str, int]]] = {
    "plain.txt": (TWO.encode(), BOTH, {}),
    "no suffix": (TWO.encode(), BOTH, {}),
    "without an end.txt": (TWO.strip().encode(), BOTH, {}),
    "windows.txt": (TWO.replace("\n", "\r\n").encode(), BOTH, {}),
    "old mac.txt": (TWO.replace("\n", "\r").encode(), BOTH, {}),
    "mark.txt": (b"\xef\xbb\xbf" + TWO.encode(), BOTH, {}),
    "utf-16.txt": (TWO.encode("utf-16"), BOTH, {}),
    "utf-16 big.txt": (b"\xfe\xff" + TWO.encode("utf-16-be"), BOTH, {}),
    "utf-32.txt": (TWO.encode("utf-32"), BOTH, {}),
    "form feed.txt": (b"page one\f\n\n\f\n\npage two", ["page one", "page two"], {}),
    "line separator.txt": ("one\u2028line\n\nno\u0085break".encode(), ["one\u2028line", "no\u0085break"], {}),
    "nul behind the head.txt": (b"word " * 4000 + b"nu\0l", ["word " * 4000 + "nul"], {NUL: 1}),
    "bad bytes.txt": (b"caf\xe9 and more\n\nna\xefve", ["caf\ufffd and more", "na\ufffdve"], {}),
    "white space.txt": (b" \t\n\n  one \n\n\n \xc2\xa0 \n\n", ["one"], {}),
    "special tokens.txt": (b"a [MASK] b [SEP] <s> </s> [CLS]", ["a [MASK] b [SEP] <s> </s> [CLS]"], {}),
    "right to left.txt": ("\u202bשלום עולם\u202c\n\nمرحبا بالعالم".encode(), ["\u202bשלום עולם\u202c", "مرحبا بالعالم"], {}),
    "combining.txt": ("e\u0301te\u0301 a\u0323\u0302\n\nZ͑ͫ̓ͪ̂ͫ̽͏̴̙̤̞͉͚̯̞̠͍A̴̵̜̰͔ͫ͗͢".encode(), ["e\u0301te\u0301 a\u0323\u0302", "Z͑ͫ̓ͪ̂ͫ̽͏̴̙̤̞͉͚̯̞̠͍A̴̵̜̰͔ͫ͗͢"], {}),
    "without spaces.txt": ("日本語の文章です。\n\nภาษาไทยไม่มีช่องว่าง".encode(), ["日本語の文章です。", "ภาษาไทยไม่มีช่องว่าง"], {}),
    "emoji.txt": ("👩‍👩‍👧‍👦 🏳️‍🌈 👍🏽\n\n🇨🇭".encode(), ["👩‍👩‍👧‍👦 🏳️‍🌈 👍🏽", "🇨🇭"], {}),
    "protein.txt": (PROTEIN.encode(), [PROTEIN], {}),
    "smiles.csv": (f"id,text\n1,{SMILES}\n".encode(), [SMILES], {}),
    "lines.jsonl": (lines({"text": "one"}, {"text": "two\n\nparts"}), ["one", "two\n\nparts"], {}),
    "lines of windows.jsonl": (lines({"text": "one"}, {"text": "two"}).replace(b"\n", b"\r\n"), ["one", "two"], {}),
    "lines with a mark.jsonl": (b"\xef\xbb\xbf" + lines({"text": "one"}), ["one"], {}),
    "lines in utf-16.jsonl": ('{"text": "one"}\n{"text": "zwölf"}\n'.encode("utf-16"), ["one", "zwölf"], {}),
    "blank lines.jsonl": (b'\n{"text": "one"}\n   \n\n{"text": "two"}', ["one", "two"], {}),
    "half a pair.jsonl": (b'{"text": "a \\ud83d b"}\n{"text": "\\ud83d\\ude00"}\n', ["a \ufffd b", "😀"], {}),
    "escaped nul.jsonl": (b'{"text": "nu\\u0000l"}\n', ["nul"], {NUL: 1}),
    "empty ones.jsonl": (lines({"text": ""}, {"text": " \n\t"}, {"text": "one"}), ["one"], {EMPTY_DOCUMENT: 2}),
    "twice the same key.jsonl": (b'{"text": "no", "text": "yes"}\n', ["yes"], {}),
    "numbers without end.jsonl": (b'{"n": 1e999, "m": NaN, "i": ' + b"9" * 4000 + b', "text": "one"}\n', ["one"], {}),
    "sheet.csv": (
        '\ufeff"id", text \r\n1,"a ""quoted"", cell\r\nof two lines"\r\n\r\n2,\r\n'.encode(),
        ['a "quoted", cell\nof two lines'],
        {EMPTY_DOCUMENT: 1},
    ),
    "tabs.tsv": (b"text\tid\none 'cell\t1\n", ["one 'cell"], {}),
    "rows.parquet": (parquet(["one", "", "two"]), ["one", "two"], {EMPTY_DOCUMENT: 1}),
    "members.txt.gz": (gzip.compress(b"first line\n") + gzip.compress(b"second line\n\nthe other"), BOTH, {}),
    "gzip without its suffix.txt": (gzip.compress(TWO.encode()), BOTH, {}),
    "packed.txt.bz2": (bz2.compress(TWO.encode()), BOTH, {}),
    "packed.txt.xz": (lzma.compress(TWO.encode()), BOTH, {}),
    "packed.jsonl.zst": (compressed(lines({"text": "one"}), "zstd"), ["one"], {}),
    "packed sheet.csv.gz": (gzip.compress(b"text\none\n"), ["one"], {}),
    "größe \U0001f4c2 'x' \"y\".txt": (TWO.encode(), BOTH, {}),
}
"""By name: bytes, documents, and what is counted."""

BAD: dict[str, tuple[bytes, str, str]] = {
    "binary.txt": (b"\x7fELF\2\1\1\0\0\0", r"is binary, not text", ""),
    "utf-16 without its mark.txt": (TWO.encode("utf-16-le"), r"is UTF-16 without its mark; add --encoding utf_16_le", ""),
    "western.txt": ("Überall ähnliche Größen, süß und schön.\n".encode("latin-1") * 40, r"is not UTF-8: .* it looks like cp125", ""),
    "cut.txt.gz": (gzip.compress(os.urandom(5000))[:3000], r"is truncated or damaged", ""),
    "cut.jsonl.zst": (compressed(lines({"text": "word " * 5000}), "zstd")[:-9], r"is truncated or damaged", ""),
    "cut.txt.xz": (lzma.compress(TWO.encode() * 50)[:-20], r"is truncated or damaged", ""),
    "no gzip.txt.gz": (b"plain text\0", r"is truncated or damaged", ""),
    "cut.parquet": (parquet(["one"] * 1000)[:-40], r"is truncated or damaged", ""),
    "no parquet.parquet": (b"text", r"is truncated or damaged", ""),
    "cut.jsonl": (b'{"text": "one"}\n{"text": "tw', r":2: is not JSON \(Unterminated string.*column 10\)", "line that is not JSON"),
    "list.jsonl": (b'[{"text": "one"}]\n', r":1: is not a JSON object but a list", "line that is no JSON object"),
    "nested.jsonl": (b'{"text": "x"}\n' + b"[" * 200_000 + b"\n", r":2: is not JSON", "line that is not JSON"),
    "python.jsonl": (b"{'text': 'one'}\n", r":1: is not JSON \(Expecting property name", "line that is not JSON"),
    "no field.jsonl": (
        lines({"text": "x"}, {"body": "one"}),
        r":2: has no field 'text'.*its fields are: body",
        "line without a field 'text'",
    ),
    "null.jsonl": (lines({"text": None}), r":1: field 'text' is not a string but null", "'text' that is null"),
    "mixed.jsonl": (
        lines({"text": "x"}, {"text": ["one"]}, {"text": 1}),
        r":2: field 'text' is not a string but a list",
        "'text' that is a list",
    ),
    "no column.csv": (b"id,body\n1,one\n", r"has no column 'text'.*its columns are: id, body", ""),
    "short row.csv": (b"id,text\n1,one\n2\n", r":3: column 'text' holds nothing", "'text' that is nothing"),
    "nulls.parquet": (parquet([None, "one"]), r", row 1: column 'text' holds nothing", "'text' that is nothing"),
    "other column.parquet": (parquet(["one"], "body"), r"has no column 'text'", ""),
}
"""By name: bytes, the one line, and what `--skip-bad` counts instead; empty where nothing can be skipped."""

STRICT = {
    "bad byte.txt": (b"one\ntwo \xff", ":2:5"),
    "bad byte far in.txt": (b"line\n" * 300_000 + b"caf\xe9 ", ":300001:4"),
    "bad byte.jsonl": (b'{"text": "one"}\n{"text": "caf\xe9"}\n', ":2:14"),
    "bad byte.csv": (b"text\none\n\xff\n", ":3:1"),
    "bad byte.txt.gz": (gzip.compress(b"one\n\xfftwo"), ":2:1"),
}


def write(path: Path, content: bytes) -> Path:
    path.write_bytes(content)
    return path


def read(path: Path, **settings: Any) -> tuple[list[str], Reader]:
    [source], _ = find_sources([path])
    reader = Reader(source, **settings)
    documents, parts = [], []
    for text, last in reader.pieces():
        parts.append(text)
        if last:
            documents.append("".join(parts))
            parts.clear()
    return documents, reader


def test_there_are_at_least_forty_files() -> None:
    assert len(GOOD) + len(BAD) + len(STRICT) >= 60


@pytest.mark.parametrize("name", GOOD)
def test_what_a_file_holds(tmp_path: Path, name: str) -> None:
    content, documents, counts = GOOD[name]
    found, reader = read(write(tmp_path / name, content))
    assert found == documents
    assert reader.skipped == counts
    assert reader.sha256 == hashlib.sha256(content).hexdigest()


@pytest.mark.parametrize("name", BAD)
def test_what_is_wrong_with_a_file(tmp_path: Path, name: str) -> None:
    content, message, cause = BAD[name]
    path = write(tmp_path / name, content)
    with pytest.raises(DataError, match=re.escape(str(path)) + ".*" + message) as caught:
        read(path)
    assert "\n" not in str(caught.value) and len(str(caught.value)) < len(str(path)) + 300
    if cause:
        _, reader = read(path, skip_bad=True)
        assert reader.skipped[cause] >= 1
    else:
        with pytest.raises(DataError, match=message):
            read(path, skip_bad=True)


@pytest.mark.parametrize("name", STRICT)
def test_strict_names_file_line_and_column(tmp_path: Path, name: str) -> None:
    content, place = STRICT[name]
    path = write(tmp_path / name, content)
    with pytest.raises(DataError, match=re.escape(f"{path}{place}: byte 0x")):
        read(path, strict=True)


def test_what_is_no_file(tmp_path: Path) -> None:
    """In a folder each is counted by its cause; named itself, it is an error."""
    folder = tmp_path / "corpus"
    (folder / "folder.jsonl").mkdir(parents=True)
    write(folder / "folder.jsonl" / "inner.txt", TWO.encode())
    write(folder / "nothing.txt", b"")
    os.mkfifo(folder / "pipe")
    (folder / "loop").symlink_to("loop")
    (folder / "gone.txt").symlink_to("nowhere")
    (folder / "up").symlink_to(folder)
    (folder / "again.txt").symlink_to(folder / "folder.jsonl" / "inner.txt")
    sources, skipped = find_sources([folder, folder / "folder.jsonl" / "inner.txt"])
    assert [source.path.name for source in sources] == ["again.txt"]
    assert skipped == {EMPTY_FILE: 1, IRREGULAR_FILE: 1, LINK_TO_NOTHING: 2, FOLDER_TWICE: 1, FILE_TWICE: 2}
    for name, message in {
        "pipe": "is not a regular file",
        "loop": "links to nothing",
        "gone.txt": "links to nothing",
        "nothing.txt": "is empty",
        "not there": "no such file",
    }.items():
        with pytest.raises(DataError, match=re.escape(f"{folder / name}: {message}")):
            find_sources([folder / name])


@pytest.fixture(scope="module")
def everything(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("torture") / "corpus"
    folder.mkdir()
    for name, (content, _, _) in GOOD.items():
        write(folder / name, content)
    return folder


def test_all_of_them_at_once_give_the_same_bytes_as_ever(everything: Path) -> None:
    """A tokenizer that is there already encodes them: only these files and this program decide what comes out."""
    latin = write(everything.parent / "vocab.txt", "\n".join(LATIN).encode())
    validation = write(everything.parent / "validation.txt", b"text to validate on")
    sums = set()
    for processes in (1, 2):
        out = everything.parent / str(processes)
        told = {"tokenizer": latin, "processes": processes, "keep_duplicates": True, "quiet": True}
        manifest = prepare([everything], out, validation=[validation], **told).manifest
        assert manifest["skipped"] == {EMPTY_DOCUMENT: 4, NUL: 2}
        assert manifest["replaced_bytes"] == 4
        documents = sum(len(found) for _, found, _ in GOOD.values())
        assert manifest["counts"]["train"]["documents"] == documents
        ids = open_prepared(out).stream("train").slice(0, manifest["counts"]["train"]["tokens"])
        special = open_prepared(out).special
        assert special.mask_id not in ids and special.cls_id not in ids
        sums.add(hashlib.sha256("".join(shard["sha256"] for shard in manifest["shards"].values()).encode()).hexdigest())
    assert sums == {"54ed349eeff546b32cbd8b40cd0b9e058a66643680aa7d2de5db717de25c2003"}


READ = """
import re, sys
from pathlib import Path
from pldcli.corpus.reader import Reader
from pldcli.corpus.sources import find_sources
[source], _ = find_sources([Path(sys.argv[1])])
reader = Reader(source, document_per=sys.argv[2])
characters = documents = 0
for text, last in reader.pieces():
    characters, documents = characters + len(text), documents + last
peak = re.search(r"VmHWM:\\s+(\\d+) kB", Path("/proc/self/status").read_text())
print(characters, documents, int(peak[1]) // 1024)
"""
BLOCK = b"0123456 89" * 100_000


@pytest.mark.parametrize("name", ["a line of 300 MB.txt", "a bomb.txt.gz", "a record of a bomb.jsonl.bz2", "a million words.txt"])
def test_memory_does_not_grow_with_what_is_read(tmp_path: Path, name: str) -> None:
    path, expected = tmp_path / name, (300_000_000, 1)
    if name.endswith("gz"):
        with gzip.open(path, "wb", compresslevel=1) as file:
            for _ in range(300):
                file.write(BLOCK)
        assert path.stat().st_size < 10_000_000
    elif name.endswith("bz2"):
        packer = bz2.BZ2Compressor(1)
        path.write_bytes(
            packer.compress(b'{"text": "') + packer.compress(bytes(b"a" * 200_000_000)) + packer.compress(b'"}') + packer.flush()
        )
        expected = 0, 0
    elif "line" in name:
        with path.open("wb") as file:
            for _ in range(300):
                file.write(BLOCK)
    else:
        path.write_bytes(b"word\n" * 1_000_000)
        expected = 4_000_000, 1_000_000
    per = "line" if "million" in name else "blank-line"
    done = subprocess.run([sys.executable, "-c", READ, str(path), per], capture_output=True, text=True, check=True, cwd=ROOT)
    characters, documents, megabytes = map(int, done.stdout.split())
    assert (characters, documents) == expected
    assert megabytes < 512
