"""What parameters are called there: one table per family of models."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Literal

from pldcli.config import ModelConfig
from pldcli.huggingface.bert_json import BertJson
from pldcli.huggingface.config_json import ConfigJson
from pldcli.huggingface.gpt2_json import Gpt2Json
from pldcli.huggingface.modernbert_json import ModernBertJson
from pldcli.model_types import model_type_of

__all__ = ["FAMILIES", "TASK_HEADS", "Family", "HeadName", "family_to_write"]

HeadName = Literal["mlm", "nsp", "sequence", "tokens", "spans"]
"""Masked-LM, next sentence, one label or number per row, one label per token, start and end of an answer."""

TASK_HEADS: tuple[HeadName, ...] = "sequence", "tokens", "spans"

Modules = Mapping[str, str | tuple[str, ...]]
"""Our modules and parameters, and theirs; several where ours are theirs stacked."""

_BERT: Modules = {
    "embeddings.word.weight": "embeddings.word_embeddings.weight",
    "embeddings.position.weight": "embeddings.position_embeddings.weight",
    "embeddings.token_type.weight": "embeddings.token_type_embeddings.weight",
    "embeddings.norm": "embeddings.LayerNorm",
}
_BERT_BLOCK: Modules = {
    "qkv": ("attention.self.query", "attention.self.key", "attention.self.value"),
    "attention_output": "attention.output.dense",
    "ffn_input": "intermediate.dense",
    "ffn_output": "output.dense",
}
_PRE_NORMS: Modules = {"attention_norm": "attention.LayerNorm", "ffn_norm": "intermediate.LayerNorm"}
_POST_NORMS: Modules = {"attention_norm": "attention.output.LayerNorm", "ffn_norm": "output.LayerNorm"}

_MODERNBERT: Modules = {
    "embeddings.word.weight": "embeddings.tok_embeddings.weight",
    "embeddings.norm": "embeddings.norm",
    "final_norm": "final_norm",
}
_MODERNBERT_BLOCK: Modules = {
    "attention_norm": "attn_norm",
    "qkv": "attn.Wqkv",
    "attention_output": "attn.Wo",
    "ffn_norm": "mlp_norm",
    "ffn_input": "mlp.Wi",
    "ffn_output": "mlp.Wo",
}

_GPT2: Modules = {"embeddings.word.weight": "wte.weight", "embeddings.position.weight": "wpe.weight", "final_norm": "ln_f"}
_GPT2_BLOCK: Modules = {
    "attention_norm": "ln_1",
    "qkv": "attn.c_attn",
    "attention_output": "attn.c_proj",
    "ffn_norm": "ln_2",
    "ffn_input": "mlp.c_fc",
    "ffn_output": "mlp.c_proj",
}

_BERT_HEADS: dict[HeadName, Modules] = {
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
_ROBERTA_HEADS: dict[HeadName, Modules] = {
    "mlm": {"mlm_head.dense": "lm_head.dense", "mlm_head.norm": "lm_head.layer_norm", "mlm_head.bias": "lm_head.bias"},
    "sequence": {"task_head.dense": "classifier.dense", "task_head.output": "classifier.out_proj"},
    "tokens": {"task_head.output": "classifier"},
    "spans": {"task_head.output": "qa_outputs"},
}
_MODERNBERT_TASK: Modules = {"task_head.dense": "head.dense", "task_head.norm": "head.norm", "task_head.output": "classifier"}
_MODERNBERT_HEADS: dict[HeadName, Modules] = {
    "mlm": {"mlm_head.dense": "head.dense", "mlm_head.norm": "head.norm", "mlm_head.bias": "decoder.bias"},
    **dict.fromkeys(TASK_HEADS, _MODERNBERT_TASK),
}
_DECODER_HEADS: dict[HeadName, Modules] = {
    "mlm": {"mlm_head.dense": "lm_head.dense", "mlm_head.norm": "lm_head.norm", "mlm_head.bias": "decoder.bias"},
}

_CLASSES: dict[HeadName, str] = {
    "mlm": "ForMaskedLM",
    "sequence": "ForSequenceClassification",
    "tokens": "ForTokenClassification",
    "spans": "ForQuestionAnswering",
}


@dataclass(frozen=True, kw_only=True)
class Family:
    """Models of one `model_type`."""

    config: ConfigJson
    """How config.json describes the encoder."""
    base: str
    """What stands before the encoder's names in a model with a head."""
    layer: str
    """What stands before the number of a block, behind `base`."""
    modules: Modules
    """Of the encoder, outside of its blocks; names without `base`."""
    block: Modules
    """Of a block; names without `base`, `layer` and number."""
    heads: Mapping[HeadName, Modules]
    class_name: str
    """Of its classes in transformers, without their endings."""
    classes: Mapping[HeadName, str] = field(default_factory=lambda: _CLASSES)
    """Those endings, by head."""
    transposed: bool = False
    """The matrices of their blocks are the transposes of ours."""

    def encoder(self, settings: ModelConfig) -> dict[str, tuple[str, ...]]:
        """Map our parameter names to theirs, without heads; several stand for their matrices one below the other."""
        modules = {ours: _prefixed(self.base, theirs) for ours, theirs in self.modules.items()}
        for index in range(settings.num_hidden_layers):
            layer = f"{self.base}{self.layer}.{index}."
            modules |= {f"blocks.{index}.{ours}": _prefixed(layer, theirs) for ours, theirs in self.block.items()}
        return _parameters(modules.items(), settings)

    def head(self, name: HeadName, settings: ModelConfig) -> dict[str, tuple[str, ...]]:
        """Map our parameter names of one head to theirs."""
        return _parameters(((ours, _prefixed("", theirs)) for ours, theirs in self.heads[name].items()), settings)

    def bare_names(self) -> tuple[str, ...]:
        """List with what the encoder's names begin in a model without a head, which has no `base`."""
        heads = [name for modules in self.heads.values() for theirs in modules.values() for name in _prefixed("", theirs)]
        names = [*self.modules.values(), self.layer, *(name.removeprefix(self.base) for name in heads if name.startswith(self.base))]
        return tuple({f"{name.partition('.')[0]}." for theirs in names for name in _prefixed("", theirs)})


FAMILIES = {
    "roberta-prelayernorm": Family(
        config=BertJson(norm="pre", positions_after_padding=True),
        base="roberta_prelayernorm.",
        layer="encoder.layer",
        modules={**_BERT, "final_norm": "LayerNorm"},
        block={**_BERT_BLOCK, **_PRE_NORMS},
        heads=_ROBERTA_HEADS,
        class_name="RobertaPreLayerNorm",
    ),
    "bert": Family(
        config=BertJson(norm="post"),
        base="bert.",
        layer="encoder.layer",
        modules=_BERT,
        block={**_BERT_BLOCK, **_POST_NORMS},
        heads=_BERT_HEADS,
        class_name="Bert",
    ),
    "roberta": Family(
        config=BertJson(norm="post", positions_after_padding=True),
        base="roberta.",
        layer="encoder.layer",
        modules=_BERT,
        block={**_BERT_BLOCK, **_POST_NORMS},
        heads=_ROBERTA_HEADS,
        class_name="Roberta",
    ),
    "modernbert": Family(
        config=ModernBertJson(),
        base="model.",
        layer="layers",
        modules=_MODERNBERT,
        block=_MODERNBERT_BLOCK,
        heads=_MODERNBERT_HEADS,
        class_name="ModernBert",
    ),
    "modernbert-decoder": Family(
        config=ModernBertJson(has_pooling=False),
        base="model.",
        layer="layers",
        modules=_MODERNBERT,
        block={**_MODERNBERT_BLOCK, "qkv": ("attn.q_proj", "attn.k_proj", "attn.v_proj")},
        heads=_DECODER_HEADS,
        class_name="ModernBertDecoder",
        classes={**_CLASSES, "mlm": "ForCausalLM"},
    ),
    "gpt2": Family(
        config=Gpt2Json(),
        base="transformer.",
        layer="h",
        modules=_GPT2,
        block=_GPT2_BLOCK,
        heads={"mlm": {}},
        class_name="GPT2",
        classes={**_CLASSES, "mlm": "LMHeadModel"},
        transposed=True,
    ),
}
"""By `model_type`. What is read as `roberta` is written as `bert`: the same encoder with shorter positions."""


def family_to_write(settings: ModelConfig, *, causal: bool = False) -> tuple[str, Family]:
    """Choose the model_type that a model is written as, or one that predicts the next token.

    Raises:
        UsageError: None can express it.
    """
    model_type = model_type_of(dict(settings), causal=causal)
    return model_type, FAMILIES[model_type]


def _prefixed(prefix: str, names: str | tuple[str, ...]) -> tuple[str, ...]:
    return tuple(prefix + name for name in ([names] if isinstance(names, str) else names))


def _parameters(modules: Iterable[tuple[str, tuple[str, ...]]], settings: ModelConfig) -> dict[str, tuple[str, ...]]:
    """Map parameters, given modules; a parameter that a module of ours does not have is left out."""
    names = {}
    for ours, theirs in modules:
        if ours.endswith((".weight", ".bias")):
            names[ours] = theirs
        else:
            names |= {f"{ours}.{kind}": tuple(f"{part}.{kind}" for part in theirs) for kind in ("weight", "bias")}
    return {ours: theirs for ours, theirs in names.items() if _is_there(ours, settings)}


def _is_there(name: str, settings: ModelConfig) -> bool:
    """Return whether the model has this parameter."""
    if name.startswith("blocks.0.attention_norm.") and not settings.first_attention_norm:
        return False
    if name.endswith("norm.bias"):
        return settings.norm_bias
    if name.endswith(("qkv.bias", "attention_output.bias")):
        return settings.attention_bias
    return settings.mlp_bias or not name.endswith(("ffn_input.bias", "ffn_output.bias", "dense.bias"))
