"""config.json of ModernBERT, with the keys of transformers 5 and those that readers before it know."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from pldcli.choices import Pooling
from pldcli.config import ModelConfig
from pldcli.huggingface.config_json import expect, fraction, whole_number
from pldcli.pretrained import global_layers_of, usual_pooling
from pldcli.tokenization.tokenizer import SpecialTokens

__all__ = ["POOLING", "ModernBertJson", "read_global_layers", "read_rope_thetas"]

POOLING: dict[Pooling, str] = {"first": "cls", "mean": "mean"}
"""How a task's head pools, in our word and theirs."""

_NEEDED = "num_hidden_layers", "hidden_size", "num_attention_heads", "intermediate_size", "vocab_size"
_DEFAULTS: dict[str, Any] = {
    "max_position_embeddings": 8192,
    "initializer_range": 0.02,
    "local_attention": 128,
    "attention_bias": False,
    "norm_bias": False,
}
"""Of transformers, for what has the same name here."""
_GATED = {"gelu": "geglu", "silu": "swiglu"}
_GLOBAL, _LOCAL = "full_attention", "sliding_attention"
_EVERY, _EVERY_DEFAULT = "global_attn_every_n_layers", 3
_DROPOUTS = "embedding_dropout", "attention_dropout", "mlp_dropout"


@dataclass(frozen=True)
class ModernBertJson:
    """Rotary positions, a gated feed-forward layer, global and local attention, no norm before the first attention.

    Source: `ModernBertConfig` and `ModernBertDecoderConfig` of transformers 5.23, and the released config.json of ModernBERT-base.
    """

    has_pooling: bool = True
    """Says how the head of a task pools; the decoder's read the last token."""

    def read(self, config: Mapping[str, Any]) -> dict[str, Any]:
        """Read the values of a `ModelConfig`."""
        expect(config, classifier_activation="gelu", is_decoder=False)
        activation = config.get("hidden_activation", "gelu")
        if activation not in _GATED:
            raise ValueError(f"hidden_activation: {activation!r}, this program reads {' and '.join(map(repr, _GATED))} only")
        global_theta, local_theta = read_rope_thetas(config)
        values = {name: config.get(name) for name in _NEEDED} | {name: config.get(name, default) for name, default in _DEFAULTS.items()}
        positions, window = values["max_position_embeddings"], values["local_attention"]
        if type(positions) is type(window) is int and window // 2 >= positions > 1:
            values["local_attention"] = 2 * (positions - 1)  # which sees all as well, and is what a run of its own may have
        return {
            **values,
            "layer_norm_eps": config.get("norm_eps", 1e-5),
            "dropout": max(fraction(config, name, 0.0) for name in _DROPOUTS),
            "feed_forward": _GATED[activation],
            "mlp_bias": _flag(config, "mlp_bias") or _flag(config, "classifier_bias"),
            "global_layers": read_global_layers(config),
            "global_rope_theta": global_theta,
            "local_rope_theta": local_theta,
            "norm": "pre",
            "position_embedding": "rotary",
            "first_attention_norm": False,
            "type_vocab_size": 0,
        }

    def write(self, settings: ModelConfig, special: SpecialTokens) -> dict[str, Any]:
        """Write the same values."""
        return {
            "vocab_size": settings.vocab_size,
            "hidden_size": settings.hidden_size,
            "num_hidden_layers": settings.num_hidden_layers,
            "num_attention_heads": settings.num_attention_heads,
            "intermediate_size": settings.intermediate_size,
            "hidden_activation": {ours: theirs for theirs, ours in _GATED.items()}[settings.feed_forward],
            "max_position_embeddings": settings.max_position_embeddings,
            "initializer_range": settings.initializer_range,
            "norm_eps": settings.layer_norm_eps,
            **dict.fromkeys((*_DROPOUTS, "classifier_dropout"), settings.dropout),
            "norm_bias": settings.norm_bias,
            "attention_bias": settings.attention_bias,
            "mlp_bias": settings.mlp_bias,
            "classifier_bias": settings.mlp_bias,
            "decoder_bias": True,
            "classifier_activation": "gelu",
            **({"classifier_pooling": POOLING[usual_pooling(settings)]} if self.has_pooling else {}),
            "local_attention": settings.local_attention,
            **_layers(settings),
            "cls_token_id": special.cls_id,
            "sep_token_id": special.sep_id,
        }

    def zero_biases(self, config: Mapping[str, Any]) -> tuple[str, ...]:
        """List endings of our names of biases that are absent there: one setting of ours stands for two of theirs."""
        absent: tuple[str, ...] = ()
        if not _flag(config, "mlp_bias"):
            absent += "ffn_input.bias", "ffn_output.bias"
        if not _flag(config, "classifier_bias"):
            absent += ("head.dense.bias",)
        if not _flag(config, "decoder_bias", default=True):
            absent += ("mlm_head.bias",)
        return absent

    def pooling(self, config: Mapping[str, Any]) -> Pooling:
        """Read how the head of a task reads the tokens of a sequence."""
        return "mean" if config.get("classifier_pooling") == POOLING["mean"] else "first"

    def unused_positions(self, config: Mapping[str, Any]) -> int:
        """Count none: there is no table of positions."""
        return 0


def _layers(settings: ModelConfig) -> dict[str, Any]:
    """Write which layers attend where, and their rotary positions, for readers of both ages."""
    numbers, thetas = set(settings.global_layer_numbers), (settings.global_rope_theta, settings.local_rope_theta)
    layers: dict[str, Any] = {
        "layer_types": [_GLOBAL if number in numbers else _LOCAL for number in range(settings.num_hidden_layers)],
        "rope_parameters": {
            kind: {"rope_type": "default", "rope_theta": theta} for kind, theta in zip((_GLOBAL, _LOCAL), thetas, strict=True)
        },
        "global_rope_theta": settings.global_rope_theta,
        "local_rope_theta": settings.local_rope_theta,
    }
    every = settings.global_layers
    if not isinstance(every, int):
        every = global_layers_of(settings.global_layer_numbers, settings.num_hidden_layers)
    if isinstance(every, int):  # readers before layer_types know no other pattern
        layers[_EVERY] = every
    return layers


def read_global_layers(config: Mapping[str, Any]) -> int | tuple[int, ...]:
    """Read which layers attend to all tokens, as `ModelConfig` has it.

    Raises:
        ValueError: They are not said for every layer, or a kind is not known.
    """
    count, every = whole_number(config, "num_hidden_layers"), whole_number(config, _EVERY, _EVERY_DEFAULT)
    if every < 1:
        raise ValueError(f"{_EVERY}: {every!r}")
    kinds = config.get("layer_types")
    if kinds is None:
        return every
    if not isinstance(kinds, list) or len(kinds) != count or not set(kinds) <= {_GLOBAL, _LOCAL}:
        raise ValueError(f"layer_types: {count} times {_GLOBAL} or {_LOCAL} is needed, not {kinds!r}")
    numbers = tuple(number for number, kind in enumerate(kinds) if kind == _GLOBAL)
    return every if _EVERY in config and numbers == tuple(range(0, count, every)) else global_layers_of(numbers, count)


def read_rope_thetas(config: Mapping[str, Any]) -> tuple[Any, Any]:
    """Read the bases of the rotary positions of global and of local layers.

    Raises:
        ValueError: They are scaled.
    """
    expect(config, rope_scaling={})
    given = config.get("rope_parameters") or {}
    if not isinstance(given, dict) or not all(isinstance(given.get(kind) or {}, dict) for kind in (_GLOBAL, _LOCAL)):
        raise ValueError(f"rope_parameters: {given!r}")
    thetas = {_GLOBAL: config.get("global_rope_theta", 160_000.0), _LOCAL: config.get("local_rope_theta", 10_000.0)}
    for kind, theta in thetas.items():
        rope = given.get(kind) or {}
        expect(rope, rope_type="default")
        thetas[kind] = rope.get("rope_theta", theta)
    return thetas[_GLOBAL], thetas[_GLOBAL] if thetas[_LOCAL] is None else thetas[_LOCAL]


def _flag(config: Mapping[str, Any], name: str, *, default: bool = False) -> bool:
    value = config.get(name, default)
    if type(value) is not bool:
        raise ValueError(f"{name}: {value!r}")
    return value
