"""Whole training steps against float64: real gates, gradients, clipping and learning rates, weights in float32 as in a real run."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from pldcli.runs.checkpoint import Position
from pldcli.system.signals import StopRequest
from tests.conftest import tiny_trainer

STEPS = 12
RATES = [0.01 * 1 / 3, 0.01 * 2 / 3, 0.01, *(0.01 * (12 - step) / 9 for step in range(3, 12))]
"""Of each update: up to 0.01 over 3 of 12 steps, then down to zero in a straight line."""
SETTINGS = (
    "pld.schedule=constant",
    "pld.theta_bar=0.3",
    "optim.learning_rate=0.01",
    "optim.warmup_fraction=0.25",
    "optim.weight_decay=0.1",
    "optim.max_grad_norm=0.5",
)
OPTIMIZERS = [("adamw", True), ("adamw", False), ("lamb", True), ("lamb", False), ("stable-adamw", True), ("stable-adamw", False)]


class Reference:
    """One parameter in float64, by the formulas of the papers.

    Source: Loshchilov & Hutter 2019 (AdamW), algorithm 2; You et al. 2020 (LAMB), algorithm 2; Wortsman et al. 2023 (StableAdamW),
    algorithm 2.
    """

    def __init__(self, name: str, value: torch.Tensor, *, optimizer: str, corrected: bool) -> None:
        vector = name.endswith("bias") or "norm" in name
        self.weight = value.detach().double().numpy().copy()
        self.decay, self.adapts, self.corrected = 0.0 if vector else 0.1, optimizer == "lamb" and not vector, corrected
        self.clips = optimizer == "stable-adamw"
        self.first, self.second, self.updates = np.zeros_like(self.weight), np.zeros_like(self.weight), 0

    def update(self, gradient: np.ndarray, rate: float) -> None:
        self.updates += 1
        self.first = 0.9 * self.first + 0.1 * gradient
        self.second = 0.999 * self.second + 0.001 * gradient**2
        first = self.first / (1 - 0.9**self.updates) if self.corrected else self.first
        second = self.second / (1 - 0.999**self.updates) if self.corrected else self.second
        change = first / (np.sqrt(second) + 1e-6) + self.decay * self.weight
        trust = np.linalg.norm(self.weight) / np.linalg.norm(change) if self.adapts else 1.0
        clipping = max(1.0, float(np.sqrt(np.mean(gradient**2 / np.maximum(second, 1e-12))))) if self.clips else 1.0
        self.weight -= rate / clipping * trust * change


def clipped(gradients: dict[str, np.ndarray], most: float) -> dict[str, np.ndarray]:
    norm = np.sqrt(sum(float((gradient**2).sum()) for gradient in gradients.values()))
    return {name: gradient * min(1.0, most / norm) for name, gradient in gradients.items()}


@pytest.mark.parametrize(("optimizer", "corrected"), OPTIMIZERS)
def test_training_steps_equal_float64(optimizer: str, corrected: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    trainer = tiny_trainer(*SETTINGS, f"optim.name={optimizer}", f"optim.bias_correction={str(corrected).lower()}")
    names = dict(trainer.model.named_parameters())
    followed = {name: Reference(name, value, optimizer=optimizer, corrected=corrected) for name, value in names.items()}
    before = {name: value.detach().clone() for name, value in names.items()}
    seen: list[dict[str, np.ndarray]] = []
    unclipped = raw_gradients(trainer, names, seen)
    monkeypatch.setattr(trainer.runtime, "reduce_gradients", unclipped)
    observed = list(trainer.steps(Position(), observe=lambda step: True, stop=StopRequest()))

    assert len(observed) == len(seen) == STEPS
    for gradients, rate in zip(seen, RATES, strict=True):
        for name, gradient in clipped(gradients, 0.5).items():
            followed[name].update(gradient, rate)
    for name, value in names.items():
        moved = float((value.detach() - before[name]).norm())
        off = float(np.linalg.norm(value.detach().double().numpy() - followed[name].weight))
        assert off <= 2e-4 * moved + 1e-6, name
    updates = {name: reference.updates for name, reference in followed.items()}
    assert updates["embeddings.word.weight"] == STEPS
    assert updates["blocks.2.qkv.weight"] == sum(plan.gates[2] for plan in plans(trainer)) < STEPS - 3, "blocks were dropped"
    assert {name for name, reference in followed.items() if reference.decay} == {
        *(f"embeddings.{part}.weight" for part in ("word", "position", "token_type")),
        *(f"blocks.{i}.{part}.weight" for i in range(3) for part in ("qkv", "attention_output", "ffn_input", "ffn_output")),
        "mlm_head.dense.weight",
    }
    assert max(float(observation.grad_norm) for observation in observed) > 0.5, "clipping had something to do"


def raw_gradients(trainer: Any, parameters: dict[str, Any], seen: list[dict[str, np.ndarray]]) -> Any:
    """Note the gradients of each step where processes would add theirs up: after the last backward pass, before clipping."""
    reduce_gradients = trainer.runtime.reduce_gradients

    def note() -> None:
        reduce_gradients()
        seen.append({name: value.grad.double().numpy().copy() for name, value in parameters.items() if value.grad is not None})

    return note


def plans(trainer: Any) -> list[Any]:
    return [trainer.schedule.plan(step, 0, seed=trainer.seed) for step in range(STEPS)]
