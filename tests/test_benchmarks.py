from __future__ import annotations

import argparse
import importlib.util
import re
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from pldcli.data.tokenizer import load_tokenizer

SCRIPT = Path(__file__).parents[1] / "benchmarks" / "step_time.py"


def test_step_time_measures_both_and_writes_the_table(
    prepared: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    script = load_script("step_time")
    words = ["--data", prepared, "--size", "tiny", "--steps", "10", "--batch", "2", "--threads", torch.get_num_threads()]
    out = tmp_path / "table.md"
    monkeypatch.setattr(sys, "argv", ["benchmarks/step_time.py", *map(str, words), "--out", str(out)])
    script.main()
    table = out.read_text(encoding="utf-8")
    assert table.strip() in capsys.readouterr().out
    assert "python benchmarks/step_time.py --data" in table
    assert "(mean of 10 fixed-depth draws)" in table
    kept = float(re.search(r"blocks kept \| ([\d.]+) of 8", table)[1])
    assert 5.0 <= kept <= 6.0
    assert 0.2 < float(re.search(r"predicted \| ([\d.]+)", table)[1]) < 0.3
    ratio = float(re.search(r"mean \| ([\d.]+)", table)[1])
    dense, dropped = (float(re.search(rf"{name}, seconds per step \| mean ([\d.]+)", table)[1]) for name in ("dense", "dropped"))
    assert 0.0 < ratio == pytest.approx(dropped / dense, rel=0.2)


def load_script(name: str) -> Any:
    spec = importlib.util.spec_from_file_location(name, SCRIPT.with_name(f"{name}.py"))
    assert spec is not None and spec.loader is not None
    script = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(script)
    return script


@pytest.fixture(scope="module")
def tiny_glue(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A tiny model and an RTE of forty pairs; whether the first sentence names the river decides."""
    from tests.engine.conftest import WORDS, save_tiny

    place = tmp_path_factory.mktemp("glue")
    (place / "vocab.txt").write_text("\n".join(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *WORDS]), encoding="utf-8")
    model = save_tiny(place / "tiny", load_tokenizer(place / "vocab.txt"), norm="post", max_position_embeddings=128)
    (place / "RTE").mkdir()
    for split in ("train", "dev"):
        rows = [f"{i}\t{'the river' if i % 2 else 'a village'} {WORDS[i % 20]}\tand\t{'not_' * (i % 2)}entailment" for i in range(40)]
        (place / "RTE" / f"{split}.tsv").write_text("\n".join(["index\tsentence1\tsentence2\tlabel", *rows]), encoding="utf-8")
    return place, model


def test_the_proof_puts_both_programs_side_by_side(
    tiny_glue: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    data, model = tiny_glue
    script, out = load_script("finetune_proof"), tmp_path / "table.md"
    words = [
        "--data-dir",
        data,
        "--results",
        tmp_path / "runs",
        "--tasks",
        "rte",
        "--systems",
        "pld",
        "trainer",
        "random",
        "--model",
        model,
    ]
    words += ["--name", "tiny", "--seeds", "2", "--epochs", "12", "--learning-rate", "3e-3", "--batch-size", "8", "--precision", "fp32"]
    monkeypatch.setattr(sys, "argv", ["finetune_proof.py", *map(str, words), "--out", str(out)])
    script.main()
    assert len(list((tmp_path / "runs").glob("*.json"))) == 6
    table = out.read_text(encoding="utf-8")
    row = next(line for line in table.splitlines() if line.startswith("| rte, 12 epoch(s) |"))
    ours, theirs = (float(cell.split(" ± ")[0]) for cell in row.split(" | ")[2:4])
    assert ours > 90 and theirs > 90, "both learn it"
    assert capsys.readouterr().out.count(" seed ") == 6
    script.main()
    assert " seed " not in capsys.readouterr().out, "what is there is not done again"


@pytest.mark.parametrize("how", ["like for like", "Trainer's defaults"])
def test_the_speed_of_fine_tuning_is_measured_for_both(tiny_glue: tuple[Path, Path], how: str) -> None:
    data, model = tiny_glue
    script = load_script("finetune_vs_transformers")
    options = argparse.Namespace(data_dir=data, model=model, steps=3)
    rates = [script.measure(system, how, "rte", options) for system in ("pld", "trainer")]
    assert all(10 < rate < 1e7 for rate in rates)
