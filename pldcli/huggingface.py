"""To and from Hugging Face directories: names, settings, tokenizer, and the check on reload.

Pre-LN is `roberta-prelayernorm`, whose position table starts at pad_id + 1; Post-LN is `bert`. Both without custom code.
"""

from __future__ import annotations

import importlib.util
import json
import shutil
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any, Literal

import torch
from safetensors import SafetensorError
from safetensors.torch import load, save_file
from torch import Tensor

from pldcli.config import ModelConfig
from pldcli.data.tokenizer import SpecialTokens, fingerprint, vocab_fingerprint
from pldcli.errors import CheckpointError, UsageError
from pldcli.model import StBert

__all__ = ["PretrainedModel", "largest_difference", "load_pretrained", "save_pretrained"]

_MODEL_TYPES: dict[str, Literal["pre", "post"]] = {"roberta-prelayernorm": "pre", "bert": "post"}
_ARCHITECTURES = {"pre": "RobertaPreLayerNormForMaskedLM", "post": "BertForMaskedLM"}
_SEQ_LEN = "pld_seq_len"
"""Our one entry in config.json: the length that the model was trained at, in tokens."""

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
_BLOCK_NORMS = {
    "pre": {"attention_norm": "attention.LayerNorm", "ffn_norm": "intermediate.LayerNorm"},
    "post": {"attention_norm": "attention.output.LayerNorm", "ffn_norm": "output.LayerNorm"},
}
_HEADS = {
    "pre": {"dense": "lm_head.dense", "norm": "lm_head.layer_norm", "bias": "lm_head.bias"},
    "post": {
        "dense": "cls.predictions.transform.dense",
        "norm": "cls.predictions.transform.LayerNorm",
        "bias": "cls.predictions.bias",
    },
}
_BASES = {"pre": "roberta_prelayernorm.", "post": "bert."}


@dataclass(frozen=True)
class PretrainedModel:
    """A model read from a Hugging Face directory."""

    model: StBert
    settings: ModelConfig
    seq_len: int
    """Length to evaluate at, in tokens: the one it was trained at where the directory says so."""
    vocabulary_fingerprint: str


def save_pretrained(
    directory: Path, model: StBert, settings: ModelConfig, *, tokenizer_path: Path, special: SpecialTokens, seq_len: int
) -> None:
    """Write weights, config.json and tokenizer so that AutoModelForMaskedLM and AutoTokenizer load them without this package.

    Args:
        directory: An existing directory.
        model: A next-sentence head is left out.
        settings: The model's configuration.
        tokenizer_path: A `tokenizer.json`.
        special: Ids of the special tokens.
        seq_len: Training length in tokens.
    """
    weights = {name: tensor.detach().cpu() for name, tensor in model.state_dict().items()}
    save_file(_to_hugging_face(weights, settings, special.pad_id), directory / "model.safetensors", metadata={"format": "pt"})
    config = _config_json(settings, special, seq_len)
    (directory / "config.json").write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
    shutil.copyfile(tokenizer_path, directory / "tokenizer.json")
    tokenizer = _tokenizer_config(json.loads(tokenizer_path.read_text(encoding="utf-8")), special, settings.max_position_embeddings)
    (directory / "tokenizer_config.json").write_text(json.dumps(tokenizer, indent=2) + "\n", encoding="utf-8")


def load_pretrained(directory: Path) -> PretrainedModel:
    """Read a BERT or RoBERTa-PreLayerNorm directory with a masked-LM head and its tokenizer.

    Raises:
        CheckpointError: A file is missing or damaged, the architecture is another, or weights do not fit.
    """
    where = str(directory)
    config = _read_config(directory)
    model_type = config.get("model_type")
    norm = _MODEL_TYPES.get(str(model_type))
    if norm is None:
        known = " and ".join(_MODEL_TYPES)
        raise CheckpointError(f"has model_type {model_type!r}, this program reads {known}", where=where)
    plain = config.get("hidden_act", "gelu") == "gelu" and config.get("position_embedding_type", "absolute") == "absolute"
    if not plain or config.get("is_decoder"):
        raise CheckpointError("has another activation, other positions or another attention than BERT", where=where)
    try:
        num_unused = _whole(config, "pad_token_id", 1) + 1 if norm == "pre" else 0
        settings = _settings(config, norm, num_unused)
        seq_len = _whole(config, _SEQ_LEN, min(128, settings.max_position_embeddings))
        if not 3 <= seq_len <= settings.max_position_embeddings:
            raise ValueError(f"{_SEQ_LEN}: {seq_len}")
    except (ValueError, UsageError) as error:
        raise CheckpointError(f"config.json has an impossible {error}".replace(" model.", " "), where=where) from error
    model = StBert(**vars(settings))
    _load_strictly(model, _from_hugging_face(_read_weights(directory), settings, num_unused, where), where)
    return PretrainedModel(model, settings, seq_len, _vocabulary_fingerprint(directory))


def largest_difference(directory: Path, model: StBert, input_ids_BT: Tensor) -> float | None:
    """Load a saved directory with transformers and compare logits with ours.

    Returns:
        The largest absolute difference, or None where transformers is not installed.
    """
    if importlib.util.find_spec("transformers") is None:
        return None
    from transformers import AutoModelForMaskedLM
    from transformers.utils import logging

    logging.disable_progress_bar()
    theirs = AutoModelForMaskedLM.from_pretrained(directory, attn_implementation="sdpa").eval()
    training, device = model.training, next(model.parameters()).device
    model.eval().cpu()
    with torch.no_grad():
        ours_BTV = model.mlm_logits(model(input_ids_BT))
        difference = (theirs(input_ids=input_ids_BT, attention_mask=torch.ones_like(input_ids_BT)).logits - ours_BTV).abs().max()
    model.to(device).train(training)
    return float(difference)


def _read_config(directory: Path) -> dict[str, Any]:
    try:
        config = json.loads((directory / "config.json").read_text(encoding="utf-8"))
        if not isinstance(config, dict):
            raise ValueError("not an object")
    except (OSError, ValueError) as error:
        raise CheckpointError("is no run and no Hugging Face directory (no readable config.json)", where=str(directory)) from error
    return config


def _settings(config: dict[str, Any], norm: Literal["pre", "post"], num_unused: int) -> ModelConfig:
    """Read the model's configuration; the first `num_unused` positions are never looked up."""
    return ModelConfig(
        num_hidden_layers=_whole(config, "num_hidden_layers"),
        hidden_size=_whole(config, "hidden_size"),
        num_attention_heads=_whole(config, "num_attention_heads"),
        intermediate_size=_whole(config, "intermediate_size"),
        vocab_size=_whole(config, "vocab_size"),
        max_position_embeddings=_whole(config, "max_position_embeddings") - num_unused,
        type_vocab_size=_whole(config, "type_vocab_size", 2),
        norm=norm,
        dropout=_number(config, "hidden_dropout_prob", 0.1),
        layer_norm_eps=_number(config, "layer_norm_eps", 1e-12),
        initializer_range=_number(config, "initializer_range", 0.02),
    )


def _whole(config: dict[str, Any], name: str, default: int | None = None) -> int:
    value = config.get(name, default)
    if type(value) is not int:
        raise ValueError(f"{name}: {value!r}")
    return value


def _number(config: dict[str, Any], name: str, default: float) -> float:
    value = config.get(name, default)
    if not isinstance(value, int | float):
        raise ValueError(f"{name}: {value!r}")
    return value


def _names(settings: ModelConfig) -> dict[str, str]:
    """Map our parameter names to theirs; the joint query-key-value matrices are split elsewhere."""
    norm = settings.norm
    base = _BASES[norm]
    modules = {f"embeddings.{ours}": f"{base}embeddings.{theirs}" for ours, theirs in _EMBEDDINGS.items()}
    modules |= {f"mlm_head.{ours}": theirs for ours, theirs in _HEADS[norm].items()}
    for index in range(settings.num_hidden_layers):
        layer = f"{base}encoder.layer.{index}."
        modules |= {f"blocks.{index}.{ours}": layer + theirs for ours, theirs in (_BLOCK | _BLOCK_NORMS[norm]).items()}
    if norm == "pre":
        modules["final_norm"] = f"{base}LayerNorm"
    names = {}
    for ours, theirs in modules.items():
        if ours.endswith((".weight", ".bias")):
            names[ours] = theirs
        else:
            names |= {f"{ours}.{kind}": f"{theirs}.{kind}" for kind in ("weight", "bias")}
    return names


def _attention_names(settings: ModelConfig) -> dict[str, list[str]]:
    base = _BASES[settings.norm]
    return {
        f"blocks.{index}.qkv.{kind}": [f"{base}encoder.layer.{index}.attention.self.{part}.{kind}" for part in ("query", "key", "value")]
        for index in range(settings.num_hidden_layers)
        for kind in ("weight", "bias")
    }


def _to_hugging_face(weights: dict[str, Tensor], settings: ModelConfig, pad_id: int) -> dict[str, Tensor]:
    theirs = {their_name: weights[our_name] for our_name, their_name in _names(settings).items()}
    for our_name, parts in _attention_names(settings).items():
        theirs |= dict(zip(parts, weights[our_name].chunk(3), strict=True))
    if settings.norm == "pre":
        positions = f"{_BASES['pre']}embeddings.position_embeddings.weight"
        unused = torch.zeros(pad_id + 1, settings.hidden_size)
        theirs[positions] = torch.cat([unused, theirs[positions]])
    return {name: tensor.contiguous().clone() for name, tensor in theirs.items()}


def _from_hugging_face(theirs: dict[str, Tensor], settings: ModelConfig, num_unused: int, where: str) -> dict[str, Tensor]:
    spelled = {
        name.replace("LayerNorm.gamma", "LayerNorm.weight").replace("LayerNorm.beta", "LayerNorm.bias"): t for name, t in theirs.items()
    }
    if not any(name.startswith(_HEADS[settings.norm]["dense"]) for name in spelled):
        raise CheckpointError("has no masked-LM head", where=where, hint="give a model that was saved with its pre-training head")
    names, attention_names = _names(settings), _attention_names(settings)
    try:
        ours = {our_name: spelled[their_name] for our_name, their_name in names.items()}
        ours |= {name: torch.cat([spelled[part] for part in parts]) for name, parts in attention_names.items()}
    except KeyError as error:
        raise CheckpointError(f"has no weight {error}", where=where) from error
    except RuntimeError as error:
        raise CheckpointError(f"weights do not fit config.json ({error})", where=where) from error
    _check_the_rest(spelled, {*names.values(), *chain.from_iterable(attention_names.values())}, ours["embeddings.word.weight"], where)
    ours["embeddings.position.weight"] = ours["embeddings.position.weight"][num_unused:]
    return {name: tensor.float() for name, tensor in ours.items()}


def _check_the_rest(weights: dict[str, Tensor], used: set[str], word: Tensor, where: str) -> None:
    """Refuse weights that would change the result but have no place here: more blocks, cross-attention, an untied decoder."""
    for name in weights.keys() - used:
        if ".layer." in name:
            raise CheckpointError(f"has a weight {name!r} that config.json has no place for", where=where)
        if name.endswith("decoder.weight") and not torch.equal(weights[name], word):
            raise CheckpointError("has a decoder of its own, not tied to the word embeddings", where=where)


def _load_strictly(model: StBert, weights: dict[str, Tensor], where: str) -> None:
    try:
        model.load_state_dict(weights, strict=True)
    except RuntimeError as error:
        raise CheckpointError(f"weights do not fit config.json ({str(error).splitlines()[-1].strip()})", where=where) from error


def _read_weights(directory: Path) -> dict[str, Tensor]:
    path = directory / "model.safetensors"
    if not path.is_file():
        hint = "save it again as safetensors" if list(directory.glob("*.bin")) else ""
        raise CheckpointError("has no model.safetensors", where=str(directory), hint=hint)
    try:
        return load(path.read_bytes())  # type: ignore[no-any-return]
    except (OSError, SafetensorError) as error:
        raise CheckpointError(f"is damaged ({error})", where=str(path)) from error


def _vocabulary_fingerprint(directory: Path) -> str:
    if (directory / "tokenizer.json").is_file():
        return fingerprint(directory / "tokenizer.json")
    if (directory / "vocab.txt").is_file():
        return vocab_fingerprint(directory / "vocab.txt")
    raise CheckpointError("has no tokenizer.json and no vocab.txt", where=str(directory), hint="put the model's tokenizer beside it")


def _config_json(settings: ModelConfig, special: SpecialTokens, seq_len: int) -> dict[str, Any]:
    offset = special.pad_id + 1 if settings.norm == "pre" else 0
    model_type = next(name for name, norm in _MODEL_TYPES.items() if norm == settings.norm)
    return {
        "architectures": [_ARCHITECTURES[settings.norm]],
        "model_type": model_type,
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
        "tie_word_embeddings": True,
        "pad_token_id": special.pad_id,
        "bos_token_id": special.cls_id,
        "eos_token_id": special.sep_id,
        _SEQ_LEN: seq_len,
    }


def _tokenizer_config(tokenizer: dict[str, Any], special: SpecialTokens, max_length: int) -> dict[str, Any]:
    tokens = {entry["id"]: entry["content"] for entry in tokenizer.get("added_tokens", [])}
    roles = {"pad_token": special.pad_id, "unk_token": special.unk_id, "cls_token": special.cls_id, "sep_token": special.sep_id}
    return {
        "tokenizer_class": "PreTrainedTokenizerFast",  # without this AutoTokenizer builds a wrong one, silently
        "model_max_length": max_length,
        "model_input_names": ["input_ids", "token_type_ids", "attention_mask"],
        "clean_up_tokenization_spaces": False,
        **{role: tokens[token_id] for role, token_id in (roles | {"mask_token": special.mask_id}).items()},
    }
