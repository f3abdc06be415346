"""Checkpoints of released versions: each still loads, and its run goes on."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from pldcli.engine.runtime import Runtime
from pldcli.pretraining.assembly import build_trainer
from pldcli.runs import checkpoint
from pldcli.runs.checkpoint import Position
from pldcli.system.signals import StopRequest
from tests.conftest import MadeUpData

RELEASED = sorted((Path(__file__).parents[1] / "released").glob("*/step-*"))


def test_every_release_is_here() -> None:
    assert {path.parent.name for path in RELEASED} >= {"0.2.0"}


@pytest.mark.parametrize("path", RELEASED, ids=lambda path: path.parent.name)
def test_a_checkpoint_of_a_release_resumes(path: Path) -> None:
    checkpoint.verify(path)
    saved = checkpoint.read(path)
    assert saved.position.step == 6 and saved.config.train.total_steps == 6
    config = saved.config.replace(train={"total_steps": 9})
    trainer = build_trainer(config, MadeUpData(), Runtime(torch.device("cpu")))  # type: ignore[arg-type]
    trainer.restore(saved.weights, saved.optimizer, saved.scaler, where=str(path))
    named = {
        f"{entry}/{name}": tensor
        for name, one in trainer.model.named_parameters()
        for entry, tensor in trainer.optimizer.state[one].items()
    }
    assert named.keys() == saved.optimizer.keys() and all(torch.equal(named[name], tensor) for name, tensor in saved.optimizer.items())
    *_, last = trainer.steps(Position(step=6), observe=lambda step: True, stop=StopRequest())
    assert last.position.step == 9 and torch.tensor(list(last.losses.values())).isfinite().all()
