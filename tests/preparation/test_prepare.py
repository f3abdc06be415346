import errno
import hashlib
import json
import os
import random
import re
import signal
import subprocess
import sys
import time
from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet
import pytest

from pldcli.corpus.sampling import Sampler
from pldcli.data.prepared import open_prepared, unknown_shares
from pldcli.errors import DataError, OutputError, PreemptedError, UsageError
from pldcli.filtering.quality import Filters
from pldcli.preparation import prepare as module
from pldcli.preparation import stages, units
from pldcli.preparation.fates import validation_limit, validation_tail
from pldcli.preparation.prepare import Preparation, prepare
from pldcli.system import locks, signals
from pldcli.tokenization.tokenizer import load_prepared_tokenizer
from pldcli.tokenization.training import TokenizerTraining

LIMIT = 2**64 // 301


def made_up_documents(count=700, words=40):
    draw = random.Random(1)
    syllables = ["ba", "ke", "lo", "mi", "nu", "ra", "so", "ti", "ul", "ven"]
    vocabulary = ["".join(draw.choices(syllables, k=draw.randint(1, 4))) for _ in range(300)]
    return [" ".join(draw.choices(vocabulary, k=words)) for _ in range(count)]


def run(tmp_path, documents, *, name="out", **settings):
    path = tmp_path / f"{name}.txt"
    path.write_text("\n\n".join(documents))
    return prepare([path], tmp_path / name, **{"vocab_size": 200, "quiet": True, **settings})


def rows(path, split):
    """Decode every document of a split."""
    stream = open_prepared(path).stream(split)
    ends = stream.document_ends.tolist()
    return [stream.slice(start, end - 1).tolist() for start, end in zip([0, *ends], ends, strict=False)]


def names(path):
    return sorted(entry.name for entry in path.iterdir())


def test_every_document_arrives_in_order(tmp_path):
    documents = made_up_documents()
    prepared = run(tmp_path, documents)
    encode = load_prepared_tokenizer(prepared.path).encode_document_lines
    train, validation = rows(prepared.path, "train"), rows(prepared.path, "validation")
    expected = [encode([document]) for document in documents]
    held_out = [ids for ids in expected if ids in validation]
    assert held_out == validation and 0 < len(validation) < 20
    assert [ids for ids in expected if ids not in validation] == train
    counts = prepared.manifest["counts"]
    assert counts["train"]["documents"] + counts["validation"]["documents"] == 700
    assert counts["train"]["words"] + counts["validation"]["words"] == 700 * 40
    assert counts["train"]["tokens"] == sum(len(ids) + 1 for ids in train)
    assert names(tmp_path) == ["out", "out.txt"]
    assert names(prepared.path) == ["manifest.json", "sentencepiece.model", "tokenizer.json", "train-00000.arrow", "validation-00000.arrow"]


def test_the_manifest_says_where_it_came_from(tmp_path):

    prepared = run(tmp_path, ["one two\nthree", "four"])
    (source,) = prepared.manifest["sources"]
    raw = (tmp_path / "out.txt").read_bytes()
    assert source == {"name": str(tmp_path / "out.txt"), "bytes": len(raw), "sha256": hashlib.sha256(raw).hexdigest(), "documents": 2}
    assert prepared.manifest["version"] == 1
    assert json.loads((prepared.path / "manifest.json").read_text()) == prepared.manifest


def test_the_split_and_the_tokenizer_do_not_depend_on_the_order(tmp_path):
    documents = made_up_documents()
    one, other = run(tmp_path, documents, name="one"), run(tmp_path, documents[::-1], name="other")
    assert (one.path / "tokenizer.json").read_bytes() == (other.path / "tokenizer.json").read_bytes()
    for split in ("train", "validation"):
        assert sorted(rows(one.path, split)) == sorted(rows(other.path, split))


def test_a_sample_does_not_depend_on_the_order_and_keeps_its_limit():
    documents = made_up_documents(300)

    def sample(documents, cut):
        sampler = Sampler(20_000)
        for document in documents:
            sampler.add(document[:cut], last=False)
            sampler.add(document[cut:], last=True)
        return sampler.sample()

    assert sample(documents, 10) == sample(documents[::-1], 150)
    assert 5_000 < sum(map(len, sample(documents, 10))) <= 20_000


@pytest.mark.parametrize("keep", [True, False])
def test_a_sample_of_one_document_keeps_its_limit_while_it_is_read(keep):
    text = "".join(f"{number} {'word ' * (number % 7)}" for number in range(30_000))
    sampler, whole, expected = Sampler(20_000), Sampler(10**9), Sampler(20_000)
    for start in range(0, len(text), 40_000):
        sampler.add(text[start : start + 40_000], last=False)
        assert sum(map(len, sampler._of_document.held.values())) <= 20_000
    sampler.add("", last=True, keep=keep)
    whole.add(text, last=True)
    expected.merge(whole.parts if keep else ())
    assert (sampler.threshold, sampler.parts) == (expected.threshold, expected.parts)
    for _ in range(100):
        sampler.add("a" * 40_000, last=False)
    assert len(sampler._of_document.held) <= 1


def test_sampled_text_is_never_too_long_for_sentencepiece():
    sampler = Sampler(10**9)
    text = " ".join(f"é東🤖{number}" for number in range(3000)) + "x" * 900
    for start in range(0, len(text), 700):
        sampler.add(text[start : start + 700], last=False)
    sampler.add("", last=True)
    sample = sampler.sample()
    assert max(len(piece.encode()) for piece in sample) <= 4000
    assert sum(map(len, sample)) == len(text)


@pytest.mark.parametrize(
    ("hashes", "limit"),
    [
        ([LIMIT - 1, LIMIT, 2**63], LIMIT),
        ([2**62, 2**63], 2**62 + 1),
        ([5, 6, 7], 6),
        ([2**62], None),
        ([5, 5, 5], None),
    ],
)
def test_the_limit_of_validation(hashes, limit):
    assert validation_limit(np.array(hashes, np.uint64)) == limit
    if limit is not None:
        assert 0 < sum(one < limit for one in hashes) < len(hashes)


@pytest.mark.parametrize(("num_tokens", "tail"), [(2, 1), (50, 5), (1280, 128), (30_000, 128), (301_000, 1000)])
def test_the_tail_of_a_single_document(num_tokens, tail):
    assert validation_tail(num_tokens) == tail


@pytest.mark.parametrize(("copies", "kept"), [(1, False), (3, True), (3, False)])
def test_a_corpus_of_one_text_gives_its_end_to_validation(tmp_path, copies, kept):
    text = " ".join(made_up_documents(10))
    prepared = run(tmp_path, [text] * copies, keep_duplicates=kept)
    train, validation = rows(prepared.path, "train"), rows(prepared.path, "validation")
    whole = load_prepared_tokenizer(prepared.path).encode_document_lines([text])
    assert [*train[:-1], train[-1] + validation[0]] == [whole] * (copies if kept else 1)
    assert len(validation[0]) == validation_tail(len(whole))


def test_what_is_left_out_is_counted_by_cause_and_written_where_wanted(tmp_path, monkeypatch):
    monkeypatch.setattr(units, "_LEAST_BYTES", 5000)
    documents = made_up_documents(300)
    (tmp_path / "scored.txt").write_text(f"{documents[11]}\n")
    unwanted = ["too short", documents[5], documents[11] + " and more", documents[5], f'"quoted"\n{"ш" * 50} \\ ш ш ш']
    mixed = documents.copy()
    for number, text in enumerate(unwanted):
        mixed.insert(40 * number + 20, text)
    filters = Filters(min_words=3, scripts=("LATIN",), against=(tmp_path / "scored.txt",))
    prepared = run(tmp_path, mixed, filters=filters, keep_rejects=True)
    causes = {
        "document under 3 words": 1,
        "document that has 13 words in a row of scored.txt": 2,
        "document that is mostly not LATIN": 1,
        "document that occurred before": 2,
    }
    assert prepared.manifest["skipped"] == causes
    lines = [json.loads(line) for line in (prepared.path / "rejected.jsonl").read_text().splitlines()]
    assert sorted(line["text"] for line in lines) == sorted([*unwanted, documents[11]])
    assert {line["cause"] for line in lines} == set(causes) and {line["source"] for line in lines} == {str(tmp_path / "out.txt")}
    encode = load_prepared_tokenizer(prepared.path).encode_document_lines
    kept = [encode([text]) for number, text in enumerate(documents) if number != 11]
    assert sorted(rows(prepared.path, "train") + rows(prepared.path, "validation")) == sorted(kept)
    assert prepared.manifest["sources"][0]["documents"] == 299
    open_prepared(prepared.path)


def test_where_nothing_is_wanted_the_causes_are_said(tmp_path):
    with pytest.raises(DataError, match=r"out.txt: holds no documents; document under 99 words: 20"):
        run(tmp_path, made_up_documents(20), filters=Filters(min_words=99))
    assert names(tmp_path) == ["out.txt"]


def test_processes_do_not_change_a_byte(tmp_path, monkeypatch):
    monkeypatch.setattr(units, "_LEAST_BYTES", 20_000)
    documents = made_up_documents()
    alone, two = run(tmp_path, documents, name="alone", processes=1), run(tmp_path, documents, name="two", processes=2)
    assert len(alone.manifest["shards"]) > 5
    assert alone.manifest["shards"] == two.manifest["shards"]
    for name in names(alone.path):
        if name != "manifest.json":
            assert (alone.path / name).read_bytes() == (two.path / name).read_bytes()


def test_a_parquet_file_in_several_units_gives_what_its_documents_give(tmp_path, monkeypatch):
    monkeypatch.setattr(units, "_LEAST_BYTES", 20_000)
    documents = made_up_documents()
    path = tmp_path / "table.parquet"
    pyarrow.parquet.write_table(pa.table({"text": documents}), path, row_group_size=50, compression="none")
    text = run(tmp_path, documents)
    table = prepare([path], tmp_path / "table", vocab_size=200, processes=2, quiet=True)
    assert len([name for name in table.manifest["shards"] if name.startswith("train")]) > 5
    assert rows(table.path, "train") == rows(text.path, "train") and rows(table.path, "validation") == rows(text.path, "validation")
    [source] = table.manifest["sources"]
    assert (source["bytes"], source["documents"]) == (path.stat().st_size, len(documents))
    assert source["sha256"] == hashlib.sha256(path.read_bytes()).hexdigest()


def test_a_script_without_a_main_guard_can_prepare(tmp_path):
    (tmp_path / "corpus.txt").write_text("\n\n".join(made_up_documents(100)))
    script = tmp_path / "script.py"
    script.write_text(
        "from pathlib import Path\nimport sys\nfrom pldcli.preparation.prepare import prepare\n"
        "prepare([Path('corpus.txt')], Path('out'), vocab_size=100, processes=2)\nassert 'torch' not in sys.modules\nprint('done')\n"
    )
    result = subprocess.run([sys.executable, script], cwd=tmp_path, env=environment(), capture_output=True, text=True, check=False)
    assert (result.returncode, result.stdout.strip()) == (0, "done"), result.stderr


def environment(**more):
    return {**os.environ, "PYTHONPATH": os.pathsep.join(path for path in sys.path if path), **more}


def test_a_worker_that_dies_is_reported(tmp_path, monkeypatch):
    from pldcli.errors import DeviceError
    from pldcli.preparation import pool

    def start(module, arguments):
        code = "import sys; sys.exit(3)"
        return subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE)

    monkeypatch.setattr(pool, "start_worker", start)
    monkeypatch.setattr(units, "_LEAST_BYTES", 2000)
    with pytest.raises(DeviceError, match=r"died.*--processes"):
        run(tmp_path, made_up_documents(50), processes=2)
    assert names(tmp_path) == ["out.txt"]


def test_an_existing_tokenizer_is_used_as_it_is(tmp_path):
    first = run(tmp_path, made_up_documents(), name="first")
    second = run(tmp_path, made_up_documents(50), name="second", tokenizer=first.path / "tokenizer.json")
    assert (first.path / "tokenizer.json").read_bytes() == (second.path / "tokenizer.json").read_bytes()
    assert open_prepared(second.path).fingerprint == open_prepared(first.path).fingerprint
    assert not (second.path / "sentencepiece.model").exists()


def test_a_damaged_tokenizer_of_prepared_data_is_noticed_unless_it_is_named_itself(tmp_path):
    first = run(tmp_path, made_up_documents(), name="first").path
    text = (first / "tokenizer.json").read_text()
    (first / "tokenizer.json").write_text(text.replace('"ignore_merges":false', '"ignore_merges":true'))
    assert (first / "tokenizer.json").read_text() != text
    with pytest.raises(
        DataError, match=r"tokenizer.json: is not the tokenizer that the data was made with; .*--tokenizer .*tokenizer.json"
    ):
        run(tmp_path, made_up_documents(50), name="second", tokenizer=first)
    run(tmp_path, made_up_documents(50), name="third", tokenizer=first / "tokenizer.json")


def test_special_tokens_in_the_corpus_stay_text(tmp_path):
    prepared = run(tmp_path, ["the [MASK] [SEP] and [CLS] [PAD] here " + document for document in made_up_documents(20)])
    ids = np.concatenate([row for split in ("train", "validation") for row in rows(prepared.path, split)])
    assert not {0, 2, 3, 4} & set(ids.tolist())


def test_a_vocabulary_larger_than_the_corpus_allows(tmp_path):
    prepared = run(tmp_path, made_up_documents(5), vocab_size=30528)
    size = prepared.manifest["tokenizer"]["vocab_size"]
    assert f"The corpus supports a vocabulary of {size:,} only; 30,528 were asked for." in prepared.notes


def test_a_lopsided_split_is_pointed_out(tmp_path):
    prepared = run(tmp_path, made_up_documents(2, words=3000))
    assert any("Validation holds" in note for note in prepared.notes)


@pytest.mark.parametrize("existing", [False, True])
def test_text_for_validation_alone(tmp_path: Path, existing: bool) -> None:
    documents = made_up_documents(400)
    folder = tmp_path / "corpus"
    folder.mkdir()
    (folder / "a.txt").write_text("\n\n".join(documents[:350]))
    (folder / "b.txt").write_text("\n\n".join(f"{text} zzyzx" for text in documents[350:390]))
    (tmp_path / "c.txt").write_text("\n\n".join(documents[390:]))
    tokenizer = run(tmp_path, documents, name="first").path if existing else None
    settings = {"vocab_size": 200, "processes": 1, "quiet": True, "tokenizer": tokenizer}
    prepared = prepare([folder], tmp_path / "out", validation=[folder / "b.txt", tmp_path / "c.txt"], **settings)
    encode = load_prepared_tokenizer(prepared.path).encode_document_lines
    assert rows(prepared.path, "train") == [encode([text]) for text in documents[:350]]
    held_out = [f"{text} zzyzx" for text in documents[350:390]] + documents[390:]
    assert rows(prepared.path, "validation") == [encode([text]) for text in held_out]
    sources = [(Path(source["name"]).name, source.get("split"), source["documents"]) for source in prepared.manifest["sources"]]
    assert sources == [("a.txt", None, 350), ("b.txt", "validation", 40), ("c.txt", "validation", 10)]
    assert prepared.manifest["skipped"] == {"training file that is for validation": 1}
    if not existing:
        without = prepare([folder / "a.txt"], tmp_path / "without", **settings)
        assert (without.path / "tokenizer.json").read_bytes() == (prepared.path / "tokenizer.json").read_bytes(), "it saw validation text"


def test_text_for_validation_that_cannot_be(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("one two three\n\nfour")
    (tmp_path / "blank.txt").write_text("\n \n")
    (tmp_path / "folder").mkdir()
    for inputs, validation, message in [
        (["a.txt"], ["a.txt"], "every file is for validation"),
        (["a.txt"], ["none.txt"], "no such file"),
        (["a.txt"], ["folder"], "no files with text"),
        (["a.txt"], ["blank.txt"], "holds no documents"),
        (["blank.txt"], ["a.txt"], "holds no documents"),
    ]:
        with pytest.raises(DataError, match=message) as caught:
            prepare([tmp_path / name for name in inputs], tmp_path / "out", validation=[tmp_path / name for name in validation], quiet=True)
        assert str(caught.value.where).endswith((validation if "blank.txt" not in inputs else inputs)[0]) or message.startswith("every")
        assert not (tmp_path / "out").exists()
    with pytest.raises(OutputError, match="holds the corpus itself"):
        prepare([tmp_path / "a.txt"], tmp_path / "folder", validation=[tmp_path / "folder" / "b.txt"], overwrite=True, quiet=True)


def test_one_large_text_for_training_is_not_cut_where_validation_has_its_own(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("the same text of six words")
    (tmp_path / "b.txt").write_text("the same text of six words")
    prepared = prepare([tmp_path / "a.txt"], tmp_path / "out", validation=[tmp_path / "b.txt"], vocab_size=40, processes=1, quiet=True)
    assert rows(prepared.path, "train") == rows(prepared.path, "validation")


@pytest.mark.parametrize("keeps_its_time", [False, True])
def test_a_corpus_that_changes_meanwhile(tmp_path, monkeypatch, keeps_its_time):
    train = TokenizerTraining.run

    def changing(*arguments, **named):
        path = tmp_path / "out.txt"
        before = path.stat()
        path.write_text(path.read_text().swapcase())
        if keeps_its_time:
            os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
        return train(*arguments, **named)

    monkeypatch.setattr(TokenizerTraining, "run", changing)
    with pytest.raises(DataError, match="changed while it was being read"):
        run(tmp_path, made_up_documents(3))
    assert names(tmp_path) == ["out.txt"]


@pytest.mark.parametrize("stage", ["scan", "encode"])
def test_a_file_that_changes_while_a_unit_is_done_is_said_and_then_done_again(tmp_path, monkeypatch, stage):
    monkeypatch.setattr(units, "_LEAST_BYTES", 5000)
    files = [tmp_path / f"{number}.txt" for number in range(3)]
    for number, path in enumerate(files):
        path.write_text("\n\n".join(made_up_documents(100)[number * 30 : number * 30 + 30]))
    do = stages.Stages.do

    def changing(self, task, report):
        def change(num_bytes):
            if task == stages.Task(stage, 0):
                files[1 if stage == "encode" else 0].write_text("\n\n".join(made_up_documents(30)))
            report(num_bytes)

        do(self, task, change)

    with monkeypatch.context() as patch:
        patch.setattr(stages.Stages, "do", changing)
        with pytest.raises(DataError, match="changed while it was being read; run the same command again"):
            prepare(files, tmp_path / "out", vocab_size=200, quiet=True, processes=1)
    assert prepare(files, tmp_path / "out", vocab_size=200, quiet=True, processes=1).manifest["counts"]["train"]["documents"] > 50


@pytest.mark.parametrize("content", ["\n \n\t\n", "\x01"])
def test_a_corpus_without_text(tmp_path, content):
    with pytest.raises(DataError, match=r"out.txt: holds no documents|too little text"):
        run(tmp_path, [content])
    assert names(tmp_path) == ["out.txt"]


def test_a_corpus_of_one_token(tmp_path):
    first = run(tmp_path, made_up_documents(), name="first")
    with pytest.raises(DataError, match="less than two tokens"):
        run(tmp_path, ["\x01"], name="second", tokenizer=first.path)


def test_an_existing_directory_is_refused_before_any_work(tmp_path, monkeypatch):
    (tmp_path / "out").mkdir()
    monkeypatch.setattr(module, "find_sources", lambda *_, **__: pytest.fail("work began"))
    with monkeypatch.context() as patch, pytest.raises(OutputError, match=r"is a mount point, .*; name a directory in it with --out"):
        patch.setattr(Path, "is_mount", lambda self: self == tmp_path / "out")
        run(tmp_path, ["other words"], overwrite=True)
    with pytest.raises(OutputError, match="is already there; add --overwrite"):
        run(tmp_path, ["a"])


def test_overwrite_replaces_prepared_data_and_nothing_else(tmp_path):
    run(tmp_path, made_up_documents(10))
    assert run(tmp_path, made_up_documents(20), overwrite=True).manifest["sources"][0]["documents"] == 20
    assert names(tmp_path) == ["out", "out.txt"]
    (tmp_path / "out" / "manifest.json").unlink()
    with pytest.raises(OutputError, match="is not prepared data, and is left alone"):
        run(tmp_path, ["a"], overwrite=True)
    with pytest.raises(OutputError, match="is a file"):
        prepare([tmp_path / "out.txt"], tmp_path / "out.txt", overwrite=True)


def test_settings_that_make_no_sense(tmp_path):
    for settings in ({"vocab_size": 5}, {"processes": 0}):
        with pytest.raises(UsageError):
            run(tmp_path, ["a"], **settings)


def test_a_full_disk_leaves_nothing(tmp_path, monkeypatch):
    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(stages.ShardWriter, "end_document", full)
    with pytest.raises(OutputError, match="the disk is full") as caught:
        run(tmp_path, made_up_documents(10))
    assert caught.value.exit_code == 7
    assert names(tmp_path) == ["out.txt"]


def test_a_place_that_is_not_writable(tmp_path):
    (tmp_path / "file").write_text("")
    (tmp_path / "a.txt").write_text("text")
    with pytest.raises(OutputError, match="cannot be written"):
        prepare([tmp_path / "a.txt"], tmp_path / "file" / "out", quiet=True)


STOPPABLE = """
import sys, time
from pathlib import Path
from pldcli.errors import PldError
from pldcli.preparation import pool, prepare, units
units._LEAST_BYTES = 5000
serve = pool._Pool._serve
def slow(self, worker):
    if self._tasks and self._tasks[0].stage == "encode":
        if worker is self._workers[-1]:
            time.sleep(0.2)  # all threads have started
            print("encoding", *(one.pid for one in self._workers), flush=True)
        worker.stdout.read()  # until it is killed
    serve(self, worker)
pool._Pool._serve = slow
try:
    prepare.prepare([Path("corpus.txt")], Path("out"), vocab_size=100, processes=2, quiet=True)
except PldError as error:
    print(error); sys.exit(error.exit_code)
"""


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 75), (signal.SIGKILL, -9)])
def test_stopping_keeps_what_is_done_and_nothing_that_looks_finished(tmp_path, number, code):
    (tmp_path / "corpus.txt").write_text("\n\n".join(made_up_documents(100)))
    process = subprocess.Popen(
        [sys.executable, "-c", STOPPABLE], cwd=tmp_path, env=environment(), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    _, *workers = process.stdout.readline().split()
    assert len(workers) == 2
    process.send_signal(number)
    said, stderr = process.communicate(timeout=20)
    assert process.returncode == code, stderr
    assert "Traceback" not in stderr
    assert names(tmp_path) == [".out.parts", "corpus.txt"]
    if number != signal.SIGKILL:
        assert re.search(r"out: (interrupted|terminated), \d of \d+ parts done; run the same command again to go on", said)
    deadline = time.monotonic() + 10
    while any(alive(int(worker)) for worker in workers) and time.monotonic() < deadline:
        time.sleep(0.02)
    assert not any(alive(int(worker)) for worker in workers)
    prepare([tmp_path / "corpus.txt"], tmp_path / "out", vocab_size=100, quiet=True)
    assert names(tmp_path) == ["corpus.txt", "out"]


def test_what_was_done_is_not_done_again_and_gives_the_same_bytes(tmp_path, monkeypatch):
    monkeypatch.setattr(units, "_LEAST_BYTES", 5000)
    documents = made_up_documents(200)
    whole = run(tmp_path, documents, name="whole", processes=1)
    did: list[stages.Task] = []
    do = stages.Stages.do

    def stopping(self, task, report):
        did.append(task)
        if len(did) == stop_at:
            signal.raise_signal(signal.SIGTERM)
        do(self, task, report)

    monkeypatch.setattr(stages.Stages, "do", stopping)
    settings = {"vocab_size": 200, "quiet": True, "processes": 1}
    counts = []
    for stop_at in (3, 12, 10**9):
        did.clear()
        if stop_at < 10**9:
            with pytest.raises(PreemptedError, match="parts done; run the same command again to go on"):
                prepare([tmp_path / "whole.txt"], tmp_path / "again", **settings)
            assert not (tmp_path / "again").exists()
        else:
            again = prepare([tmp_path / "whole.txt"], tmp_path / "again", **settings)
        counts.append(len(did))
    num_units = sum(name.startswith("train-") for name in whole.manifest["shards"])
    assert num_units > 5 and counts == [3, 12, 2 * num_units + 1 - 2 - 11], "one file to hash, and every unit twice"
    assert names(whole.path) == names(again.path) and whole.manifest["shards"] == again.manifest["shards"]
    assert not (tmp_path / ".again.parts").exists()


def test_of_a_file_that_was_mended_only_its_parts_are_done_again(tmp_path, monkeypatch):
    folder, documents = tmp_path / "corpus", made_up_documents(300)
    folder.mkdir()
    monkeypatch.setattr(units, "_LEAST_BYTES", 5000)
    for number in range(3):
        lines = [json.dumps({"text": text}) for text in documents[number * 100 : number * 100 + 100]]
        (folder / f"{number}.jsonl").write_text("\n".join(lines + ["no JSON"] * (number == 2)))
    with pytest.raises(DataError, match=r"2.jsonl:101: is not JSON"):
        prepare([folder], tmp_path / "out", vocab_size=200, quiet=True)
    assert names(tmp_path) == [".out.parts", "corpus"]
    lines = (folder / "2.jsonl").read_text().splitlines()[:-1]
    (folder / "2.jsonl").write_text("\n".join(lines))
    did: list[stages.Task] = []
    do = stages.Stages.do
    monkeypatch.setattr(stages.Stages, "do", lambda self, task, report: (did.append(task), do(self, task, report)))
    prepared = prepare([folder], tmp_path / "out", vocab_size=200, quiet=True)
    read = sum(task.stage == "scan" for task in did)
    assert 0 < read < sum(task.stage == "encode" for task in did) / 2
    assert sum(source["documents"] for source in prepared.manifest["sources"]) == 300


def test_shares_that_are_done_by_others_give_the_same_bytes(tmp_path, monkeypatch):
    monkeypatch.setattr(units, "_LEAST_BYTES", 5000)
    whole = run(tmp_path, made_up_documents(300), name="whole")
    preparation = Preparation([tmp_path / "whole.txt"], tmp_path / "out", training=TokenizerTraining(200), processes=1, quiet=True)
    said = [preparation.run_share(number, 3) for number in (2, 0, 1, 0, 2, 1)]
    assert said[:2] == ["read; when all shares are, run them again, to encode"] * 2
    assert said[2:4] == ["encoded; when all shares are, run the command without --share, to put them together"] * 2
    assert said[4:] == ["encoded, as all are; run the command without --share, to put them together"] * 2
    alone = replace(preparation, out=tmp_path / "alone")
    assert alone.run_share(0, 1) == said[4]
    monkeypatch.setattr(stages.Stages, "do", lambda *_: pytest.fail("it was done"))
    assert not (tmp_path / "out").exists()
    merged = preparation.run()
    assert merged.manifest["shards"] == whole.manifest["shards"]
    assert (merged.path / "tokenizer.json").read_bytes() == (whole.path / "tokenizer.json").read_bytes()
    assert replace(alone, merge=True).run().manifest["shards"] == whole.manifest["shards"]
    assert names(tmp_path) == ["alone", "out", "whole", "whole.txt"]


def test_a_mixture(tmp_path, monkeypatch):
    monkeypatch.setattr(units, "_LEAST_BYTES", 5000)
    documents = made_up_documents(300)
    for name, part in (("a", documents[:100]), ("b", documents[100:200]), ("c", documents[200:])):
        (tmp_path / f"{name}.txt").write_text("\n\n".join(part))
    weighted = [(tmp_path / "b.txt", 2.5), (tmp_path / "c.txt", 0.25), (tmp_path / "a.txt", 7.0)]
    prepared = prepare([tmp_path / "a.txt"], tmp_path / "out", weighted=weighted, vocab_size=200, processes=1, quiet=True)
    encode = load_prepared_tokenizer(prepared.path).encode_document_lines
    found = Counter(map(tuple, rows(prepared.path, "train")))
    times = [[found[tuple(encode([text]))] for text in part] for part in (documents[:100], documents[100:200], documents[200:])]
    held_out = sum(counts.count(0) for counts in times[:2])
    assert held_out < 5 and set(times[0]) <= {0, 7} and set(times[1]) <= {0, 2, 3} and set(times[2]) == {0, 1}
    sizes = [[len(encode([text])) + 1 for text in part] for part in (documents[100:200], documents[200:])]
    for size, counts, weight in zip(sizes, times[1:], (2.5, 0.25), strict=True):
        once = sum(tokens for tokens, count in zip(size, counts, strict=True) if count or weight < 1)
        assert sum(tokens * count for tokens, count in zip(size, counts, strict=True)) == pytest.approx(weight * once, abs=2 * max(size))
    assert [source.get("weight") for source in prepared.manifest["sources"]] == [7.0, 2.5, 0.25]
    assert prepared.manifest["skipped"] == {"file named twice": 1}
    data = open_prepared(prepared.path)
    assert data.unique_tokens == prepared.manifest["counts"]["train"]["tokens"] < data.stream("train").num_tokens
    plain = prepare([tmp_path / f"{name}.txt" for name in "abc"], tmp_path / "plain", vocab_size=200, processes=1, quiet=True)
    assert data.data_fingerprint != open_prepared(plain.path).data_fingerprint


@pytest.mark.parametrize(("weight", "times"), [(0.4, 0), (0.5, 1), (2.0, 2), (2.5, 3)])
def test_what_a_weight_comes_to_for_a_single_document(tmp_path, weight, times):
    documents = made_up_documents(60)
    for name, part in (("a", documents[:40]), ("b", documents[40:41]), ("v", documents[41:])):
        (tmp_path / f"{name}.txt").write_text("\n\n".join(part))
    files = {"weighted": [(tmp_path / "b.txt", weight)], "validation": [tmp_path / "v.txt"]}
    prepared = prepare([tmp_path / "a.txt"], tmp_path / "out", **files, vocab_size=200, processes=1, quiet=True)
    encoded = load_prepared_tokenizer(prepared.path).encode_document_lines(documents[40:41])
    assert rows(prepared.path, "train").count(encoded) == times
    expected = [f"Text of weight {weight:g} is read {times} times per pass: documents are read whole, and it has few."]
    assert [note for note in prepared.notes if "per pass" in note] == (expected if times != weight else [])


def test_two_at_the_same_place(tmp_path):
    with (
        locks.locked(tmp_path / ".out.parts", "preparing data"),
        pytest.raises(OutputError, match="another process is preparing data here"),
    ):
        run(tmp_path, made_up_documents(10))


STOPPED_AT_THE_END = """
import shutil, sys, time
from pathlib import Path
from pldcli.preparation import prepare, work
def slow(*_, **__):
    print("cleaning", flush=True)
    time.sleep(60)
def collect(*_):
    shutil.rmtree = slow
    print("collecting", flush=True)
    time.sleep(60)
work.Work.collect = collect
prepare.prepare([Path("corpus.txt")], Path("out"), vocab_size=100, quiet=True)
"""


@pytest.mark.parametrize("numbers", [(signal.SIGINT, signal.SIGINT), (signal.SIGTERM, signal.SIGTERM), (signal.SIGTERM, signal.SIGINT)])
def test_a_second_signal_ends_the_cleaning_up(tmp_path, numbers):
    """At once, and nothing half-written has the final name; the next call removes the rest."""
    (tmp_path / "corpus.txt").write_text("\n\n".join(made_up_documents(100)))
    process = subprocess.Popen(
        [sys.executable, "-c", STOPPED_AT_THE_END], cwd=tmp_path, env=environment(), stdout=subprocess.PIPE, text=True
    )
    assert process.stdout.readline() == "collecting\n"
    process.send_signal(numbers[0])
    assert process.stdout.readline() == "cleaning\n"
    time.sleep(2 * signals._ONE_SIGNAL_SECONDS)
    process.send_signal(numbers[1])
    assert process.wait(timeout=10) == -numbers[1]
    process.stdout.close()
    assert len(names(tmp_path)) == 3 and not (tmp_path / "out").exists()
    prepare([tmp_path / "corpus.txt"], tmp_path / "out", vocab_size=100, quiet=True)
    assert names(tmp_path) == ["corpus.txt", "out"]


def test_a_full_disk_is_reported_of_the_place_that_was_named(tmp_path, monkeypatch):
    write = Path.open

    def full(path, mode="r", *arguments, **named):
        if "tokenizer.json" in path.name and "w" in mode:
            raise OSError(errno.ENOSPC, "No space left on device")
        return write(path, mode, *arguments, **named)

    monkeypatch.setattr(Path, "open", full)
    with pytest.raises(OutputError, match="out: the disk is full") as caught:
        run(tmp_path, made_up_documents(50))
    assert caught.value.where == str(tmp_path / "out") and names(tmp_path) == ["out.txt"]


def test_the_same_signal_twice_is_one(tmp_path):
    """`timeout` sends it to the process and to its group."""
    (tmp_path / "corpus.txt").write_text("\n\n".join(made_up_documents(100)))
    process = subprocess.Popen([sys.executable, "-c", STOPPABLE], cwd=tmp_path, env=environment(), stdout=subprocess.PIPE, text=True)
    assert process.stdout.readline()
    for _ in range(2):
        process.send_signal(signal.SIGTERM)
    process.communicate(timeout=20)
    assert process.returncode == 75 and names(tmp_path) == [".out.parts", "corpus.txt"]


def alive(pid: int) -> bool:
    try:
        return "\nState:\tZ" not in Path(f"/proc/{pid}/status").read_text()
    except OSError:
        return False


def test_memory_stays_small_for_one_long_line(tmp_path):
    if not Path("/proc/self/status").exists():
        pytest.skip("no /proc to read peak memory from")
    words = " ".join(made_up_documents(1000))
    with (tmp_path / "corpus.txt").open("w") as file:
        for _ in range(40_000_000 // len(words)):
            file.write(words + " ")
    script = (
        "import sys\nfrom pathlib import Path\nfrom pldcli.preparation import prepare\nprepare.SAMPLE_BYTES = 1 << 20\n"
        "def peak(): return int(next(l for l in open('/proc/self/status') if l.startswith('VmHWM')).split()[1])\n"
        "import pyarrow, sentencepiece, tokenizers\nbefore = peak()\n"
        "prepare.prepare([Path('corpus.txt')], Path('out'), vocab_size=500, quiet=True)\nprint((peak() - before) // 1024)\n"
    )
    result = subprocess.run([sys.executable, "-c", script], cwd=tmp_path, env=environment(), capture_output=True, text=True, check=True)
    assert int(result.stdout) < 130, "MB beyond the imports, for a line of 40 MB and 20 MB of tokens"


def test_one_large_document_and_a_small_validation_are_pointed_out(tmp_path: Path) -> None:
    text = " ".join(f"word{number % 3000} and" for number in range(30_000))
    (tmp_path / "a.txt").write_text(text)
    notes = prepare([tmp_path / "a.txt"], tmp_path / "one", vocab_size=512, processes=1, quiet=True).notes
    assert any("--document-per line" in note for note in notes)
    assert any(note.startswith("Validation has only ") and note.endswith("; --validation takes a file of its own.") for note in notes)
    (tmp_path / "b.txt").write_text("a short text\n\nand another\n")
    assert prepare([tmp_path / "b.txt"], tmp_path / "two", vocab_size=40, processes=1, quiet=True).notes == ()


LETTERS = "abcdefghijklmnopqrstuvwxyz"
LATIN = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *LETTERS, *(f"##{letter}" for letter in LETTERS)]


@pytest.fixture
def latin(tmp_path: Path) -> Path:
    path = tmp_path / "latin" / "vocab.txt"
    path.parent.mkdir()
    path.write_text("\n".join(LATIN) + "\n")
    return path


def test_unknown_tokens_are_counted_for_each_split(tmp_path: Path, latin: Path) -> None:
    documents = [f"{text}{' тон' * 9}" if number % 2 else text for number, text in enumerate(made_up_documents(600))]
    prepared = run(tmp_path, documents, tokenizer=latin)
    counts, unknown = prepared.manifest["counts"], load_prepared_tokenizer(prepared.path).special.unk_id
    for split in ("train", "validation"):
        found = sum(ids.count(unknown) for ids in rows(prepared.path, split))
        assert counts[split]["unknown"] == found > 0
        share = found / (counts[split]["tokens"] - counts[split]["documents"])
        assert unknown_shares(counts)[split] == share
        assert any(note.startswith(f"{share:.1%} of the {split} tokens are unknown ([UNK])") for note in prepared.notes)


def test_unknown_tokens_of_a_single_document_are_counted_where_they_end_up(tmp_path: Path, latin: Path) -> None:
    prepared = run(tmp_path, [" ".join(["тон", *["a"] * 200, "ла", "b", "a", "ба"])], tokenizer=latin)
    assert [prepared.manifest["counts"][split]["unknown"] for split in ("train", "validation")] == [1, 2]


def test_few_unknown_tokens_are_no_reason_for_a_note(tmp_path: Path, latin: Path) -> None:
    prepared = run(tmp_path, [*made_up_documents(600), "one тон"], tokenizer=latin)
    assert sum(prepared.manifest["counts"][split]["unknown"] for split in ("train", "validation")) == 1
    assert not any("unknown" in note for note in prepared.notes)


def test_a_cased_vocabulary_for_lower_cased_text_is_noticed(tmp_path: Path, latin: Path) -> None:
    vocabulary = tmp_path / "upper.txt"
    vocabulary.write_text("\n".join(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "[BIG]", *"ACGT", *(f"##{c}" for c in "ACGT")]))
    documents = [" ".join(random.Random(number).choices(["GATTACA", "TAG", "CAT"], k=20)) for number in range(400)]
    with pytest.raises(DataError, match=r"every token is unknown to the tokenizer.*if it is a cased vocabulary, keep case .*; else name"):
        run(tmp_path, documents, tokenizer=vocabulary)
    assert not any("--cased" in note for note in run(tmp_path, documents, tokenizer=vocabulary, cased=True).notes)
    with vocabulary.open("a") as file:
        file.write("".join(f"\n{c}\n##{c}" for c in "acgt"))
    notes = run(tmp_path, documents, tokenizer=vocabulary, overwrite=True).notes
    assert [note for note in notes if note.startswith("Text is lower-cased, and the vocabulary has many entries in upper case: if it is")]
    assert not any("--cased" in note for note in run(tmp_path, made_up_documents(400), tokenizer=latin, overwrite=True).notes)


@pytest.mark.parametrize("words", [["тон", "ла", "ре"], ["acgt" * 40, "gattaca" * 30]], ids=["another script", "words too long"])
def test_text_that_the_vocabulary_cannot_spell_is_refused(tmp_path: Path, latin: Path, words: list[str]) -> None:
    documents = [" ".join(random.Random(number).choices(words, k=20)) for number in range(400)]
    with pytest.raises(DataError, match=r"train text: every token is unknown.*--tokenizer"):
        run(tmp_path, documents, tokenizer=latin)
    assert "out" not in names(tmp_path)
    (tmp_path / "validation.txt").write_text("\n\n".join(documents))
    with pytest.raises(DataError, match="validation text: every token is unknown"):
        run(tmp_path, made_up_documents(10), tokenizer=latin, validation=[tmp_path / "validation.txt"])


GOLDEN_SHARDS = {
    "train-00000.arrow": "957e6eefb0405485846ebf62869d8285c5eba4a6741d6cbad7a561ddd9e75769",
    "validation-00000.arrow": "540861a5ebde27b404f7781bd129b1fcc8f9e7bf5cc345c9a8affd1d43e3c980",
}
GOLDEN_MANIFEST = "88d25537959dccc727b936ec3f8f825dd86bfeb1647087580e8f6ba14d15692e"


def test_the_same_input_gives_the_same_bytes_as_ever(tmp_path: Path, latin: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What depends on versions is left out: that of this program, and the way in which tokenizers writes its file."""
    monkeypatch.chdir(tmp_path)
    Path("a.txt").write_bytes("\n\n".join(made_up_documents(400)).encode() + b"\r\n\r\n\xff caf\xc3\xa9 \n \n")
    Path("b.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in [*made_up_documents(50)[::-1], "", "тон"]))
    manifest = prepare(
        [Path("a.txt"), Path("b.jsonl")], Path("out"), tokenizer=latin, processes=1, keep_duplicates=True, quiet=True
    ).manifest
    assert {name: sha256(Path("out", name).read_bytes()) for name in manifest["shards"]} == GOLDEN_SHARDS
    text = Path("out/manifest.json").read_text()
    for varying in (manifest["sha256"], manifest["tokenizer"]["sha256"], f'"{manifest["pldcli_version"]}"'):
        assert varying in text
        text = text.replace(varying, "-")
    assert sha256(text.encode()) == GOLDEN_MANIFEST


def sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()
