"""Read Hugging Face directories: BERT, RoBERTa and RoBERTa-PreLayerNorm, with whatever heads they have."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load
from torch import Tensor

from pldcli.config import ModelConfig
from pldcli.data.tokenizer import Tokenizer, load_tokenizer
from pldcli.errors import CheckpointError, DataError, UsageError
from pldcli.huggingface.names import FAMILIES, Family, HeadName
from pldcli.pretrained import Pretrained
from pldcli.settings import validate

__all__ = ["SEQ_LEN", "TASK", "load_pretrained"]

SEQ_LEN, TASK = "pld_seq_len", "pld_task"
"""Our entries in config.json: the length that the model was trained at in tokens, and the task that it was fine-tuned for."""

_WEIGHTS, _PICKLE = "model.safetensors", "pytorch_model.bin"
_TASK_HEADS: tuple[tuple[str, HeadName], ...] = (
    ("SequenceClassification", "sequence"),
    ("TokenClassification", "tokens"),
    ("QuestionAnswering", "spans"),
)


def load_pretrained(directory: Path, *, allow_bin: bool = False) -> Pretrained:
    """Read an encoder with its heads and its tokenizer.

    Args:
        directory: As `save_pretrained` of transformers writes it.
        allow_bin: Read `pytorch_model.bin` where there is no safetensors file, through torch's weights-only loader, which runs
            no code of the file.

    Raises:
        CheckpointError: A file is missing or damaged, the architecture is another, weights do not fit, or the tokenizer has more
            entries than the weights.
    """
    where = str(directory)
    config = _read_config(directory)
    family = FAMILIES.get(str(config.get("model_type")))
    if family is None:
        raise CheckpointError(f"has model_type {config.get('model_type')!r}, this program reads {' and '.join(FAMILIES)}", where=where)
    plain = config.get("hidden_act", "gelu") == "gelu" and config.get("position_embedding_type", "absolute") == "absolute"
    if not plain or config.get("is_decoder"):
        raise CheckpointError("has another activation, other positions or another attention than BERT", where=where)
    try:
        num_unused = _whole(config, "pad_token_id", family.default_pad_id) + 1 if family.positions_after_padding else 0
        settings = _settings(config, family, num_unused)
        seq_len = _whole(config, SEQ_LEN, min(128, settings.max_position_embeddings))
        if not 3 <= seq_len <= settings.max_position_embeddings:
            raise ValueError(f"{SEQ_LEN}: {seq_len}")
    except (ValueError, UsageError) as error:
        raise CheckpointError(f"config.json has an impossible {error}".replace(" model.", " "), where=where) from error
    theirs = _spelled(_read_weights(directory, allow_bin=allow_bin), family)
    weights, used = _encoder(theirs, family, settings, num_unused, where)
    without_masked_lm = _add_heads(weights, used, theirs, family, config)
    for name in theirs.keys() - used:
        if ".layer." in name:
            raise CheckpointError(f"has a weight {name!r} that config.json has no place for", where=where)
    task = config.get(TASK)
    return Pretrained(
        where=where,
        settings=settings,
        weights={name: tensor.float() for name, tensor in weights.items()},
        seq_len=seq_len,
        tokenizer=_load_tokenizer(directory, settings.vocab_size),
        task=task if isinstance(task, dict) else None,
        labels=_labels(config, weights),
        without_masked_lm=without_masked_lm,
    )


def _read_config(directory: Path) -> dict[str, Any]:
    try:
        config = json.loads((directory / "config.json").read_text(encoding="utf-8"))
        if not isinstance(config, dict):
            raise ValueError("not an object")
    except (OSError, ValueError) as error:
        raise CheckpointError("is no run and no Hugging Face directory (no readable config.json)", where=str(directory)) from error
    return config


def _settings(config: dict[str, Any], family: Family, num_unused: int) -> ModelConfig:
    """Read the model's configuration; the first `num_unused` positions are never looked up."""
    needed = ("num_hidden_layers", "hidden_size", "num_attention_heads", "intermediate_size", "vocab_size")
    optional = ("type_vocab_size", "layer_norm_eps", "initializer_range")
    values = {name: config.get(name) for name in needed} | {name: config[name] for name in optional if name in config}
    positions = _whole(config, "max_position_embeddings") - num_unused
    dropout = config.get("hidden_dropout_prob", 0.1)
    return validate(ModelConfig, {**values, "max_position_embeddings": positions, "dropout": dropout, "norm": family.norm})


def _whole(config: dict[str, Any], name: str, default: int | None = None) -> int:
    value = config.get(name, default)
    if type(value) is not int:
        raise ValueError(f"{name}: {value!r}")
    return value


def _spelled(weights: dict[str, Tensor], family: Family) -> dict[str, Tensor]:
    """Spell names as models with heads do today: the first checkpoints say gamma and beta, bare encoders have no prefix."""
    new = {
        name.replace("LayerNorm.gamma", "LayerNorm.weight").replace("LayerNorm.beta", "LayerNorm.bias"): t for name, t in weights.items()
    }
    if not any(name.startswith(family.base) for name in new):
        parts = ("embeddings.", "encoder.", "pooler.", "LayerNorm.")
        new = {family.base + name if name.startswith(parts) else name: tensor for name, tensor in new.items()}
    return new


def _encoder(
    theirs: dict[str, Tensor], family: Family, settings: ModelConfig, num_unused: int, where: str
) -> tuple[dict[str, Tensor], set[str]]:
    """Take the encoder's weights under our names, and say which of theirs they were."""
    names, attention = family.encoder(settings.num_hidden_layers), family.attention(settings.num_hidden_layers)
    try:
        ours = {our_name: theirs[their_name] for our_name, their_name in names.items()}
        ours |= {name: torch.cat([theirs[part] for part in parts]) for name, parts in attention.items()}
    except KeyError as error:
        raise CheckpointError(f"has no weight {error}", where=where) from error
    except RuntimeError as error:
        raise CheckpointError(f"weights do not fit config.json ({error})", where=where) from error
    ours["embeddings.position.weight"] = ours["embeddings.position.weight"][num_unused:]
    _check_shapes(ours, settings, where)
    return ours, {*names.values(), *(part for parts in attention.values() for part in parts)}


def _check_shapes(ours: dict[str, Tensor], settings: ModelConfig, where: str) -> None:
    width, inner = settings.hidden_size, settings.intermediate_size
    expected = {
        "embeddings.word.weight": (settings.vocab_size, width),
        "embeddings.position.weight": (settings.max_position_embeddings, width),
        "embeddings.token_type.weight": (settings.type_vocab_size, width),
        "blocks.0.qkv.weight": (3 * width, width),
        "blocks.0.ffn_input.weight": (inner, width),
        "blocks.0.ffn_output.weight": (width, inner),
    }
    for name, shape in expected.items():
        if tuple(ours[name].shape) != shape:
            raise CheckpointError(f"weights do not fit config.json ({name}: {list(ours[name].shape)}, not {list(shape)})", where=where)


def _add_heads(weights: dict[str, Tensor], used: set[str], theirs: dict[str, Tensor], family: Family, config: dict[str, Any]) -> str:
    """Add the heads that are there; say why the masked-LM head is not one of them, or nothing."""
    architecture = " ".join(map(str, config.get("architectures") or []))
    wanted: list[HeadName] = [name for ending, name in _TASK_HEADS if architecture.endswith(ending)]
    for head in ("nsp", *wanted):
        if head in family.heads:
            found = {ours: name for ours, name in family.head(head).items() if name in theirs}
            weights |= {ours: theirs[name] for ours, name in found.items()}
            used |= set(found.values())
    names = family.head("mlm")
    if any(name not in theirs for name in names.values()):
        return "has no masked-LM head"
    word = weights["embeddings.word.weight"]
    for name in theirs.keys() - used:
        if name.endswith("decoder.weight") and not torch.equal(theirs[name], word):
            return "has a decoder of its own, not tied to the word embeddings"
    weights |= {ours: theirs[name] for ours, name in names.items()}
    used |= set(names.values())
    return ""


def _labels(config: dict[str, Any], weights: dict[str, Tensor]) -> tuple[str, ...]:
    """Read the names of the task head's outputs, where config.json names each of them."""
    output, names = weights.get("task_head.output.bias"), config.get("id2label")
    if output is None or not isinstance(names, dict):
        return ()
    found = [names.get(str(number)) for number in range(len(output))]
    return tuple(map(str, found)) if None not in found else ()


def _read_weights(directory: Path, *, allow_bin: bool) -> dict[str, Tensor]:
    path = directory / _WEIGHTS
    index = directory / f"{_WEIGHTS}.index.json"
    if not path.is_file() and index.is_file():
        try:
            parts = sorted(set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values()))
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            raise CheckpointError("is damaged", where=str(index)) from error
        return {name: tensor for part in parts for name, tensor in _read_safetensors(directory / Path(part).name).items()}
    if path.is_file():
        return _read_safetensors(path)
    if not (directory / _PICKLE).is_file():
        raise CheckpointError(f"has no {_WEIGHTS}", where=str(directory))
    if not allow_bin:
        raise CheckpointError(
            f"has no {_WEIGHTS}, only {_PICKLE}, a pickle",
            where=str(directory),
            hint="save it again as safetensors, or add --allow-bin to read it with torch's weights-only loader",
        )
    return _read_pickle(directory / _PICKLE)


def _read_safetensors(path: Path) -> dict[str, Tensor]:
    try:
        return load(path.read_bytes())  # type: ignore[no-any-return]
    except (OSError, SafetensorError) as error:
        raise CheckpointError(f"is damaged ({error})", where=str(path)) from error


def _read_pickle(path: Path) -> dict[str, Tensor]:
    """Read a foreign pickle of weights without running anything in it: the one place that does, and only when asked to."""
    try:
        weights = torch.load(path, map_location="cpu", weights_only=True)  # noqa: TID251
    except Exception as error:  # the unpickler raises whatever the file makes it raise
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise CheckpointError(f"cannot be read as weights only ({reason})", where=str(path)) from error
    if not isinstance(weights, dict) or not all(isinstance(value, Tensor) for value in weights.values()):
        raise CheckpointError("holds something else than weights", where=str(path))
    return weights


def _load_tokenizer(directory: Path, vocab_size: int) -> Tokenizer:
    try:
        tokenizer = load_tokenizer(directory)
    except DataError as error:
        raise CheckpointError(error.what, where=error.where, hint=error.hint) from error
    if tokenizer.vocab_size > vocab_size:
        raise CheckpointError(
            f"has a tokenizer of {tokenizer.vocab_size:,} entries but embeddings of {vocab_size:,} rows",
            where=str(directory),
            hint="put the tokenizer beside it that the weights were trained with",
        )
    return tokenizer
