"""config.json of BERT, RoBERTa and RoBERTa-PreLayerNorm."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from pldcli.choices import Norm, Pooling
from pldcli.config import ModelConfig
from pldcli.huggingface.config_json import expect, whole_number
from pldcli.tokenization.tokenizer import SpecialTokens

__all__ = ["BertJson"]

_NEEDED = "num_hidden_layers", "hidden_size", "num_attention_heads", "intermediate_size", "vocab_size"
_OPTIONAL = "type_vocab_size", "layer_norm_eps", "initializer_range"


@dataclass(frozen=True)
class BertJson:
    """Learned positions, an ungated feed-forward layer, and biases everywhere."""

    norm: Norm
    positions_after_padding: bool = False
    """The position table begins with pad_id + 1 rows that are never looked up; pad_id is 1 where config.json says nothing."""

    def read(self, config: Mapping[str, Any]) -> dict[str, Any]:
        """Read the values of a `ModelConfig`."""
        expect(config, hidden_act="gelu", position_embedding_type="absolute", is_decoder=False)
        values = {name: config.get(name) for name in _NEEDED} | {name: config[name] for name in _OPTIONAL if name in config}
        positions = whole_number(config, "max_position_embeddings") - self.unused_positions(config)
        dropout = config.get("hidden_dropout_prob", 0.1)
        return {**values, "max_position_embeddings": positions, "dropout": dropout, "norm": self.norm}

    def write(self, settings: ModelConfig, special: SpecialTokens) -> dict[str, Any]:
        """Write the same values."""
        offset = self.unused_positions({"pad_token_id": special.pad_id})
        return {
            "vocab_size": settings.vocab_size,
            "hidden_size": settings.hidden_size,
            "num_hidden_layers": settings.num_hidden_layers,
            "num_attention_heads": settings.num_attention_heads,
            "intermediate_size": settings.intermediate_size,
            "hidden_act": "gelu",
            "hidden_dropout_prob": settings.dropout,
            "attention_probs_dropout_prob": settings.dropout,
            "max_position_embeddings": settings.max_position_embeddings + offset,
            "type_vocab_size": settings.type_vocab_size,
            "initializer_range": settings.initializer_range,
            "layer_norm_eps": settings.layer_norm_eps,
        }

    def zero_biases(self, config: Mapping[str, Any]) -> tuple[str, ...]:
        """List nothing: these models have all biases."""
        return ()

    def pooling(self, config: Mapping[str, Any]) -> Pooling:
        """Return `first`, which is all that these models know."""
        return "first"

    def unused_positions(self, config: Mapping[str, Any]) -> int:
        """Count the first rows of the position table that are never looked up."""
        return whole_number(config, "pad_token_id", 1) + 1 if self.positions_after_padding else 0
