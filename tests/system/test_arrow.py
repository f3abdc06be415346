"""Files of tables that are damaged are refused: they neither end the process nor raise anything else."""

import json
import subprocess
import sys

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pldcli.corpus.reader import Reader
from pldcli.corpus.sources import find_sources
from pldcli.errors import DataError
from pldcli.task_files.table import read_table

ROWS = [{"text": f"the river {number} \u00e9", "label": ["good", "bad"][number % 2], "words": ["a", "b"]} for number in range(3)]
READ_WITH_FLIPPED_BITS = """
import sys
from pathlib import Path
from pldcli.errors import PldError
from tests.system.test_arrow import corpus, read_table

path = Path(sys.argv[1])
content = path.read_bytes()
for read in (read_table, corpus):
    refused = 0
    for place in range(0, 8 * len(content), 5):  # of every byte one or two
        damaged = bytearray(content)
        damaged[place // 8] ^= 1 << place % 8
        path.unlink()  # what is mapped still belongs to the file before
        path.write_bytes(damaged)
        print(read.__name__, place, flush=True)
        try:
            read(path)
        except PldError:
            refused += 1
    assert refused > len(content) / 2
"""


def corpus(path):
    for source in find_sources([path])[0]:
        list(Reader(source, skip_bad=True).pieces())


def write(path, table=None, *, stream=False, **settings):
    table = pa.Table.from_pylist(ROWS) if table is None else table
    if path.suffix == ".parquet":
        pq.write_table(table, path, **settings)
        return path
    with (pa.ipc.new_stream if stream else pa.ipc.new_file)(str(path), table.schema, **settings) as writer:
        writer.write_table(table)
    return path


@pytest.mark.parametrize(
    ("name", "settings"),
    [("a.arrow", {}), ("a.arrow", {"stream": True, "options": pa.ipc.IpcWriteOptions(compression="zstd")}), ("a.parquet", {})],
    ids=["file", "stream", "parquet"],
)
def test_bits_that_flip(tmp_path, name, settings):
    path = write(tmp_path / name, **settings)
    read_table(path), corpus(path)
    done = subprocess.run(
        [sys.executable, "-c", READ_WITH_FLIPPED_BITS, str(path)],
        capture_output=True,
        text=True,
        check=False,
        env={"PYTHONPATH": ":".join(place for place in sys.path if place), "ARROW_DEFAULT_MEMORY_POOL": "system"},
    )
    assert done.returncode == 0, f"{done.stdout.splitlines()[-1:]} {done.stderr[-500:]}"


def test_rows_without_bytes(tmp_path):
    batch = pa.record_batch([pa.nulls(50_000_000)], names=["text"])
    path = write(tmp_path / "a.arrow", pa.Table.from_batches([batch]))
    for read in (read_table, corpus):
        with pytest.raises(DataError, match=r"a\.arrow: unpacks to more than 100 times its size; if that is meant, unpack it yourself"):
            read(path)


def test_one_text_in_every_row(tmp_path):
    path = write(tmp_path / "a.parquet", pa.table({"text": ["long " * 20_000] * 2_000}))
    assert path.stat().st_size < 1 << 18
    with pytest.raises(DataError, match=r"a\.parquet: unpacks to more than 100 times its size"):
        read_table(path)


@pytest.mark.parametrize("name", ["../rows.arrow", "/etc/passwd", "..", ""])
def test_a_saved_data_set_names_its_own_files_only(tmp_path, name):
    place = tmp_path / "saved"
    place.mkdir()
    write(tmp_path / "rows.arrow")
    (place / "dataset_info.json").write_text("{}")
    (place / "state.json").write_text(json.dumps({"_data_files": [{"filename": name}]}))
    with pytest.raises(DataError, match=r"state\.json: names files of other directories"):
        read_table(place)
