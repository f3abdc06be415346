"""Blocks that begin to run in the middle of a run: their weights, the optimizer's state, resume at any step, and what is scored."""

from __future__ import annotations

import json
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from pldcli.optimizers.growth import grow
from pldcli.pld import Growth, Schedule
from pldcli.runs.checkpoint import Position
from pldcli.runs.model_source import open_model
from pldcli.system.signals import StopRequest
from tests.conftest import TINY, Outcome, tiny_trainer

GROWS = ("pld.schedule=expansion", "pld.depth_stages=[{until: 0.5, blocks: 2}]", "model.num_hidden_layers=4")
WAYS = [
    (),
    ("pld.new_blocks=copied",),
    ("pld.new_blocks=copied", "pld.growth_state=copied"),
    ("pld.new_blocks=zero-output",),
    ("pld.growth_state=fresh",),
    ("pld.depth_stages=[{until: 0.25, blocks: 2}, {until: 0.5, blocks: 3}]", "pld.new_blocks=copied", "pld.growth_state=copied"),
]


def trained(*changes: str, until: int) -> Any:
    trainer = tiny_trainer(*GROWS, *changes)
    if until:
        for _ in trainer.steps(Position(), observe=lambda step: step == until, stop=StopRequest()):
            break
    return trainer


def weights_of(model: Any, block: int) -> dict[str, Tensor]:
    return {name: parameter.detach().clone() for name, parameter in model.blocks[block].named_parameters()}


def equal(one: dict[str, Tensor], other: dict[str, Tensor]) -> bool:
    return all(torch.equal(one[name], other[name]) for name in one)


@pytest.mark.parametrize("optimizer", ["adamw", "muon", "lamb"])
def test_until_it_runs_a_block_is_its_first_weights(optimizer: str) -> None:
    before, after = trained(f"optim.name={optimizer}", until=0), trained(f"optim.name={optimizer}", until=6)
    for block in range(4):
        assert equal(weights_of(before.model, block), weights_of(after.model, block)) == (block in (1, 2))
        assert all(bool(after.optimizer.state.get(parameter)) == (block in (0, 3)) for parameter in after.model.blocks[block].parameters())
    later = trained(f"optim.name={optimizer}", until=7)
    assert not any(equal(weights_of(after.model, block), weights_of(later.model, block)) for block in range(4))
    counts = [float(later.optimizer.state[later.model.blocks[block].qkv.bias]["step"]) for block in range(4)]
    assert counts == [7.0, 1.0, 1.0, 7.0]


TWICE = "pld.depth_stages=[{until: 0.25, blocks: 2}, {until: 0.5, blocks: 3}]"


@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
def test_a_run_grows_as_often_as_it_has_stages(optimizer: str) -> None:
    """Of 12 steps blocks 0 and 3 take all, block 2 the last 9, block 1 the last 6, each with a neighbour's weights and moments."""
    changes = (TWICE, f"optim.name={optimizer}", "pld.new_blocks=copied", "pld.growth_state=copied")
    twice = [trained(*changes, until=until) for until in (3, 6, 7)]
    first = weights_of(trained(*changes, until=0).model, 1)
    assert equal(first, weights_of(twice[1].model, 1)), "a block changed before it ran"
    for trainer, expected in zip(twice, ([3, 0, 0, 3], [6, 0, 6, 6], [7, 7, 7, 7]), strict=True):
        states = (trainer.optimizer.state.get(block.qkv.bias, {}) for block in trainer.model.blocks)
        assert [float(state.get("step", 0)) for state in states] == expected


def test_new_blocks_are_copies_of_the_nearest_with_moments_or_without() -> None:
    for state in ("kept", "copied"):
        trainer = trained("optim.name=adamw", until=6)
        for _ in range(2):  # done twice, it is as done once
            grow(trainer.model, trainer.optimizer, Growth((0, 3), (1, 2), "copied", state))  # type: ignore[arg-type]
        for new, old in ((1, 0), (2, 3)):
            assert equal(weights_of(trainer.model, new), weights_of(trainer.model, old))
            theirs = dict(trainer.model.blocks[old].named_parameters())
            for name, parameter in trainer.model.blocks[new].named_parameters():
                found = trainer.optimizer.state.get(parameter, {})
                assert found.keys() == (trainer.optimizer.state[theirs[name]].keys() if state == "copied" else set())
                for entry, tensor in found.items():
                    assert torch.equal(tensor, trainer.optimizer.state[theirs[name]][entry])
                    assert tensor.data_ptr() != trainer.optimizer.state[theirs[name]][entry].data_ptr()


def test_a_first_block_without_a_norm_is_copied_but_for_it() -> None:
    trainer = tiny_trainer(*GROWS, preset="modern-tiny-preln")
    own = trainer.model.blocks[1].attention_norm.weight.detach().clone()
    grow(trainer.model, trainer.optimizer, Growth((0,), (1,), "copied", "kept"))
    assert torch.equal(trainer.model.blocks[1].qkv.weight, trainer.model.blocks[0].qkv.weight)
    assert torch.equal(trainer.model.blocks[1].attention_norm.weight, own)


def test_blocks_of_zero_output_change_nothing_and_all_state_may_begin_anew() -> None:
    trainer = trained("model.dropout=0", until=6)
    ids = torch.randint(5, trainer.model.embeddings.word.num_embeddings, (2, 20))
    before = trainer.model.eval()(ids, gates=(True, False, False, True))
    assert not torch.allclose(before, trainer.model(ids))
    grow(trainer.model, trainer.optimizer, Growth((0, 3), (1, 2), "zero-output", "fresh"))
    torch.testing.assert_close(before, trainer.model(ids))
    assert not trainer.optimizer.state


def arguments(prepared: Path, out: Path, *changes: str) -> list[str]:
    often = ("train.log_every_steps=2", "checkpoint.every_steps=5", "eval.every_steps=3", "checkpoint.keep=20")
    return ["pretrain", "--preset", "bert-tiny-preln", *TINY, *GROWS, *often, *changes, "--data", str(prepared), "--out", str(out)]


@pytest.mark.parametrize(("step", "way"), [(5, ()), (7, ()), *((6, way) for way in WAYS)])
def test_a_run_stopped_around_its_growth_ends_in_the_same_weights(
    pld: Callable[..., Outcome], prepared: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, step: int, way: tuple[str, ...]
) -> None:
    assert pld(*arguments(prepared, tmp_path / "whole", *way)).code == 0
    plan = Schedule.plan

    def stopped(self: Schedule, at: int, group: int, *, seed: int) -> Any:
        if at == step:
            signal.raise_signal(signal.SIGTERM)
        return plan(self, at, group, seed=seed)

    with monkeypatch.context() as patch:
        patch.setattr(Schedule, "plan", stopped)
        assert pld(*arguments(prepared, tmp_path / "stopped", *way)).code == 75
    assert pld(*arguments(prepared, tmp_path / "stopped", *way)).code == 0
    whole, resumed = ((tmp_path / name / "model" / "model.safetensors").read_bytes() for name in ("whole", "stopped"))
    assert whole == resumed


def test_before_its_growth_a_run_is_the_model_of_the_blocks_that_ran(pld: Callable[..., Outcome], prepared: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    assert pld(*arguments(prepared, run)).code == 0
    shallow, deep = run / "checkpoints" / "step-00000005", run / "checkpoints" / "step-00000010"
    assert [open_model(path).settings.num_hidden_layers for path in (shallow, deep)] == [2, 4]
    scored = {
        row["step"]: row["eval/mlm_loss"]
        for row in map(json.loads, (run / "metrics.jsonl").read_text(encoding="utf-8").splitlines())
        if "eval/mlm_loss" in row
    }
    assert pld(*arguments(prepared, tmp_path / "again", "checkpoint.every_steps=3")).code == 0
    for step in (3, 6, 9, 12):
        done = pld("evaluate", tmp_path / "again" / "checkpoints" / f"step-{step:08d}", "--json")
        assert json.loads(done.out)["mlm_loss"] == pytest.approx(scored[step], abs=1e-6), step
    found = pld("export", shallow, "--out", tmp_path / "exported")
    assert found.code == 0 and json.loads((tmp_path / "exported" / "config.json").read_text(encoding="utf-8"))["num_hidden_layers"] == 2
    found = pld("evaluate", run, "--depth", "2", "--json", "--out", tmp_path / "depth.png")
    assert json.loads(found.out)["depths"][0]["kept"] == [1, 4], "those that were trained longest"
    found = pld("analyze", run, "--sequences", "8", "--json")
    assert found.code == 0 and "only 2 of 4 blocks have run" in found.err + found.out
