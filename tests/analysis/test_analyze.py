from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from pldcli import cli, presets
from pldcli.analysis import analyze as engine
from pldcli.analysis.analyze import Settings, analyze, plans
from pldcli.analysis.results import AnalyzedRun, State
from pldcli.data.prepared import open_prepared
from pldcli.engine.precision import Precision
from pldcli.engine.runtime import Runtime
from pldcli.engine.validation import fixed_batches, score_lm
from pldcli.errors import CheckpointError, DataError, UsageError
from pldcli.evaluation.evaluate import evaluate
from pldcli.model import StBert
from pldcli.preparation.prepare import prepare
from tests.conftest import TINY, tiny_config

EVERYTHING = Settings(num_sequences=100_000, device="cpu")
FEW = Settings(num_sequences=6, batch_size=4, device="cpu")


def train(out: Path, prepared: Path, *changes: str, preset: str = "bert-tiny-pld") -> Path:
    """Train for 12 steps with a checkpoint after every fourth."""
    line = ["pretrain", "--preset", preset, *TINY, "checkpoint.every_steps=4", "checkpoint.keep=9", "train.log_every_steps=1", *changes]
    line += ["--data", str(prepared), "--out", str(out)]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", ["pld", *line])
        assert cli.run(line) == 0
    return out


@pytest.fixture(scope="module")
def trained(prepared: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A PLD run; leave it as it is."""
    return train(tmp_path_factory.mktemp("runs") / "pld", prepared)


@pytest.fixture(scope="module")
def post(prepared: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A dense Post-LN run; leave it as it is."""
    return train(tmp_path_factory.mktemp("runs") / "post", prepared, preset="bert-tiny-postln")


@pytest.fixture
def copied(trained: Path, tmp_path: Path) -> Path:
    """A copy of the PLD run, to be spoilt."""
    return Path(shutil.copytree(trained, tmp_path / "run"))


def only(*targets: Path, settings: Settings = FEW, **options: Any) -> AnalyzedRun:
    [run] = analyze(targets, settings=settings, **options).runs
    return run


def test_every_moment_is_measured_and_has_the_loss_of_evaluation(trained: Path, prepared: Path) -> None:
    run = only(trained, settings=EVERYTHING)
    assert [(state.step, state.source) for state in run.states] == [
        (0, "initial weights"),
        (4, "step-00000004"),
        (8, "step-00000008"),
        (12, "model"),
    ]
    for state, place in zip(run.states[1:], ("checkpoints/step-00000004", "checkpoints/step-00000008", "model"), strict=True):
        assert state.loss() == pytest.approx(evaluate(trained / place, data=prepared).score.loss, rel=1e-5)
    assert (run.name, run.path, run.norm, run.num_blocks, run.seq_len, run.data) == ("pld", str(trained), "pre", 3, 32, str(prepared))
    assert run.num_sequences == sum(len(batch.input_ids) for batch in fixed_batches(open_prepared(prepared), 32))
    assert (run.removal.step, run.removal.loss) == (12, pytest.approx(run.states[-1].loss(), rel=1e-6))
    assert all(len(state.whole.blocks) == 3 and all(state.whole.gates) for state in run.states)


def test_step_0_has_the_weights_that_training_began_with(trained: Path, prepared: Path) -> None:
    config = presets.load(trained / "config.yaml")
    model = StBert(**vars(config.model), seed=config.train.seed)
    batches = fixed_batches(open_prepared(prepared), 32, max_sequences=6)
    cpu = torch.device("cpu")
    expected = score_lm(model, batches, Precision("fp32", cpu), Runtime(cpu)).loss
    assert only(trained).states[0].loss() == pytest.approx(expected, rel=1e-6)


def test_a_run_that_began_with_another_model_begins_there(trained: Path, prepared: Path, tmp_path: Path) -> None:
    goes_on = train(tmp_path / "goes-on", prepared, f"train.init_from={trained}")
    first, last = only(goes_on).states[0], only(trained).states[-1]
    assert first.loss() == pytest.approx(last.loss(), rel=1e-6)
    config = presets.load(goes_on / "config.yaml")
    gone = config.replace(train={"init_from": str(tmp_path / "gone")})
    (goes_on / "config.yaml").write_text(presets.dump(gone))
    analysis = analyze([goes_on], settings=FEW)
    assert [state.step for state in analysis.runs[0].states] == [4, 8, 12]
    assert analysis.notes == (f"left out: {tmp_path / 'gone'}: no such run or model directory; `pld runs` lists the runs here",)


def numbers(states: tuple[State, ...]) -> list[float]:
    return [value for state in states for block in state.whole.blocks for value in vars(block).values()]


def test_the_same_numbers_always_and_for_every_batch_size(trained: Path) -> None:
    torch.manual_seed(1)
    once = analyze([trained], settings=replace(FEW, gates=0.5, num_draws=2))
    torch.manual_seed(2)
    assert analyze([trained], settings=replace(FEW, gates=0.5, num_draws=2)) == once
    [run] = once.runs
    assert numbers(only(trained, settings=replace(FEW, batch_size=1)).states) == pytest.approx(numbers(run.states), rel=1e-4)


def test_runs_side_by_side_are_dropped_by_the_same_gates(trained: Path, post: Path) -> None:
    analysis = analyze([post, trained], settings=replace(FEW, gates=0.5, num_draws=4))
    one, other = analysis.runs
    assert (one.title, other.title, analysis.num_draws, analysis.notes) == ("post (Post-LN)", "pld (Pre-LN)", 4, ())
    gates = [[probe.gates for probe in state.draws] for run in analysis.runs for state in run.states]
    assert gates == [gates[0]] * 8 and len(set(gates[0])) > 1
    for state in one.states:
        for probe in state.draws:
            assert [block.distance is not None for block in probe.blocks] == list(probe.gates)


def test_gates_of_the_schedule_are_those_of_the_next_update(trained: Path) -> None:
    config = presets.load(trained / "config.yaml")
    logged = [json.loads(line) for line in (trained / "metrics.jsonl").read_text().splitlines()]
    kept = {row["step"]: row["pld/kept_blocks"] for row in logged if "pld/kept_blocks" in row}
    assert len(kept) == 12
    for step in range(12):
        [plan] = plans(config, "schedule", step, 1)
        assert plan.kept_blocks == kept[step + 1]
    assert plans(config, "schedule", 12, 3) == plans(config, "schedule", 11, 3)


def test_gates_of_one_probability() -> None:
    deep = tiny_config("model.num_hidden_layers=12", "pld.residual=none")
    drawn = plans(deep, 0.25, 7, 400)
    assert drawn == plans(tiny_config("model.num_hidden_layers=12", "train.seed=5"), 0.25, 0, 400)
    assert all((plan.keep_probs, plan.residual_scales) == ((0.25,) * 12, (4.0,) * 12) for plan in drawn)
    by_block = list(zip(*(plan.gates for plan in drawn), strict=True))
    assert [sum(runs) for runs in by_block] == [100] * 12
    kept = [plan.kept_blocks for plan in drawn]
    assert sum((count - 3) ** 2 for count in kept) / 400 == pytest.approx(12 * 0.25 * 0.75, rel=0.2), "blocks are independent"
    together = sum(one and other for one, other in zip(by_block[0], by_block[1], strict=True))
    assert together == pytest.approx(400 / 16, abs=10)


@pytest.mark.parametrize("num_blocks", [3, 8, 12, 24])
def test_no_block_is_missed_by_the_draws(num_blocks: int) -> None:
    drawn = plans(tiny_config(f"model.num_hidden_layers={num_blocks}"), 0.5, 0, 8)
    assert [sum(runs) for runs in zip(*(plan.gates for plan in drawn), strict=True)] == [4] * num_blocks


def test_under_its_schedule_a_dense_run_runs_whole(post: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[Any] = []
    measure = engine.probe
    monkeypatch.setattr(engine, "probe", lambda *arguments: calls.append(1) or measure(*arguments))  # type: ignore[func-returns-value]
    analysis = analyze([post], settings=replace(FEW, gates="schedule", num_draws=3))
    [run] = analysis.runs
    assert all(state.draws == (state.whole,) * 3 for state in run.states)
    assert len(calls) == 4, "equal plans are computed once"
    assert analysis.notes == ("post drops nothing: its schedule runs every block",)


def test_without_a_model_the_newest_checkpoint_counts(copied: Path) -> None:
    whole = only(copied)
    shutil.rmtree(copied / "model")
    found = only(copied)
    assert [state.source for state in found.states][-1] == "step-00000012"
    assert numbers(found.states) == pytest.approx(numbers(whole.states), rel=1e-6)
    assert found.removal == whole.removal


def test_a_damaged_checkpoint_is_left_out_and_named(copied: Path) -> None:
    shutil.rmtree(copied / "model")
    with (copied / "checkpoints" / "step-00000012" / "model.safetensors").open("r+b") as file:
        file.seek(-1, 2)
        file.write(b"\x55")
    analysis = analyze([copied], settings=FEW)
    [run] = analysis.runs
    assert [state.step for state in run.states] == [0, 4, 8]
    assert run.removal.step == 8
    [note] = analysis.notes
    assert note.startswith(f"left out: {copied}/checkpoints/step-00000012/model.safetensors: is damaged")
    for step in (4, 8):
        (copied / "checkpoints" / f"step-{step:08d}" / "SHA256SUMS").unlink()
    with pytest.raises(CheckpointError, match=r"run: no checkpoint of this run can be read; left out: .*step-00000004"):
        analyze([copied], settings=FEW)


def test_a_run_without_checkpoints(copied: Path) -> None:
    shutil.rmtree(copied / "model")
    shutil.rmtree(copied / "checkpoints")
    with pytest.raises(CheckpointError) as raised:
        analyze([copied], settings=FEW)
    assert str(raised.value) == (
        f"{copied}: this run has no checkpoint and no model yet; train it further; it saves every 4 steps and keeps 9"
    )


def test_what_is_no_run(trained: Path, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="nowhere: no such run; `pld runs` lists the runs here"):
        analyze([tmp_path / "nowhere"], settings=FEW)
    with pytest.raises(CheckpointError, match=r"is not a run directory: it has no config\.yaml; name a directory"):
        analyze([tmp_path], settings=FEW)
    with pytest.raises(UsageError, match="the same run is named twice; name another run"):
        analyze([trained, trained / "model" / ".."], settings=FEW)


def test_data_of_another_tokenizer(trained: Path, copied: Path, tmp_path: Path) -> None:
    text = " ".join(f"word{number}" for number in range(3000))
    (tmp_path / "corpus.txt").write_text("\n".join([text, text[::-1]] * 200))
    prepare([tmp_path / "corpus.txt"], tmp_path / "other", document_per="line", vocab_size=300, processes=1, quiet=True)
    shutil.rmtree(copied / "model")
    for run in (trained, copied):
        with pytest.raises(DataError, match=r"other: was tokenized with another tokenizer than that of .*(model|step-00000012)"):
            analyze([run], data=tmp_path / "other", settings=FEW)


def test_data_without_validation_text(trained: Path, prepared: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(engine, "fixed_batches", lambda *_, **__: iter(()))
    with pytest.raises(DataError, match="data: has no validation text; prepare more text, or name another with --data"):
        analyze([trained], data=prepared, settings=FEW)


def test_runs_that_do_not_compare_are_noted(trained: Path, copied: Path) -> None:
    config = presets.load(copied / "config.yaml")
    (copied / "config.yaml").write_text(presets.dump(config.replace(data={"seq_len": 16})))
    notes = analyze([trained, copied], settings=FEW).notes
    assert notes == ("the runs have sequences of different lengths: their gradient norms do not compare",)


def test_one_process_only(trained: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    @contextmanager
    def of_two(_: str) -> Iterator[Runtime]:
        yield Runtime(torch.device("cpu"), 0, 2)

    monkeypatch.setattr(engine, "launch", of_two)
    with pytest.raises(UsageError, match="analysis runs in one process; start it without torchrun"):
        analyze([trained], settings=FEW)


@pytest.mark.parametrize(("name", "option"), [("num_sequences", "--sequences"), ("batch_size", "--batch-size"), ("num_draws", "--draws")])
def test_numbers_are_positive(name: str, option: str) -> None:
    with pytest.raises(UsageError) as raised:
        Settings(**{name: 0})
    assert str(raised.value) == f"{option}: must be at least 1, not 0"


def test_memory_that_runs_out_names_the_size_to_try(trained: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: Any) -> None:
        raise torch.OutOfMemoryError

    monkeypatch.setattr(engine, "probe", fail)
    with pytest.raises(Exception, match="out of memory with 4 sequences per forward pass; try --batch-size=2"):
        analyze([trained], settings=FEW)
