"""Closed sets of words that options, settings and the program share: each is said once, and imports nothing."""

from __future__ import annotations

from enum import StrEnum
from typing import Literal

__all__ = [
    "AttentionInit",
    "BlockChoice",
    "Device",
    "DocumentPer",
    "Engine",
    "FeedForward",
    "JobFile",
    "LmHead",
    "LmKind",
    "MaskingUnit",
    "ModelType",
    "Norm",
    "Normalization",
    "Pooling",
    "PositionEmbedding",
    "PrecisionChoice",
    "PrecisionName",
    "Sharding",
    "TaskKind",
]

AttentionInit = Literal["normal", "local"]
"""Initial attention weights: as BERT's, or with heads that begin by looking at near tokens."""

BlockChoice = Literal["first", "even", "keep-prob"]
"""The lowest blocks, evenly spread ones, or those that training kept most often."""

Device = Literal["auto", "cpu", "cuda"]
"""Where to run; `auto` takes CUDA when there is any."""

DocumentPer = Literal["blank-line", "line", "file"]
"""What ends a document in a text file."""

Engine = Literal["local", "ray"]
"""Who prepares text: processes of this machine, or a Ray cluster."""

FeedForward = Literal["gelu", "geglu", "swiglu"]
"""The feed-forward layer: one matrix and GELU, or two whose product is taken, one of them behind GELU or SiLU."""

JobFile = Literal["slurm", "k8s"]
"""Whose jobs do shares of the preparation of text."""

LmHead = Literal["transform", "plain"]
"""Before the tied decoder: a dense layer, GELU and a norm, as BERT, or nothing, as GPT-2."""

LmKind = Literal["masked", "causal", "prefix"]
"""What a language model predicts: masked tokens, the next token, or a mixture of both whose rows may begin with a prefix."""

MaskingUnit = Literal["token", "whole-word", "span"]
"""What becomes targets of the masked LM together."""

ModelType = Literal["bpe", "unigram", "wordpiece", "byte-level-bpe"]
"""What tokenizer to train: the first two by SentencePiece."""

Norm = Literal["pre", "post"]
"""Where LayerNorm stands: before each sublayer, or after its residual."""

Normalization = Literal["nmt_nfkc", "nfkc", "nfc", "identity"]
"""What a tokenizer makes of equivalent characters; the first as SentencePiece does, which is NFKC and fewer kinds of white space."""

Pooling = Literal["first", "mean"]
"""What stands for a sequence in the head of a task: its first token, or the mean of its tokens."""

PositionEmbedding = Literal["learned", "rotary"]
"""Positions: a learned table that is added, or rotations of queries and keys."""

PrecisionChoice = Literal["auto", "bf16", "fp16", "fp32"]
"""Number formats; `auto` takes what is fast on the device."""

PrecisionName = Literal["bf16", "fp16", "fp32"]
"""A number format of autocast, chosen."""

Sharding = Literal["none", "full", "hybrid"]
"""Of several processes: each holds all parameters, a part of them, or a part of what its machine holds."""


class TaskKind(StrEnum):
    """What the labels of a task are."""

    CLASSIFICATION = "classification"
    """One label per example."""
    MULTI_LABEL = "multi-label"
    """Any number of labels per example."""
    REGRESSION = "regression"
    """One number per example."""
    TAGS = "tags"
    """One label per word."""
    SPANS = "spans"
    """An answer within a text."""
