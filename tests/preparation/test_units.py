"""A corpus cut into units holds the same documents as one that is read whole, wherever it is cut."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet
import pytest

from pldcli.corpus.reader import Reader
from pldcli.corpus.sources import Source, find_sources
from pldcli.errors import DataError
from pldcli.preparation.units import Unit, cut, unit_bytes

READING: dict[str, Any] = {"document_per": "blank-line", "text_field": "text", "encoding": None, "strict": False, "skip_bad": False}
PARTS = ["a", "bc d", "ü", "🤖 x", " ", "\t", "\r", "\x0b", "\u00a0", "\u2028"]


def documents(sources: list[Source], units: list[Unit], reading: dict[str, Any]) -> tuple[list[str], dict[str, int]]:
    texts, open_text, skipped = [], "", dict[str, int]()
    for unit in units:
        for one in unit.slices:
            reader = Reader(sources[one.source], span=one.span, **reading)
            for text, last in reader.pieces():
                open_text += text
                if last:
                    texts.append(open_text)
                    open_text = ""
            assert not open_text
            assert reader.raw_bytes == one.num_bytes
            for cause, count in reader.skipped.items():
                skipped[cause] = skipped.get(cause, 0) + count
    return texts, skipped


def made_up_text(seed: int) -> str:
    draw = random.Random(seed)
    lines = ["".join(draw.choices(PARTS, k=draw.randint(0, 6))) for _ in range(400)]
    return "".join(line + draw.choice(["\n", "\n", "\n\n", "\r\n", "\n \n", "\r\n\r\n"]) for line in lines)


@pytest.mark.parametrize("document_per", ["blank-line", "line", "file"])
@pytest.mark.parametrize("seed", range(6))
def test_text_is_cut_between_documents(tmp_path: Path, document_per: str, seed: int) -> None:
    reading = READING | {"document_per": document_per}
    (tmp_path / "a.txt").write_bytes(made_up_text(seed).encode())
    (tmp_path / "b.txt").write_bytes(made_up_text(seed + 100).encode())
    sources, _ = find_sources([tmp_path])
    whole = cut(sources, reading, 1 << 30)
    expected = documents(sources, whole, reading)
    assert len(whole) == 1
    for size in (16, 50, 333):
        units = cut(sources, reading, size)
        assert len(units) == 2 if document_per == "file" else len(units) > 5
        assert documents(sources, units, reading) == expected
        assert [unit.number for unit in units] == list(range(len(units)))


def test_json_lines_are_cut_between_lines_and_errors_name_the_line_of_the_file(tmp_path: Path) -> None:
    lines = [json.dumps({"text": f"text {number} " + "x" * (number % 7)}) for number in range(100)]
    lines[70] = "{"
    (tmp_path / "a.jsonl").write_text("\n".join(lines))
    sources, _ = find_sources([tmp_path])
    units = cut(sources, READING, 300)
    with pytest.raises(DataError, match=r"a.jsonl:71: is not JSON"):
        documents(sources, units, READING)
    skipping = READING | {"skip_bad": True}
    assert documents(sources, units, skipping) == documents(sources, cut(sources, READING, 1 << 30), skipping)


def test_a_byte_that_is_not_utf8_is_named_by_its_line_in_the_file(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_bytes(b"one line\n\n" * 50 + b"one \xff line\n" + b"more\n\n" * 50)
    sources, _ = find_sources([tmp_path])
    reading = READING | {"strict": True}
    with pytest.raises(DataError, match=r"a.txt:101:5: byte 0xff is not UTF-8 \(line 101, column 5\)"):
        documents(sources, cut(sources, reading, 100), reading)


@pytest.mark.parametrize(
    ("name", "content", "changes"),
    [
        ("a.txt.gz", "compressed", {}),
        ("a.csv", "text\n" + "a,b\n" * 100, {}),
        ("a.txt", "\ufeff" + "text\n\n" * 100, {"encoding": "utf-16"}),
        ("b.txt", "text\n\n" * 100, {"encoding": "cp1252"}),
    ],
)
def test_what_can_only_be_read_from_its_begin_is_one_unit(tmp_path: Path, name: str, content: str, changes: dict[str, Any]) -> None:
    import gzip

    encoded = content.encode("utf-16" if changes.get("encoding") == "utf-16" else "utf-8")
    (tmp_path / name).write_bytes(gzip.compress(random.Random(0).randbytes(2000)) if name.endswith(".gz") else encoded)
    sources, _ = find_sources([tmp_path])
    assert len(cut(sources, READING | changes, 50)) == 1
    if changes.get("encoding") == "utf-16":
        assert len(cut(sources, READING, 50)) == 1, "its first bytes say what it is"


def test_small_files_share_a_unit(tmp_path: Path) -> None:
    for number in range(10):
        (tmp_path / f"{number}.txt").write_text("some text")
    sources, _ = find_sources([tmp_path])
    assert [[one.source for one in unit.slices] for unit in cut(sources, READING, 25)] == [[0, 1, 2], [3, 4, 5], [6, 7, 8], [9]]


@pytest.mark.parametrize(("num_bytes", "size"), [(0, 4 << 20), (4 << 30, 4 << 20), ((4 << 30) + 1, 8 << 20), (1 << 40, 1 << 30)])
def test_there_are_at_most_a_thousand_units_of_plain_files(num_bytes: int, size: int) -> None:
    assert unit_bytes(num_bytes) == size


def write_parquet(path: Path, texts: list[str | None], **settings: Any) -> Path:
    table = pa.table({"number": list(range(len(texts))), "text": texts, "other": [f"{number} of them" for number in range(len(texts))]})
    pyarrow.parquet.write_table(table, path, **settings)
    return path


@pytest.mark.parametrize("settings", [{}, {"use_dictionary": False, "compression": "none"}, {"compression": "zstd"}], ids=str)
def test_a_parquet_file_is_cut_between_row_groups(tmp_path: Path, settings: dict[str, Any]) -> None:
    texts: list[str | None] = [f"text {number} of\na table" for number in range(5000)]
    path = write_parquet(tmp_path / "a.parquet", texts, row_group_size=130, **settings)
    sources, _ = find_sources([path])
    whole = cut(sources, READING, 1 << 30)
    assert len(whole) == 1 and documents(sources, whole, READING) == (texts, {})
    for size in (100, 3000, 20_000):
        units = cut(sources, READING, size)
        assert 2 <= len(units) <= -(-5000 // 130)
        assert len(units) > 1 and all(unit.num_bytes >= size for unit in units)
        assert documents(sources, units, READING) == (texts, {})
        spans = [one.span for unit in units for one in unit.slices]
        assert spans[0][0] == 0 and spans[-1][1] == path.stat().st_size  # type: ignore[index]


def test_a_row_of_a_later_row_group_is_named_by_its_number_in_the_file(tmp_path: Path) -> None:
    texts: list[str | None] = ["text"] * 900 + [None] + ["text"] * 99
    path = write_parquet(tmp_path / "a.parquet", texts, row_group_size=100)
    sources, _ = find_sources([path])
    units = cut(sources, READING, 50)
    assert len(units) > 5
    with pytest.raises(DataError) as caught:
        documents(sources, units, READING)
    assert caught.value.where == f"{path}, row 901"
    skipped = documents(sources, units, READING | {"skip_bad": True})[1]
    assert skipped == {"'text' that is nothing": 1}


def test_a_damaged_parquet_file_is_one_unit_whose_reading_says_so(tmp_path: Path) -> None:
    path = write_parquet(tmp_path / "a.parquet", ["text"] * 1000, row_group_size=100)
    path.write_bytes(path.read_bytes()[:-4] + b"none")
    sources = [Source(path, path.stat().st_size, "parquet", "")]
    units = cut(sources, READING, 50)
    assert len(units) == 1
    with pytest.raises(DataError, match="truncated or damaged"):
        documents(sources, units, READING)
