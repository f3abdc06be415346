"""Which `model_type` of transformers can express a model. What none can is refused before anything is trained."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

from pldcli.errors import UsageError

__all__ = ["CAUSAL_TYPES", "MODEL_TYPES", "model_type_of"]

_BERT: dict[str, Collection[Any]] = {
    "norm": ("post",),
    "position_embedding": ("learned",),
    "type_vocab_size": range(1, 2**31),
    "feed_forward": ("gelu",),
    "attention_bias": (True,),
    "mlp_bias": (True,),
    "norm_bias": (True,),
    "embedding_norm": (True,),
    "first_attention_norm": (True,),
    "global_layers": (1,),
    "lm_head": ("transform",),
}

MODEL_TYPES: dict[str, dict[str, Collection[Any]]] = {
    "roberta-prelayernorm": _BERT | {"norm": ("pre",)},
    "bert": _BERT,
    "modernbert": {
        "norm": ("pre",),
        "position_embedding": ("rotary",),
        "type_vocab_size": (0,),
        "feed_forward": ("geglu", "swiglu"),
        "embedding_norm": (True,),
        "first_attention_norm": (False,),
        "lm_head": ("transform",),
    },
}
"""Values of `ModelConfig` that each can express; of a setting that is not named, every value."""

CAUSAL_TYPES: dict[str, dict[str, Collection[Any]]] = {
    "gpt2": _BERT | {"norm": ("pre",), "type_vocab_size": (0,), "embedding_norm": (False,), "lm_head": ("plain",)},
    "modernbert-decoder": MODEL_TYPES["modernbert"],
}
"""The same of the types that predict the next token."""


def model_type_of(model: Mapping[str, Any], *, causal: bool = False) -> str:
    """Choose the type that a model is exported as.

    Args:
        model: The values of a `ModelConfig`.
        causal: It predicts the next token.

    Raises:
        UsageError: No type can express them; it names what to change for the nearest one with these positions.
    """
    in_the_way = {
        model_type: {key: allowed for key, allowed in values.items() if model[key] not in allowed}
        for model_type, values in (CAUSAL_TYPES if causal else MODEL_TYPES).items()
    }
    nearest = min(in_the_way, key=lambda name: ("position_embedding" in in_the_way[name], len(in_the_way[name])))
    if not in_the_way[nearest]:
        return nearest
    changes = [f"model.{key}={_written(next(iter(allowed)))}" for key, allowed in in_the_way[nearest].items()]
    key = next(iter(in_the_way[nearest]))
    what = f"{_written(model[key])} cannot be exported to transformers with the rest of this model; the nearest type is {nearest}"
    raise UsageError(what, where=f"model.{key}", hint=f"set {' '.join(changes)}")


def _written(value: Any) -> str:
    """Write a value as in KEY=VALUE."""
    if isinstance(value, bool):
        return str(value).lower()
    return f"[{','.join(map(str, value))}]" if isinstance(value, tuple) else str(value)
