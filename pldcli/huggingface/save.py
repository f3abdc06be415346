"""Write Hugging Face directories that transformers loads without this package."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from safetensors.torch import save
from torch import Tensor
from torch.nn import functional

from pldcli.choices import TaskKind
from pldcli.config import ModelConfig
from pldcli.huggingface.load import SEQ_LEN, TASK, transpose_blocks
from pldcli.huggingface.modernbert_json import POOLING
from pldcli.huggingface.names import HeadName, family_to_write
from pldcli.model import StBert, TransformHead
from pldcli.tasks.task import Task
from pldcli.tokenization.special_tokens import begin_template
from pldcli.tokenization.tokenizer import SpecialTokens, Tokenizer

__all__ = ["save_pretrained"]


def save_pretrained(
    directory: Path,
    model: StBert,
    settings: ModelConfig,
    *,
    tokenizer: Tokenizer,
    seq_len: int,
    causal: bool = False,
    task: Task | None = None,
    max_seq_len: int = 0,
    stride: int = 0,
) -> None:
    """Write weights, config.json and tokenizer so that the Auto classes of transformers load them without this package.

    Args:
        directory: An existing directory.
        model: With a masked-LM head (a next-sentence head is left out), or with the head of `task`.
        settings: The model's configuration.
        tokenizer: The model's.
        seq_len: Training length in tokens.
        causal: The model predicts the next token.
        task: What the model was fine-tuned for.
        max_seq_len: Tokens of a row at most in fine-tuning.
        stride: Tokens that two windows of a long text shared in fine-tuning.
    """
    model_type, family = family_to_write(settings, causal=causal)
    head, config = _head_name(model, task), family.config.write(settings, tokenizer.special)
    config |= {"tie_word_embeddings": True, **_special_ids(tokenizer.special), SEQ_LEN: seq_len}
    weights = {name: tensor.detach().cpu() for name, tensor in model.state_dict().items()}
    if family.transposed:
        weights = transpose_blocks(weights)
    theirs = _to_hugging_face(weights, family.encoder(settings) | family.head(head, settings), family.config.unused_positions(config))
    (directory / "model.safetensors").write_bytes(save(theirs, metadata={"format": "pt"}))
    config = {"architectures": [family.class_name + family.classes[head]], "model_type": model_type, **config}
    config |= _task_json(task, max_seq_len, stride) if task else {}
    if isinstance(model.task_head, TransformHead) and model.task_head.pooling is not None:
        config["classifier_pooling"] = POOLING[model.task_head.pooling]
    (directory / "config.json").write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
    (directory / "tokenizer.json").write_text(_tokenizer_json(tokenizer, causal=causal), encoding="utf-8")
    described = _tokenizer_config(json.loads(tokenizer.json_text), tokenizer.special, settings)
    (directory / "tokenizer_config.json").write_text(json.dumps(described, indent=2) + "\n", encoding="utf-8")


def _head_name(model: StBert, task: Task | None) -> HeadName:
    if task is None:
        assert model.mlm_head is not None
        return "mlm"
    if task.kind == TaskKind.SPANS:
        return "spans"
    return "tokens" if task.kind == TaskKind.TAGS else "sequence"


def _to_hugging_face(weights: dict[str, Tensor], names: dict[str, tuple[str, ...]], num_unused: int) -> dict[str, Tensor]:
    """Spell weights as they do there; the position table begins with `num_unused` rows that are never looked up."""
    if num_unused:
        positions = weights["embeddings.position.weight"]
        weights = weights | {"embeddings.position.weight": functional.pad(positions, (0, 0, num_unused, 0))}
    theirs: dict[str, Tensor] = {}
    for our_name, parts in names.items():
        theirs |= dict(zip(parts, weights[our_name].chunk(len(parts)), strict=True))
    return {name: tensor.contiguous().clone() for name, tensor in theirs.items()}


def _special_ids(special: SpecialTokens) -> dict[str, int]:
    return {"pad_token_id": special.pad_id, "bos_token_id": special.cls_id, "eos_token_id": special.sep_id}


def _task_json(task: Task, max_seq_len: int, stride: int) -> dict[str, Any]:
    """Name the labels, and write down what `pld evaluate` needs to read the task's files again."""
    entries: dict[str, Any] = {}
    if task.kind in ("classification", "multi-label", "tags"):
        entries["id2label"] = {str(number): label for number, label in enumerate(task.labels)}
        entries["label2id"] = {label: number for number, label in enumerate(task.labels)}
    if task.kind == "classification":
        entries["problem_type"] = "single_label_classification"
    if task.kind == "multi-label":
        entries["problem_type"] = "multi_label_classification"
    if task.kind == "regression":
        entries |= {"id2label": {"0": task.label_column}, "label2id": {task.label_column: 0}, "problem_type": "regression"}
    entries[TASK] = task.record() | {"max_seq_len": max_seq_len, "stride": stride}
    return entries


def _tokenizer_json(tokenizer: Tokenizer, *, causal: bool) -> str:
    """Write a tokenizer; for a causal model without the separator behind a text, which would end what the model should go on with."""
    if not causal:
        return tokenizer.json_text
    import tokenizers

    fast = tokenizers.Tokenizer.from_str(tokenizer.json_text)
    fast.post_processor = begin_template(fast, tokenizer.special)
    return str(fast.to_str(pretty=True))


def _tokenizer_config(tokenizer: dict[str, Any], special: SpecialTokens, settings: ModelConfig) -> dict[str, Any]:
    tokens = {entry["id"]: entry["content"] for entry in tokenizer.get("added_tokens", [])}
    roles = {"pad_token": special.pad_id, "unk_token": special.unk_id, "cls_token": special.cls_id, "sep_token": special.sep_id}
    return {
        "tokenizer_class": "PreTrainedTokenizerFast",  # without this AutoTokenizer builds a wrong one, silently
        "model_max_length": settings.max_position_embeddings,
        "model_input_names": ["input_ids", *(["token_type_ids"] if settings.type_vocab_size > 1 else []), "attention_mask"],
        "clean_up_tokenization_spaces": False,
        # transformers 4 sets the pre-tokenizer to this, and to False where it is not said
        **{key: value for key, value in (tokenizer.get("pre_tokenizer") or {}).items() if key == "add_prefix_space"},
        **{role: tokens[token_id] for role, token_id in (roles | {"mask_token": special.mask_id}).items()},
    }
