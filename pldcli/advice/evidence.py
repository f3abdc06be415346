"""Runs on record: what the law is fitted to, and whose settings are taken over. `benchmarks/law.py` writes the file."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from pldcli.advice.law import Point, fresh_tokens
from pldcli.config import Config

__all__ = ["SHAPE", "Comparison", "Evidence", "Recorded", "body_parameters", "load"]

SHAPE = ("num_hidden_layers", "hidden_size", "num_attention_heads", "intermediate_size")
"""The settings of a model that make it larger or smaller."""


@dataclass(frozen=True)
class Recorded:
    """A run without dropping, to its end."""

    size: str
    """The shipped size that its preset extends."""
    settings: Mapping[str, Any]
    """What differs from it, by dotted key: the model's shape, and the recipe."""
    parameters: int
    """As `body_parameters` counts them."""
    tokens: int
    unique_tokens: int
    """Of the text."""
    loss: float
    """Validation, at its end, in nats."""
    unigram_loss: float
    """Of the unigram baseline there."""
    vocab_size: int
    """Of the tokenizer: with another one the same text has other losses, by more than the baseline tells."""
    is_candidate: bool = True
    """Its shape may be chosen; otherwise it only tells the law how losses go on."""

    @property
    def point(self) -> Point:
        """Return what the law is fitted to: the loss as a share of the unigram baseline, which carries over to other texts best."""
        entries = self.settings.get("objective.sampled_softmax") or self.vocab_size
        return Point(
            self.parameters,
            self.vocab_size,
            fresh_tokens(self.tokens, self.unique_tokens),
            self.loss / self.unigram_loss,
            softmax_share=min(1.0, entries / self.vocab_size),
        )

    @property
    def shape(self) -> dict[str, int]:
        """Return the settings of the model's shape, by dotted key."""
        return {key: value for key, value in self.settings.items() if key.removeprefix("model.") in SHAPE}

    @property
    def recipe(self) -> dict[str, Any]:
        """Return the other settings."""
        return {key: value for key, value in self.settings.items() if key not in self.shape}


@dataclass(frozen=True)
class Comparison:
    """A run that drops blocks or adds them later, beside one that does not, of the same time on the same machine."""

    system: str
    num_hidden_layers: int
    vocab_size: int
    tokens: int
    """Of the run without."""
    difference: float
    """Loss with, less loss without, in nats: below zero it paid."""
    task: str = ""
    """What both were fine-tuned on afterwards, if they were."""
    score: float = 0.0
    """Score with, less score without, in points: below zero it did not pay, whatever the losses say."""


@dataclass(frozen=True)
class Evidence:
    """All of it."""

    text: str
    """What the runs were trained on, in words."""
    runs: tuple[Recorded, ...]
    comparisons: tuple[Comparison, ...]


def body_parameters(config: Config) -> int:
    """Count the parameters that do not grow with the vocabulary, which another tokenizer would change."""
    return config.num_parameters - config.model.vocab_size * (config.model.hidden_size + (config.model.lm_head == "transform"))


@cache
def load() -> Evidence:
    """Read what is shipped, as `benchmarks/law.py` wrote it."""
    content = json.loads(Path(__file__).with_name("evidence.json").read_text(encoding="utf-8"))
    return Evidence(
        text=content["text"],
        runs=tuple(Recorded(**run) for run in content["runs"]),
        comparisons=tuple(Comparison(**comparison) for comparison in content["comparisons"]),
    )
