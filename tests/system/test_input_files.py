"""Files are told by what they hold, and small ones do not become large ones in memory."""

import gzip

import pytest

from pldcli.comparison.metrics_table import read_table as read_runs
from pldcli.errors import DataError
from pldcli.system import input_files
from pldcli.system.input_files import open_content
from pldcli.task_files.table import read_table
from tests.task_files.test_table import PACKINGS


def write(path, content):
    path.write_bytes(gzip.compress(content))
    return path


@pytest.mark.parametrize(
    ("name", "read", "content"),
    [
        ("a.jsonl.gz", read_table, b'{"text": "' + b"a" * 5_000_000 + b'"}\n'),
        ("a.json.gz", read_table, b"[" + b" " * 5_000_000 + b"]"),
        ("a.csv.gz", read_table, b"text,label\n" + b"a" * 5_000_000 + b",1\n"),
        ("metrics.csv.gz", read_runs, b"run,about,step\n" + bytes(5_000_000)),
    ],
)
def test_what_unpacks_to_far_more_is_refused_before_all_of_it_is_in_memory(tmp_path, monkeypatch, name, read, content):
    monkeypatch.setattr(input_files, "_ALWAYS_BYTES", 1 << 20)
    held = []
    monkeypatch.setattr(
        input_files, "check_expansion", lambda count, *rest, real=input_files.check_expansion: (held.append(count), real(count, *rest))
    )
    path = write(tmp_path / name, content)
    with pytest.raises(DataError, match=rf"{name}: unpacks to more than 100 times its size; if that is meant, unpack it yourself"):
        read(path)
    assert max(held) < 2 << 20 and path.stat().st_size < 10_000


def test_what_is_small_may_unpack_to_anything(tmp_path):
    content = b"a" * 5_000_000
    path = write(tmp_path / "a.txt.gz", content)
    with open_content(path) as file:
        assert file.read() == content


@pytest.mark.parametrize(("ending", "pack"), PACKINGS)
def test_every_packing_has_the_same_limit(tmp_path, monkeypatch, ending, pack):
    monkeypatch.setattr(input_files, "_ALWAYS_BYTES", 1 << 20)
    path = tmp_path / f"a.jsonl{ending}"
    path.write_bytes(pack(b'{"text": "' + b"a" * 5_000_000 + b'"}\n'))
    with pytest.raises(DataError, match=r"unpacks to more than 100 times its size"):
        read_table(path)
