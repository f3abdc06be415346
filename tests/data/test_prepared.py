import json
import random
from dataclasses import replace

import pyarrow as pa
import pytest

from pldcli.data import prepared as module
from pldcli.data.prepared import open_prepared, verify_prepared
from pldcli.errors import DataError
from pldcli.preparation.prepare import prepare
from pldcli.system import seal
from pldcli.system.seal import sealed
from tests.conftest import write_prepared

NUM_TOKENS = 5
"""Of a split that `write_prepared` writes, separators among them."""


@pytest.fixture
def hashed(monkeypatch):
    """Names of the files that were hashed."""
    found = []
    monkeypatch.setattr(seal, "file_sha256", lambda path, real=seal.file_sha256: found.append(path.name) or real(path))
    return found


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda d: (d / "manifest.json").unlink(), "is not prepared data"),
        (lambda d: (d / "manifest.json").write_text("{"), r"manifest.json: is damaged"),
        (lambda d: (d / "manifest.json").write_text("[]"), "is of version None"),
        (lambda d: edit(d, lambda m: m.update(version=9)), "is of version 9"),
        (lambda d: edit(d, lambda m: m.pop("tokenizer")), "entries are missing"),
        (lambda d: edit(d, lambda m: m.update(shards=[])), "entries are missing"),
        (lambda d: edit(d, lambda m: m["tokenizer"].pop("vocab_size")), "entries are missing"),
        (lambda d: unseal(d), "do not have its checksum"),
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
    write_prepared(tmp_path / "d")
    damage(tmp_path / "d")
    with pytest.raises(DataError, match=message) as caught:
        open_prepared(tmp_path / "d")
    assert caught.value.hint


def edit(directory, change):
    """Change the manifest, and its checksum with it."""
    manifest = json.loads((directory / "manifest.json").read_text())
    change(manifest)
    (directory / "manifest.json").write_text(json.dumps(sealed(manifest)))


def unseal(directory):
    manifest = json.loads((directory / "manifest.json").read_text())
    del manifest["sha256"]
    (directory / "manifest.json").write_text(json.dumps(manifest))


def flip(path):
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def rewrite(directory, values, offsets, *, kind=pa.uint16(), columns=("input_ids",), tokens=None):
    """Write another first training shard, and seal the directory again."""
    path = directory / "train-00000.arrow"
    rows = pa.LargeListArray.from_arrays(pa.array(offsets, pa.int64()), pa.array(values, kind))
    with pa.ipc.new_file(str(path), pa.schema([(name, rows.type) for name in columns])) as writer:
        writer.write_batch(pa.record_batch([rows] * len(columns), names=list(columns)))
    tokens = len(values) if tokens is None else tokens
    facts = {"bytes": path.stat().st_size, "sha256": seal.file_sha256(path), "tokens": tokens}
    edit(directory, lambda manifest: manifest["shards"][path.name].update(facts))


@pytest.mark.parametrize(
    ("values", "offsets", "settings", "message"),
    [
        ([5, 99, 3], [0, 3], {}, None),
        ([5, 100, 3], [0, 3], {}, "holds the token id 100, and the vocabulary has 100 entries; make it again"),
        ([5, 6, 3], [0, 3], {"tokens": 4}, "holds 3 tokens instead of 4; make it again"),
        ([5, 3, 6, 3], [0, 3, 2, 4], {}, "its documents do not follow each other; make it again"),
        ([5, 3, 6, 3], [0, 9, 2, 4], {}, "its documents do not follow each other; make it again"),
        ([5, 3, 6, 3], [0, -7, 4], {}, "its documents do not follow each other; make it again"),
        ([5, 3, 6, 3], [0, 2], {}, "holds 2 tokens instead of 4; make it again"),
        ([5, 3, 6, 3], [2, 4], {}, "holds 2 tokens instead of 4; make it again"),
        ([5, 6, 3], [0, 3], {"kind": pa.int64()}, "not an Arrow file of token ids; make it again"),
        ([5, 6, 3], [0, 3], {"columns": ["ids"]}, "not an Arrow file of token ids; make it again"),
        ([5, 6, 3], [0, 3], {"columns": ["input_ids", "input_ids"]}, "not an Arrow file of token ids; make it again"),
    ],
)
def test_shards_that_were_sealed_again(tmp_path, values, offsets, settings, message):
    write_prepared(tmp_path / "d")
    rewrite(tmp_path / "d", values, offsets, **settings)
    for read in (verify_prepared, lambda path: open_prepared(path).stream("train")):
        if message is None:
            read(tmp_path / "d")
            continue
        with pytest.raises(DataError, match=rf"train-00000\.arrow: .*{message}"):
            read(tmp_path / "d")


def test_documents_that_do_not_follow_each_other_without_verification(tmp_path):
    write_prepared(tmp_path / "d")
    rewrite(tmp_path / "d", [5, 3, 6, 3], [0, 900, 2, 4])
    with pytest.raises(
        DataError, match=r"prepared data: is damaged: its documents do not .*; find the damaged shard with `pld data verify`"
    ):
        open_prepared(tmp_path / "d", verify=False).stream("train").document_ends  # noqa: B018 - a property that is computed


@pytest.mark.parametrize("name", ["../train-00000.arrow", "/etc/passwd", "..", "train-00000.arrow/../../x", "shard.arrow"])
def test_shards_lie_in_the_directory(tmp_path, name):
    write_prepared(tmp_path / "d")
    (tmp_path / "train-00000.arrow").write_bytes((tmp_path / "d" / "train-00000.arrow").read_bytes())
    edit(tmp_path / "d", lambda manifest: manifest["shards"].update({name: manifest["shards"]["train-00000.arrow"]}))
    with pytest.raises(DataError, match=r"manifest\.json: is damaged: entries are missing or wrong"):
        open_prepared(tmp_path / "d")


@pytest.mark.parametrize(
    "change",
    [
        lambda m: m["shards"]["train-00000.arrow"].update(weight=1e300),
        lambda m: m["shards"]["train-00000.arrow"].update(weight=float("nan")),
        lambda m: m["shards"]["train-00000.arrow"].pop("tokens"),
        lambda m: m["tokenizer"]["special_tokens"].update(sep_id=100),
        lambda m: m["tokenizer"]["special_tokens"].update(mask_id=4.5),
        lambda m: m.update(counts={"train": {}}),
        lambda m: m.update(sources=["name"]),
        lambda m: m.update(skipped=[]),
        lambda m: m.update(replaced_bytes="none"),
        lambda m: m.update(repeated_lines=[{"line": 3, "documents": 4}]),
    ],
)
def test_entries_of_the_manifest_that_are_wrong(tmp_path, change):
    write_prepared(tmp_path / "d")
    edit(tmp_path / "d", change)
    with pytest.raises(DataError, match=r"manifest\.json: is damaged: entries are missing or wrong"):
        open_prepared(tmp_path / "d")


def test_a_missing_directory_says_how_to_make_it(tmp_path):
    with pytest.raises(DataError, match="no such directory of prepared data; make it with `pld prepare-data"):
        open_prepared(tmp_path / "none")


def test_without_verify_hashes_are_not_read(tmp_path):
    write_prepared(tmp_path / "d")
    flip(tmp_path / "d" / "train-00000.arrow")
    assert open_prepared(tmp_path / "d", verify=False).stream("validation").num_tokens == NUM_TOKENS


def test_an_arrow_file_that_is_none(tmp_path):
    data = open_prepared(write_prepared(tmp_path / "d"))
    path = tmp_path / "d" / "train-00000.arrow"
    path.write_bytes(bytes(path.stat().st_size))
    with pytest.raises(DataError, match="it differs from its checksum"):
        data.stream("train")
    with pytest.raises(DataError, match="not an Arrow file"):
        replace(data, verify=False).stream("train")


def test_each_split_is_hashed_when_it_is_read_and_once(tmp_path, hashed):
    write_prepared(tmp_path / "d")
    data = open_prepared(tmp_path / "d")
    assert hashed == ["tokenizer.json"]
    for _ in range(2):
        data.stream("validation")
    assert hashed == ["tokenizer.json", "validation-00000.arrow"]
    flip(tmp_path / "d" / "train-00000.arrow")
    with pytest.raises(DataError, match=r"train-00000\.arrow: is damaged: it differs"):
        data.stream("train")


def test_a_large_split_is_not_hashed_for_a_sample(tmp_path, hashed, monkeypatch):
    data = open_prepared(write_prepared(tmp_path / "d"))
    monkeypatch.setattr(module, "HASHED_FOR_A_SAMPLE", data.num_bytes("train") - 1)
    assert data.sampled("train").stream("train").num_tokens == NUM_TOKENS and hashed == ["tokenizer.json"]
    monkeypatch.setattr(module, "HASHED_FOR_A_SAMPLE", data.num_bytes("train"))
    data.sampled("train").stream("train")
    assert hashed == ["tokenizer.json", "train-00000.arrow"]


def test_processes_share_the_hashing(tmp_path, hashed):
    write_prepared(tmp_path / "d", [[5]] * 4, batch_bytes=1, shard_bytes=1)
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
