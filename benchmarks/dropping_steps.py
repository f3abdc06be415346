"""Training steps with chosen blocks dropped, phase by phase: what benchmarks/dropping.py measures."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import replace
from typing import Any

from measuring import timed
from pldcli import presets
from pldcli.config import Config
from pldcli.data.prepared import PreparedData
from pldcli.engine.runtime import Runtime
from pldcli.optimizers.build import clip_gradients
from pldcli.pld import Plan
from pldcli.pretraining.assembly import build_trainer

__all__ = ["DRAWS", "PHASES", "WARM_UP_STEPS", "Bench", "is_compiled", "timed_step"]

PHASES = ("forward", "backward", "clipping", "optimizer")
DRAWS = (1, 4)
"""Gate groups of a step."""
WARM_UP_STEPS = 3


class Bench:
    """Trainers of one shape, built when they are asked for."""

    def __init__(self, prepared: PreparedData, runtime: Runtime, options: argparse.Namespace) -> None:
        self.prepared, self.runtime, self.options = prepared, runtime, options
        self.num_blocks = self.config(1).model.num_hidden_layers
        self.dropped = sorted({0, *(options.dropped or range(self.num_blocks + 1))})
        self._trainers: dict[int, Any] = {}

    def config(self, draws: int, **changes: str) -> Config:
        words = [
            "pld.schedule=constant",
            f"pld.draws_per_step={draws}",
            f"train.global_batch_size={self.options.batch}",
            f"train.total_steps={self.options.steps + WARM_UP_STEPS}",
            f"runtime.precision={self.options.precision}",
            *self.options.set,
            *(f"{key.replace('__', '.')}={value}" for key, value in changes.items()),
        ]
        return presets.resolve(self.options.preset, words, from_data={"model.vocab_size": self.prepared.vocab_size}).config

    def trainer(self, draws: int) -> Any:
        """Give the trainer with so many gate groups, after a step with every block."""
        if draws not in self._trainers:
            trainer = build_trainer(self.config(draws), self.prepared, self.runtime)
            self._trainers[draws] = trainer
            for _ in range(2):
                timed_step(trainer, self.plans(draws, 0))
        return self._trainers[draws]

    def plans(self, draws: int, dropped: int, *, first: int = 0, apart: bool = False) -> list[Plan]:
        """Drop so many blocks from `first` on, in a ring; `apart` lets each group begin elsewhere."""
        drawn = self.config(draws).pld_schedule.plan(0, 0, seed=0)
        starts = [first + (group * self.num_blocks // draws if apart else 0) for group in range(draws)]
        gone = [{(start + place) % self.num_blocks for place in range(dropped)} for start in starts]
        return [replace(drawn, gates=tuple(block not in blocks for block in range(self.num_blocks))) for blocks in gone]


def is_compiled(trainer: Any) -> bool:
    return any(getattr(block, "_compiled_call_impl", None) is not None for block in trainer.model.blocks)


def timed_step(trainer: Any, plans: Sequence[Plan], around: Callable[[str], Any] = lambda phase: nullcontext()) -> dict[str, float]:
    """Take one training step and time its phases.

    Args:
        trainer: Its step 0 is taken, again and again.
        plans: Of each gate group.
        around: Gives a context in which the passes ("passes"), the clipping and the update run.
    """
    seconds = dict.fromkeys(PHASES, 0.0)
    trainer.runtime.synchronize()
    trainer.phases.read()  # forget what came before
    groups = trainer.batches.step(0)
    counts = [trainer.objective.num_targets(batch) for micro_batches in groups for batch in micro_batches]
    num_targets = [float(sum(column)) for column in zip(*counts, strict=True)]
    with around("passes"):
        for plan, micro_batches in zip(plans, groups, strict=True):
            for batch in micro_batches:
                trainer.forward_backward(batch, plan, num_targets)
        trainer.runtime.synchronize()
    found = trainer.phases.read()
    seconds |= {"forward": found["forward"], "backward": found["backward"]}
    with around("clipping"):
        seconds["clipping"] = timed(trainer.runtime, lambda: clip(trainer))
    with around("optimizer"):
        seconds["optimizer"] = timed(trainer.runtime, lambda: trainer.scaler.step(trainer.optimizer))
    trainer.scaler.update()
    trainer.optimizer.zero_grad(set_to_none=True)
    return seconds


def clip(trainer: Any) -> None:
    trainer.scaler.unscale_(trainer.optimizer)
    clip_gradients(trainer.model.parameters(), trainer.max_grad_norm)
