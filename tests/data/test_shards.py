import os
import subprocess
import sys

import numpy as np
import pytest

from pldcli.data.prepared import open_prepared
from pldcli.data.shards import ShardWriter
from tests.conftest import write_prepared

END = 3


DOCUMENTS = [[10, 11, 12], [], [20] * 9, [30, 31, 32, 33]]
FLAT = [10, 11, 12, END, END, *[20] * 9, END, 30, 31, 32, 33, END]
SIZES = [
    {},
    {"batch_bytes": 4},
    {"batch_bytes": 4, "shard_bytes": 1},
    {"row_tokens": 2},
    {"row_tokens": 2, "batch_bytes": 1, "shard_bytes": 1},
]


@pytest.mark.parametrize("sizes", SIZES)
@pytest.mark.parametrize("vocab_size", [100, 70_000])
def test_a_stream_is_the_documents_end_to_end(tmp_path, sizes, vocab_size):
    stream = open_prepared(write_prepared(tmp_path / "d", DOCUMENTS, vocab_size=vocab_size, **sizes)).stream("train")
    assert stream.num_tokens == len(FLAT)
    assert stream.slice(0, len(FLAT)).tolist() == FLAT
    assert stream.document_ends.tolist() == [4, 5, 15, 20]
    assert [ids.tolist() for ids in stream.documents()] == DOCUMENTS
    assert stream.gather(np.arange(len(FLAT)).reshape(2, 10)).tolist() == [FLAT[:10], FLAT[10:]]
    for length in (1, 3, 7, len(FLAT)):
        starts = np.arange(len(FLAT) - length + 1)
        assert stream.take(starts, length).tolist() == [FLAT[start : start + length] for start in starts]


def test_spans_outside_are_refused(tmp_path):
    stream = open_prepared(write_prepared(tmp_path / "d", DOCUMENTS)).stream("validation")
    assert stream.take(np.array([], np.int64), 5).shape == (0, 5)
    for start in (-1, len(FLAT) - 2):
        with pytest.raises(IndexError):
            stream.take(np.array([start]), 3)


def test_shards_are_uint16_in_large_lists_and_open_elsewhere(tmp_path):
    import pyarrow as pa

    write_prepared(tmp_path / "d", DOCUMENTS)
    path = tmp_path / "d" / "train-00000.arrow"
    table = pa.ipc.open_file(pa.memory_map(str(path))).read_all()
    assert table.schema.field("input_ids").type == pa.large_list(pa.uint16())
    assert table["input_ids"].to_pylist()[0] == [10, 11, 12, END]


def test_shards_open_in_datasets(tmp_path, monkeypatch):
    datasets = pytest.importorskip("datasets")
    write_prepared(tmp_path / "d", DOCUMENTS)
    files = {"train": str(tmp_path / "d" / "train-*.arrow")}
    loaded = datasets.load_dataset("arrow", data_files=files, split="train", cache_dir=str(tmp_path / "cache"))
    assert [row["input_ids"] for row in loaded] == [[10, 11, 12, END], [END], [*[20] * 9, END], [30, 31, 32, 33, END]]


def test_take_back_leaves_the_first_token(tmp_path):
    writer = ShardWriter(tmp_path, "train", vocab_size=10, end_id=END)
    writer.add(np.array([5, 6, 7]))
    assert writer.take_back(2).tolist() == [6, 7]
    assert writer.take_back(2).tolist() == []


def test_a_shard_takes_its_name_when_it_is_complete(tmp_path):
    """Of two processes that make the same one, after a restart for example, neither cuts short what the other has made."""

    def write(*, fails=False):
        with ShardWriter(tmp_path, "train", vocab_size=10, end_id=END, batch_bytes=1) as writer:
            writer.add(np.array([5, 6, 7]))
            writer.end_document()
            held = {path.name: path.read_bytes() for path in tmp_path.glob("*.arrow")}
            assert not fails, "a failure"
        return held, {path.name: path.read_bytes() for path in tmp_path.iterdir()}

    with pytest.raises(AssertionError, match="a failure"):
        write(fails=True)
    assert not list(tmp_path.iterdir())
    before, made = write()
    assert before == {} and list(made) == ["train-00000.arrow"]
    assert write() == (made, made)


def test_pandas_is_not_imported(prepared, tmp_path):
    """pyarrow would, to see whether a list or an array is one of its own, and that takes longer than opening."""
    code = """
import sys
from pathlib import Path
import numpy as np
from pldcli.data.prepared import open_prepared
from pldcli.data.shards import ShardWriter
with ShardWriter(Path(sys.argv[2]), "train", vocab_size=100, end_id=3) as writer:
    writer.add(np.array([10, 11], np.uint32))
    writer.end_document()
assert len(open_prepared(Path(sys.argv[1])).stream("train").slice(0, 5)) == 5
assert writer.num_tokens == 3 and "pandas" not in sys.modules
"""
    done = subprocess.run([sys.executable, "-c", code, str(prepared), str(tmp_path)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_a_shard_is_on_the_disk_when_it_is_complete(tmp_path, monkeypatch):
    sizes = []
    monkeypatch.setattr(os, "fsync", lambda descriptor: sizes.append(os.fstat(descriptor).st_size))
    with ShardWriter(tmp_path, "train", vocab_size=100, end_id=END, batch_bytes=4, shard_bytes=1) as writer:
        for document in DOCUMENTS:
            writer.add(np.array(document, np.uint32))
            writer.end_document()
    assert sizes == [shard["bytes"] for shard in writer.shards.values()] and len(sizes) > 1
