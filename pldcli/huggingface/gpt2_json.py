"""config.json of GPT-2."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pldcli.choices import Pooling
from pldcli.config import ModelConfig
from pldcli.huggingface.config_json import expect, fraction, whole_number
from pldcli.tokenization.tokenizer import SpecialTokens

__all__ = ["Gpt2Json"]

_NAMES = {
    "num_hidden_layers": "n_layer",
    "hidden_size": "n_embd",
    "num_attention_heads": "n_head",
    "vocab_size": "vocab_size",
    "max_position_embeddings": "n_positions",
}
_DROPOUTS = "resid_pdrop", "embd_pdrop", "attn_pdrop"


class Gpt2Json:
    """Learned positions, no norm behind the embeddings, and the decoder alone for a head.

    Source: `GPT2Config` of transformers 5.23.
    """

    def read(self, config: Mapping[str, Any]) -> dict[str, Any]:
        """Read the values of a `ModelConfig`."""
        # The released weights are of `gelu_new`, an approximation: with GELU itself their outputs would be others.
        expect({"activation_function": "gelu_new"} | dict(config), activation_function="gelu")
        expect(config, add_cross_attention=False, scale_attn_weights=True, scale_attn_by_inverse_layer_idx=False)
        values = {ours: whole_number(config, theirs) for ours, theirs in _NAMES.items()}
        inner = config.get("n_inner")
        return {
            **values,
            "intermediate_size": 4 * values["hidden_size"] if inner is None else inner,
            "dropout": max(fraction(config, name, 0.1) for name in _DROPOUTS),
            "layer_norm_eps": config.get("layer_norm_epsilon", 1e-5),
            "initializer_range": config.get("initializer_range", 0.02),
            "type_vocab_size": 0,
            "embedding_norm": False,
            "lm_head": "plain",
        }

    def write(self, settings: ModelConfig, special: SpecialTokens) -> dict[str, Any]:
        """Write the same values."""
        return {
            **{theirs: getattr(settings, ours) for ours, theirs in _NAMES.items()},
            "n_inner": settings.intermediate_size,
            "activation_function": "gelu",
            **dict.fromkeys(_DROPOUTS, settings.dropout),
            "layer_norm_epsilon": settings.layer_norm_eps,
            "initializer_range": settings.initializer_range,
        }

    def zero_biases(self, config: Mapping[str, Any]) -> tuple[str, ...]:
        """List nothing: these models have all biases."""
        return ()

    def pooling(self, config: Mapping[str, Any]) -> Pooling:
        """Return `first`: heads of tasks are not read."""
        return "first"

    def unused_positions(self, config: Mapping[str, Any]) -> int:
        """Count none: positions count from 0."""
        return 0
