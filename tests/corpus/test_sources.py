"""Files of a corpus: found, and told apart by what they hold."""

from __future__ import annotations

import bz2
import gzip
import json
import lzma
from pathlib import Path

import datasets
import pyarrow as pa
import pyarrow.parquet
import pytest

from pldcli.corpus.reader import Reader
from pldcli.corpus.sources import EMPTY_FILE, find_sources
from pldcli.errors import DataError

LINES = b'{"text": "one"}\n{"text": "two"}\n'
DUMP = b"""<mediawiki xmlns="http://www.mediawiki.org/xml/export-0.11/"><siteinfo><namespaces/></siteinfo>
<page><title>A</title><ns>0</ns><revision><format>text/x-wiki</format><text>'''One''' article.</text></revision></page></mediawiki>"""


def texts(path: Path) -> list[str]:
    [source], _ = find_sources([path])
    parts: list[str] = []
    for text, last in Reader(source).pieces():
        parts.append(text + "\n" * last)
    return "".join(parts).splitlines()


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("part-00000", LINES),
        ("part-00000.gz", gzip.compress(LINES, mtime=0)),
        ("lines.txt", b"\xef\xbb\xbf \n" + LINES),
        ("RC_2019-01.zst", pa.compress(LINES, "zstd", asbytes=True)),
        ("RC_2019-01.bz2", bz2.compress(LINES)),
        ("RC_2019-01.xz", lzma.compress(LINES)),
        ("escaped", b'{"a\\"b": 1, "text": "one"}\n{"text": "two"}\n'),
    ],
)
def test_json_lines_are_told_by_what_they_hold(tmp_path: Path, name: str, content: bytes) -> None:
    (tmp_path / name).write_bytes(content)
    assert texts(tmp_path / name) == ["one", "two"]


def test_an_array_of_objects_is_no_text(tmp_path: Path) -> None:
    (tmp_path / "dump").write_text('[\n  {"text": "one"},\n  {"text": "two"}\n]\n', encoding="utf-8")
    with pytest.raises(DataError, match="dump:1: is not JSON"):
        texts(tmp_path / "dump")
    (tmp_path / "dump").write_text('[{"text": "one"}, {"text": "two"}]', encoding="utf-8")
    with pytest.raises(DataError, match="dump:1: is not a JSON object but a list"):
        texts(tmp_path / "dump")
    (tmp_path / "dump").write_text('[see "this"] and {"that"}', encoding="utf-8")
    assert texts(tmp_path / "dump") == ['[see "this"] and {"that"}']


def test_a_part_of_a_wikipedia_dump_is_told_by_what_it_holds(tmp_path: Path) -> None:
    pytest.importorskip("mwparserfromhell")
    path = tmp_path / "enwiki-20260101-pages-articles1.xml-p1p41242.bz2"
    path.write_bytes(bz2.compress(DUMP))
    assert texts(path) == ["One article."]


@pytest.mark.parametrize("name", ["parquet", "arrow"])
def test_columnar_files_are_told_by_what_they_hold(tmp_path: Path, name: str) -> None:
    table = pa.table({"text": ["one", "two"]})
    if name == "parquet":
        pyarrow.parquet.write_table(table, tmp_path / "data")
    else:
        with pa.OSFile(str(tmp_path / "data"), "wb") as sink, pa.ipc.new_file(sink, table.schema) as writer:
            writer.write_table(table)
    assert texts(tmp_path / "data") == ["one", "two"]


@pytest.mark.parametrize("content", [b"{braces} are text", b'{"quoted"} too', b"<html><mediawiki>", b"PAR", b"[1]", b'{"cut', b" PAR1"])
def test_anything_else_is_text(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "notes").write_bytes(content)
    assert find_sources([tmp_path / "notes"])[0][0].format == "text"


def test_a_name_that_tells_the_format_counts(tmp_path: Path) -> None:
    (tmp_path / "sheet.csv").write_bytes(b'{"text": 1}\n')
    assert find_sources([tmp_path])[0][0].format == "csv"


def test_an_empty_file_among_many_is_counted(tmp_path: Path) -> None:
    (tmp_path / "part-0").write_bytes(LINES)
    (tmp_path / "_SUCCESS").write_bytes(b"")
    sources, skipped = find_sources([tmp_path / "*"])
    assert [source.path.name for source in sources] == ["part-0"] and skipped == {EMPTY_FILE: 1}
    with pytest.raises(DataError, match="_SUCCESS: is empty"):
        find_sources([tmp_path / "_SUCCESS"])


@pytest.mark.parametrize("pattern", ["", "*", "**"])
def test_an_earlier_result_within_the_corpus_is_no_text(tmp_path: Path, pattern: str) -> None:
    for name in ("texts/a.txt", "data/tokenizer.json", "out/train.arrow", "data/manifest.json"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(b"text\n")
    sources, skipped = find_sources([tmp_path / pattern], exclude=tmp_path / "out")
    assert [source.path.name for source in sources] == ["a.txt"]
    assert skipped["folder of prepared data"] == 1


def test_what_datasets_kept_beside_a_dataset_is_no_text(tmp_path: Path) -> None:
    datasets.Dataset.from_list([{"text": "one"}, {"text": "two"}]).save_to_disk(tmp_path / "saved")
    saved = datasets.load_from_disk(tmp_path / "saved")
    saved.filter(lambda row: row["text"] == "one", cache_file_name=str(tmp_path / "saved" / "cache-1.arrow"))
    assert len(list((tmp_path / "saved").glob("*.arrow"))) == 2
    sources, _ = find_sources([tmp_path / "saved"])
    listed = json.loads((tmp_path / "saved" / "state.json").read_text())["_data_files"]
    assert [source.path.name for source in sources] == [one["filename"] for one in listed]
