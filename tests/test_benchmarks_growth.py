"""The benchmarks of growth, dropping and optimizers at tiny sizes: structure, and arithmetic between columns; never a time."""

from __future__ import annotations

import json
import statistics
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from pldcli.data.prepared import open_prepared
from pldcli.engine.runtime import Runtime, launch
from pldcli.pretraining.assembly import build_trainer
from pldcli.runs.checkpoint import Position
from pldcli.system.signals import StopRequest
from tests.benchmark_scripts import load, number, rows_of

Run = Callable[..., tuple[Any, str]]


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Run:
    """Run a script's main function; return the script and what it said on stderr."""

    def call(name: str, *words: object, script: Any = None) -> tuple[Any, str]:
        script = script or load(name)
        monkeypatch.setattr(sys, "argv", [f"benchmarks/{name}.py", *map(str, words), "--threads", "1"])
        capsys.readouterr()
        script.main()
        return script, capsys.readouterr().err

    return call


# Growth

POINT = (
    "--base",
    "depth=1",
    "width=32",
    "vocabulary=512",
    "length=32",
    "micro-batch=2",
    "--rounds",
    2,
    "--steps",
    3,
    "--precision",
    "fp32",
)


@pytest.fixture
def growth_here(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Measure in this process: starting Python takes most of the time of a tiny measurement."""
    script = load("growth")
    seen: list[str] = []

    def here(task: dict[str, Any], options: Any) -> dict[str, Any]:
        seen.append(task["kind"])
        return {**script.MEASUREMENTS[task["kind"]](task), "workers": 0, "workers_bytes": 0}

    monkeypatch.setattr(script, "in_a_process", here)
    return script, seen


@pytest.mark.rehearsal
def test_growth_measures_every_axis_once(growth_here: Any, run: Run, prepared: Path, tmp_path: Path) -> None:
    script, seen = growth_here
    corpus, out, plot = tmp_path / "text.txt", tmp_path / "growth.md", tmp_path / "growth.png"
    corpus.write_text("\n\n".join(f"{i} villages stand beside {i % 7} rivers and {i % 11} hills." for i in range(900)), encoding="utf-8")
    words = ["--results", tmp_path / "points", "--data", prepared, "--corpus", corpus, *POINT, "--processes", 1]
    words += ["--length-values", 16, 32, 64, "--depth-values", 1, 2, "--width-values", 32, "--vocabulary-values", 512, 1024]
    words += ["--micro-batch-values", 1, 2, 4, "--corpus-values", 0.02, 0.1, "--out", out, "--plot", plot]
    _, said = run("growth", *words, script=script)
    # The base point is on five axes, and measured once a round.
    assert seen.count("step") == 2 * (1 + 2 + 1 + 0 + 1 + 2)
    assert seen.count("prepare") == seen.count("batches") == 4
    assert said.count("round 1, ") == said.count("round 2, ") == 9
    assert len(list((tmp_path / "points").glob("*.json"))) == 18
    assert not list((tmp_path / "points").glob(".scratch*"))
    document = out.read_text(encoding="utf-8")
    check_steps(document, tmp_path / "points")
    (small, large) = rows_of(document, "## MB of text")
    assert (small[0], large[0], small[4]) == ("0.02", "0.1", "none")
    assert "each size holds the text given so many times: 0." in document
    assert plot.read_bytes().startswith(b"\x89PNG")
    for flags in ([], ["--table"]):
        _, said = run("growth", *words, *flags, script=script)
        assert said == "", "what is there is not measured again"
        assert rows_of(out.read_text(encoding="utf-8"), "## MB of text") == [small, large]


def check_steps(document: str, points: Path) -> None:
    script = load("growth_report")
    results = [json.loads(place.read_text(encoding="utf-8")) for place in points.glob("step-*.json")]
    assert all(len(result["seconds"]) == 3 and result["flops"] > 0 for result in results)
    values = {"length": [16, 32, 64], "depth": [1, 2], "width": [32], "vocabulary": [512, 1024], "micro-batch": [1, 2, 4]}
    base = {"length": 32, "depth": 1, "width": 32, "vocabulary": 512, "micro-batch": 2}
    for axis, wanted in values.items():
        rows = rows_of(document, f"## {script.title(axis)}")
        assert [number(row[0]) for row in rows] == wanted
        origin = rows[wanted.index(base[axis])]
        assert origin[6] == "1.000 (1.000 to 1.000)" and number(origin[7]) == number(origin[8]) == 1.0
        for row in rows:
            assert number(row[2]) * number(row[3]) == pytest.approx(1e6, rel=0.01), "tokens/s and µs per token"
            assert number(row[8]) == pytest.approx(number(row[6]) / number(row[7]), rel=0.01), "time / operations"
    lengths, batches, blocks = (rows_of(document, f"## {script.title(axis)}") for axis in ("length", "micro-batch", "depth"))
    assert [number(row[7]) for row in batches] == [0.5, 1.0, 2.0]
    assert number(lengths[2][7]) > 2.0, "attention grows with the square"
    assert 1.0 < number(blocks[1][7]) < 2.0, "the head does not grow"


@pytest.mark.rehearsal
def test_growth_measures_in_fresh_processes_and_says_what_is_missing(run: Run, prepared: Path, tmp_path: Path) -> None:
    words = ["--results", tmp_path, "--data", prepared, *POINT, "--rounds", 1, "--axes", "depth", "--depth-values", 1]
    with pytest.raises(SystemExit, match="nothing was measured"):
        run("growth", *words, "--table")
    run("growth", *words)
    (place,) = tmp_path.glob("*.json")
    result = json.loads(place.read_text(encoding="utf-8"))
    assert result["workers"] == 0
    if sys.platform == "linux":
        assert 50e6 < result["floor_bytes"] < 5e9 and 0 <= result["memory_bytes"] < 1e9
    with pytest.raises(SystemExit, match="512 entries"):
        run("growth", *words, "--axes", "vocabulary", "--vocabulary-values", 100)


@pytest.mark.parametrize("size", [0.0001, 0.00057, 0.002])
def test_text_is_cut_and_repeated_to_size(tmp_path: Path, size: float) -> None:
    one, two = tmp_path / "one.txt", tmp_path / "two.txt"
    one.write_text("\n".join(f"line {i}" for i in range(40)), encoding="utf-8")
    two.write_text("\n".join(f"verse {i}" for i in range(30)) + "\n", encoding="utf-8")
    place = tmp_path / "scratch"
    place.mkdir()
    corpus, times = load("measuring").sized_text([one, two], place, size)
    text = corpus.read_text(encoding="utf-8")
    assert size * 1e6 <= len(text) < size * 1e6 + 12
    assert times == pytest.approx(len(text) / (one.stat().st_size + two.stat().st_size))
    if size > 0.0005:
        assert "line 39\n\nverse 0\n" in text, "a document ends with its file"


# Dropping

SHAPE = ("model.num_hidden_layers=4", "model.hidden_size=32", "model.intermediate_size=64", "data.seq_len=32")


@pytest.mark.rehearsal
def test_dropping_answers_every_question(run: Run, prepared: Path, tmp_path: Path) -> None:
    out = tmp_path / "dropping.md"
    words = ["--data", prepared, "--preset", "bert-tiny-pld", "--set", *SHAPE, "--batch", 8, "--precision", "fp32", "--out", out]
    run("dropping", *words, "--rounds", 2, "--repeats", 2, "--steps", 5)
    document = out.read_text(encoding="utf-8")
    for heading, apart in (
        ("### 1 draw", False),
        ("### 4 draws, the same blocks in all groups", False),
        ("### 4 draws, other blocks in each group", True),
    ):
        rows = rows_of(document, heading)
        assert [row[0] for row in rows] == ["0", "1", "2", "3", "4"]
        assert [row[1] for row in rows] == (["0", "0", "0", "0", "4"] if apart else ["0", "1", "2", "3", "4"])
        assert rows[0][7:] == ["-", "-", "-"]
        for row in rows[1:]:
            assert number(row[9]) == pytest.approx(number(row[7]) / number(row[8]), abs=0.01)
        assert number(rows[2][8]) == pytest.approx(2 * number(rows[1][8]), abs=0.002), "the count is linear"
    updates = rows_of(document, "## The optimizer when blocks ran in no group")
    assert [number(row[5]) for row in updates] == sorted((number(row[5]) for row in updates), reverse=True)
    assert updates[0][5:] == ["1.000"] * 4


def test_a_dropped_block_leaves_no_call_and_no_byte(run: Run, prepared: Path, tmp_path: Path) -> None:
    out = tmp_path / "dropping.md"
    words = ["--data", prepared, "--preset", "bert-tiny-pld", "--set", *SHAPE, "--batch", 8, "--precision", "fp32", "--out", out]
    run("dropping", *words, "--parts", "calls", "communication")
    document = out.read_text(encoding="utf-8")
    assert "## Spread" not in document
    calls = rows_of(document, "## Calls")
    assert [row[0] for row in calls] == ["1"] * 5 + ["4"] * 5
    for rows in (calls[:5], calls[5:]):
        for row in rows:
            assert sum(map(int, row[2:5])) == int(row[5])
        assert len({row[6] for row in rows[1:]}) == 1, "every dropped block takes equally many calls with it"
        assert float(rows[1][6]) > 100
    sent = rows_of(document, "## Communication")
    assert [int(row[1]) for row in sent] == [7, 6, 5, 4, 3], "embeddings, norm, head, and each block with a gradient"
    block = 4 * (4 * 33 * 32 + 33 * 64 + 65 * 32 + 4 * 32) / 1e6
    assert number(sent[0][2]) - number(sent[4][2]) == pytest.approx(4 * block, abs=0.02)
    drawn = rows_of(document, "Over 1,000 steps of gates drawn at theta 0.5:")
    assert [row[0] for row in drawn] == ["1 draw(s), bernoulli", "1 draw(s), fixed-depth", "4 draw(s), bernoulli", "4 draw(s), fixed-depth"]
    for row in drawn:
        assert number(row[1]) == pytest.approx(1.25, abs=0.1), "4 blocks at keep probabilities 7/8, 3/4, 5/8 and 1/2"
        assert number(row[3]) == pytest.approx(7 - number(row[2]), abs=0.01)
    assert number(drawn[0][1]) == number(drawn[0][2]) > 10 * number(drawn[2][2]), "four draws seldom agree"


def test_spread_of_step_time(run: Run, prepared: Path, tmp_path: Path) -> None:
    out = tmp_path / "dropping.md"
    words = ["--data", prepared, "--preset", "bert-tiny-pld", "--set", *SHAPE, "--batch", 8, "--precision", "fp32", "--out", out]
    script, said = run("dropping", *words, "--parts", "spread", "--steps", 8)
    rows = rows_of(out.read_text(encoding="utf-8"), "## Spread of step time")
    assert [row[0] for row in rows] == ["dense", *(f"{draws} draw(s), {draw}" for draws in (1, 4) for draw in ("bernoulli", "fixed-depth"))]
    assert "spread: 10 steps of 11" in said
    assert rows[0][1] == "4.00 ± 0.00"
    for row in rows:
        mean, deviation, low, high = (number(cell) for cell in row[2:6])
        assert 0 < low <= high
        assert number(row[6]) == pytest.approx(deviation / mean, abs=0.01 + 0.1 / mean)
        assert number(row[7]) == pytest.approx(mean / number(rows[0][2]), rel=0.1)
    assert script.percentile([3.0, 1.0, 2.0], 0.5) == 2.0
    assert script.percentile([float(i) for i in range(101)], 0.05) == pytest.approx(5.0)
    assert script.percentile([1.0, 2.0], 0.95) == pytest.approx(1.95)


def test_dropping_times_real_steps(prepared: Path) -> None:
    """A timed step does what a training step does: it moves the blocks that ran, and no others."""
    script = load("dropping")
    options = type(
        "Options", (), {"batch": 8, "steps": 4, "precision": "fp32", "set": list(SHAPE), "preset": "bert-tiny-pld", "dropped": None}
    )()
    with launch("cpu") as runtime:
        bench = script.Bench(open_prepared(prepared), runtime, options)
        trainer = bench.trainer(1)
        before = [block.qkv.weight.detach().clone() for block in trainer.model.blocks]
        plans = bench.plans(1, 2, first=3)
        assert plans[0].gates == (False, True, True, False)
        seconds = script.timed_step(trainer, plans)
        moved = [not bool((old == block.qkv.weight).all()) for old, block in zip(before, trainer.model.blocks, strict=True)]
    assert moved == [False, True, True, False]
    assert set(seconds) == set(script.PHASES) and all(value > 0 for value in seconds.values())


# Optimizers


def test_optimizers_compare_losses_at_equal_tokens(run: Run, prepared: Path, tmp_path: Path) -> None:
    out = tmp_path / "optimizers.md"
    words = ["--data", prepared, "--results", tmp_path / "runs", "--preset", "bert-tiny-preln", "--precision", "fp32", "--out", out]
    words += ["--set", *SHAPE, "eval.max_sequences=16", "--batch", 2, "--times", 4, "--tokens", 32 * 2 * 40]
    words += ["--lamb-learning-rates", 0.002, 0.02, "--muon-learning-rates", 0.02]
    script, _ = run("optimizers", *words)
    rows = rows_of(out.read_text(encoding="utf-8"), "# Loss at equal tokens")
    assert [row[:5] for row in rows] == [
        ["AdamW", "2", "0.001", "40", "2,560"],
        ["AdamW", "8", "0.001", "10", "2,560"],
        ["LAMB", "8", "0.002", "10", "2,560"],
        ["LAMB", "8", "0.02", "10", "2,560"],
        ["Muon", "2", "0.02", "40", "2,560"],
    ]
    for row in rows:
        assert number(row[7]) == pytest.approx(number(row[6]) - number(rows[0][6]), abs=2e-4)
    results = [json.loads(place.read_text(encoding="utf-8")) for place in sorted((tmp_path / "runs").glob("*.json"))]
    assert len({result["validation_loss"] for result in results}) == 5
    small = next(result for result in results if result["run"]["times"] == 1)
    losses = [loss for _, loss in small["curve"]]
    assert [tokens for tokens, _ in small["curve"]] == [64 * (i + 1) for i in range(40)]
    assert small["train_loss"] == pytest.approx(statistics.fmean(losses[-4:]))
    assert losses == pytest.approx(plain_losses(script, prepared), rel=1e-5), "the run is an ordinary one"
    _, said = run("optimizers", *words)
    assert said == "", "what is there is not done again"
    with pytest.raises(SystemExit, match="on other data, or with other"):
        run("optimizers", *words, "--set", *SHAPE, "eval.max_sequences=8", "--table")


def plain_losses(script: Any, prepared: Path) -> list[float]:
    import torch

    from pldcli import presets

    changes = [*SHAPE, "train.global_batch_size=2", "train.total_steps=40", "runtime.precision=fp32"]
    config = presets.resolve("bert-tiny-preln", changes, from_data={"model.vocab_size": 512}).config
    trainer = build_trainer(config, open_prepared(prepared), Runtime(torch.device("cpu")))
    return [seen.losses["loss"] for seen in trainer.steps(Position(), observe=lambda step: True, stop=StopRequest())]
