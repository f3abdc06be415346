"""What a family's config.json says of the encoder, as its own code reads and writes it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Protocol

from pldcli.choices import Pooling
from pldcli.config import ModelConfig
from pldcli.tokenization.tokenizer import SpecialTokens

__all__ = ["ConfigJson", "expect", "fraction", "note_on_dropout", "whole_number"]


class ConfigJson(Protocol):
    """Translate between `ModelConfig` and a config.json."""

    def read(self, config: Mapping[str, Any]) -> dict[str, Any]:
        """Read the values of a `ModelConfig`; not yet checked.

        Raises:
            ValueError: A value that no model of ours has, or none at all: key and value.
        """
        ...

    def write(self, settings: ModelConfig, special: SpecialTokens) -> dict[str, Any]:
        """Write the same values."""
        ...

    def zero_biases(self, config: Mapping[str, Any]) -> tuple[str, ...]:
        """List endings of our names of biases that these models do not have and ours do."""
        ...

    def pooling(self, config: Mapping[str, Any]) -> Pooling:
        """Read how the head of a task reads the tokens of a sequence."""
        ...

    def unused_positions(self, config: Mapping[str, Any]) -> int:
        """Count the first rows of a learned position table that are never looked up.

        Raises:
            ValueError: The padding id, on which it depends, is none.
        """
        ...


def note_on_dropout(config: Mapping[str, Any], dropout: float) -> tuple[str, ...]:
    """Say where a config.json has several probabilities of dropout, of which our models have one."""
    names = [name for name in config if "dropout" in name or name.endswith("_pdrop")]
    others = [f"{name} {config[name]:g}" for name in names if isinstance(config[name], int | float) and config[name] != dropout]
    return (f"its config.json has {', '.join(others)}; dropout=auto is {dropout:g} everywhere",) if others else ()


def fraction(config: Mapping[str, Any], name: str, default: float) -> float:
    """Read a number.

    Raises:
        ValueError: It is something else.
    """
    value = config.get(name, default)
    if type(value) not in (int, float):
        raise ValueError(f"{name}: {value!r}")
    return float(value)


def whole_number(config: Mapping[str, Any], name: str, default: int | None = None) -> int:
    """Read an integer.

    Raises:
        ValueError: It is something else.
    """
    value = config.get(name, default)
    if type(value) is not int:
        raise ValueError(f"{name}: {value!r}")
    return value


def expect(config: Mapping[str, Any], **values: Any) -> None:
    """Check settings of which our models have one value only; nothing said means that value.

    Raises:
        ValueError: A setting has another one.
    """
    for name, value in values.items():
        if (found := config.get(name)) is not None and found != value:
            raise ValueError(f"{name}: {found!r}, this program reads {value!r} only")
