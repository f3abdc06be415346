import bz2
import gzip
import json
import lzma
import subprocess

import datasets
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pldcli.errors import DataError
from pldcli.task_files.table import read_table

PACKINGS = [
    (".gz", gzip.compress),
    (".bz2", bz2.compress),
    (".xz", lzma.compress),
    (".zst", lambda content: pa.compress(content, "zstd", asbytes=True)),
]


def write(path, content):
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return path


def error_of(path, **settings):
    with pytest.raises(DataError) as caught:
        read_table(path, **settings)
    assert "\n" not in str(caught.value)
    return str(caught.value).replace(f"{path.parent}/", "")


def test_csv_cells_may_hold_commas_quotes_and_line_ends(tmp_path):
    path = write(tmp_path / "a.csv", 'text,label\r\n"one, ""two""\r\nthree",1\r\n\r\nfour "4",0')
    table = read_table(path)
    assert table.columns == {"text": ['one, "two"\r\nthree', 'four "4"'], "label": ["1", "0"]}
    assert [table.where(row) for row in range(2)] == [f"{path}:2", f"{path}:5"]


def test_csv_with_semicolons_or_tabs(tmp_path):
    for mark in ";\t":
        table = read_table(write(tmp_path / "a.csv", f'text{mark}label\n"a{mark} b"{mark}1\n'))
        assert table.columns == {"text": [f"a{mark} b"], "label": ["1"]}


@pytest.mark.parametrize("name", ["a.csv", "a.tsv"])
@pytest.mark.parametrize("rows", ["a, b|1\n", '"a, b"|1\n'])
def test_a_line_that_tells_a_spreadsheet_the_delimiter(tmp_path, name, rows):
    path = write(tmp_path / name, f"\ufeffsep=|\r\ntext|label\n{rows}\nc|0\n")
    table = read_table(path)
    assert table.columns == {"text": ["a, b", "c"], "label": ["1", "0"]}
    assert [table.where(row) for row in range(2)] == [f"{path}:3", f"{path}:5"]


def test_a_comma_in_a_quoted_heading_parts_nothing(tmp_path):
    table = read_table(write(tmp_path / "a.csv", '"review, full";"label"\n"a, b";"1"\n'))
    assert table.columns == {"review, full": ["a, b"], "label": ["1"]}


def test_lines_that_end_in_carriage_returns_alone(tmp_path):
    assert error_of(write(tmp_path / "a.tsv", "text\tlabel\ra\t1\rb\t0\r")).startswith("a.tsv: its lines end in carriage returns alone")


def test_headings_lose_their_spaces_and_byte_order_mark(tmp_path):
    assert list(read_table(write(tmp_path / "a.csv", "\ufefftext, label\na,1\n")).columns) == ["text", "label"]


def test_tsv_with_quotation_marks_that_are_no_quotes(tmp_path):
    path = write(tmp_path / "a.tsv", 'text\tlabel\n"He said\t0\n"Hi," she said\t1\nand "so"\t0\n')
    for quoted in (None, False):
        assert read_table(path, quoted=quoted).columns["text"] == ['"He said', '"Hi," she said', 'and "so"']


def test_tsv_with_line_ends_of_windows(tmp_path):
    table = read_table(write(tmp_path / "a.tsv", 'text\tlabel\r\n"a\t1\r\n\r\nb\t0\r\n'))
    assert table.columns == {"text": ['"a', "b"], "label": ["1", "0"]} and table.places == [2, 4]


def test_tsv_that_quotes_as_csv_does(tmp_path):
    path = write(tmp_path / "a.tsv", 'text\tlabel\n"a\ttab"\t0\n"two\nlines"\t1\n"a ""word"""\t0\n')
    table = read_table(path)
    assert table.columns["text"] == ["a\ttab", "two\nlines", 'a "word"']
    assert table.places == [2, 3, 5]


def test_a_quote_that_nothing_closes_does_not_swallow_the_lines_below(tmp_path):
    # Read as CSV this is one example that begins on line 2 and ends on line 4, with the right number of columns.
    path = write(tmp_path / "a.tsv", 'text\tlabel\n"one\t0\ntwo\t1\nthree"\t0\n')
    assert read_table(path).columns == {"text": ['"one', "two", 'three"'], "label": ["0", "1", "0"]}


def test_tsv_whose_quotes_only_enclose(tmp_path):
    assert read_table(write(tmp_path / "a.tsv", 'text\tlabel\n"one, two"\tyes\n')).columns["text"] == ["one, two"]
    assert read_table(tmp_path / "a.tsv", quoted=False).columns["text"] == ['"one, two"']


def test_a_truncated_tsv(tmp_path):
    path = write(tmp_path / "a.tsv", "index\ta\tb\tlabel\n0\tx\ty\t1\n1\tx")
    assert error_of(path) == "a.tsv:3: has 2 columns, the heading has 4; is the file cut short?"
    path = write(tmp_path / "a.tsv", 'text\tlabel\n"a ""b""\nc"\t1\n"d ""e""\nf\ng')
    assert error_of(path) == "a.tsv:4: a quote that opens here is never closed; is the file cut short?"


def test_a_quote_in_a_csv_that_closes_in_the_middle_of_a_cell_is_noticed(tmp_path):
    lines = [f"row {number},{number % 2}" for number in range(12)]
    lines[3], lines[7] = '"' + lines[3], '"' + lines[7]
    path = write(tmp_path / "a.csv", "text,label\n" + "\n".join(lines) + "\n")
    table = read_table(path)
    assert len(table) == 12 and table.columns["text"][3] == '"row 3', "read by the rules of CSV these would be 8 rows"
    assert table.notes == (
        f"{path}: quotes are read as characters of the text: the one that opens in line 5 closes in the middle of a cell",
    )
    lines[5] = "a, b,1"
    path = write(tmp_path / "a.csv", "text,label\n" + "\n".join(lines) + "\n")
    assert error_of(path).startswith("a.csv:5: a quote that opens here closes in the middle of a cell; write a quote within a cell twice")


def test_csv_as_spreadsheets_write_it(tmp_path):
    content = 'text,label\n"so ""good"", it was",1\n"two\nlines",0\n5" pipe,1\n'
    assert read_table(write(tmp_path / "a.csv", content)).columns["text"] == ['so "good", it was', "two\nlines", '5" pipe']
    table = read_table(write(tmp_path / "a.csv", "v1,v2,,,\r\nham,one,,,\r\nspam,two,,,\r\n"))
    assert table.headings == ("v1", "v2", "", "unnamed column 4", "unnamed column 5")
    assert table.columns["v2"] == ["one", "two"] and not table.notes


def test_a_truncated_csv(tmp_path):
    assert error_of(write(tmp_path / "a.csv", "a,b\n1,2\n3")) == "a.csv:3: has 1 column, the heading has 2; is the file cut short?"
    for end in ("", "\n"):
        path = write(tmp_path / "a.csv", 'a,b\n1,2\n3,"four\nfive' + end)
        assert error_of(path) == "a.csv:3: a quote that opens here is never closed; is the file cut short?"


def test_too_many_columns(tmp_path):
    path = write(tmp_path / "a.csv", "a,b\n1,2,3\n")
    assert error_of(path) == "a.csv:2: has 3 columns, the heading has 2; does a text hold the character that separates columns?"


def test_broken_rows_can_be_left_out_and_are_counted(tmp_path):
    path = write(tmp_path / "a.tsv", "a\tb\n1\t2\n3\n4\t5\n6\t7\t8\n")
    table = read_table(path, skip_broken_rows=True)
    assert table.columns == {"a": ["1", "4"], "b": ["2", "5"]} and table.places == [2, 4]
    assert table.notes == (f"{path}: left out 2 rows with a wrong number of columns (the first is line 3)",)


def test_a_file_without_heading(tmp_path):
    names = ("source", "label", "star", "sentence")
    path = write(tmp_path / "a.tsv", "gj04\t1\t\tOne.\ngj04\t0\t*\tTwo.\n")
    table = read_table(path, columns=names)
    assert table.columns["sentence"] == ["One.", "Two."] and table.places == [1, 2]
    path = write(tmp_path / "a.tsv", "sentence\tlabel\nOne.\t1\n")
    assert read_table(path, columns=names).columns == {"sentence": ["One."], "label": ["1"]}


def test_cells_of_any_size(tmp_path):
    text = "word " * 60_000
    for name, mark in (("a.csv", ","), ("a.tsv", "\t")):
        assert read_table(write(tmp_path / name, f'text{mark}label\n"{text}"{mark}1\n')).columns["text"] == [text]


@pytest.mark.parametrize(
    ("name", "content", "expected"),
    [
        ("a.csv", "", "a.csv: is empty; name a file with examples in it"),
        ("a.csv", "\n\n", "a.csv: is empty; name a file with examples in it"),
        ("a.jsonl", "\n", "a.jsonl: has no rows; name a file with examples in it"),
        ("a.json", "[]", "a.json: has no rows; name a file with examples in it"),
        ("a.tsv", "text\tlabel\n", "a.tsv: has a heading but no rows; name a file with examples in it"),
        ("a.csv", "text,label,text\n1,2,3\n", "a.csv:1: the heading has 'text' twice; give each column its own name"),
        ("a.csv", b"a,b\n1,2\n3,\xe9\n", "a.csv:3: byte 0xe9 is not UTF-8; convert the file to UTF-8, for example: iconv -f cp1252"),
        ("a.csv", "a,b\n1,2\n".encode("utf-16")[:-1], "a.csv: is not in the encoding that its byte-order mark says; save it as UTF-8"),
        ("a.tsv", b"a\tb\0\n", "a.tsv: is binary, not text; known are .csv"),
        ("a.csv", "a,b\n1,2\n".encode("utf-16-le"), "a.csv: is UTF-16 without its mark; convert the file to UTF-8, for example"),
        ("a", "text", "a: has an ending that is not known; known are .csv"),
        ("a.parquet.gz", gzip.compress(b"no", mtime=0), "a.parquet.gz: has an ending that is not known; known are .csv"),
        ("a.xlsx", "x", "a.xlsx: has an ending that is not known; known are .csv, .tsv, .jsonl"),
        ("a.jsonl", '{"a": 1}\n{"a": \n', "a.jsonl:2: is not JSON (Expecting value, column 6); one object per line"),
        ("a.jsonl", '{"a": 1}\n[1]\n', "a.jsonl:2: is not a JSON object but a list; an example is an object"),
        ("a.json", '[{"a": 1}, 3]', "a.json: row 2: is not a JSON object but a number"),
        ("a.parquet", "no", "a.parquet: is no readable .parquet file; is it cut short?"),
        ("a.arrow", "no", "a.arrow: is no readable .arrow file; is it cut short?"),
        ("a.csv.gz", "a,b\0", "a.csv.gz: is truncated or damaged; compress or copy it again"),
    ],
)  # fmt: skip
def test_files_that_cannot_be_used(tmp_path, name, content, expected):
    assert error_of(write(tmp_path / name, content)).startswith(expected)


def test_a_file_that_is_not_there_and_a_directory_of_something_else(tmp_path):
    assert error_of(tmp_path / "none.csv") == "none.csv: no such file"
    (tmp_path / "folder").mkdir()
    assert error_of(tmp_path / "folder") == "folder: is a directory that `datasets` did not save; name a file in it"


def test_a_column_that_is_not_there(tmp_path):
    table = read_table(write(tmp_path / "a.csv", "Text,label\na,1\n"))
    with pytest.raises(DataError, match=r"a.csv: has no column 'text'; did you mean 'Text'\? its columns are: Text, label$"):
        table.column("text")
    assert table.column("sentence", "Text") == ["a"]


def test_json_lines_with_different_keys(tmp_path):
    table = read_table(write(tmp_path / "a.jsonl", '{"text": "a", "label": 1}\n\n{"text": "b"}\n{"text": "c", "x": null}\n'))
    assert table.columns == {"text": ["a", "b", "c"], "label": [1, None, None], "x": [None, None, None]}
    assert table.where(1).endswith("a.jsonl:3")


def test_one_json_list(tmp_path):
    rows = [{"text": "a"}, {"text": "b"}]
    table = read_table(write(tmp_path / "a.json", json.dumps(rows, indent=1)))
    assert table.columns == {"text": ["a", "b"]} and table.where(1).endswith("a.json: row 2")


def test_halves_of_surrogate_pairs_become_text(tmp_path):
    table = read_table(write(tmp_path / "a.jsonl", '{"text": "a\\ud83d b", "words": ["\\udc00"]}\n{"text": "\\ud83d\\ude00"}\n'))
    assert table.columns["text"] == ["a\ufffd b", "\U0001f600"] and table.columns["words"][0] == ["\ufffd"]


def test_compressed_files(tmp_path):
    path = tmp_path / "a.tsv.gz"
    path.write_bytes(gzip.compress("text\tlabel\nä\t1\n".encode()))
    assert read_table(path).columns == {"text": ["ä"], "label": ["1"]}
    path.write_bytes(gzip.compress(b"text\tlabel\n\xe4\t1\n"))
    assert error_of(path).startswith("a.tsv.gz:2: byte 0xe4 is not UTF-8")


def test_parquet_and_arrow(tmp_path):
    written = pa.table({"text": ["a", "b"], "label": [1, 0], "other": [None, 2.5]})
    pq.write_table(written, tmp_path / "a.parquet")
    for opened in (pa.ipc.new_file, pa.ipc.new_stream):
        with opened(str(tmp_path / "a.arrow"), written.schema) as sink:
            sink.write_table(written)
        for name in ("a.arrow", "a.parquet"):
            table = read_table(tmp_path / name, keep=["label", "text", "none"])
            assert table.columns == {"text": ["a", "b"], "label": [1, 0]}
            assert table.headings == ("text", "label", "other") and table.where(1).endswith(f"{name}: row 2")


def test_a_damaged_parquet_file(tmp_path):
    pq.write_table(pa.table({"text": ["a" * 1000] * 100}), tmp_path / "a.parquet")
    write(tmp_path / "a.parquet", (tmp_path / "a.parquet").read_bytes()[:-50])
    assert error_of(tmp_path / "a.parquet").startswith("a.parquet: is no readable .parquet file; is it cut short?")


def test_what_datasets_saved_and_the_names_of_its_classes(tmp_path):
    labels = datasets.Features({"words": datasets.Sequence(datasets.Value("string")), "label": datasets.ClassLabel(names=["no", "yes"]),
                                "tags": datasets.Sequence(datasets.ClassLabel(names=["O", "B-X"]))})  # fmt: skip
    rows = {"words": [["a"], ["b"], ["c"]], "label": [1, 0, 1], "tags": [[0], [1], [0]]}
    saved = datasets.Dataset.from_dict(rows, features=labels)
    saved.save_to_disk(str(tmp_path / "saved"), num_shards=2)
    saved.to_parquet(str(tmp_path / "a.parquet"))
    saved.select([2, 0]).save_to_disk(str(tmp_path / "chosen"))
    for name in ("saved", "a.parquet"):
        table = read_table(tmp_path / name)
        assert table.columns == rows and table.class_names == {"label": ("no", "yes"), "tags": ("O", "B-X")}
    assert read_table(tmp_path / "chosen").columns["words"] == [["c"], ["a"]]


def test_only_wanted_columns_are_kept(tmp_path):
    table = read_table(write(tmp_path / "a.tsv", "a\tb\tc\n1\t2\t3\n"), keep={"c", "a"})
    assert table.columns == {"a": ["1"], "c": ["3"]} and table.headings == ("a", "b", "c")


@pytest.mark.parametrize("encoding", ["utf-16-le", "utf-16-be", "utf-32-le"])
def test_text_with_a_byte_order_mark(tmp_path, encoding):
    """As spreadsheets write "Unicode text"."""
    path = write(tmp_path / "a.txt", "\ufefftext\tlabel\r\nzwölf\tja\r\n東京\tnein\r\n".encode(encoding))
    assert read_table(path).columns == {"text": ["zwölf", "東京"], "label": ["ja", "nein"]}


@pytest.mark.parametrize(
    ("encoding", "text", "guess"),
    [
        ("koi8-r", "Лес горел всю ночь, и никто не знал почему это случилось.", "koi8-r"),
        ("shift-jis", "この映画はとても面白かったです。また見たいと思います。", "cp932"),
    ],
)
def test_the_encoding_to_convert_from_is_guessed(tmp_path, encoding, text, guess):
    content = b"text\tlabel\n" + f"{text}\t1\n".encode(encoding) * 50
    path = write(tmp_path / "my a.tsv", content)
    with pytest.raises(DataError) as caught:
        read_table(path)
    line = str(caught.value).partition("for example: ")[2]
    assert line == f"iconv -f {guess} -t UTF-8 '{path}' > utf8.tsv"
    subprocess.run(line, shell=True, check=True, cwd=tmp_path)
    assert (tmp_path / "utf8.tsv").read_text(encoding="utf-8").count(text) == 50
    packed = write(tmp_path / "a.tsv.gz", gzip.compress(content))
    assert f"for example: gzip -dc a.tsv.gz | iconv -f {guess} -t UTF-8 > utf8.tsv" in error_of(packed)


@pytest.mark.parametrize(("ending", "pack"), PACKINGS)
def test_packed_files(tmp_path, ending, pack):
    content = pack("text\tlabel\nä\t1\n".encode())
    assert read_table(write(tmp_path / f"a.tsv{ending}", content)).columns == {"text": ["ä"], "label": ["1"]}
    for damaged in (content[:-5], b"text\tlabel\0\n"):
        path = write(tmp_path / f"a.tsv{ending}", damaged)
        assert error_of(path) == f"a.tsv{ending}: is truncated or damaged; compress or copy it again"


@pytest.mark.parametrize(("ending", "pack"), PACKINGS)
def test_files_are_told_by_what_they_hold(tmp_path, ending, pack):
    assert read_table(write(tmp_path / "packed.tsv", pack(b"text\tlabel\na\t1\n"))).columns == {"text": ["a"], "label": ["1"]}
    assert read_table(write(tmp_path / "rows", pack(b'{"text": "a"}\n'))).columns == {"text": ["a"]}
    assert read_table(write(tmp_path / "rows.txt", b'{"text": "a"}\n')).columns == {"text": ["a"]}
    pq.write_table(pa.table({"text": ["a"]}), tmp_path / "data")
    assert read_table(tmp_path / "data").columns == {"text": ["a"]}


@pytest.mark.parametrize("content", ['text,label\n"big pipe,0\nfoo,1\npipe of 5",1\n', 'label,text\nno,"big pipe\nyes,foo\nno,5"\nyes,a\n'])
def test_rows_that_quotes_join_are_noted(tmp_path, content):
    path = write(tmp_path / "a.csv", content)
    assert read_table(path).notes == (
        f"{path}: 1 row has several lines that look like rows themselves (the first begins in line 2); "
        'a quote that is part of the text is written twice, and the cell in quotes: "a 5"" pipe"',
    )


def test_texts_of_several_lines_are_not_noted(tmp_path):
    content = 'text,label\n"Dear John,\nthank you",1\n"one, two\nthree",0\n"1\n2",0\n'
    assert read_table(write(tmp_path / "a.csv", content)).notes == ()
    content = 'a,b,c\n1,"x\n1,y"\n1,2,3\n'
    assert len(read_table(write(tmp_path / "b.csv", content), skip_broken_rows=True)) == 1
