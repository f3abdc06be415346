import hashlib
import json
import random
from dataclasses import replace

import numpy as np
import pytest

from pldcli.data import shards as module
from pldcli.data.prepare import prepare
from pldcli.data.shards import ShardWriter, data_fingerprint, open_prepared, read_vocab_size, verify_prepared
from pldcli.errors import DataError

END = 3


def make(directory, documents, *, vocab_size=100, **sizes):
    """Write documents as both splits of a prepared directory."""
    directory.mkdir()
    (directory / "tokenizer.json").write_text("{}")
    shards = {}
    for split in ("train", "validation"):
        writer = ShardWriter(directory, split, vocab_size=vocab_size, end_id=END, **sizes)
        for document in documents:
            for part in document:
                writer.add(np.array(part, np.uint32))
            writer.end_document()
        writer.close()
        shards |= writer.shards
    special = {"pad_id": 0, "unk_id": 1, "cls_id": 2, "sep_id": END, "mask_id": 4, "other_ids": []}
    sha256 = hashlib.sha256(b"{}").hexdigest()
    tokenizer = {"vocab_size": vocab_size, "fingerprint": "f", "sha256": sha256, "special_tokens": special}
    (directory / "manifest.json").write_text(json.dumps({"version": 1, "tokenizer": tokenizer, "shards": shards}))
    return open_prepared(directory)


DOCUMENTS = [[[10, 11], [12]], [[]], [[20] * 9], [[30, 31, 32, 33]]]
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
    stream = make(tmp_path / "d", DOCUMENTS, vocab_size=vocab_size, **sizes).stream("train")
    assert (stream.num_tokens, stream.num_documents) == (len(FLAT), 4)
    assert stream.slice(0, len(FLAT)).tolist() == FLAT
    assert stream.document_ends.tolist() == [4, 5, 15, 20]
    for length in (1, 3, 7, len(FLAT)):
        starts = np.arange(len(FLAT) - length + 1)
        assert stream.take(starts, length).tolist() == [FLAT[start : start + length] for start in starts]


def test_spans_outside_are_refused(tmp_path):
    stream = make(tmp_path / "d", DOCUMENTS).stream("validation")
    assert stream.take(np.array([], np.int64), 5).shape == (0, 5)
    for start in (-1, len(FLAT) - 2):
        with pytest.raises(IndexError):
            stream.take(np.array([start]), 3)


def test_shards_are_uint16_in_large_lists_and_open_elsewhere(tmp_path):
    import pyarrow as pa

    make(tmp_path / "d", DOCUMENTS)
    path = tmp_path / "d" / "train-00000.arrow"
    table = pa.ipc.open_file(pa.memory_map(str(path))).read_all()
    assert table.schema.field("input_ids").type == pa.large_list(pa.uint16())
    assert table["input_ids"].to_pylist()[0] == [10, 11, 12, END]


def test_shards_open_in_datasets(tmp_path, monkeypatch):
    datasets = pytest.importorskip("datasets")
    make(tmp_path / "d", DOCUMENTS)
    files = {"train": str(tmp_path / "d" / "train-*.arrow")}
    loaded = datasets.load_dataset("arrow", data_files=files, split="train", cache_dir=str(tmp_path / "cache"))
    assert [row["input_ids"] for row in loaded] == [[10, 11, 12, END], [END], [*[20] * 9, END], [30, 31, 32, 33, END]]


def test_take_back_leaves_the_first_token(tmp_path):
    writer = ShardWriter(tmp_path, "train", vocab_size=10, end_id=END)
    writer.add(np.array([5, 6, 7]))
    assert writer.take_back(2).tolist() == [6, 7]
    assert writer.take_back(2).tolist() == []


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda d: (d / "manifest.json").unlink(), "is not prepared data"),
        (lambda d: (d / "manifest.json").write_text("{"), r"manifest.json: is damaged"),
        (lambda d: (d / "manifest.json").write_text("[]"), "is of version None"),
        (lambda d: edit(d, lambda m: m.update(version=9)), "is of version 9"),
        (lambda d: edit(d, lambda m: m.pop("tokenizer")), "entries are missing"),
        (lambda d: edit(d, lambda m: m.update(shards=[])), "entries are missing"),
        (lambda d: (d / "train-00000.arrow").unlink(), r"train-00000.arrow: is missing"),
        (lambda d: (d / "train-00000.arrow").write_bytes(b"x"), r"train-00000.arrow: has 1 bytes instead of"),
        (
            lambda d: (d / "train-00000.arrow").write_bytes(bytes((d / "train-00000.arrow").stat().st_size)),
            r"train-00000.arrow: is damaged",
        ),
        (lambda d: (d / "tokenizer.json").write_text("{} "), "is not the tokenizer that the data was made with"),
        (lambda d: (d / "tokenizer.json").unlink(), r"tokenizer.json: is missing"),
    ],
)
def test_damage_is_found(tmp_path, damage, message):
    make(tmp_path / "d", DOCUMENTS)
    damage(tmp_path / "d")
    with pytest.raises(DataError, match=message) as caught:
        open_prepared(tmp_path / "d")
    assert caught.value.hint


def edit(directory, change):
    manifest = json.loads((directory / "manifest.json").read_text())
    change(manifest)
    (directory / "manifest.json").write_text(json.dumps(manifest))


def flip(path):
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def test_a_missing_directory_says_how_to_make_it(tmp_path):
    with pytest.raises(DataError, match="no such directory of prepared data; make it with `pld prepare-data"):
        open_prepared(tmp_path / "none")


def test_without_verify_hashes_are_not_read(tmp_path):
    make(tmp_path / "d", DOCUMENTS)
    flip(tmp_path / "d" / "train-00000.arrow")
    assert open_prepared(tmp_path / "d", verify=False).stream("validation").num_tokens == len(FLAT)


def test_an_arrow_file_that_is_none(tmp_path):
    data = make(tmp_path / "d", DOCUMENTS)
    path = tmp_path / "d" / "train-00000.arrow"
    path.write_bytes(bytes(path.stat().st_size))
    with pytest.raises(DataError, match="its hash is not that"):
        data.stream("train")
    with pytest.raises(DataError, match="not an Arrow file"):
        replace(data, verify=False).stream("train")


def test_each_split_is_hashed_when_it_is_read_and_once(tmp_path, monkeypatch):
    make(tmp_path / "d", DOCUMENTS)
    hashed = []
    monkeypatch.setattr(module, "file_sha256", lambda path, real=module.file_sha256: hashed.append(path.name) or real(path))
    data = open_prepared(tmp_path / "d")
    assert hashed == ["tokenizer.json"]
    for _ in range(2):
        data.stream("validation")
    assert hashed == ["tokenizer.json", "validation-00000.arrow"]
    flip(tmp_path / "d" / "train-00000.arrow")
    with pytest.raises(DataError, match=r"train-00000\.arrow: is damaged: its hash"):
        data.stream("train")


def test_a_large_split_is_not_hashed_for_a_sample(tmp_path, monkeypatch):
    data = make(tmp_path / "d", DOCUMENTS)
    hashed = []
    monkeypatch.setattr(module, "file_sha256", lambda path, real=module.file_sha256: hashed.append(path.name) or real(path))
    monkeypatch.setattr(module, "_HASHED_FOR_A_SAMPLE", data.num_bytes("train") - 1)
    assert data.sampled("train").stream("train").num_tokens == len(FLAT) and hashed == []
    monkeypatch.setattr(module, "_HASHED_FOR_A_SAMPLE", data.num_bytes("train"))
    data.sampled("train").stream("train")
    assert hashed == ["train-00000.arrow"]


def test_processes_share_the_hashing(tmp_path, monkeypatch):
    make(tmp_path / "d", DOCUMENTS, batch_bytes=1, shard_bytes=1)
    hashed = []
    monkeypatch.setattr(module, "file_sha256", lambda path, real=module.file_sha256: hashed.append(path.name) or real(path))
    for process in range(3):
        open_prepared(tmp_path / "d", share=(process, 3)).stream("train")
    names = [name for name in hashed if name != "tokenizer.json"]
    assert len(names) > 3 and sorted(names) == sorted(path.name for path in (tmp_path / "d").glob("train-*"))


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    place = tmp_path_factory.mktemp("whole")
    words = ["ba", "ke", "lo", "mi", "nu", "ra", "so", "ti"]
    draw = random.Random(0)
    (place / "a.txt").write_text("\n\n".join(" ".join(draw.choices(words, k=30)) for _ in range(400)))
    return prepare([place / "a.txt"], place / "data", vocab_size=60, processes=1, quiet=True).path


USES = {
    "manifest.json": lambda path: open_prepared(path),
    "tokenizer.json": lambda path: open_prepared(path),
    "sentencepiece.model": lambda path: open_prepared(path),
    "train-00000.arrow": lambda path: open_prepared(path).stream("train"),
    "validation-00000.arrow": lambda path: open_prepared(path).stream("validation"),
}


@pytest.mark.parametrize("name", USES)
def test_any_bit_that_flips_is_noticed_by_what_reads_the_file(whole, name):
    assert {path.name for path in whole.iterdir()} == set(USES)
    path, draw = whole / name, random.Random(name)
    content = path.read_bytes()
    for _ in range(25):
        damaged = bytearray(content)
        damaged[draw.randrange(len(content))] ^= 1 << draw.randrange(8)
        path.write_bytes(damaged)
        try:
            for use in (USES[name], verify_prepared):
                with pytest.raises(DataError, match=r"damaged|not the tokenizer|version|bytes instead|missing"):
                    use(whole)
        finally:
            path.write_bytes(content)
    verify_prepared(whole)


def test_a_bit_in_the_name_of_the_checksum_is_noticed(tmp_path, whole):
    text = (whole / "manifest.json").read_text()
    (tmp_path / "manifest.json").write_text(text.replace('\n  "sha256"', '\n  "sha257"'))
    with pytest.raises(DataError, match="its fields do not have its checksum"):
        open_prepared(tmp_path)


def test_a_manifest_of_an_older_program_opens(tmp_path, whole):
    manifest = json.loads((whole / "manifest.json").read_text())
    data = make(tmp_path / "d", DOCUMENTS)
    assert "sha256" in manifest and "sha256" not in data.manifest
    old = {key: value for key, value in manifest.items() if key != "sha256"}
    del old["tokenizer"]["sentencepiece_sha256"]
    for counts in old["counts"].values():
        del counts["unknown"]
    assert data_fingerprint(old) == data_fingerprint(manifest)
    target = tmp_path / "old"
    target.mkdir()
    for path in whole.iterdir():
        (target / path.name).write_bytes(path.read_bytes())
    (target / "manifest.json").write_text(json.dumps(old))
    assert open_prepared(target).stream("train").num_tokens == manifest["counts"]["train"]["tokens"]


@pytest.mark.parametrize("tokenizer", [None, [], {}, {"vocab_size": "9"}, {"vocab_size": 0}])
def test_a_manifest_without_a_vocabulary_is_damaged(tmp_path, tokenizer):
    make(tmp_path / "d", DOCUMENTS)
    assert read_vocab_size(tmp_path / "d") == 100
    edit(tmp_path / "d", lambda m: m.update(tokenizer=tokenizer) if tokenizer is not None else m.pop("tokenizer"))
    with pytest.raises(DataError, match="gives no size of the vocabulary"):
        read_vocab_size(tmp_path / "d")
