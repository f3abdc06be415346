"""The benchmark of loader, dropout, phase timer and compiling at tiny sizes: structure, and arithmetic between columns; never a time."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from pldcli.data.prepared import open_prepared
from pldcli.engine.runtime import launch
from pldcli.presets import resolve
from pldcli.pretraining.assembly import build_trainer
from pldcli.tokenization.tokenizer import load_tokenizer
from tests.benchmark_scripts import load, number, rows_of

TINY = (
    "model.num_hidden_layers=2",
    "model.hidden_size=32",
    "model.num_attention_heads=2",
    "model.intermediate_size=64",
    "train.global_batch_size=8",
    "train.micro_batch_size=2",
)
Run = Callable[..., str]


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, prepared: Path) -> Run:
    """Measure some parts on a tiny model; return the document."""

    def call(*words: object) -> str:
        out = tmp_path / "table.md"
        given = [*words, "--preset", "bert-tiny-preln", "--set", *TINY, "--precision", "fp32", "--out", out]
        monkeypatch.setattr(sys, "argv", ["benchmarks/loader.py", *map(str, given)])
        load("loader").main()
        return out.read_text(encoding="utf-8")

    return call


def test_every_layout_is_built_from_every_corpus(run: Run, prepared: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    corpus = tmp_path / "corpus.txt"
    corpus.write_text((prepared.parent / "corpus.txt").read_text(encoding="utf-8").replace("\n", "\n\n"), encoding="utf-8")
    sizes = ("--sizes-mb", 0.1, 0.4, "--corpus", corpus, "--vocab", 512)
    document = run("--parts", "loader", *sizes, "--batch-tokens", 1024, "--batches", 2, "--rounds", 2)
    rows = rows_of(document, "## The loader")
    layouts = [[name, length] for name in ("spans", "NSP pairs", "packed documents") for length in ("128", "512")]
    assert [row[:2] for row in rows] == layouts * 2
    assert [row[2] for row in rows] == ["0.1"] * 6 + ["0.4"] * 6
    for small, large in zip(rows[:6], rows[6:], strict=True):
        assert number(large[3]) == pytest.approx(4 * number(small[3]), rel=0.25), "four times the text, four times the rows"
    for row in rows:
        share, milliseconds, rate, padded = (number(row[column]) for column in (4, 6, 7, 8))
        assert padded * milliseconds == pytest.approx(1.024, rel=0.1)
        assert rate <= padded + 0.01
        if row[0] == "spans":
            assert share == 1.0 and rate == pytest.approx(padded, abs=0.01)
    printed = capsys.readouterr()
    assert document.strip() in printed.out
    assert "round 2 of 2" in printed.err


def test_what_is_timed_is_what_training_reads(prepared: Path) -> None:
    data = open_prepared(prepared)
    layout = {"spans": "data.layout=spans", "NSP pairs": "data.layout=nsp-pairs", "packed documents": "data.packing=documents"}
    for name, change in layout.items():
        feed = load("loader").Feed(name, 64, data, 512)
        assert feed.tokens_per_second(3) > 0
        changes = [*TINY, change, "data.seq_len=64", "train.micro_batch_size=8", "pld.draws_per_step=1", "runtime.precision=fp32"]
        with launch("cpu") as runtime:
            trainer = build_trainer(resolve("bert-tiny-preln", [*changes, "model.vocab_size=512"]).config, data, runtime)
        [[timed]], [[trained]] = feed.batches.step(feed.built), trainer.batches.step(3)
        assert vars(timed).keys() == vars(trained).keys()
        for field, value in vars(trained).items():
            same = torch.equal(value, getattr(timed, field)) if isinstance(value, torch.Tensor) else value == getattr(timed, field)
            assert same, (name, field)


@pytest.fixture
def tiny_model(tmp_path: Path) -> Path:
    from tests.finetuning.conftest import WORDS, save_tiny

    (tmp_path / "vocab.txt").write_text("\n".join(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *WORDS]), encoding="utf-8")
    return save_tiny(tmp_path / "tiny", load_tokenizer(tmp_path / "vocab.txt"), norm="post", max_position_embeddings=128)


@pytest.mark.rehearsal
def test_dropout_is_compared_alone_and_in_steps(run: Run, prepared: Path, tiny_model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(load("dropout_against_torch"), "SHAPES", ((4, 8, 16), (4, 8, 32)))
    document = run("--parts", "dropout", "--data", prepared, "--model", tiny_model, "--steps", 2, "--rounds", 3)
    alone = rows_of(document, "## Dropout on a CPU")
    assert [row[:2] for row in alone] == [[f"4 x 8 x {width}", name] for width in (16, 32) for name in ("bf16", "fp32")]
    assert all(number(cell) > 0 for row in alone for cell in row[2:])
    steps = rows_of(document, "which counts in it too.")
    assert [row[0].split(",")[0] for row in steps] == ["fine-tuning", "pre-training"]
    assert steps[0][0].endswith("128 tokens a row"), "rows are full"
    for row in steps:
        torchs, ours, none = (number(cell) for cell in row[1:4])
        # Medians of two turns are their means, so that quotients of columns lie near to quotients of turns.
        assert number(row[4]) == pytest.approx(torchs / ours, rel=0.3)
        assert number(row[5]) == pytest.approx(1 - none / torchs, abs=0.3)
        assert number(row[6]) == pytest.approx(1 - none / ours, abs=0.3)


def test_steps_drop_in_the_way_that_they_are_named_after(prepared: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    script = load("dropout_against_torch")
    options = type("Options", (), {"set": list(TINY), "steps": 1, "precision": "fp32", "preset": "bert-tiny-preln"})()
    calls: list[str] = []

    def counted(way: str) -> Callable[..., torch.Tensor]:
        original = script.WAYS[way]

        def drop(x: torch.Tensor, p: float) -> torch.Tensor:
            calls.append(way if p else "none")
            return original(x, p)

        return drop

    monkeypatch.setattr(script, "WAYS", {way: counted(way) for way in script.WAYS})
    monkeypatch.setattr(script.dropout_module, "dropout", counted("ours"))
    with launch("cpu") as runtime:
        _, trainers = script.pretraining(open_prepared(prepared), runtime, options)
        for way, trainer in trainers.items():
            calls.clear()
            seconds, _ = script.steps_in_turn({way: trainer}, warm_up_steps=0, steps=1, around=script.dropping)
            assert set(calls) == {way}
            if way != "none":
                assert len(calls) == 16 * (1 + 2 * 3), "embeddings, and attention weights and two sublayers of two blocks; 16 passes"
            assert len(seconds[way]) == 1


def test_marks_of_a_step_are_counted(run: Run, prepared: Path) -> None:
    document = run("--parts", "phases", "--data", prepared, "--steps", 2, "--rounds", 2)
    one, four = rows_of(document, "## The phase timer")
    # Two around the batch, three in each forward pass, two around the optimizer; four passes in both.
    assert [row[2] for row in (one, four)] == ["16", "16"]
    for row in (one, four):
        share = number(row[2]) * number(row[1]) * 1e-3 / number(row[3])
        assert number(row[4].rstrip("%")) / 100 == pytest.approx(share, rel=0.05)


def test_compiled_steps_are_compared_with_plain_ones(run: Run, prepared: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    compiled: list[object] = []
    monkeypatch.setattr(torch.nn.Module, "compile", lambda module, **_: compiled.append(module))
    monkeypatch.setattr("pldcli.engine.objectives.torch.compile", lambda function: compiled.append(function) or function)
    document = run("--parts", "compile", "--data", prepared, "--steps", 2)
    (row,) = rows_of(document, "## torch.compile")
    assert row[0] == "bert-tiny-preln, fp32"
    assert number(row[3]) == pytest.approx(number(row[1]) / number(row[2]), rel=0.3)
    assert len(compiled) >= 3, "embeddings and two blocks, of one of the two trainers"
    assert len([part for part in compiled if isinstance(part, torch.nn.Module)]) == 3


def test_compiling_is_only_measured_on_request(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", ["benchmarks/loader.py"])
    assert load("loader").parse().parts == ["loader", "dropout", "phases"]
