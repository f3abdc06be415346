"""Filters: what makes a document unwanted, however it is cut into pieces."""

from __future__ import annotations

import csv
import gzip
import itertools
import json
import random
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet
import pytest

from pldcli.errors import DataError, UsageError
from pldcli.filtering.quality import Filters, Judge, check_filters

WORDS = [
    "the",
    "quick",
    "brown",
    "fox",
    "jumps",
    "over",
    "a",
    "lazy",
    "dog",
    "while",
    "seven",
    "other",
    "animals",
    "look",
    "on",
    "and",
    "say",
    "nothing",
    "at",
    "all",
    "about",
    "it",
    "today",
]


def judged(filters: Filters, *documents: str, pieces: int = 1) -> list[str]:
    judge, found = Judge(filters), []
    for text in documents:
        words = text.split(" ")
        edges = [len(words) * number // pieces for number in range(pieces + 1)]
        for start, stop in itertools.pairwise(edges):
            last = stop == len(words)
            cause = judge.add(" ".join(words[start:stop]) + ("" if last else " "), last=last)
            assert last or not cause
        found.append(cause)
    return found


def test_nothing_is_unwanted_without_a_filter() -> None:
    assert not Filters()
    assert judged(Filters(), "a", "") == ["", ""]


@pytest.mark.parametrize("pieces", [1, 2])
def test_lengths(pieces: int) -> None:
    found = judged(Filters(min_words=3, max_words=4), "a b", "a b c", "a b c d", "a b c d e", pieces=pieces)
    assert found == ["document under 3 words", "", "", "document over 4 words"]


@pytest.mark.parametrize("pieces", [1, 3])
def test_scripts(pieces: int) -> None:
    documents = [
        "plain text of words",
        "обычный текст из слов",
        "mostly Latin слов here with",
        "1 2 3 4",
        "ἀρχὴ τῶν ὅλων ἐστίν",
        "日本語の 文章 です ね",
    ]
    cause = "document that is mostly not LATIN"
    assert judged(Filters(scripts=("LATIN",)), *documents, pieces=pieces) == ["", cause, "", cause, cause, cause]
    cause = "document that is mostly not CYRILLIC or GREEK"
    assert judged(Filters(scripts=("CYRILLIC", "GREEK")), *documents, pieces=pieces) == [cause, "", cause, cause, "", cause]
    assert judged(Filters(scripts=("CJK", "HIRAGANA")), documents[-1], pieces=pieces) == [""]


@pytest.fixture
def evaluation(tmp_path: Path) -> Path:
    folder = tmp_path / "evaluation"
    folder.mkdir()
    (folder / "a.tsv").write_text("1\tThe quick -- brown FOX jumps\tover a lazy dog\n0\tshort\n")
    (folder / "b.jsonl").write_text(json.dumps({"paragraphs": [{"context": "while seven other animals look on"}], "label": 1}) + "\n")
    (folder / "c.json").write_text(json.dumps({"data": [["and say nothing at all"]]}))
    return folder


@pytest.mark.parametrize("pieces", [1, 2, 5])
def test_text_that_is_to_be_scored_on(evaluation: Path, pieces: int) -> None:
    filters = Filters(against=(evaluation,), overlap_words=5)
    found = judged(
        filters,
        "before: the quick, brown fox... jumps! after",
        "fox jumps over a lazy dog",  # the columns are texts of their own, and four words are too few
        "look While SEVEN other animals look there and on",
        "they say nothing at all",
        "and say nothing at all",
        "the quick brown fox the quick brown fox",
        pieces=pieces,
    )
    cause = "document that has 5 words in a row of "
    assert found == [f"{cause}a.tsv", "", f"{cause}b.jsonl", "", f"{cause}c.json", ""]


def test_every_run_of_words_is_found_and_no_other(tmp_path: Path) -> None:
    draw = random.Random(3)
    held_out = [draw.choices(WORDS, k=30) for _ in range(20)]
    (tmp_path / "held-out.txt").write_text("\n".join(" ".join(words) for words in held_out))
    runs = {tuple(words[start : start + 4]) for words in held_out for start in range(27)}
    documents = [draw.choices(WORDS, k=12) for _ in range(500)]
    expected = [any(tuple(words[start : start + 4]) in runs for start in range(9)) for words in documents]
    assert 0 < sum(expected) < 500
    found = judged(Filters(against=(tmp_path / "held-out.txt",), overlap_words=4), *(" ".join(words) for words in documents), pieces=4)
    assert [bool(cause) for cause in found] == expected


def test_what_leaves_nothing_or_cannot_be_compared_is_refused(tmp_path: Path) -> None:
    for filters, message in (
        (Filters(min_words=5, max_words=4), "--max-words 4: leaves no document"),
        (Filters(scripts=("ENGLISH",)), "--script ENGLISH: no character has a name that begins with it; for example LATIN"),
        (Filters(overlap_words=0), "--overlap-words: must be at least 1"),
    ):
        with pytest.raises(UsageError, match=message):
            check_filters(filters)
    with pytest.raises(DataError, match="no such file"):
        check_filters(Filters(against=(tmp_path / "none",)))


def test_files_that_are_packed_and_tables_of_columns_are_compared_with(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl.gz").write_bytes(gzip.compress(b'{"question": "where does the old river end"}\n'))
    table = pa.Table.from_pylist([{"id": 1, "answers": {"text": ["in the wide green sea"]}, "title": ""}])
    pyarrow.parquet.write_table(table, tmp_path / "b.parquet")
    with pa.ipc.new_stream(str(tmp_path / "c.arrow"), table.schema) as writer:
        writer.write_table(pa.Table.from_pylist([{"id": 2, "answers": {"text": ["under a high grey sky"]}, "title": "x"}], table.schema))
    texts = ("So where does the old river end?", "It ends in the wide green sea.", "It lies under a high grey sky.", "It ends in a lake.")
    causes = [f"document that has 5 words in a row of {name}" for name in ("a.jsonl.gz", "b.parquet", "c.arrow")]
    assert judged(Filters(against=(tmp_path,), overlap_words=5), *texts) == [*causes, ""]
    (tmp_path / "b.parquet").write_bytes((tmp_path / "b.parquet").read_bytes()[:-9])
    with pytest.raises(DataError, match=r"b.parquet: is truncated or damaged"):
        judged(Filters(against=(tmp_path,), overlap_words=5), *texts)


def test_words_of_scripts_without_spaces_are_letters() -> None:
    assert judged(Filters(min_words=5), "森が燃えた", "森が燃", "森が 燃えた no") == ["", "document under 5 words", ""]


def test_text_in_lines_that_are_wrapped_and_in_scripts_without_spaces_is_found(tmp_path: Path) -> None:
    (tmp_path / "wrapped.txt").write_text("the quick brown\nfox jumps over\na lazy dog\n\nwhile seven\n")
    (tmp_path / "chinese.txt").write_text("森林昨天晚上着火了没有人知道原因")
    (tmp_path / "sheet.csv").write_text('text,label\n"seven other\nanimals, look on",1\n')
    (tmp_path / "wide.txt").write_text("one two three four five six ".upper() * 5, encoding="utf-16")
    filters = Filters(against=(tmp_path,), overlap_words=6)
    texts = [
        "brown fox jumps over a lazy",
        "a lazy dog while seven other",
        "昨天晚上着火了,没",
        "and seven other animals look on it",
        "six one two three four five",
    ]
    cause = "document that has 6 words in a row of "
    assert judged(filters, *texts) == [f"{cause}wrapped.txt", "", f"{cause}chinese.txt", "", f"{cause}wide.txt"]
    assert judged(Filters(against=(tmp_path,), overlap_words=5), texts[3]) == ["document that has 5 words in a row of sheet.csv"]


def test_files_of_one_name_are_told_apart(tmp_path: Path) -> None:
    for folder, text in (("RTE", "the quick brown fox"), ("MRPC", "a lazy dog sleeps"), ("", "nothing here to see")):
        (tmp_path / folder).mkdir(exist_ok=True)
        (tmp_path / folder / ("dev.tsv" if folder else "alone.tsv")).write_text(f"1\t{text}\n")
    found = judged(Filters(against=(tmp_path,), overlap_words=4), "the quick brown fox", "a lazy dog sleeps", "nothing here to see")
    assert [cause.rpartition(" of ")[2] for cause in found] == ["RTE/dev.tsv", "MRPC/dev.tsv", "alone.tsv"]


def test_an_evaluation_file_in_another_encoding_or_that_cannot_be_read_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "western.txt"
    path.write_bytes("Überall ähnliche Größen, süß und schön.\n".encode("latin-1") * 40)
    with pytest.raises(DataError, match=r"western.txt: is not UTF-8: .* it looks like cp125.*; convert it to UTF-8, so that"):
        Judge(Filters(against=(tmp_path,)))

    def refused(path: Path, *_: object, **__: object) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, "open", refused)
    with pytest.raises(DataError, match=r"western.txt: cannot be read \(permission denied\)"):
        Judge(Filters(against=(tmp_path,)))


def test_a_table_to_compare_with_leaves_the_limit_of_cells_to_the_corpus_that_is_being_read(tmp_path: Path) -> None:
    (tmp_path / "test.csv").write_text("text\nshort\n")
    before = csv.field_size_limit(1 << 27)
    try:
        Judge(Filters(against=(tmp_path,)))
        assert csv.field_size_limit() == 1 << 27
    finally:
        csv.field_size_limit(before)


def test_files_that_nothing_can_overlap_with_are_listed(evaluation: Path) -> None:
    judge = Judge(Filters(against=(evaluation,), overlap_words=6))
    assert judge.without_a_run == [str(evaluation / "a.tsv"), str(evaluation / "c.json")]
    assert Judge(Filters()).without_a_run == []


def test_scripts_of_several_words_and_half_of_the_letters() -> None:
    assert judged(Filters(scripts=("OL CHIKI",)), "ᱥᱟᱱᱛᱟᱲᱤ ᱛᱮ", "plain") == ["", "document that is mostly not OL CHIKI"]
    assert judged(Filters(scripts=("LATIN",)), "ab вг", "ab вгд") == ["", "document that is mostly not LATIN"]
