from __future__ import annotations

import argparse
import json
import os
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from pldcli import cli
from pldcli.config import Config
from pldcli.tokenization.tokenizer import load_tokenizer
from tests.benchmark_scripts import BENCHMARKS, load
from tests.conftest import TINY


def test_step_time_measures_both_and_writes_the_table(
    prepared: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    script = load("step_time")
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


@pytest.mark.rehearsal
@pytest.mark.usefixtures("forked")
def test_whole_runs_are_the_command_itself_and_their_saving_is_what_their_clocks_say(
    prepared: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    script = load("whole_run")
    small = ["model.num_hidden_layers=4", "model.hidden_size=16", "model.intermediate_size=32", "train.global_batch_size=4", "pld.gamma=9"]
    words = ["--data", str(prepared), "--steps", "12", "--rounds", "1", "--set", *small]
    monkeypatch.setattr(sys, "argv", ["benchmarks/whole_run.py", *words])
    script.main()
    table = capsys.readouterr().out
    assert "4 blocks" not in table and "12 steps of 4 x 128 tokens" in table
    promised, counted = map(float, re.search(r"promises ([\d.]+)% of the operations; ([\d.]+)% were", table).groups())
    assert 15 < promised < 35 and abs(promised - counted) < 15
    for clock in ("training", "whole command"):
        dense, dropped, saved, share = map(float, re.search(rf"\| {clock} \|" + r" ([-\d.]+) \([^|]*\|" * 4, table).groups())
        assert min(dense, dropped) > 0
        assert share == pytest.approx(saved / counted, rel=0.01, abs=0.01)
    training, whole = (float(re.search(rf"\| {clock} \| ([\d.]+)", table)[1]) for clock in ("training", "whole command"))
    assert training < whole


@pytest.mark.rehearsal
@pytest.mark.usefixtures("forked")
def test_shared_cores_times_every_way_to_wait_quiet_and_beside_a_loop(
    prepared: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    script = load("shared_cores")
    monkeypatch.setattr(script, "prepared_documentation", lambda scratch: prepared)
    documentation = script.documentation
    monkeypatch.setattr(script, "documentation", lambda scratch, _: documentation(scratch, 100_000))
    tiny = ("model.num_hidden_layers=2", "model.hidden_size=16", "model.intermediate_size=32", "train.global_batch_size=4")
    monkeypatch.setattr(script, "WORKS", (script.Work("two blocks", "bert-tiny-preln", tiny, 20),))
    monkeypatch.setattr(script, "POLICIES", dict(list(script.POLICIES.items())[2:]))
    monkeypatch.setattr(sys, "argv", ["benchmarks/shared_cores.py", "--rounds", "1", "--works", "0", "--part", "0.1"])
    script.main()
    table = capsys.readouterr().out
    for situation in ("Quiet", "Beside a busy process"):
        [times] = re.findall(rf"## {situation}\n\n.*\n.*\n\| two blocks \| ([\d.]+) \(.*\) \| ([\d.]+) \(", table)
        assert all(float(time) > 0 for time in times)


def test_a_save_costs_what_the_steps_behind_it_take_longer(
    prepared: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Steps of 2 s; the two behind a save take 0.5 s more each in the background, the first one 3 s more where training waits."""
    script = load("save_stall")
    behind = {"on": {1: 0.5, 2: 0.5}, "off": {1: 3.0}}

    def run(words: list[str], **_: object) -> str:
        place, way = Path(words[words.index("--out") + 1]), re.search(r"background=(\w+)", " ".join(words))
        (place / "checkpoints" / "step-00000024").mkdir(parents=True)
        (place / "checkpoints" / "step-00000024" / "model.safetensors").write_bytes(bytes(2_000_000))
        wall = 9.0
        with (place / "metrics.jsonl").open("w") as file:
            for step in range(1, 25):
                wall += 2.0 + (behind[way[1]].get((step - 1) % 8 + 1, 0.0) if way and step > 8 else 0.0)
                file.write(json.dumps({"step": step, "train/loss": 3.0, "progress/wall_seconds": wall}) + "\n")
        return ""

    monkeypatch.setattr(script, "output_of_process", run)
    words = ["--data", str(prepared), "--every", "8", "--saves", "2", "--rounds", "1", "--preset", "bert-tiny-pld"]
    monkeypatch.setattr(sys, "argv", ["benchmarks/save_stall.py", *words])
    script.main()
    table = capsys.readouterr().out
    assert "| in the background | 2.00 | 1.00 (1.00 to 1.00) | 0.10 |" in table  # of 500 steps of 2 s
    assert "| training waits | 2.00 | 3.00 (3.00 to 3.00) | 0.30 |" in table and ": 2 MB a checkpoint" in table


def test_minimal_pairs_are_scored_in_three_ways_that_agree(
    prepared: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    script = load("minimal_pairs")
    documentation = script.documentation
    monkeypatch.setattr(script, "documentation", lambda scratch, _: documentation(scratch, 100_000))
    monkeypatch.setattr(script, "prepared_documentation", lambda scratch: prepared)
    monkeypatch.setattr(script, "output_of_process", lambda words, **_: cli.run([*words[2:], *TINY]))
    words = ["--preset", "bert-tiny-preln", "--pairs", "5", "--rounds", "1", "--threads", "1"]
    monkeypatch.setattr(sys, "argv", ["benchmarks/minimal_pairs.py", *words])
    script.main()
    table = capsys.readouterr().out
    for way in ("by length, in batches", "a sentence at a time", "a masked copy at a time"):
        [seconds] = re.findall(rf"\| {way} \| ([\d.]+) \(", table)
        assert float(seconds) > 0


def test_natural_pairs_have_either_form_as_often(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    script = load("natural_pairs")
    told = "The {} of the village {} known to all who lived beside the river."
    texts = [told.format(name, "was") for name in ("mayor", "smith", "church")] + [told.format("mayors", "were")]
    texts += ["Nobody was there when they were on the way to the river.", "It was late."]
    (tmp_path / "held-out.jsonl").write_text(json.dumps({"text": f"First. {' '.join(texts)}"}), encoding="utf-8")
    words = [str(tmp_path / "held-out.jsonl"), "--pairs", "20", "--out", str(tmp_path / "pairs")]
    monkeypatch.setattr(sys, "argv", ["benchmarks/natural_pairs.py", *words])
    script.main()
    verbs, neighbours = (
        [json.loads(line) for line in (tmp_path / "pairs" / f"{kind}.jsonl").read_text(encoding="utf-8").splitlines()]
        for kind in ("verbs", "neighbours")
    )
    assert sorted(pair["form"] for pair in verbs) == ["was", "were"]
    for pair in verbs:
        other = {"was": "were", "were": "was"}[pair["form"]]
        assert pair["sentence_bad"] == pair["sentence_good"].replace(f" {pair['form']} ", f" {other} ")
    assert len(neighbours) == 5
    for pair in neighbours:
        good, bad = pair["sentence_good"].split(), pair["sentence_bad"].split()
        assert sorted(good) == sorted(bad) and sum(one != other for one, other in zip(good, bad, strict=True)) == 2


def test_cut_runs_are_scored_by_loss_and_by_pairs(prepared: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    script = load("study_depths")
    run = tmp_path / "study" / "runs" / "pld-seed3"
    assert cli.run(["pretrain", "--preset", "bert-tiny-pld", "--data", str(prepared), "--out", str(run), *TINY]) == 0
    pair = {"sentence_good": "Return the value of the key.", "sentence_bad": "Return value the of the key."}
    (tmp_path / "order.jsonl").write_text(json.dumps(pair), encoding="utf-8")
    for more in ([], ["--minimal-pairs", str(tmp_path / "order.jsonl")]):
        words = [str(tmp_path / "study"), "--data", str(prepared), "--depths", "3", "2", "--out", str(tmp_path / "scores.json"), *more]
        monkeypatch.setattr(sys, "argv", ["benchmarks/study_depths.py", *words])
        script.main()
    scored = json.loads((tmp_path / "scores.json").read_text(encoding="utf-8"))
    losses, right = scored["loss"]["pld-seed3"], scored["pairs"]["pld-seed3"]
    logged = [json.loads(line) for line in (run / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]
    assert losses["3"] == pytest.approx([row for row in logged if "eval/mlm_loss" in row][-1]["eval/mlm_loss"], abs=1e-4) != losses["2"]
    assert list(right) == ["3", "2"] and all(score in ({"order": 0.0}, {"order": 1.0}) for score in right.values())


@pytest.fixture(scope="module")
def tiny_glue(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A tiny model and an RTE of forty pairs; whether the first sentence names the river decides."""
    from tests.finetuning.conftest import WORDS, save_tiny

    place = tmp_path_factory.mktemp("glue")
    (place / "vocab.txt").write_text("\n".join(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *WORDS]), encoding="utf-8")
    model = save_tiny(place / "tiny", load_tokenizer(place / "vocab.txt"), norm="post", max_position_embeddings=128)
    (place / "RTE").mkdir()
    for split in ("train", "dev"):
        rows = [f"{i}\t{'the river' if i % 2 else 'a village'} {WORDS[i % 20]}\tand\t{'not_' * (i % 2)}entailment" for i in range(40)]
        (place / "RTE" / f"{split}.tsv").write_text("\n".join(["index\tsentence1\tsentence2\tlabel", *rows]), encoding="utf-8")
    return place, model


@pytest.mark.rehearsal
def test_the_proof_puts_both_programs_side_by_side(
    tiny_glue: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    data, model = tiny_glue
    script, out = load("finetune_proof"), tmp_path / "table.md"
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
    script = load("finetune_vs_transformers")
    options = argparse.Namespace(data_dir=data, model=model, steps=3)
    rates = [script.measure(system, how, "rte", options) for system in ("pld", "trainer")]
    assert all(10 < rate < 1e7 for rate in rates)


def run_gpu_section(section: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> list[str]:
    from pldcli.bench import bench

    script = load("gpu")
    monkeypatch.setattr(script, "GOALS", script.GOALS[:1])
    monkeypatch.setattr(bench, "_ENOUGH_GAIN", 1e9)  # three sizes are enough here
    monkeypatch.setattr(sys, "argv", ["benchmarks/gpu.py", section, "--small", "--steps", "5", "--compile", "off"])
    script.main()
    return capsys.readouterr().out.splitlines()


@pytest.mark.rehearsal
def test_the_rate_on_a_gpu_stands_beside_its_goals(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    lines = run_gpu_section("rate", monkeypatch, capsys)
    dense, dropped = ([cell.strip() for cell in line.split("|")[1:-1]] for line in lines if "| dense |" in line or "| dropped |" in line)
    rates = [float(row[4].replace(",", "")) for row in (dense, dropped)]
    assert dense[:4] == ["bert-base", "32", "dense", dense[3]] and int(dense[3]) in (1, 2, 4)
    assert (dense[5], dense[6], dropped[5]) == ("460,000", "700,000", "")
    assert float(dropped[6].replace(",", "")) == pytest.approx(1.27 * rates[0], rel=1e-3, abs=1.0)
    assert float(dropped[7]) == pytest.approx(rates[1] / (1.27 * rates[0]), abs=0.01)
    assert any(re.search(r"1: dropping saved [\d.]+% of the operations", line) for line in lines)


def test_rows_for_which_no_time_is_left_are_named(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    script = load("gpu")
    monkeypatch.setattr(script.time, "perf_counter", iter(range(100)).__next__)
    rows = list(script.rate(argparse.Namespace(small=True, steps=5, compile="off"), script.GOALS, 0.0))
    assert [row.partition(":")[0] for row in rows[2:]] == ["bert-base at 128", "bert-base at 512", "bert-large at 512"]


@pytest.mark.rehearsal
def test_packed_documents_are_measured_with_the_modern_model(
    prepared: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    seen = []

    def configure(*given: object, configure: Callable[..., Config] = load("gpu").configure) -> Config:
        seen.append(configure(*given))
        return seen[-1]

    monkeypatch.setattr(load("gpu"), "configure", configure)
    monkeypatch.setattr(load("gpu"), "prepared_documentation", lambda scratch: prepared)
    lines = run_gpu_section("modern", monkeypatch, capsys)
    dense, dropped = ([cell.strip() for cell in line.split("|")[1:-1]] for line in lines if "| dense |" in line or "| dropped |" in line)
    assert dense[:3] == ["modern-base", "32", "dense"] and (dense[5], dense[6], dropped[5]) == ("304,000", "400,000", "")
    assert {(config.data.packing, config.model.position_embedding) for config in seen} == {("documents", "rotary")}


@pytest.mark.rehearsal
def test_small_models_are_held_against_the_time_of_a_step_and_the_saving(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    lines = run_gpu_section("small", monkeypatch, capsys)
    rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in lines if "-tiny |" in line]
    assert [(row[0], row[1], row[3], row[6]) for row in rows] == [("bert-tiny", "no", "10", "0.9"), ("modern-tiny", "no", "10", "0.9")]
    assert all(0 < float(row[number]) < 10_000 for row in rows for number in (2, 4))


def test_the_profile_names_phases_and_kernels(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    lines = run_gpu_section("profile", monkeypatch, capsys)
    for phase in ("data", "forward", "backward", "optimizer", "other"):
        assert any(line.startswith(f"| {phase} |") for line in lines)
    shares = [float(line.split("|")[3].strip(" %")) for line in lines if line.startswith("| aten::")]
    assert len(shares) > 5 and 50 < sum(shares) <= 100.5 and shares == sorted(shares, reverse=True)


@pytest.mark.rehearsal
def test_the_comparison_on_a_gpu_runs_through_the_shell_script() -> None:
    environment = {**os.environ, "PYTHON": sys.executable}
    words = ["bash", str(BENCHMARKS / "gpu.sh"), "compare", "--small", "--compile", "off"]
    done = subprocess.run(words, capture_output=True, text=True, check=False, env=environment)
    assert done.returncode == 0, done.stderr
    assert re.search(r"\| L4-H256 \| 500 \| pld dense \|", done.stdout)
    refused = subprocess.run([*words[:2], "nothing"], capture_output=True, text=True, check=False, env=environment)
    assert refused.returncode == 2 and "invalid choice" in refused.stderr


@pytest.mark.rehearsal
@pytest.mark.usefixtures("forked")
def test_the_modern_model_is_compared_on_a_gpu(monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> None:
    lines = run_gpu_section("compare-modern", monkeypatch, capfd)
    for system in ("ModernBertForMaskedLM, sparse_prediction, plain loop", "PLD modern"):
        assert any(line.startswith(f"| L4-H256 | 500 | {system} |") for line in lines)


@pytest.mark.rehearsal
@pytest.mark.usefixtures("forked")
def test_resumed_bits_and_the_memory_of_one_process_of_several(prepared: Path, tmp_path: Path) -> None:
    script = load("gpu_trust")
    small = [one for one in load("gpu").SMALL if "vocab_size" not in one]
    assert script.exactness("fp32", prepared, tmp_path, small) == ("yes", "no")
    assert not list(tmp_path.iterdir())
    held = {}
    for sharding in ("none", "full"):
        words = [sys.executable, str(BENCHMARKS / "gpu_trust.py"), sharding, str(prepared), *small]
        done = subprocess.run(words, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
        held[sharding] = json.loads(done.stdout.splitlines()[-1])[0]
    assert held["full"] == pytest.approx(held["none"] / 8, rel=0.1)
