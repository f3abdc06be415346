"""Read Hugging Face directories of the families in `names`, with whatever heads they have."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load
from torch import Tensor

from pldcli.config import ModelConfig
from pldcli.errors import CheckpointError, DataError, UsageError
from pldcli.huggingface.config_json import note_on_dropout, whole_number
from pldcli.huggingface.names import FAMILIES, TASK_HEADS, Family, HeadName
from pldcli.model_types import CAUSAL_TYPES
from pldcli.pretrained import Pretrained
from pldcli.settings import validate
from pldcli.system.json_text import from_json
from pldcli.tokenization.tokenizer import Tokenizer, load_tokenizer

__all__ = ["SEQ_LEN", "TASK", "load_pretrained", "transpose_blocks"]

SEQ_LEN, TASK = "pld_seq_len", "pld_task"
"""Our entries in config.json: the length that the model was trained at in tokens, and the task that it was fine-tuned for."""

_WEIGHTS, _PICKLE = "model.safetensors", "pytorch_model.bin"


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
    try:
        settings = validate(ModelConfig, family.config.read(config))
        num_unused, zero = family.config.unused_positions(config), family.config.zero_biases(config)
        seq_len = whole_number(config, SEQ_LEN, min(128, settings.max_position_embeddings))
        if not 3 <= seq_len <= settings.max_position_embeddings:
            raise ValueError(f"{SEQ_LEN}: {seq_len}")
        task_head = _task_head(config, family)
    except (ValueError, UsageError) as error:
        raise CheckpointError(f"config.json has an unusable {error}".replace(" model.", " "), where=where) from error
    theirs = _spelled(_read_weights(directory, allow_bin=allow_bin), family)
    reader = _Reader(theirs, family, settings, where=where, zero=zero)
    weights = reader.encoder(num_unused)
    without_masked_lm = reader.add_heads(weights, task_head)
    for name in theirs.keys() - reader.used:
        if name.startswith(f"{family.base}{family.layer}."):
            raise CheckpointError(f"has a weight {name!r} that config.json has no place for", where=where)
    task = config.get(TASK)
    return Pretrained(
        where=where,
        settings=settings,
        weights={name: tensor.float() for name, tensor in weights.items()},
        seq_len=seq_len,
        tokenizer=_load_tokenizer(directory, settings.vocab_size),
        task=task if isinstance(task, dict) else None,
        head_kind=None if task_head is None else "sequence" if task_head == "sequence" else "token",
        labels=_labels(config, weights),
        multi_label=config.get("problem_type") == "multi_label_classification",
        causal=config["model_type"] in CAUSAL_TYPES,
        pooling=family.config.pooling(config),
        without_masked_lm=without_masked_lm,
        notes_on_dropout=() if config["model_type"] in CAUSAL_TYPES else note_on_dropout(config, settings.dropout),
    )


def _read_config(directory: Path) -> dict[str, Any]:
    try:
        config = from_json((directory / "config.json").read_text(encoding="utf-8"))
        if not isinstance(config, dict):
            raise ValueError("not an object")
    except (OSError, ValueError) as error:
        raise CheckpointError("is no run and no Hugging Face directory (no readable config.json)", where=str(directory)) from error
    return config


def _task_head(config: dict[str, Any], family: Family) -> HeadName | None:
    """Return which head of a task config.json names."""
    names = config.get("architectures") or []
    if not isinstance(names, list):
        raise ValueError(f"architectures: {names!r}")
    architecture = " ".join(map(str, names))
    return next((head for head in TASK_HEADS if architecture.endswith(family.classes[head])), None)


def _spelled(weights: dict[str, Tensor], family: Family) -> dict[str, Tensor]:
    """Spell names as models with heads do today: the first checkpoints say gamma and beta, bare encoders have no prefix."""
    new = {
        name.replace("LayerNorm.gamma", "LayerNorm.weight").replace("LayerNorm.beta", "LayerNorm.bias"): t for name, t in weights.items()
    }
    if not any(name.startswith(family.base) for name in new):
        bare = family.bare_names()
        new = {family.base + name if name.startswith(bare) else name: tensor for name, tensor in new.items()}
    return new


@dataclass(frozen=True)
class _Reader:
    """Take weights under our names, and note which of theirs they were."""

    theirs: dict[str, Tensor]
    family: Family
    settings: ModelConfig
    where: str
    zero: tuple[str, ...]
    """Endings of our names of biases that these models do not have."""
    used: set[str] = field(default_factory=set)

    def encoder(self, num_unused: int) -> dict[str, Tensor]:
        """Take the encoder's weights, of which the first rows of the position table are left out."""
        try:
            ours = self.take(self.family.encoder(self.settings))
        except KeyError as error:
            raise CheckpointError(f"has no weight {error}", where=self.where) from error
        if "embeddings.position.weight" in ours:
            ours["embeddings.position.weight"] = ours["embeddings.position.weight"][num_unused:]
        _check_shapes(ours, self.settings, self.where)
        return ours

    def take(self, names: dict[str, tuple[str, ...]]) -> dict[str, Tensor]:
        """Take weights; biases that these models do not have are zeros.

        Raises:
            KeyError: There is no such weight.
        """
        ours: dict[str, Tensor] = {}
        for our_name, parts in names.items():
            if parts[0] not in self.theirs and our_name.endswith(self.zero):
                weight = ours.get(f"{our_name.removesuffix('bias')}weight")
                ours[our_name] = torch.zeros(self.settings.vocab_size if weight is None else len(weight))
                continue
            try:
                ours[our_name] = torch.cat([self.theirs[part] for part in parts])
            except RuntimeError as error:
                raise CheckpointError(f"weights do not fit config.json ({error})", where=self.where) from error
        self.used.update(part for parts in names.values() for part in parts)
        return transpose_blocks(ours) if self.family.transposed else ours

    def add_heads(self, weights: dict[str, Tensor], task_head: HeadName | None) -> str:
        """Add the heads that are there; say why the masked-LM head is not one of them, or nothing."""
        wanted: tuple[HeadName | None, ...] = "nsp", task_head
        for head in wanted:
            if head is not None and head in self.family.heads:
                names = self.family.head(head, self.settings)
                weights |= self.take({our_name: parts for our_name, parts in names.items() if self._has(our_name, parts)})
        names = self.family.head("mlm", self.settings)
        if task_head or not all(self._has(our_name, parts) for our_name, parts in names.items()):
            return "has no masked-LM head"
        word = weights["embeddings.word.weight"]
        for name in self.theirs.keys() - self.used:
            if name.endswith(("decoder.weight", "lm_head.weight")) and not torch.equal(self.theirs[name], word):
                return "has a decoder of its own, not tied to the word embeddings"
        weights |= self.take(names)
        return ""

    def _has(self, our_name: str, parts: tuple[str, ...]) -> bool:
        return all(part in self.theirs for part in parts) or our_name.endswith(self.zero)


def transpose_blocks(weights: dict[str, Tensor]) -> dict[str, Tensor]:
    """Transpose the matrices of blocks, as GPT-2 has them."""
    return {name: tensor.T if name.startswith("blocks.") and tensor.ndim == 2 else tensor for name, tensor in weights.items()}


def _check_shapes(ours: dict[str, Tensor], settings: ModelConfig, where: str) -> None:
    width, inner, gated = settings.hidden_size, settings.intermediate_size, 1 if settings.feed_forward == "gelu" else 2
    expected = {
        "embeddings.word.weight": (settings.vocab_size, width),
        "embeddings.position.weight": (settings.max_position_embeddings, width),
        "embeddings.token_type.weight": (settings.type_vocab_size, width),
        "blocks.0.qkv.weight": (3 * width, width),
        "blocks.0.ffn_input.weight": (gated * inner, width),
        "blocks.0.ffn_output.weight": (width, inner),
    }
    for name, shape in expected.items():
        if name in ours and tuple(ours[name].shape) != shape:
            raise CheckpointError(f"weights do not fit config.json ({name}: {list(ours[name].shape)}, not {list(shape)})", where=where)


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
            parts = sorted(set(from_json(index.read_text(encoding="utf-8"))["weight_map"].values()))
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
