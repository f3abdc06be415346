"""The commands that README.md and docs/ show: made quick, and the files that they read."""

from __future__ import annotations

import importlib
import json
import shlex
import sys
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import datasets
import pytest

from pldcli.advice import advise
from pldcli.bench import bench
from pldcli.bench.budget import Calibration
from pldcli.config import Config
from pldcli.corpus.docstrings import docstring_corpus
from pldcli.data.prepared import PreparedData
from pldcli.task_files import hub

ROOT = Path(__file__).parents[1]
README = ROOT / "README.md"
SMALLER = (
    "model.hidden_size=32",
    "model.num_attention_heads=2",
    "model.intermediate_size=64",
    "data.seq_len=32",
    "model.local_attention=32",
    "train.total_steps=2",
    "train.global_batch_size=8",
    "eval.max_sequences=8",
    "runtime.device=cpu",
)
SLOW = ("study", "doctor")
"""Commands that measure steps, or compile, whatever they are given: here only their words are checked."""
SHORT = ("--budget", "2s", "--device", "cpu", "train.global_batch_size=4")
"""Also of a slow machine a budget of some steps."""
QUICK = ("epochs=0.1", "max_seq_len=32")


def load(name: str) -> Any:
    """Import a script of docs/: its own directory is where it finds the others."""
    if str(ROOT / "docs") not in sys.path:
        sys.path.append(str(ROOT / "docs"))
    return importlib.import_module(name)


def arguments_of(line: str) -> list[str]:
    """The words of a command, with what makes it quick."""
    words = shlex.split(line)
    if words[1] in SLOW:
        return [*words, "--help"]
    if "prepare-data" in words:
        return [*words, "--overwrite", "--processes", "1"]
    if "finetune" in words and "config" not in words:
        return [*words, *QUICK, "--jobs", "1", "--device", "cpu"]
    if "advise" in words or "auto" in words:
        return [*_without(words, "--budget"), *SHORT]
    if "analyze" in words:
        return [*words, "--sequences", "4", "--draws", "2"]
    if "bench" in words:
        return [*_without(words, "--steps"), *SMALLER, "--steps", "5"]
    if "pretrain" not in words:
        return words
    kept = ["model."] if "--init-from" in words else []  # the shape is the model's
    if any(word.startswith("data.length_stages=") for word in words):
        kept += ["data.seq_len", "model.local_attention", "train."]  # these have to fit the stages
        words = [*words, "train.total_steps=10", "train.global_batch_size=16", "train.initial_batch_size=4"]
    if any(word.startswith("optim.warmup_steps=") for word in words):
        words = [*words, "optim.warmup_steps=1"]  # which has to fit the run
    words = _without(_without(words, "--budget"), "--gpus")  # several processes have tests of their own
    return [*words, *(change for change in SMALLER if not change.startswith(tuple(kept)))]


def run_all(lines: Iterable[str], pld: Callable[..., Any]) -> None:
    """Run commands in their order, each once."""
    for line in dict.fromkeys(lines):
        outcome = pld(*arguments_of(line)[1:])
        assert outcome.code == 0, f"{line}: {outcome.err}"


def three_steps(config: Config, *, data: PreparedData, seconds: float) -> Calibration:
    """Say, in place of `calibrate`, that three steps of any model fit; measuring them has tests of its own."""
    return Calibration(seconds / 3, 3)


def _without(words: list[str], option: str) -> list[str]:
    if option not in words:
        return words
    place = words.index(option)
    return words[:place] + words[place + 2 :]


def write_inputs(monkeypatch: pytest.MonkeyPatch) -> None:
    """Files under the names that the pages use, a hub with a little MNLI on it, and a search for micro-batches that ends soon."""
    documents = docstring_corpus(120_000)
    Path("corpus.txt").write_text("\n\n".join(documents), encoding="utf-8")
    Path("held-out.txt").write_text("\n\n".join(text[:200].upper() for text in documents[:20]), encoding="utf-8")
    words = ["river", "engine", "village", "teacher", "winter", "market"]
    pairs = [(f"The {a} is here.", f"Here is the {b}.", int(a == b)) for a in words for b in words]
    _write_glue(pairs)
    Path("reviews.csv").write_text("\n".join(["text,stars", *(f"{a},{label}" for a, _, label in pairs)]), encoding="utf-8")
    good = [json.dumps({"sentence_good": a, "sentence_bad": b}) for a, b, _ in pairs[1:4]]
    Path("pairs.jsonl").write_text("\n".join(good), encoding="utf-8")
    Path("pairs").mkdir()
    for name in ("agreement", "islands"):
        Path("pairs", f"{name}.jsonl").write_text("\n".join(good), encoding="utf-8")

    def load_dataset(*arguments: str) -> dict[str, datasets.Dataset]:
        assert arguments == ("nyu-mll/glue", "mnli")
        first, second, labels = map(list, zip(*pairs, strict=True))
        rows = {"premise": first, "hypothesis": second, "label": labels, "idx": list(range(len(labels)))}
        return {split: datasets.Dataset.from_dict(rows) for split in ("train", "validation_matched", "validation_mismatched")}

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    monkeypatch.setattr(hub, "_hub_answers", lambda: True)
    monkeypatch.setattr(bench, "_ENOUGH_GAIN", 1e9)  # three micro-batches are enough here
    monkeypatch.setattr(advise, "calibrate", three_steps)


def _write_glue(pairs: list[tuple[str, str, int]]) -> None:
    for folder, heading, row in (
        ("MRPC", "Quality\t#1 ID\t#2 ID\t#1 String\t#2 String", lambda i, a, b, label: f"{label}\t1\t2\t{a}\t{b}"),
        ("RTE", "index\tsentence1\tsentence2\tlabel", lambda i, a, b, label: f"{i}\t{a}\t{b}\t{'not_' * (1 - label)}entailment"),
    ):
        place = Path("glue", folder)
        place.mkdir(parents=True)
        for split in ("train", "dev"):
            text = "\n".join([heading, *(row(i, *pair) for i, pair in enumerate(pairs))])
            (place / f"{split}.tsv").write_text(text, encoding="utf-8")
    tests = [f"{i}\t1\t2\t{a}\t{b}" for i, (a, b, _) in enumerate(pairs)]
    Path("glue", "MRPC", "test.tsv").write_text("\n".join(["index\t#1 ID\t#2 ID\t#1 String\t#2 String", *tests]), encoding="utf-8")
