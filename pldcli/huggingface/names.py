"""What parameters are called there: one table per family of models."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

from pldcli.choices import Norm

__all__ = ["FAMILIES", "Family", "HeadName", "family_to_write"]

HeadName = Literal["mlm", "nsp", "sequence", "tokens", "spans"]
"""Masked-LM, next sentence, one label or number per row, one label per token, start and end of an answer."""

_EMBEDDINGS = {
    "word.weight": "word_embeddings.weight",
    "position.weight": "position_embeddings.weight",
    "token_type.weight": "token_type_embeddings.weight",
    "norm": "LayerNorm",
}
_BLOCK = {
    "attention_output": "attention.output.dense",
    "ffn_input": "intermediate.dense",
    "ffn_output": "output.dense",
}
_PRE_NORMS = {"attention_norm": "attention.LayerNorm", "ffn_norm": "intermediate.LayerNorm"}
_POST_NORMS = {"attention_norm": "attention.output.LayerNorm", "ffn_norm": "output.LayerNorm"}

_ROBERTA_HEADS: dict[HeadName, dict[str, str]] = {
    "mlm": {"mlm_head.dense": "lm_head.dense", "mlm_head.norm": "lm_head.layer_norm", "mlm_head.bias": "lm_head.bias"},
    "sequence": {"task_head.dense": "classifier.dense", "task_head.output": "classifier.out_proj"},
    "tokens": {"task_head.output": "classifier"},
    "spans": {"task_head.output": "qa_outputs"},
}
_BERT_HEADS: dict[HeadName, dict[str, str]] = {
    "mlm": {
        "mlm_head.dense": "cls.predictions.transform.dense",
        "mlm_head.norm": "cls.predictions.transform.LayerNorm",
        "mlm_head.bias": "cls.predictions.bias",
    },
    "nsp": {"nsp_head.pooler": "bert.pooler.dense", "nsp_head.classifier": "cls.seq_relationship"},
    "sequence": {"task_head.dense": "bert.pooler.dense", "task_head.output": "classifier"},
    "tokens": {"task_head.output": "classifier"},
    "spans": {"task_head.output": "qa_outputs"},
}


@dataclass(frozen=True, kw_only=True)
class Family:
    """Models of one `model_type`."""

    norm: Norm
    base: str
    """What stands before the encoder's names in a model with a head."""
    positions_after_padding: bool
    """The position table begins with pad_id + 1 rows that are never looked up."""
    heads: dict[HeadName, dict[str, str]]
    """Per head, our modules and theirs."""
    class_name: str
    """Of its classes in transformers, without `ForMaskedLM` and so on."""

    @property
    def default_pad_id(self) -> int:
        """The padding id where config.json says nothing."""
        return 1 if self.positions_after_padding else 0

    def encoder(self, num_hidden_layers: int) -> dict[str, str]:
        """Map our parameter names to theirs, without heads; the joint query-key-value matrices are split elsewhere."""
        norms = _PRE_NORMS if self.norm == "pre" else _POST_NORMS
        modules = {f"embeddings.{ours}": f"{self.base}embeddings.{theirs}" for ours, theirs in _EMBEDDINGS.items()}
        for index in range(num_hidden_layers):
            layer = f"{self.base}encoder.layer.{index}."
            modules |= {f"blocks.{index}.{ours}": layer + theirs for ours, theirs in (_BLOCK | norms).items()}
        if self.norm == "pre":
            modules["final_norm"] = f"{self.base}LayerNorm"
        return _parameters(modules.items())

    def head(self, name: HeadName) -> dict[str, str]:
        """Map our parameter names of one head to theirs."""
        return _parameters(self.heads[name].items())

    def attention(self, num_hidden_layers: int) -> dict[str, list[str]]:
        """Map our joint query-key-value parameters to their three."""
        return {
            f"blocks.{index}.qkv.{kind}": [
                f"{self.base}encoder.layer.{index}.attention.self.{part}.{kind}" for part in ("query", "key", "value")
            ]
            for index in range(num_hidden_layers)
            for kind in ("weight", "bias")
        }


FAMILIES = {
    "roberta-prelayernorm": Family(
        norm="pre", base="roberta_prelayernorm.", positions_after_padding=True, heads=_ROBERTA_HEADS, class_name="RobertaPreLayerNorm"
    ),
    "bert": Family(norm="post", base="bert.", positions_after_padding=False, heads=_BERT_HEADS, class_name="Bert"),
    "roberta": Family(norm="post", base="roberta.", positions_after_padding=True, heads=_ROBERTA_HEADS, class_name="Roberta"),
}
"""By `model_type`. What is read as `roberta` is written as `bert`: the same encoder with shorter positions."""


def family_to_write(norm: Norm) -> tuple[str, Family]:
    """Choose the model_type that a model is written as."""
    model_type = "roberta-prelayernorm" if norm == "pre" else "bert"
    return model_type, FAMILIES[model_type]


def _parameters(modules: Iterable[tuple[str, str]]) -> dict[str, str]:
    names = {}
    for ours, theirs in modules:
        if ours.endswith((".weight", ".bias")):
            names[ours] = theirs
        else:
            names |= {f"{ours}.{kind}": f"{theirs}.{kind}" for kind in ("weight", "bias")}
    return names
