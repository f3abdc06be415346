"""What is read from elsewhere is read, or refused with one line: whatever its bytes are, nothing else happens.

PLD_FUZZ_SECONDS lengthens it. Of what fails, the smallest change that does is shown.
"""

from __future__ import annotations

import bz2
import gzip
import hashlib
import itertools
import json
import lzma
import os
import shutil
import time
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet
import pytest
import torch
from hypothesis import HealthCheck, given, seed, settings, strategies
from safetensors.torch import load_file, save_file
from tokenizers.pre_tokenizers import ByteLevel

from pldcli import presets
from pldcli.bench.step_time import StepTime
from pldcli.comparison.metrics_table import read_table, table_bytes
from pldcli.comparison.runs import SPENT, Run
from pldcli.comparison.scores import read_scores
from pldcli.corpus.reader import Reader
from pldcli.corpus.sources import find_sources
from pldcli.data.prepared import verify_prepared
from pldcli.deepspeed import import_deepspeed
from pldcli.errors import PldError
from pldcli.evaluation.zero_shot import read_pairs
from pldcli.finetuning import checkpoint as finetuning
from pldcli.finetuning.checkpoint import Course
from pldcli.finetuning.config import FinetuneConfig
from pldcli.huggingface.load import load_pretrained
from pldcli.runs import checkpoint
from pldcli.runs.metrics import read_metrics
from pldcli.runs.run_directory import RunDirectory, summarise
from pldcli.study.calibration import ShapeTime, Timings, read_timings, write_plan
from pldcli.study.read_spec import read_spec
from pldcli.system.seal import sealed
from pldcli.task_files.own_files import load_own
from pldcli.task_files.sources import load_task
from pldcli.tasks.registry import find_task
from pldcli.tokenization.tokenizer import load_prepared_tokenizer, load_tokenizer
from tests.conftest import tiny_config, tiny_trainer
from tests.corpus import test_wikipedia as wikipedia
from tests.finetuning.conftest import save_tiny, words_tokenizer
from tests.runs.test_checkpoint_parts import held
from tests.task_files.test_table import PACKINGS

__all__ = ["words_tokenizer"]

SECONDS = float(os.environ.get("PLD_FUZZ_SECONDS", "0.4"))
ODD = (
    b"null", b"{}", b"[]", b"-1", b"1e999", b"NaN", b"true", b'"', b"\x00", b"\xff\xfe", b"\xef\xbb\xbf", b"\r\n", b"\n\n", b"\t", b",",
    b"99999999999999999999", b"[" * 3000, b'{"a":' * 3000, "\u2028".encode(), b"\xed\xa0\x80", b"- &a [*a]", b"!!python/object:os.system",
)  # fmt: skip


PLACES = strategies.integers(0, 2**32)
CHANGES = strategies.lists(
    strategies.tuples(
        strategies.sampled_from(("remove", "repeat", "insert", "replace", "flip", "number")),
        PLACES,
        strategies.sampled_from((1, 4, 50, 10**6)),
        strategies.sampled_from(ODD) | strategies.binary(max_size=100),
        strategies.sampled_from((b"-1", b"0", b"1e9", b"0.5", b"7777777777", b'"x"', b"null")),
    ),
    min_size=1,
    max_size=5,
)
"""What to do, where, to how many bytes, and what to put there: a piece of a file, or of a number."""


def changed(content: bytes, changes: Sequence[tuple[str, int, int, bytes, bytes]]) -> bytes:
    """Change a file a little, or a lot."""
    for kind, place, size, filler, digits in changes:
        first = place % (len(content) + 1)
        last = min(len(content), first + size)
        match kind:
            case "remove":
                filler = b""
            case "repeat":
                filler = 2 * content[first:last][:10_000]
            case "insert":
                last = first
            case "flip":
                filler = bytes(byte ^ 1 << place % 8 for byte in content[first : first + 1])
                last = first + len(filler)
            case "number":
                numbers = [at for at, byte in enumerate(content) if chr(byte).isdigit()]
                first = numbers[place % len(numbers)] if numbers else len(content)
                filler, last = digits, first + 1
        content = content[:first] + filler + content[last:]
    return content


def fuzz(
    path: Path, read: Callable[[], object], *, seal: Callable[[bytes], bytes] = lambda content: content, is_refused: bool = True
) -> None:
    """Change a file again and again and read it; what was refused at least once, unless `is_refused` is off, was so with one line."""
    content, refused = path.read_bytes(), 0
    until = time.monotonic() + SECONDS

    @settings(max_examples=50, database=None, deadline=None, suppress_health_check=list(HealthCheck))
    @given(CHANGES)
    def attempt(changes: list[tuple[str, int, int, bytes, bytes]]) -> None:
        nonlocal refused
        path.write_bytes(seal(changed(content, changes)))
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                read()
        except PldError as error:
            refused += 1
            assert "\n" not in str(error)

    try:
        for number in itertools.count():
            seed(number)(attempt)()
            if time.monotonic() > until:
                break
    finally:
        path.write_bytes(content)
    assert refused or not is_refused, "nothing that was tried was wrong"


ROWS = [{"text": f"the river {number} \u00e9\U0001f600", "label": ["good", "bad"][number % 2]} for number in range(30)]
SQUAD = {
    "version": "1.1",
    "data": [
        {
            "title": "t",
            "paragraphs": [
                {
                    "context": f"The river is long and old, {text}.",
                    "qas": [
                        {"id": str(number), "question": "What?", "answers": [{"text": "river", "answer_start": 4}]}
                        for number in range(3 * text, 3 * text + 3)
                    ],
                }
                for text in range(3)
            ],
        }
    ],
}
TASKS: dict[str, bytes] = {
    "rows.jsonl": "\n".join(map(json.dumps, ROWS)).encode(),
    "rows.csv": ("text,label\n" + "\n".join(f'"{row["text"]}, and",{row["label"]}' for row in ROWS)).encode(),
    "rows.tsv": ("text\tlabel\n" + "\n".join(f"{row['text']}\t{row['label']}" for row in ROWS)).encode(),
    "rows.conll": "\n\n".join("The DT B-NP\nriver NN I-NP\nflows VB O" for _ in range(20)).encode(),
    "squad.json": json.dumps(SQUAD).encode(),
    "utf16.csv": ("text,label\n" + "\n".join(f"{row['text']},{row['label']}" for row in ROWS)).encode("utf-16"),
}
TASKS |= {f"rows.jsonl{ending}": pack(TASKS["rows.jsonl"]) for ending, pack in PACKINGS}


@pytest.mark.parametrize("name", list(TASKS))
def test_tasks(tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    path.write_bytes(TASKS[name])
    load_own(path)
    for skip_bad in (False, True):
        fuzz(path, lambda skip_bad=skip_bad: load_own(path, skip_bad=skip_bad))


@pytest.mark.parametrize(("task", "name"), [("glue/rte", "train.tsv"), ("glue/cola", "dev.tsv"), ("squad", "dev-v1.1.json")])
def test_published_layouts(tmp_path: Path, task: str, name: str) -> None:
    rows = [("a river", "it flows", "entailment"), ("a road", "it is old", "not_entailment")] * 9
    rte = "index\tsentence1\tsentence2\tlabel\n" + "".join(f"{number}\t" + "\t".join(row) + "\n" for number, row in enumerate(rows))
    cola = "".join(f"gj04\t{number % 2}\t\tthe river {number} flows\n" for number in range(20))
    content = {"glue/rte": rte, "glue/cola": cola, "squad": TASKS["squad.json"].decode()}[task]
    for other in ("train-v1.1.json", "dev-v1.1.json") if task == "squad" else ("train.tsv", "dev.tsv"):
        (tmp_path / other).write_text(content, encoding="utf-8")
    load_task(find_task(task), data_dir=tmp_path)
    fuzz(tmp_path / name, lambda: load_task(find_task(task), data_dir=tmp_path))


def test_minimal_pairs(tmp_path: Path, prepared: Path) -> None:
    path, tokenizer = tmp_path / "pairs.jsonl", load_prepared_tokenizer(prepared)
    pair = {"sentence_good": "the river flows", "sentence_bad": "the river flow", "field": "syntax", "pair_id": 3}
    path.write_text("\n".join(json.dumps(pair) for _ in range(9)), encoding="utf-8")
    read_pairs([tmp_path], tokenizer)
    fuzz(path, lambda: read_pairs([tmp_path], tokenizer))


def write_table(path: Path) -> Path:
    table = pa.Table.from_pylist(ROWS)
    if path.suffix == ".parquet":
        pyarrow.parquet.write_table(table, path)
    else:
        with (pa.ipc.new_stream if "stream" in path.name else pa.ipc.new_file)(str(path), table.schema) as writer:
            writer.write_table(table)
    return path


def read_corpus(path: Path) -> None:
    sources, _ = find_sources([path])
    for source in sources:
        for strict in (False, True):
            list(Reader(source, strict=strict, skip_bad=not strict).pieces())


@pytest.mark.parametrize("name", ["rows.parquet", "rows.arrow", "stream.arrow"])
def test_tables(tmp_path: Path, name: str) -> None:
    """What ends the process here is a bug too: tests/system/test_arrow.py says with which bit."""
    path = write_table(tmp_path / name)
    for read in (load_own, read_corpus):
        read(path)
        fuzz(path, lambda read=read: read(path))


def test_data_sets_that_were_saved(tmp_path: Path) -> None:
    write_table(tmp_path / "stream.arrow")
    features = {"label": {"_type": "ClassLabel", "names": ["bad", "good"]}, "text": {"_type": "Value", "dtype": "string"}}
    (tmp_path / "dataset_info.json").write_text(json.dumps({"features": features}), encoding="utf-8")
    (tmp_path / "state.json").write_text(json.dumps({"_data_files": [{"filename": "stream.arrow"}], "_split": "train"}), encoding="utf-8")
    load_own(tmp_path)
    fuzz(tmp_path / "state.json", lambda: load_own(tmp_path))


@pytest.mark.parametrize(
    ("name", "pack"),
    [
        ("a.txt", bytes),
        ("a.jsonl", bytes),
        ("a.txt.gz", gzip.compress),
        ("a.jsonl.gz", gzip.compress),
        ("a.txt.bz2", bz2.compress),
        ("a.txt.xz", lzma.compress),
        ("a.jsonl.zst", lambda content: pa.compress(content, "zstd", asbytes=True)),
        ("utf16.txt", lambda content: content.decode().encode("utf-16")),
        ("a.csv", bytes),
        ("a.tsv", bytes),
        ("a.xml", bytes),
        ("a.xml.bz2", bz2.compress),
    ],
)
def test_corpora(tmp_path: Path, name: str, pack: Callable[[bytes], bytes]) -> None:
    path = tmp_path / name
    if "xml" in name:
        pytest.importorskip("mwparserfromhell", reason="mwparserfromhell is not installed")
        text = wikipedia.ALL
    else:
        text = "\n".join(map(json.dumps, ROWS)) if "jsonl" in name else "\n\n".join(str(row["text"]) for row in ROWS)
        text = TASKS[f"rows{path.suffix}"].decode() if path.suffix in (".csv", ".tsv") else text
    path.write_bytes(pack(text.encode()))
    read_corpus(path)
    fuzz(path, lambda: read_corpus(path))


def test_tokenizers(tmp_path: Path, prepared: Path) -> None:
    for name in ("tokenizer.json", "sentencepiece.model"):
        path = tmp_path / name
        shutil.copy(prepared / name, path)
        load_tokenizer(path)
        fuzz(path, lambda path=path: load_tokenizer(path))
    path = tmp_path / "vocab.txt"
    path.write_text("\n".join(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *"abcdefgh", "##ab", "##c"]), encoding="utf-8")
    load_tokenizer(path)
    fuzz(path, lambda: load_tokenizer(path))


@pytest.mark.parametrize("name", ["vocab.json", "merges.txt", "tokenizer_config.json"])
def test_tokenizers_in_two_files(tmp_path: Path, name: str) -> None:
    """As RoBERTa has them."""
    symbols = ["<s>", "<pad>", "</s>", "<unk>", "<mask>", *sorted(ByteLevel.alphabet()), "th", "the", "\u0120the"]
    (tmp_path / "vocab.json").write_text(json.dumps({symbol: number for number, symbol in enumerate(symbols)}), encoding="utf-8")
    (tmp_path / "merges.txt").write_text("#version: 0.2\nt h\nth e\n\u0120 the\n", encoding="utf-8")
    (tmp_path / "tokenizer_config.json").write_text('{"tokenizer_class": "RobertaTokenizer", "mask_token": "<mask>"}', encoding="utf-8")
    load_tokenizer(tmp_path)
    fuzz(tmp_path / name, lambda: load_tokenizer(tmp_path))


def test_shards_of_prepared_data_that_were_sealed_again(tmp_path: Path, prepared: Path) -> None:
    data = tmp_path / "data"
    shutil.copytree(prepared, data)
    manifest = json.loads((data / "manifest.json").read_text(encoding="utf-8"))
    [shard] = data.glob("validation-*.arrow")
    facts = manifest["shards"][shard.name]

    def seal(content: bytes) -> bytes:
        facts.update(bytes=len(content), sha256=hashlib.sha256(content).hexdigest())
        (data / "manifest.json").write_text(json.dumps(sealed(manifest)), encoding="utf-8")
        return content

    def read() -> None:
        stream = verify_prepared(data).stream("validation")
        lengths = [len(document) for document in stream.documents()]
        stream.take(np.arange(0, max(0, stream.num_tokens - 8), 7), 8)
        assert sum(lengths) <= stream.num_tokens

    seal(shard.read_bytes())
    read()
    fuzz(shard, read, seal=seal)


def test_prepared_data_whose_manifest_was_sealed_again(tmp_path: Path, prepared: Path) -> None:
    data = tmp_path / "data"
    shutil.copytree(prepared, data)

    def seal(content: bytes) -> bytes:
        try:
            fields = json.loads(content)
        except (ValueError, RecursionError):
            return content
        return json.dumps(sealed(fields)).encode() if isinstance(fields, dict) else content

    fuzz(data / "manifest.json", lambda: verify_prepared(data), seal=seal)


def write_checkpoint(place: Path) -> Path:
    trainer = tiny_trainer()
    held = checkpoint.hold(
        checkpoint.Position(3), tiny_config(), trainer.model, trainer.optimizer, scaler={}, guard={}, data_fingerprint="d",
        tokenizer_fingerprint="t",
    )  # fmt: skip
    return checkpoint.write(place, held, keep=1)


@pytest.mark.parametrize("name", ["state.json", "config.yaml", "model.safetensors", "optimizer.safetensors"])
def test_checkpoints_that_were_sealed_again(tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write_checkpoint(tmp_path)
    monkeypatch.setattr(checkpoint, "verify", lambda path: None)  # as good as sums over what was changed
    checkpoint.read(path)
    fuzz(path / name, lambda: checkpoint.read(path))


@pytest.mark.parametrize("name", ["model-00002-of-00003.safetensors", "optimizer-00001-of-00003.safetensors"])
def test_parts_of_checkpoints(tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for number in (3, 2, 1):
        path = checkpoint.write(tmp_path, held(number), keep=1)
    monkeypatch.setattr(checkpoint, "verify", lambda path: None)
    checkpoint.read(path)
    fuzz(path / name, lambda: checkpoint.read(path))


def test_checksums(tmp_path: Path) -> None:
    path = write_checkpoint(tmp_path)
    fuzz(path / "SHA256SUMS", lambda: checkpoint.verify(path))


@pytest.mark.parametrize("name", ["config.json", "model.safetensors", "tokenizer_config.json", "tokenizer.json"])
def test_models(tmp_path: Path, words_tokenizer: Any, name: str) -> None:
    place = save_tiny(tmp_path / "tiny", words_tokenizer)
    load_pretrained(place)
    fuzz(place / name, lambda: load_pretrained(place))


def test_models_in_several_files(tmp_path: Path, words_tokenizer: Any) -> None:
    place = save_tiny(tmp_path / "tiny", words_tokenizer)
    weights = load_file(place / "model.safetensors")
    (place / "model.safetensors").unlink()
    files = {key: f"model-0000{1 + number % 2}-of-00002.safetensors" for number, key in enumerate(weights)}
    for file in set(files.values()):
        save_file({key: weights[key] for key in weights if files[key] == file}, place / file, metadata={"format": "pt"})
    index = place / "model.safetensors.index.json"
    index.write_text(json.dumps({"metadata": {"total_size": 1}, "weight_map": files}), encoding="utf-8")
    for path in (index, place / "model-00002-of-00002.safetensors"):
        load_pretrained(place)
        fuzz(path, lambda: load_pretrained(place))


def test_weights_that_torch_saved(tmp_path: Path, words_tokenizer: Any) -> None:
    place = save_tiny(tmp_path / "tiny", words_tokenizer)
    torch.save(load_file(place / "model.safetensors"), place / "pytorch_model.bin")
    (place / "model.safetensors").unlink()
    load_pretrained(place, allow_bin=True)
    fuzz(place / "pytorch_model.bin", lambda: load_pretrained(place, allow_bin=True))


@pytest.mark.parametrize("rotary", [False, True])
def test_configurations_of_models(tmp_path: Path, words_tokenizer: Any, rotary: bool) -> None:
    changes = {"position_embedding": "rotary", "feed_forward": "geglu", "first_attention_norm": False, "type_vocab_size": 0}
    place = save_tiny(tmp_path / "tiny", words_tokenizer, **(changes if rotary else {"norm": "post"}))
    fuzz(place / "config.json", lambda: load_pretrained(place))


def test_configurations(tmp_path: Path) -> None:
    preset = tmp_path / "preset.yaml"
    preset.write_text(presets.dump(tiny_config()), encoding="utf-8")
    fuzz(preset, lambda: presets.resolve(str(preset)))
    deepspeed = tmp_path / "ds.json"
    content = {
        "train_batch_size": 32,
        "optimizer": {"type": "Adam", "params": {"lr": 1e-3, "betas": [0.9, 0.99]}},
        "scheduler": {"type": "WarmupLR", "params": {"warmup_num_steps": 10}},
        "progressive_layer_drop": {"enabled": True, "theta": 0.5, "gamma": 0.001},
        "fp16": {"enabled": True},
    }
    deepspeed.write_text(json.dumps(content), encoding="utf-8")
    fuzz(deepspeed, lambda: import_deepspeed(deepspeed))
    study = tmp_path / "study.yaml"
    study.write_text(
        "seeds: [0, 1]\nset: {train.total_steps: 9}\nsystems:\n  a: {preset: bert-tiny-preln}\n  b: {preset: bert-tiny-pld, baseline: a}\n",
        encoding="utf-8",
    )
    fuzz(study, lambda: read_spec(study))


@pytest.mark.parametrize("name", ["state.json", "best.safetensors"])
def test_fine_tuning_that_is_not_finished_and_was_sealed_again(tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    place, settings = tmp_path / "cell", FinetuneConfig()
    course = Course(checkpoint.Position(3), [{"step": 3, "eval/score": 0.5}], [1.0, 2.0])
    finetuning.write(place, settings, course, tiny_trainer())  # type: ignore[arg-type]
    monkeypatch.setattr(checkpoint, "verify", lambda path, needed: None)

    def read() -> None:
        if finetuning.read(place, settings) is None:
            raise PldError("begins anew")

    read()
    fuzz(tmp_path / ".cell.unfinished" / name, read)


def test_what_a_study_measured(tmp_path: Path) -> None:
    path, time_ = tmp_path / "plan.json", StepTime(0.5, 0.05)
    write_plan(path, Timings("d", {"threads": 1}, {"a": ShapeTime("a", time_, 0.4, 0.6, 9)}), {"a": {"steps": 10}})
    read_timings(path)
    fuzz(path, lambda: read_timings(path))


def test_runs(tmp_path: Path) -> None:
    run = tmp_path / "run"
    run.mkdir()
    (run / "config.yaml").write_text(presets.dump(tiny_config()), encoding="utf-8")
    (run / "metrics.jsonl").write_text("\n".join(json.dumps({"step": step, "train/loss": 1.0}) for step in range(9)), encoding="utf-8")
    (run / "environment.json").write_text(json.dumps({"starts": [{"data_fingerprint": "d"}]}), encoding="utf-8")

    def read() -> None:
        read_metrics(run / "metrics.jsonl")
        if summarise(RunDirectory(run)).state == "unreadable":
            raise PldError("unreadable")

    for name in ("metrics.jsonl", "environment.json", "config.yaml"):
        fuzz(run / name, read, is_refused=False)


@pytest.mark.parametrize("name", ["metrics.csv", "metrics.csv.gz"])
def test_tables_of_runs(tmp_path: Path, name: str) -> None:
    path, pack = tmp_path / name, gzip.compress if name.endswith(".gz") else bytes
    row = {"eval/mlm_loss": 2.0, "eval/frequency_loss": 3.0, "train/loss": 1.5} | dict.fromkeys(SPENT, 1)
    found = Run(
        path=str(tmp_path), name="a", source="a", config=tiny_config(), state="finished", starts=({"threads": 1},), unreadable_lines=0,
        rows=tuple({"step": step, **row} for step in (1, 2, 3)), finetuned={"sst2": (0.5,)},
    )  # fmt: skip
    path.write_bytes(pack(gzip.decompress(table_bytes([found]))))
    read_table(path)
    fuzz(path, lambda: read_table(path))


def test_results_of_fine_tuning(tmp_path: Path) -> None:
    run, path = tmp_path / "run", tmp_path / "finetuned" / "run" / "sst2" / "results.json"
    path.parent.mkdir(parents=True)
    groups = [{"score": {"values": [0.5, 0.25], "mean": 0.375}}, {"score": None}]
    path.write_text(json.dumps({"task": "sst2", "start": str(run / "model"), "groups": groups, "cells": {}}), encoding="utf-8")
    path.with_name("experiment.json").write_text(json.dumps({"experiment": {}, "fingerprints": {"data": "d"}}), encoding="utf-8")
    assert read_scores(run, [path])["finetuned"] == {"sst2": (0.5, 0.25)}
    for damaged in (path, path.with_name("experiment.json")):
        fuzz(damaged, lambda: read_scores(run, [path]))
