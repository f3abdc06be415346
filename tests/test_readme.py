from __future__ import annotations

import json
import re
import shlex
import tomllib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import datasets
import pytest

from pldcli import presets
from pldcli.bench import bench
from pldcli.data.docstrings import docstring_corpus
from pldcli.task_files import hub

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")
COMMANDS = [line for block in re.findall(r"```bash\n(.*?)```", README, re.DOTALL) for line in block.splitlines()]
SETUP, TYPED = [line for line in COMMANDS if line.startswith("python3 -m venv")], [line for line in COMMANDS if line.startswith("pld ")]
SMALLER = (
    "model.num_hidden_layers=12",
    "model.hidden_size=32",
    "model.num_attention_heads=2",
    "model.intermediate_size=64",
    "data.seq_len=32",
    "train.total_steps=2",
    "train.global_batch_size=8",
    "eval.max_sequences=8",
    "runtime.device=cpu",
)


def arguments_of(line: str) -> list[str]:
    """The README's words, with what makes them quick."""
    words = shlex.split(line)
    if "prepare-data" in words:
        return [*words, "--overwrite", "--processes", "1"]
    if "finetune" in words and "config" not in words:
        return [*words, *QUICK, "--jobs", "1", "--device", "cpu"]
    if "--init-from" in words:  # the shape is the model's
        return [*words, *(change for change in SMALLER if not change.startswith("model."))]
    if "analyze" in words:
        return [*words, "--sequences", "4", "--draws", "2"]
    if "bench" in words:
        return [*words, *SMALLER, "--steps", "5"]
    return [*words, *SMALLER] if "pretrain" in words else words


def write_tasks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Files under the names that the README uses, and a hub with a little MNLI on it."""
    words = ["river", "engine", "village", "teacher", "winter", "market"]
    pairs = [(f"The {a} is here.", f"Here is the {b}.", int(a == b)) for a in words for b in words]
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
    pld = {"enabled": True, "theta": 0.5, "gamma": 0.001}
    optimizer = {"type": "Adam", "params": {"lr": 1e-3}}
    Path("deepspeed.json").write_text(json.dumps({"progressive_layer_drop": pld, "optimizer": optimizer}), encoding="utf-8")
    Path("glue", "MRPC", "test.tsv").write_text("\n".join(["index\t#1 ID\t#2 ID\t#1 String\t#2 String", *tests]), encoding="utf-8")
    Path("reviews.csv").write_text("\n".join(["text,stars", *(f"{a},{label}" for a, _, label in pairs)]), encoding="utf-8")
    good = [json.dumps({"sentence_good": a, "sentence_bad": b}) for a, b, _ in pairs[1:4]]
    Path("pairs.jsonl").write_text("\n".join(good), encoding="utf-8")

    def load_dataset(*arguments: str) -> dict[str, datasets.Dataset]:
        assert arguments == ("nyu-mll/glue", "mnli")
        first, second, labels = map(list, zip(*pairs, strict=True))
        rows = {"premise": first, "hypothesis": second, "label": labels, "idx": list(range(len(labels)))}
        return {split: datasets.Dataset.from_dict(rows) for split in ("train", "validation_matched", "validation_mismatched")}

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    monkeypatch.setattr(hub, "_hub_answers", lambda: True)


QUICK = ("epochs=0.1", "max_seq_len=32")


def test_every_command_is_of_a_kind_that_is_tested() -> None:
    others = [line for line in COMMANDS if line not in SETUP and line not in TYPED and not line.startswith("torchrun ")]
    assert others == []


def test_the_lines_that_must_work_as_typed_are_here() -> None:
    assert {"pld prepare-data corpus.txt", "pld pretrain --preset bert-base-pld", "pld finetune glue/mnli", "pld plot-schedule"} <= set(
        TYPED
    )


def test_the_set_up_lines_install_what_there_is() -> None:
    assert len(SETUP) == 2
    assert SETUP[0].endswith("pip install -c constraints.txt . && pld demo")
    assert SETUP[1].endswith("pip install -c constraints.txt -e '.[dev]' && pytest")
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    pinned = set(re.findall(r"^([\w.-]+)==", (ROOT / "constraints.txt").read_text(encoding="utf-8"), re.MULTILINE))
    wanted = {re.split(r"[<>=]", name)[0] for name in project["dependencies"] + project["optional-dependencies"]["dev"]}
    assert {name.lower() for name in wanted} <= {name.lower() for name in pinned}


def test_every_command_works(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, pld: Callable[..., Any]) -> None:
    monkeypatch.chdir(tmp_path)
    Path("corpus.txt").write_text("\n\n".join(docstring_corpus(120_000)), encoding="utf-8")
    write_tasks(monkeypatch)
    monkeypatch.setattr(bench, "_ENOUGH_GAIN", 1e9)  # three micro-batches are enough here
    for line in TYPED:
        outcome = pld(*arguments_of(line)[1:])
        assert outcome.code == 0, f"{line}: {outcome.err}"
    assert Path("schedules.png").is_file() and Path("bench.png").is_file()
    assert {path.name for path in Path("runs").iterdir()} == {"bert-base-pld", "bert-small-pld", "control", "continued"}
    assert {path.name for path in Path("finetuned").rglob("model") if path.is_dir()} == {"model"}
    assert Path("glue.zip").is_file() and Path("smaller", "model.safetensors").is_file() and Path("depth.png").is_file()


def test_the_line_for_several_processes_works(prepared: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from torch.distributed.run import main

    monkeypatch.chdir(tmp_path)
    Path("data").symlink_to(prepared)
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    [line] = [line for line in COMMANDS if line.startswith("torchrun ")]
    main(arguments_of(line)[1:])
    assert (tmp_path / "runs" / "two-processes" / "model" / "model.safetensors").is_file()


def test_the_table_of_presets_is_complete() -> None:
    families = {"-".join(name.split("-")[:2]) for name in presets.names()}
    assert len(families) == 4
    for family in families:
        config = presets.resolve(f"{family}-pld").config.model
        shape = f"| {config.num_hidden_layers} x {config.hidden_size} | {config.vocab_size:,} |"
        assert f"| `{family}-*` {shape}" in README
