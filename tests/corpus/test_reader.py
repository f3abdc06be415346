import bz2
import csv
import gzip
import hashlib
import json
import lzma
import os
import tracemalloc
from pathlib import Path

import datasets
import pyarrow as pa
import pyarrow.parquet
import pytest

from pldcli.corpus import decoding
from pldcli.corpus import reader as corpus
from pldcli.corpus.reader import Reader
from pldcli.corpus.sources import find_sources
from pldcli.corpus.tables import LONG_CELL, csv_texts
from pldcli.errors import DataError, UsageError


def documents(path: Path, **settings) -> list[str]:
    texts, parts = [], []
    for text, last in reader_of(path, **settings).pieces():
        parts.append(text)
        if last:
            texts.append("".join(parts))
            parts = []
    assert not parts, "a document without an end"
    return texts


def reader_of(path: Path, **settings) -> Reader:
    return Reader(find_sources([path])[0][0], **settings)


def write(path: Path, content: str | bytes) -> Path:
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return path


TEXT = "\n\n  first line\nsecond line\n \t\nother\r\n\r\nlast\n\n"


@pytest.mark.parametrize(
    ("document_per", "expected"),
    [
        ("blank-line", ["first line\nsecond line", "other", "last"]),
        ("line", ["first line", "second line", "other", "last"]),
        ("file", ["first line\nsecond line\n \t\nother\n\nlast"]),
    ],
)
def test_documents_of_a_text_file(tmp_path, document_per, expected):
    assert documents(write(tmp_path / "a.txt", TEXT), document_per=document_per) == expected


@pytest.mark.parametrize("document_per", ["blank-line", "line", "file"])
@pytest.mark.parametrize("size", [3, 4, 5, 7, 16])
def test_chunks_do_not_change_documents(tmp_path, monkeypatch, document_per, size):
    path = write(tmp_path / "a.txt", TEXT + "naïve 🤖 words\nthe end of a longer line\n\n\nx")
    whole = documents(path, document_per=document_per)
    monkeypatch.setattr(corpus, "CHUNK_BYTES", size)
    assert documents(path, document_per=document_per) == whole


@pytest.mark.parametrize("document_per", ["blank-line", "line", "file"])
@pytest.mark.parametrize("size", [1, 2, 3, 5, 1 << 20])
def test_line_ends_of_windows_are_those_of_unix(tmp_path, monkeypatch, document_per, size):
    monkeypatch.setattr(corpus, "CHUNK_BYTES", size)
    text = "first\rline\nsecond line\n\nthird\n"
    unix, windows = write(tmp_path / "unix.txt", text.encode()), write(tmp_path / "windows.txt", text.replace("\n", "\r\n").encode())
    assert documents(windows, document_per=document_per) == documents(unix, document_per=document_per)


def test_empty_documents_are_skipped_and_counted(tmp_path):
    path = write(tmp_path / "a.txt", "one\n\n  \ntwo\n")
    reader = reader_of(path, document_per="line")
    assert [text for text, last in reader.pieces() if last] == ["one", "two"]
    assert reader.skipped == {"empty document": 2}


@pytest.mark.parametrize("suffix", ["", ".gz", ".bz2", ".xz", ".zst"])
def test_compressed_files_read_like_plain_ones(tmp_path, suffix):
    lines = "".join(json.dumps({"text": f"number {i}"}) + "\n" for i in range(1000))
    plain, path = write(tmp_path / "a.jsonl", lines), tmp_path / f"a.jsonl{suffix}"
    compress(plain.read_bytes(), path)
    assert documents(path) == [f"number {i}" for i in range(1000)]


@pytest.mark.parametrize("suffix", [".gz", ".bz2", ".xz", ".zst"])
def test_truncated_compressed_files(tmp_path, suffix):
    path = tmp_path / f"a.txt{suffix}"
    compress(os.urandom(30_000).hex().encode(), path)
    write(path, path.read_bytes()[:-9000])
    with pytest.raises(DataError, match=rf"a.txt{suffix}: is truncated or damaged"):
        documents(path)


@pytest.mark.parametrize("suffix", [".gz", ".bz2", ".xz", ".zst"])
def test_files_that_are_not_compressed(tmp_path, suffix):
    text = "just a café " * 1000
    assert documents(write(tmp_path / f"a.txt{suffix}", text)) == [text.strip()], "as some servers and browsers leave them"
    for content in ("just text \0" * 100, b"\xe9" * 100, bytes(100)):
        with pytest.raises(DataError, match="is truncated or damaged"):
            documents(write(tmp_path / f"a.txt{suffix}", content))


def compress(content: bytes, path: Path) -> None:
    packed = {".gz": gzip.compress, ".bz2": bz2.compress, ".xz": lzma.compress}
    if path.suffix in packed:
        path.write_bytes(packed[path.suffix](content))
    elif path.suffix == ".zst":
        with pa.output_stream(str(path), compression="zstd") as file:
            file.write(content)
    else:
        path.write_bytes(content)


@pytest.mark.parametrize("suffix", [".gz", ".bz2", ".xz", ".zst"])
def test_two_streams_in_one_file(tmp_path, suffix):
    compress(b"one\n\n", tmp_path / f"1{suffix}")
    compress(b"two\n", tmp_path / f"2{suffix}")
    both = write(tmp_path / f"a.txt{suffix}", (tmp_path / f"1{suffix}").read_bytes() + (tmp_path / f"2{suffix}").read_bytes())
    assert documents(both) == ["one", "two"]


@pytest.mark.parametrize("suffix", [".gz", ".bz2", ".xz", ".zst"])
def test_compressed_files_are_told_by_their_first_bytes(tmp_path, suffix):
    compress(b"one\n\ntwo\n", tmp_path / f"a{suffix}")
    renamed = (tmp_path / f"a{suffix}").rename(tmp_path / "a.txt")
    assert documents(renamed) == ["one", "two"]
    compress(b'{"text": "one"}\n', tmp_path / f"a{suffix}")
    assert documents((tmp_path / f"a{suffix}").rename(tmp_path / "a.jsonl")) == ["one"]


def test_text_that_begins_like_bzip2_is_text(tmp_path):
    assert documents(write(tmp_path / "a.txt", "BZh is what such files begin with")) == ["BZh is what such files begin with"]


def test_directories_are_walked_in_order_and_hidden_files_left_out(tmp_path):
    (tmp_path / "b").mkdir()
    (tmp_path / "out").mkdir()
    for name in ("b/2.txt", "b/1.txt", "a.txt", ".hidden", "out/x.txt"):
        write(tmp_path / name, "x")
    write(tmp_path / "void.txt", "")
    sources, skipped = find_sources([tmp_path, tmp_path / "a.txt"], exclude=tmp_path / "out")
    assert [str(source.path.relative_to(tmp_path)) for source in sources] == ["a.txt", "b/1.txt", "b/2.txt"]
    assert skipped == {"empty file": 1, "file named twice": 1}


def test_missing_empty_and_irregular_files(tmp_path):
    with pytest.raises(DataError, match=r"none.txt: no such file"):
        find_sources([tmp_path / "none.txt"])
    with pytest.raises(DataError, match=r"void.txt: is empty"):
        find_sources([write(tmp_path / "void.txt", "")])
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match="no files with text"):
        find_sources([tmp_path / "empty"])
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(DataError, match="is not a regular file"):
        find_sources([tmp_path / "pipe"])


def test_binary_and_utf16_files(tmp_path):
    with pytest.raises(DataError, match=r"a.txt: is binary"):
        documents(write(tmp_path / "a.txt", b"\x7fELF\0\0abc"))
    with pytest.raises(DataError, match=r"is UTF-16 without its mark; add --encoding utf_16_le"):
        documents(write(tmp_path / "a.txt", "some text\n".encode("utf-16-le")))
    with pytest.raises(DataError, match=r"is UTF-16 without its mark; add --encoding utf_16_be"):
        documents(write(tmp_path / "a.txt", "some text\n".encode("utf-16-be")))


@pytest.mark.parametrize("encoding", ["utf-8", "cp1252", "utf-32"])
def test_a_file_with_a_mark_that_is_read_as_something_else_is_told_by_it(tmp_path, encoding):
    path = write(tmp_path / "a.txt", "some text\n".encode("utf-16"))
    with pytest.raises(DataError, match=r"a.txt: is UTF-16, as its mark says; leave out --encoding"):
        documents(path, encoding=encoding)
    assert documents(path, encoding="utf-16") == documents(path) == ["some text"]


def test_a_file_that_may_not_be_read(tmp_path, monkeypatch):
    source = find_sources([write(tmp_path / "a.txt", "x")])[0][0]

    def refuse(*_args, **_settings):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, "open", refuse)
    with pytest.raises(DataError, match=r"a.txt: cannot be read \(permission denied\)"):
        list(Reader(source).pieces())


def test_bad_bytes_are_replaced_and_counted(tmp_path):
    reader = reader_of(write(tmp_path / "a.txt", b"a\xff b \xe2\x82 c \xef\xbf\xbd d \xc3\xa9 \xe2\x82"))
    assert list(reader.pieces()) == [("a\ufffd b \ufffd c \ufffd d é \ufffd", True)]
    assert reader.replaced_bytes == 5


FRENCH = "Le café était fermé à l'époque où la forêt brûlait déjà.\n"


@pytest.mark.parametrize("encoding", ["utf-16", "utf-16-le", "utf-32", "latin-1", "cp1252", "cp1251", "shift_jis", "gb18030"])
@pytest.mark.parametrize("size", [1 << 20, 7])
def test_other_encodings_are_read_as_asked_for_and_by_their_mark(tmp_path, monkeypatch, encoding, size):
    monkeypatch.setattr(corpus, "CHUNK_BYTES", size)
    monkeypatch.setattr(decoding, "CHUNK_BYTES", size)
    text = {"cp1251": "Лес горел.\n", "shift_jis": "森が燃えた。\n", "gb18030": "森林着火了。\n"}.get(encoding, FRENCH) * 50
    path = write(tmp_path / "a.txt", text.encode(encoding))
    known = encoding in ("utf-16", "utf-32")
    reader = reader_of(path, document_per="file", encoding=None if known else encoding)
    assert "".join(piece for piece, _ in reader.pieces()) == text.strip()
    assert (reader.replaced_bytes, reader.encoding) == (0, encoding)
    lines = write(tmp_path / "a.jsonl", ('{"text": "' + text.splitlines()[0] + '"}\r\n').encode(encoding))
    assert documents(lines, encoding=None if known else encoding) == [text.splitlines()[0]]


@pytest.mark.parametrize("per", ["line", "file", "blank-line"])
def test_a_file_in_another_encoding_is_refused_with_what_it_looks_like(tmp_path, monkeypatch, per):
    path = write(tmp_path / "a.txt", (FRENCH * 200).encode("latin-1"))
    with pytest.raises(
        DataError, match=r"a.txt: is not UTF-8: 1\d\.\d% of its bytes .*; it looks like cp1252 or cp1257; say .*--encoding cp1252"
    ):
        documents(path, document_per=per)
    monkeypatch.setattr(corpus, "CHUNK_BYTES", 1000)
    write(tmp_path / "c.txt", FRENCH.encode("latin-1") * 4 + b"sound\n" * 200)
    reader = reader_of(path, document_per=per)
    with pytest.raises(DataError, match="is not UTF-8"):
        list(reader.pieces())
    assert reader.raw_bytes < path.stat().st_size, "that is sure before its end"
    bad = sum(not letter.isascii() for letter in FRENCH)
    accident = write(tmp_path / "c.txt", (FRENCH * 20).encode("latin-1") + b"sound\n" * 400 * 20)
    assert reader_of(accident, document_per=per).source.num_bytes > 100 * 20 * bad
    assert documents(accident, document_per=per), "a hundredth of the file, not of what was read of it"
    lenient = reader_of(path, document_per=per, encoding="utf-8")
    accents = 200 * sum(not letter.isascii() for letter in FRENCH)
    assert sum(piece.count("\ufffd") for piece, _ in lenient.pieces()) == lenient.replaced_bytes == accents
    few = write(tmp_path / "b.txt", (FRENCH * 200).encode() + b"\xe9" * 99)
    assert documents(few, document_per="file")[0].endswith("\ufffd" * 99), "less is an accident"


def test_bad_bytes_of_another_encoding_are_counted_or_refused(tmp_path):
    path = write(tmp_path / "a.txt", "森".encode("shift_jis") + b"\x81")
    reader = reader_of(path, encoding="shift_jis")
    assert list(reader.pieces()) == [("森\ufffd", True)] and reader.replaced_bytes == 1
    with pytest.raises(DataError, match=r"a.txt: is not shift_jis throughout"):
        documents(path, encoding="shift_jis", strict=True)


def test_a_replacement_character_of_another_encoding_is_no_bad_byte(tmp_path):
    reader = reader_of(write(tmp_path / "a.txt", "a \ufffd b".encode("utf-16")))
    assert list(reader.pieces()) == [("a \ufffd b", True)] and reader.replaced_bytes == 0


@pytest.mark.parametrize("encoding", ["utf-16-le", "shift_jis", "cp1252", "gb18030", "euc_jp"])
@pytest.mark.parametrize("size", [1 << 20, 7])
def test_what_follows_a_bad_byte_is_read_as_before(tmp_path, monkeypatch, encoding, size):
    monkeypatch.setattr(decoding, "CHUNK_BYTES", size)
    bad = {"utf-16-le": b"\x00\xd8", "cp1252": b"\x81"}.get(encoding, b"\xff")
    path = write(tmp_path / "a.txt", b"".join(["one ".encode(encoding), bad, " two ".encode(encoding) * 20]) * 3)
    reader = reader_of(path, document_per="file", encoding=encoding)
    assert "".join(text for text, _ in reader.pieces()) == (("one \ufffd" + " two " * 20) * 3).strip()
    assert reader.replaced_bytes == 3


@pytest.mark.parametrize(
    ("text", "encoding", "guess"),
    [
        ("Größere Wälder in Österreich wurden später überprüft.", "latin-1", "cp1252"),
        ("Лес горел всю ночь, и никто не знал почему это случилось в тот день.", "cp1251", "cp1251"),
        ("Лес горел всю ночь, и никто не знал почему это случилось.", "koi8-r", "koi8_r"),
        ("森が燃えた。誰も理由を知らなかった。", "shift_jis", "cp932"),
        ("森林着火了,没有人知道为什么。", "gb18030", "gb18030"),
        ("Zażółć gęślą jaźń, a potem idź do domu przez ciemny las.", "cp1250", "cp1250"),
    ],
)
def test_what_a_text_looks_like(text, encoding, guess):
    assert decoding.looks_like(f"{text}\n".encode(encoding) * 50)[0] == guess


def test_only_encodings_of_text_have_a_name():
    assert (decoding.check_encoding("Latin-1"), decoding.check_encoding("UTF8")) == ("iso8859-1", "utf-8")
    for name in ("utf-16", "utf-16-be", "utf-32", "utf-7", "gb18030", "shift_jis", "iso2022_jp", "cp037"):
        assert decoding.check_encoding(name)
    for name in ("martian", "base64", "rot13", "undefined", "idna", "punycode"):
        with pytest.raises(UsageError, match=f"--encoding: no text encoding is called '{name}'"):
            decoding.check_encoding(name)


def test_folders_that_are_linked_are_read_once_and_loops_end(tmp_path):
    (tmp_path / "corpus" / "own").mkdir(parents=True)
    (tmp_path / "elsewhere").mkdir()
    write(tmp_path / "corpus" / "own" / "1.txt", "a")
    write(tmp_path / "elsewhere" / "2.txt", "b")
    (tmp_path / "corpus" / "linked").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "corpus" / "more").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "elsewhere" / "loop").symlink_to(tmp_path / "corpus")
    sources, skipped = find_sources([tmp_path / "corpus"])
    assert [str(source.path.relative_to(tmp_path / "corpus")) for source in sources] == ["linked/2.txt", "own/1.txt"]
    assert skipped == {"folder linked twice": 2}


def test_bad_lines_may_be_left_out_and_are_counted_by_cause(tmp_path):
    bad = ['{"text": "a"', '["a"]', '{"body": "a"}', '{"text": 5}', '{"text": null}', '{"text": null}']
    path = write(tmp_path / "a.jsonl", "\n".join(['{"text": "one"}', *bad, '{"text": "two"}']))
    with pytest.raises(DataError, match="--skip-bad leaves out such lines"):
        documents(path)
    reader = reader_of(path, skip_bad=True)
    assert [piece for piece, _ in reader.pieces()] == ["one", "two"]
    assert reader.skipped == {
        "line that is not JSON": 1,
        "line that is no JSON object": 1,
        "line without a field 'text'": 1,
        "'text' that is a number": 1,
        "'text' that is null": 2,
    }


@pytest.mark.parametrize("size", [1 << 20, 3])
def test_strict_names_line_and_column(tmp_path, monkeypatch, size):
    monkeypatch.setattr(corpus, "CHUNK_BYTES", size)
    path = write(tmp_path / "a.txt", b"one\ntwo\n\xc3\xa9x\xff\n")
    with pytest.raises(DataError, match=r"a.txt:3:3: byte 0xff is not UTF-8 \(line 3, column 3\)"):
        list(reader_of(path, strict=True).pieces())
    lines = write(tmp_path / "a.jsonl", b'{"text": "a"}\n{"text": "\xff"}\n')
    with pytest.raises(DataError, match=r"a.jsonl:2:11: "):
        list(reader_of(lines, strict=True).pieces())


def test_a_byte_order_mark_is_not_text(tmp_path):
    assert documents(write(tmp_path / "a.jsonl", b'\xef\xbb\xbf{"text": "a"}\n')) == ["a"]
    path = write(tmp_path / "a.txt", "\ufeffa\n\ufeffb\n".encode())
    assert documents(path, document_per="line") == ["a", "\ufeffb"]
    assert documents(path, document_per="line", span=(5, 10)) == ["\ufeffb"], "it is one only where the file begins"


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ('{"text": "a"', r":2: is not JSON"),
        ("plain text", r":2: is not JSON"),
        ("[" * 100_000, r":2: is not JSON"),
        ('["a"]', r":2: is not a JSON object but a list"),
        ('{"body": "a", "id": 1}', r":2: has no field 'text'.*--text-field; its fields are: body, id"),
        ('{"text": 5, "title": "t"}', r":2: field 'text' is not a string but a number; fields that are strings: title"),
        ('{"text": null}', r":2: field 'text' is not a string but null"),
    ],
)
def test_json_lines_that_are_not_what_they_should_be(tmp_path, line, message):
    path = write(tmp_path / "a.jsonl", '{"text": "fine"}\n' + line + "\n")
    with pytest.raises(DataError, match=message):
        documents(path)


def test_text_field_and_halves_of_surrogates(tmp_path):
    reader = reader_of(write(tmp_path / "a.ndjson", '{"body": "a \\ud800 b \\ud83e\\udd16"}\n\n{"body": " "}\n'), text_field="body")
    assert list(reader.pieces()) == [("a \ufffd b 🤖", True)]
    assert reader.replaced_bytes == 2
    assert reader.skipped == {"empty document": 1}


def test_records_too_long_are_skipped_and_counted(tmp_path, monkeypatch):
    monkeypatch.setattr(corpus, "MAX_RECORD_BYTES", 100)
    monkeypatch.setattr(corpus, "CHUNK_BYTES", 64)
    lines = [json.dumps({"text": text}) for text in ("one", "x" * 500, "two")]
    reader = reader_of(write(tmp_path / "a.jsonl", "\n".join(lines)))
    assert [text for text, _ in reader.pieces()] == ["one", "two"]
    assert sum(reader.skipped.values()) == 1
    with pytest.raises(DataError, match=r"a.jsonl:4:11: byte 0xff is not UTF-8"):
        documents(write(tmp_path / "a.jsonl", "\n".join(lines).encode() + b'\n{"text": "\xff"}'), strict=True)


def test_a_record_may_have_fewer_characters_where_they_may_be_wide(tmp_path, monkeypatch):
    monkeypatch.setattr(corpus, "MAX_RECORD_BYTES", 400)
    for text, is_read in (("x" * 300, True), ("x" * 300 + "🤖", False), ("🤖" * 15, True)):
        for escaped in (True, False):
            if escaped and text == "🤖" * 15:
                continue  # six bytes for each half of one
            reader = reader_of(write(tmp_path / "a.jsonl", json.dumps({"text": text}, ensure_ascii=escaped) + '\n{"text": "two"}\n'))
            assert [found for found, _ in reader.pieces()] == [text, "two"][not is_read :]
            assert reader.skipped == ({} if is_read else {corpus.LONG_RECORD: 1})


@pytest.mark.parametrize("name", ["a.parquet", "a.arrow"])
@pytest.mark.parametrize("kind", [pa.string(), pa.large_string(), pa.dictionary(pa.int32(), pa.string())])
def test_long_cells_of_a_columnar_file_are_skipped_and_counted(tmp_path, monkeypatch, name, kind):
    monkeypatch.setattr(corpus, "MAX_RECORD_BYTES", 400)
    path, table = tmp_path / name, pa.table({"text": pa.array(["one", "x" * 101, "y" * 100]).cast(kind)})
    write_columns(path, table)
    reader = reader_of(path)
    assert [text for text, _ in reader.pieces()] == ["one", "y" * 100] and reader.skipped == {corpus.LONG_RECORD: 1}


def test_a_record_in_wide_characters_is_held_twice_and_no_more(tmp_path):
    path = write(tmp_path / "a.jsonl", json.dumps({"text": "word " * 1_000_000 + "🤖"}, ensure_ascii=False))
    list(reader_of(path).pieces())
    tracemalloc.start()
    try:
        list(reader_of(path).pieces())
        assert tracemalloc.get_traced_memory()[1] < 8 * path.stat().st_size + 16e6, "two strings of four bytes a letter"
    finally:
        tracemalloc.stop()


def test_the_hash_is_that_of_the_whole_file(tmp_path):
    import hashlib

    path = tmp_path / "a.txt.gz"
    compress(b"text\n" * 1000, path)
    reader = reader_of(path)
    list(reader.pieces())
    assert reader.sha256 == hashlib.sha256(path.read_bytes()).hexdigest()
    assert reader.raw_bytes == path.stat().st_size


# Tables

ROWS = [{"id": number, "text": f'number {number}\u2028, with "quotes",\nand a line'} for number in range(2500)]


def write_columns(path: Path, table: pa.Table) -> None:
    if path.suffix == ".parquet":
        pyarrow.parquet.write_table(table, path, row_group_size=700)
    else:
        with pa.OSFile(str(path), "wb") as sink, pa.ipc.new_stream(sink, table.schema) as writer:
            writer.write_table(table)


def write_table(path: Path, rows: list[dict] = ROWS) -> Path:
    if path.suffix in (".parquet", ".arrow"):
        write_columns(path, pa.Table.from_pylist(rows))
    else:
        with path.open("w", newline="", encoding="utf-8") as file:
            writer = csv.DictWriter(file, ["id", "text"], delimiter="\t" if path.suffix == ".tsv" else ",")
            writer.writeheader()
            writer.writerows(rows)
    return path


@pytest.mark.parametrize("name", ["a.csv", "a.tsv", "a.parquet", "a.arrow"])
def test_a_column_of_a_table_is_a_corpus(tmp_path, name):
    path = write_table(tmp_path / name)
    reader = reader_of(path)
    texts = ["".join(parts) for parts in _grouped(reader.pieces())]
    assert texts == [row["text"].strip() for row in ROWS]
    assert reader.sha256 == hashlib.sha256(path.read_bytes()).hexdigest() and reader.raw_bytes == path.stat().st_size
    with pytest.raises(DataError, match=r"has no column 'body'; name it with --text-field; its columns are: id, text"):
        documents(path, text_field="body")


def _grouped(pieces):
    parts = []
    for text, last in pieces:
        parts.append(text)
        if last:
            yield parts
            parts = []


def test_a_compressed_csv_file(tmp_path):
    plain = write_table(tmp_path / "a.csv")
    compress(plain.read_bytes(), tmp_path / "b.csv.gz")
    assert documents(tmp_path / "b.csv.gz") == documents(plain)


@pytest.mark.parametrize("name", ["a.parquet", "a.arrow"])
def test_rows_without_a_text(tmp_path, name):
    path = write_table(tmp_path / name, [{"text": "one"}, {"text": None}, {"text": "three"}])
    with pytest.raises(DataError, match=rf"{name}, row 2: column 'text' holds nothing, not a text"):
        documents(path)
    reader = reader_of(path, skip_bad=True)
    assert len([text for text, _ in reader.pieces()]) == 2 and reader.skipped == {"'text' that is nothing": 1}


@pytest.mark.parametrize("kind", [pa.string(), pa.large_string(), pa.dictionary(pa.int32(), pa.string())])
@pytest.mark.parametrize("name", ["a.parquet", "a.arrow"])
def test_text_of_a_columnar_file_that_is_not_utf8_is_replaced_and_counted(tmp_path, name, kind):
    is_dictionary = pa.types.is_dictionary(kind)
    of_text = pa.string() if is_dictionary else kind
    raw = pa.array([b"one", b"caf\xe9", b"two"], pa.large_binary() if of_text == pa.large_string() else pa.binary())
    texts = pa.Array.from_buffers(of_text, 3, raw.buffers())
    texts = pa.DictionaryArray.from_arrays(pa.array([0, 1, 2], pa.int32()), texts) if is_dictionary else texts
    path, table = tmp_path / name, pa.table({"text": texts})
    write_columns(path, table)
    reader = reader_of(path)
    assert [text for text, _ in reader.pieces()] == ["one", "caf\ufffd", "two"] and reader.replaced_bytes == 1
    with pytest.raises(DataError, match=rf"{name}, row 2: holds text that is not UTF-8"):
        documents(path, strict=True)


def test_a_numeric_column_is_no_text(tmp_path):
    with pytest.raises(DataError, match=r"row 1: column 'id' holds a number, not a text"):
        documents(write_table(tmp_path / "a.parquet"), text_field="id")


@pytest.mark.parametrize("name", ["a.parquet", "a.arrow"])
def test_damaged_tables(tmp_path, name):
    path = write_table(tmp_path / name)
    for content in (path.read_bytes()[:-500], b"PAR1 and nothing else"):
        with pytest.raises(DataError, match=rf"{name}: is truncated or damaged"):
            documents(write(path, content))


def test_a_quote_that_is_never_closed(tmp_path, monkeypatch):
    monkeypatch.setattr(corpus, "MAX_RECORD_BYTES", 10_000)
    path = write(tmp_path / "a.csv", 'text\n"one\n' + "two\n" * 5_000)
    with pytest.raises(DataError, match=r"a.csv:\d+: is not CSV .*is a quote never closed"):
        documents(path)


@pytest.mark.parametrize("size", [20, 1000])
@pytest.mark.parametrize("cells", [("x" * 67, "y" * 67), ("x" * 67, '"' + "y" * 67 + '"'), ("x", "y" * 300), ("x", '"' + "y" * 300 + '"')])
@pytest.mark.parametrize("name", ["a.csv", "a.tsv"])
def test_rows_too_long_are_skipped_and_counted_and_never_cut(tmp_path, monkeypatch, name, cells, size):
    monkeypatch.setattr(corpus, "MAX_RECORD_BYTES", 100)
    monkeypatch.setattr(corpus, "CHUNK_BYTES", size)
    mark = "\t" if name == "a.tsv" else ","
    lines = [mark.join(row) for row in (("note", "text"), ("1", '"one"'), cells, ("2", '"two"'), ("3", "three"))]
    for rows, expected in ((lines, ["one", "two", "three"]), (lines[:3], ["one"])):
        reader = reader_of(write(tmp_path / name, "\n".join(rows)))
        assert [text for text, _ in reader.pieces()] == expected
        assert reader.skipped == {corpus.LONG_RECORD: 1}
    path = write(tmp_path / name, "\n".join([*lines, mark.join("abc")]))
    with pytest.raises(DataError, match=rf"{name}:6: has 3 columns"):
        documents(path)
    with pytest.raises(DataError, match="has no column 'text'"):
        documents(write(tmp_path / name, f"text{mark}{'x' * 200}\n"))


def test_a_cell_longer_than_a_chunk(tmp_path):
    long = "word " * 500_000
    path = write(tmp_path / "a.csv", f'text\nshort\n"{long}"\nlast\n')
    assert documents(path) == ["short", long.strip(), "last"]


def test_a_directory_that_datasets_saved(tmp_path):
    place = tmp_path / "saved"
    datasets.DatasetDict({"train": datasets.Dataset.from_list(ROWS[:5]), "test": datasets.Dataset.from_list(ROWS[5:7])}).save_to_disk(place)
    sources, _ = find_sources([place])
    assert [source.path.parent.name for source in sources] == ["test", "train"] and {source.format for source in sources} == {"arrow"}
    assert [len(list(_grouped(Reader(source).pieces()))) for source in sources] == [2, 5]


def tsv_of(tmp_path, *rows):
    return write(tmp_path / "a.tsv", "id\ttext\n" + "".join(f"{row}\n" for row in rows))


def test_a_quotation_mark_that_nothing_closes_swallows_no_rows_of_a_tsv_file(tmp_path):
    path = tsv_of(tmp_path, "1\tplain", '2\t"Unclosed', '3\tHe said "hi" to all', "4\tlast")
    assert documents(path) == ["plain", '"Unclosed', 'He said "hi" to all', "last"]


def test_cells_in_quotes_far_into_a_tsv_file_are_cells_in_quotes(tmp_path):
    plain = [f"{number}\tplain" for number in range(2000)]
    path = tsv_of(tmp_path, *plain, '2000\t"two\nlines"', *plain, '2001\t"a\ttab"')
    assert documents(path) == ["plain"] * 2000 + ["two\nlines"] + ["plain"] * 2000 + ["a\ttab"]
    with pytest.raises(DataError, match=r"a.tsv:2003: has 3 columns, the heading has 2"):
        documents(tsv_of(tmp_path, *plain, '2000\t"one', "2001\ttwo\tthree", "4\tlast"))


def test_rows_with_more_cells_than_the_heading(tmp_path):
    path = write(tmp_path / "a.csv", "text\nhello\nhello, world\nspare,,\n")
    with pytest.raises(DataError, match=r"a.csv:3: has 2 columns, the heading has 1; put a text that holds .* in quotes; .*--skip-bad"):
        documents(path)
    reader = reader_of(path, skip_bad=True)
    assert [text for text, _ in reader.pieces()] == ["hello", "spare"]
    assert reader.skipped == {"row with more columns than the heading": 1}


def test_a_quote_that_closes_within_a_cell(tmp_path):
    path = write(tmp_path / "a.csv", 'text,n\n"so "good", it was",1\nnext,2\n"5" disk",3\nlast,4\n')
    with pytest.raises(DataError, match=r"a.csv:2: a quote that opens here closes in the middle of a cell; write a quote .* twice"):
        documents(path)
    reader = reader_of(path, skip_bad=True)
    assert [text for text, _ in reader.pieces()] == ["next", "last"] and reader.skipped == {"row that is not CSV": 2}


def test_a_quote_that_the_end_of_the_file_leaves_open(tmp_path):
    path = write(tmp_path / "a.csv", 'text\nfirst\n"one\ntwo\nthree\n')
    with pytest.raises(DataError, match=r"a.csv:3: is not CSV \(unexpected end of data\); is a quote never closed"):
        documents(path)
    reader = reader_of(path, skip_bad=True)
    assert [text for text, _ in reader.pieces()] == ["first", "two", "three"] and reader.skipped == {"row that is not CSV": 1}


def test_rows_behind_a_quote_that_is_never_closed_are_rows(tmp_path):
    """The next quote ends what the first one opened; a line that is too long does, too."""
    rows = [f"{number},row {number}" for number in range(5000)]
    opened = ['a,"never closed', *rows[:2000], 'b,"a cell\nof two lines"', *rows[2000:], 'c,"open as well']
    path = write(tmp_path / "a.csv", "\n".join(["id,text", *opened, "last,one"]))
    reader = reader_of(path, skip_bad=True)
    expected = [row.partition(",")[2] for row in rows]
    assert [text for text, _ in reader.pieces()] == [*expected[:2000], "a cell\nof two lines", *expected[2000:], "one"]
    assert reader.skipped == {"row that is not CSV": 2}
    lines = ["n,text\n", '1,"open\n', "2,two\n", f"3,{'x' * 50}\n", "4,four\n"]
    found = list(csv_texts(lines, path, field="text", is_tsv=False, most_characters=40))
    assert found == [(f"{path}:2", LONG_CELL), (f"{path}:3", "two"), (f"{path}:4", LONG_CELL), (f"{path}:5", "four")]


def test_a_table_of_a_spreadsheet_that_parts_cells_by_semicolons(tmp_path):
    assert documents(write(tmp_path / "a.csv", "id;text\n1;eins, zwei\n2;drei\n")) == ["eins, zwei", "drei"]
    for line in ("sep=|", '"sep=|"', "SEP=|\r"):
        path = write(tmp_path / "a.csv", f"\ufeff{line}\nid|text\n1|eins; zwei\n2\n")
        with pytest.raises(DataError, match=r"a.csv:4: column 'text' holds nothing"):
            documents(path)
        assert [text for text, _ in reader_of(path, skip_bad=True).pieces()] == ["eins; zwei"]
    assert documents(write(tmp_path / "a.csv", "sep=a,text\n1,one\n")) == ["one"], "a column may be called so"


def test_what_cannot_be_read_of_a_file_is_left_out_where_asked(tmp_path):
    whole = "first document\n\n" + "word " * 2_000_000
    path = write(tmp_path / "a.txt.gz", gzip.compress(whole.encode())[:-5000])
    with pytest.raises(DataError, match="is truncated or damaged"):
        list(reader_of(path).readable_pieces())
    reader = reader_of(path, skip_bad=True)
    *_, end = pieces = list(reader.readable_pieces())
    assert pieces[0] == ("first document", True) and end == ("", True)
    assert reader.skipped == {"file that is truncated or damaged": 1}
    assert reader.sha256 == hashlib.sha256(path.read_bytes()).hexdigest() and reader.raw_bytes == path.stat().st_size
    western = write(tmp_path / "b.txt", "Überall ähnliche Größen, süß und schön.\n".encode("latin-1") * 40)
    with pytest.raises(DataError, match="is not UTF-8"):
        list(reader_of(western, skip_bad=True).readable_pieces())


def test_a_window_of_zstd_that_is_too_large_is_named(tmp_path, monkeypatch):
    path = write(tmp_path / "a.txt.zst", pa.compress(b"text", "zstd", asbytes=True))

    def refused(*given, **named):
        raise OSError("ZSTD decompress failed: Frame requires too much memory for decoding")

    monkeypatch.setattr(pa, "CompressedInputStream", refused)
    with pytest.raises(DataError, match=r"a.txt.zst: was compressed with a window of more than 128 MB; unpack it with `zstd -d --long=31"):
        documents(path)


def test_strict_reading_of_another_encoding_names_line_and_column(tmp_path):
    text = "森が燃えた。\n" * 100_000
    path = write(tmp_path / "a.txt", text.encode("shift_jis") + "森".encode("shift_jis") + b"\x81")
    with pytest.raises(DataError, match=r"is not shift_jis throughout \(line 100001, column 2\)"):
        documents(path, encoding="shift_jis", strict=True)
    path = write(tmp_path / "b.txt", "ab\nc".encode("utf-16") + b"\x00\xdc" + "d".encode("utf-16-le"))
    with pytest.raises(DataError, match=r"is not utf-16 throughout \(line 2, column 2\)"):
        documents(path, strict=True)


def test_half_of_a_pair_is_no_character_where_reading_is_strict(tmp_path):
    path = write(tmp_path / "a.jsonl", '{"text": "fine"}\n{"text": "a \\ud83d b"}\n')
    with pytest.raises(DataError, match=r"a.jsonl:2: half of a surrogate pair is no character"):
        documents(path, strict=True)
