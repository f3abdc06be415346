from __future__ import annotations

import json
import re
import sys
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.benchmark_scripts import load

pytest.importorskip("accelerate")
pytest.importorskip("datasets")
pytest.importorskip("psutil")


@pytest.fixture
def pretrain() -> Any:
    return load("pretrain_vs_transformers")


@pytest.fixture
def systems(pretrain: Any) -> Any:
    return load("pretrain_systems")


@pytest.fixture
def cases(pretrain: Any) -> Any:
    return load("pretrain_cases")


@pytest.fixture
def preparing() -> Any:
    return load("prepare_vs_datasets")


@pytest.fixture
def case(pretrain: Any, tmp_path: Path) -> Any:
    """Two blocks, and four rows of 40 tokens; the weights are there."""
    place = tmp_path / "weights"
    place.mkdir()
    found = pretrain.Case(
        shape="L2-H64",
        vocab_size=200,
        precision="fp32",
        seq_len=40,
        tokens=160,
        dropout=0.0,
        threads=1,
        total_steps=pretrain.WARM_UP_STEPS + 6,
        local_attention=False,
        compiled=False,
        seed=3,
        weights=str(place),
    )
    pretrain.save_weights(found)
    return found


TINY_WORDS = [
    "--shapes",
    "L2-H64",
    "--vocab",
    "200",
    "--seq-len",
    "40",
    "--tokens",
    "160",
    "--rounds",
    "3",
    "--steps",
    "2",
    "--threads",
    "1",
]


def rows_of(table: str) -> list[list[str]]:
    return [[cell.strip() for cell in line.strip("| ").split(" | ")] for line in table.splitlines() if re.match(r"\| [L\d]", line)]


def run_main(script: Any, words: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", [f"benchmarks/{script.__name__}.py", *words])
    script.main()


@pytest.mark.rehearsal
def test_every_system_has_its_row_in_both_precisions(
    pretrain: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "table.md"
    words = [*TINY_WORDS, "--systems", *pretrain.SYSTEMS, "--out", str(out)]
    run_main(pretrain, words, monkeypatch)
    table, printed = out.read_text(encoding="utf-8"), capsys.readouterr()
    assert table.strip() in printed.out
    assert "python benchmarks/pretrain_vs_transformers.py --shapes L2-H64" in table
    assert "4 rows of 40 tokens a step, 6 targets in each" in table
    rows = [row for row in rows_of(table) if row[2] in pretrain.SYSTEMS.values()]
    assert [row[2] for row in rows] == [*pretrain.SYSTEMS.values()] * 2
    assert [row[-1] for row in rows if row[2] == pretrain.SYSTEMS["bert"]] == ["1", "1"]
    assert all(100 < float(row[4].replace(",", "")) < 1e7 for row in rows)
    savings = [row for row in rows_of(table) if row[2].endswith("of 2")]
    assert [row[0] for row in savings] == ["L2-H64", "L2-H64, modern"] * 2
    for _, _, kept, time, saved, predicted, _, quotient, _ in savings:
        assert 1.0 <= float(kept.split()[0]) <= 2.0
        assert float(saved) == pytest.approx(1 - float(time.split()[0]), abs=2e-3)
        assert float(quotient) == pytest.approx(float(saved) / float(predicted), abs=0.02)
    losses = dict(re.findall(r"([\w-]+) (\d\.\d+)", printed.err.partition("first step: ")[2].partition("\n")[0]))
    assert losses.keys() == pretrain.SYSTEMS.keys()
    for names in pretrain.EQUAL_WEIGHTS:
        same = [float(losses[name]) for name in names]
        assert max(same) - min(same) < 1e-5 * min(same)


@pytest.mark.usefixtures("forked")
def test_systems_run_in_processes_of_their_own_too(pretrain: Any, case: Any) -> None:
    found = pretrain.measure(case, ["bert", "full-head"], 3, 2, own_processes=True)
    assert found.losses["bert"] == pytest.approx(found.losses["full-head"], rel=1e-5)
    assert found.num_parameters["bert"] == found.num_parameters["full-head"]
    assert {name: len(seconds) for name, seconds in found.seconds.items()} == {"bert": 3, "full-head": 3}
    assert all(0 < seconds < 60 for taken in found.seconds.values() for seconds in taken)


WEIGHTS = (
    "embeddings.position.weight",
    "embeddings.norm.bias",
    "blocks.0.qkv.weight",
    "blocks.1.attention_norm.weight",
    "blocks.1.ffn_output.bias",
    "mlm_head.dense.weight",
    "mlm_head.bias",
)


@pytest.mark.parametrize("name", WEIGHTS)
def test_nothing_is_timed_when_a_weight_differs(pretrain: Any, systems: Any, case: Any, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def with_a_mistake(given: Any, load: Callable[[Any], Any] = systems.load_ours) -> Any:
        model = load(given)
        with torch.no_grad():
            weight = model.get_parameter(name)
            weight.copy_(weight.roll(1, 0))
        return model

    monkeypatch.setattr(systems, "load_ours", with_a_mistake)
    monkeypatch.setattr(systems.Ours, "take", lambda *_: pytest.fail("it was timed"))
    with pytest.raises(SystemExit, match="with equal weights the losses differ by more than 1e-05"):
        pretrain.measure(case, ["bert", "dense"], 3, 2, own_processes=False)


def test_equal_settings_give_equal_losses_after_some_steps(pretrain: Any, case: Any) -> None:
    case = replace(case, total_steps=20)
    with ExitStack() as stack:
        systems = {name: pretrain.build(name, case, stack) for name in ("bert", "full-head", "dense")}
        before = systems["bert"].loss()
        for system in systems.values():
            system.take(12)
        after = {name: system.loss() for name, system in systems.items()}
    assert before - after["bert"] > 0.01, "they learn"
    assert after["full-head"] == pytest.approx(after["bert"], rel=1e-4)
    assert after["dense"] == pytest.approx(after["bert"], rel=1e-4)


def test_the_trainer_takes_as_many_steps_as_are_asked_for(pretrain: Any, case: Any) -> None:
    with ExitStack() as stack:
        system = pretrain.build("bert-trainer", case, stack)
        weights = [parameter.detach().clone() for parameter in system._model.parameters()]
        assert system.take(2) > 0
        moved = [parameter.detach().clone() for parameter in system._model.parameters()]
        assert not all(map(torch.equal, weights, moved))
        assert all(map(torch.equal, moved, system._model.parameters())), "it waits for its next turn"
        assert system.take(case.total_steps - 2) > 0
        assert not all(map(torch.equal, moved, system._model.parameters()))
    assert not system._thread.is_alive()


def test_all_systems_see_the_same_targets(cases: Any, case: Any) -> None:
    batches, again = cases.labelled_batches(case), cases.labelled_batches(case)
    assert len(batches) == cases.NUM_BATCHES
    assert all(torch.equal(one.input_ids, other.input_ids) for one, other in zip(batches, again, strict=True))
    for batch in batches:
        chosen = batch.labels != -100
        assert chosen.sum(1).tolist() == [6] * 4
        assert not chosen[:, 0].any() and not chosen[:, -1].any()
        masked = cases.masked_batch(batch)
        assert torch.equal(masked.target_ids, batch.labels[chosen])
        assert torch.equal(masked.input_ids.flatten()[masked.positions], batch.input_ids[chosen])
    ids = torch.cat([batch.input_ids[batch.labels != -100] for batch in batches])
    assert 0.65 < (ids == cases.MASK).float().mean() < 0.95


def test_rates_ratios_and_savings_are_computed_round_by_round(pretrain: Any, case: Any) -> None:
    seconds = {"bert": [2.0, 4.0, 6.0], "dense": [1.0, 1.0, 6.0], "dense-preln": [1.0, 1.0, 2.0], "pld": [0.5, 0.5, 1.6]}
    found = pretrain.Found(case, 2, dict.fromkeys(seconds, 5.0), dict.fromkeys(seconds, 1_500_000), seconds)
    bert, dense, _, pld = rows_of("\n".join(found.rows()))
    assert bert[:5] == ["L2-H64", "200", "BertForMaskedLM, plain loop", "1.50", "80"] and bert[6] == "1"
    assert dense[4] == "320" and dense[6] == "2.00 (1.00 to 4.00)", "the median round of two steps of 160 tokens took a second"
    mean_time = (0.25 + 0.125 + 1.6 / 6) / 3
    assert [pld[4], pld[6]] == ["369", f"{1 / mean_time:.2f} (3.75 to 8.00)"], "of PLD the mean"
    (row,) = rows_of("\n".join(found.savings()))
    assert row[3:5] == ["0.600 (0.500 to 0.800)", "0.400"]
    config = case.config("pre", theta_bar=0.5)
    blocks_share = config.flops.per_block * 2 / config.flops.dense
    assert float(row[5]) == pytest.approx(blocks_share * (1 - (0.75 + 0.5) / 2), abs=6e-4)


def test_a_gated_layer_is_as_large_as_a_plain_one(systems: Any, case: Any) -> None:
    assert [systems.gated_width(width) for width in (256, 384, 768)] == [672, 1024, 2048]
    theirs, plain = systems.load_theirs("modernbert", case), systems.load_theirs("bert", case)
    assert theirs.config._attn_implementation == plain.config._attn_implementation == "sdpa"
    assert set(theirs.config.layer_types) == {"full_attention"}
    inner = [sum(p.numel() for p in layers.parameters()) for layers in (theirs.model.layers, plain.bert.encoder.layer)]
    assert inner[0] == pytest.approx(inner[1], rel=0.08)
    local = systems.load_theirs("modernbert", replace(case, shape="L3-H64", local_attention=True))
    assert local.config.layer_types == ["full_attention", "sliding_attention", "sliding_attention"]


def test_a_shape_has_heads_of_64_or_as_many_as_it_names(case: Any) -> None:
    for shape in ("L4-H100", "L4-H64-A0", "L4-H64-A64", "L4-H64-A3"):
        with pytest.raises(SystemExit, match=f"{shape} is not a shape"):
            replace(case, shape=shape).config("post")
    assert [replace(case, shape=shape).num_heads for shape in ("L4-H128", "L4-H128-A4")] == [2, 4]


@pytest.mark.rehearsal
def test_preparing_is_measured_for_all_with_equal_tokens(
    preparing: Any, prepared: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    corpus, out = prepared.parent / "corpus.txt", tmp_path / "table.md"
    words = ["--corpus", corpus, "--tokenizer", prepared / "sentencepiece.model", "--sizes-mb", "0.1", "--pairs", "1", "--out", out]
    run_main(preparing, [str(word) for word in words], monkeypatch)
    table = out.read_text(encoding="utf-8")
    assert table.strip() in capsys.readouterr().out
    rows = rows_of(table)
    expected = [preparing.SYSTEMS[name] for name in preparing.SYSTEMS if name != "datatrove" or preparing.has_datatrove()]
    assert [row[1] for row in rows] == expected
    tokens = [int(row[2].replace(",", "")) for row in rows]
    assert max(tokens) - min(tokens) <= 1e-3 * min(tokens)
    assert 20_000 < tokens[0] < 60_000
    for row in rows:
        assert float(row[5]) > 0, "starting takes a while"
        peak, private = (float(cell.replace(",", "")) for cell in row[6:8])
        assert 20 < private < peak < 2000


def test_the_recipe_cuts_all_text_into_blocks(preparing: Any, prepared: Path, tmp_path: Path) -> None:
    corpus = tmp_path / "corpus.jsonl"
    with corpus.open("w", encoding="utf-8") as file:
        for text in preparing.documents([prepared.parent / "corpus.txt"]):
            preparing.write_document(file, text)
    given = {"corpus": str(corpus), "tokenizer": str(prepared / "tokenizer.json"), "workers": 1}
    found = [preparing.with_datasets(**given, cache=str(tmp_path / name), name=name) for name in ("datasets", "datasets-ids")]
    assert found[0] == found[1]
    counts = json.loads((prepared / "manifest.json").read_text(encoding="utf-8"))["counts"].values()
    assert found[0]["tokens"] == pytest.approx(sum(count["tokens"] - count["documents"] for count in counts), rel=1e-3)
    num_documents = len(corpus.read_text(encoding="utf-8").splitlines())
    lost = found[0]["tokens"] - found[0]["blocks"] * preparing.BLOCK_TOKENS
    assert 0 <= lost < preparing.BLOCK_TOKENS * (num_documents // 1000 + 1), "less than a block per batch of a thousand documents"


def test_times_without_start_up_are_compared_pair_by_pair(preparing: Any) -> None:
    runs = {
        "pld": [preparing.Run(seconds, 100.0, 80.0, 500) for seconds in (2.0, 3.0, 6.0)],
        "datasets": [preparing.Run(seconds, 300.0, 200.0, 500) for seconds in (8.0, 9.0, 12.0)],
    }
    found = preparing.Found(4.0, 1, runs, {"pld": 1.0, "datasets": 3.0})
    ours, theirs = rows_of("\n".join(found.rows()))
    assert ours[2:] == ["500", "1.33", "2.00", "1.0", "100", "80", "1", "1"]
    assert theirs[2:] == ["500", "0.44", "0.67", "3.0", "300", "200", "3.00 (2.00 to 4.00)", "3.00 (1.80 to 5.00)"]


def test_a_full_head_counts_at_every_position_and_a_dropped_block_never(pretrain: Any, case: Any) -> None:
    case = replace(case, total_steps=pretrain.WARM_UP_STEPS + 2000)
    found = pretrain.Found(case, 1)
    block = 6 * (4 * 64**2 + 2 * 64 * 256) + 12 * 64 * 40
    head = 6 * (64**2 + 200 * 64)
    assert found.flops("bert") == found.flops("full-head") == 2 * block + head
    assert found.flops("dense") == pytest.approx(2 * block + head * 6 / 40)
    assert found.flops("pld") == pytest.approx(1.25 * block + head * 6 / 40, rel=0.02)
    gated = 6 * (4 * 64**2 + 3 * 64 * 160) + 12 * 64 * 40
    assert found.flops("modernbert") == 2 * gated + head and found.flops("modernbert-sparse") == pytest.approx(2 * gated + head * 6 / 40)


def test_different_tokens_are_refused(preparing: Any) -> None:
    preparing.require_equal_tokens({"pld": 100_000, "datasets": 100_050})
    with pytest.raises(SystemExit, match="different numbers of tokens"):
        preparing.require_equal_tokens({"pld": 100_000, "datasets": 101_000})


def test_a_small_corpus_is_repeated_without_repeating_a_document(preparing: Any, tmp_path: Path) -> None:
    (tmp_path / "one.txt").write_text("first text\nof two lines\n\nsecond text\n", encoding="utf-8")
    (tmp_path / "two.jsonl").write_text('{"text": "third text, élève"}\n', encoding="utf-8")
    out = tmp_path / "cut.txt"
    assert preparing.cut_corpus([tmp_path / "one.txt", tmp_path / "two.jsonl"], 40, out) == 1
    assert out.read_text(encoding="utf-8") == '{"text": "first text\\nof two lines"}\n{"text": "second text"}\n{"text": "third"}\n'
    assert preparing.cut_corpus([tmp_path / "one.txt", tmp_path / "two.jsonl"], 2000, out) > 10
    documents = [json.loads(line)["text"] for line in out.read_text(encoding="utf-8").splitlines()]
    assert len(set(documents)) == len(documents)
    assert len("".join(documents).encode()) == pytest.approx(2000, abs=30)


def test_memory_is_that_of_the_largest_process(preparing: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(preparing, "SAMPLE_SECONDS", 0.02)
    large = "import time; held = b'x' * 150_000_000; time.sleep(0.5); print('done')"
    code = f"import subprocess, sys; subprocess.run([sys.executable, '-c', {large!r}], check=True)"
    found = json.loads(preparing.in_a_process([preparing.__file__, "--run", json.dumps([sys.executable, "-c", code])], 1, "home"))
    assert found["out"] == "done\n"
    assert 150 < found["peak_private_mb"] <= found["peak_mb"] < 200
    assert found["seconds"] > 0.5
