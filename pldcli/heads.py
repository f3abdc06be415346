"""The heads of an encoder: for pre-training, and for the tasks that it is fine-tuned for.

Shapes: B batch, T tokens, D hidden, V vocabulary, M masked positions.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional

from pldcli.choices import Norm, Pooling
from pldcli.dropout import Dropout

__all__ = [
    "MaskedLmHead",
    "NextSentenceHead",
    "SequenceHead",
    "SpanBoundaryHead",
    "TaskHead",
    "TokenHead",
    "TransformHead",
    "build_task_head",
    "draw_entries",
]

_DRAWN_POWER = 0.75
"""Of an entry's frequency, in proportion to which it is drawn for a sampled softmax."""
_SPAN_PLACES = 64
"""Rows of the span-boundary head's table of places."""


@dataclass(frozen=True)
class TaskHead:
    """The shape of a head for fine-tuning."""

    kind: Literal["sequence", "token"]
    """One output vector per sequence, or one per token."""
    num_outputs: int
    """Number of labels; 1 for a number; 2 for start and end of an answer."""
    dropout: float = 0.0
    """In training, before its layers."""
    pooling: Pooling = "first"
    """What a sequence's head reads in a model with rotary positions; in the others it is the first token."""


class MaskedLmHead(nn.Module):
    """BERT's language-model head, or GPT-2's; the decoder is tied to the word embeddings, which are an argument of the call.

    Args:
        transform: With a dense layer, GELU and a norm before the decoder, and a bias in it.
    """

    def __init__(
        self, *, vocab_size: int, hidden_size: int, layer_norm_eps: float, transform: bool, dense_bias: bool, norm_bias: bool
    ) -> None:
        super().__init__()
        self.dense = nn.Linear(hidden_size, hidden_size, bias=dense_bias) if transform else None
        self.norm = nn.LayerNorm(hidden_size, layer_norm_eps, bias=norm_bias) if transform else None
        self.bias = nn.Parameter(torch.zeros(vocab_size)) if transform else None

    def forward(self, hidden_MD: Tensor, word_embeddings_VD: Tensor, multiple: int = 1) -> Tensor:
        """Return the logits of the vocabulary at each masked position, [M, V].

        Args:
            hidden_MD: Hidden states.
            word_embeddings_VD: The decoder's weight.
            multiple: Pad V to a multiple of this with logits of minus infinity: tensor cores need a multiple of 8 at least.
        """
        bias_V: Tensor | None = self.bias
        if missing := -len(word_embeddings_VD) % multiple:
            bias_V = word_embeddings_VD.new_zeros(len(word_embeddings_VD)) if bias_V is None else bias_V
            word_embeddings_VD = functional.pad(word_embeddings_VD, (0, 0, 0, missing))
            bias_V = functional.pad(bias_V, (0, missing), value=-torch.inf)
        return functional.linear(self._transformed(hidden_MD), word_embeddings_VD, bias_V)

    def of_entries(self, hidden_MD: Tensor, word_embeddings_VD: Tensor, entries_E: Tensor) -> Tensor:
        """Return the logits of some entries of the vocabulary at each masked position, [M, E]."""
        bias_E = None if self.bias is None else self.bias.index_select(0, entries_E)
        return functional.linear(self._transformed(hidden_MD), word_embeddings_VD.index_select(0, entries_E), bias_E)

    def log_frequencies(self, word_embeddings_VD: Tensor) -> Tensor:
        """Return about how frequent entries are, as the bias has it, [V], in float32; all alike without a bias."""
        bias_V = word_embeddings_VD.new_zeros(len(word_embeddings_VD)) if self.bias is None else self.bias
        return bias_V.detach().float()

    def _transformed(self, hidden_MD: Tensor) -> Tensor:
        if self.dense is None or self.norm is None:
            return hidden_MD
        return self.norm(functional.gelu(self.dense(hidden_MD)))  # type: ignore[no-any-return]


def draw_entries(target_ids_M: Tensor, log_frequencies_V: Tensor, num_entries: int) -> tuple[Tensor, Tensor, Tensor]:
    """Draw entries of the vocabulary for a sampled softmax: all targets, and of the others as many as there is room for.

    With each drawn entry counted for those that it stands for, the sum of exponentials is that of the vocabulary on average. Most of it is
    that of frequent entries, which are drawn nearly always, so that it varies little.

    Source: Jean et al. 2015 (arXiv 1412.2007), section 3, for a softmax over the targets of a part of the text and a sample; Mikolov et al.
    2013 (arXiv 1310.4546), section 2.2, for the power of the frequencies; Cohen & Kaplan 2007 (Summarizing data using bottom-k sketches,
    PODC), for the probability of being drawn without replacement.

    Args:
        target_ids_M: Targets, fewer than `num_entries`; what is below zero is none, and stays.
        log_frequencies_V: Of all entries, more than `num_entries`; a number may be added to all.
        num_entries: To draw.

    Returns:
        Their ids [E], how many entries each stands for [E], and the place of each target among them [M].
    """
    is_target_M = target_ids_M >= 0
    targets_M = torch.where(is_target_M, target_ids_M, 0)
    weights_V = (_DRAWN_POWER * (log_frequencies_V - log_frequencies_V.max())).exp()
    # The first ones of a race: each arrives after an exponential time of its rate. Given when the next one arrives, each other one is
    # there with a probability of its own.
    times_V = (-torch.rand_like(weights_V).log() / weights_V).index_fill_(0, targets_M, -1.0)
    times, drawn = times_V.topk(num_entries + 1, largest=False)
    entries_E, times_E = drawn[:-1], times[:-1]
    stand_for_E = torch.where(times_E < 0, 1.0, -1.0 / torch.expm1(-weights_V[entries_E] * times[-1]))
    places_V = torch.empty_like(weights_V, dtype=torch.long).index_copy_(0, entries_E, torch.arange(num_entries, device=entries_E.device))
    return entries_E, stand_for_E, torch.where(is_target_M, places_V[targets_M], target_ids_M)


class NextSentenceHead(nn.Module):
    """BERT's pooler and two-way classifier."""

    def __init__(self, *, hidden_size: int) -> None:
        super().__init__()
        self.pooler = nn.Linear(hidden_size, hidden_size)
        self.classifier = nn.Linear(hidden_size, 2)

    def forward(self, hidden_BTD: Tensor) -> Tensor:
        """Return logits of "continues" (0) and "random" (1) from the first token, [B, 2]."""
        return self.classifier(torch.tanh(self.pooler(hidden_BTD[:, 0])))  # type: ignore[no-any-return]


class SpanBoundaryHead(nn.Module):
    """SpanBERT's: a masked token is predicted from the tokens on both sides of its span, and its place in it; two layers, tied decoder.

    Source: Joshi et al. 2020 (SpanBERT), section 3.2.
    """

    def __init__(self, *, vocab_size: int, hidden_size: int, layer_norm_eps: float) -> None:
        super().__init__()
        self.place = nn.Embedding(_SPAN_PLACES, hidden_size)
        self.boundary = nn.Linear(3 * hidden_size, hidden_size)
        self.boundary_norm = nn.LayerNorm(hidden_size, layer_norm_eps)
        sizes: dict[str, Any] = {"vocab_size": vocab_size, "hidden_size": hidden_size, "layer_norm_eps": layer_norm_eps}
        self.output = MaskedLmHead(**sizes, transform=True, dense_bias=True, norm_bias=True)

    def forward(self, left_MD: Tensor, right_MD: Tensor, places_M: Tensor, word_embeddings_VD: Tensor, multiple: int = 1) -> Tensor:
        """Return the logits of the vocabulary at each masked position, [M, V].

        Args:
            left_MD: Hidden states of the token before the span.
            right_MD: Hidden states of the token behind it.
            places_M: Of the tokens in the span, from 0; those far in share an embedding.
            word_embeddings_VD: The decoder's weight.
            multiple: As of `MaskedLmHead`.
        """
        places_MD = self.place(places_M.clamp(0, _SPAN_PLACES - 1))
        mixed_MD = self.boundary(torch.cat([left_MD, right_MD, places_MD], 1))
        return self.output(self.boundary_norm(functional.gelu(mixed_MD)), word_embeddings_VD, multiple)  # type: ignore[no-any-return]


class SequenceHead(nn.Module):
    """Dense, tanh, output, from the first token, in models with learned positions.

    BERT's head (pooler, dropout, classifier) after Post-LN blocks; RoBERTa's, with dropout before the dense layer too, after Pre-LN ones.

    Source: Devlin et al. 2019, section 4.1; Liu et al. 2019 (RoBERTa), its released classification head.
    """

    def __init__(self, *, hidden_size: int, num_outputs: int, dropout: float, norm: Norm) -> None:
        super().__init__()
        self.dense = nn.Linear(hidden_size, hidden_size)
        self.output = nn.Linear(hidden_size, num_outputs)
        self.dropout = Dropout(dropout)
        self.drops_input = norm == "pre"

    def forward(self, hidden_BTD: Tensor, attention_mask_BT: Tensor | None = None) -> Tensor:
        """Return the outputs of each sequence, [B, outputs]; padding plays no part."""
        first_BD = hidden_BTD[:, 0]
        if self.drops_input:
            first_BD = self.dropout(first_BD)
        return self.output(self.dropout(torch.tanh(self.dense(first_BD))))  # type: ignore[no-any-return]


class TokenHead(nn.Module):
    """One linear layer at every token, in models with learned positions."""

    def __init__(self, *, hidden_size: int, num_outputs: int, dropout: float) -> None:
        super().__init__()
        self.output = nn.Linear(hidden_size, num_outputs)
        self.dropout = Dropout(dropout)

    def forward(self, hidden_BTD: Tensor, attention_mask_BT: Tensor | None = None) -> Tensor:
        """Return the outputs of each token, [B, T, outputs]; padding plays no part."""
        return self.output(self.dropout(hidden_BTD))  # type: ignore[no-any-return]


class TransformHead(nn.Module):
    """ModernBERT's head for every task: dense, GELU, norm, output, of each token or of what stands for the sequence.

    Source: Warner et al. 2024 (ModernBERT), as in transformers 5.23.
    """

    def __init__(self, shape: TaskHead, *, hidden_size: int, layer_norm_eps: float, dense_bias: bool, norm_bias: bool) -> None:
        super().__init__()
        self.dense = nn.Linear(hidden_size, hidden_size, bias=dense_bias)
        self.norm = nn.LayerNorm(hidden_size, layer_norm_eps, bias=norm_bias)
        self.output = nn.Linear(hidden_size, shape.num_outputs)
        self.dropout = Dropout(shape.dropout)
        self.pooling = shape.pooling if shape.kind == "sequence" else None

    def forward(self, hidden_BTD: Tensor, attention_mask_BT: Tensor | None = None) -> Tensor:
        """Return the outputs of each sequence, [B, outputs], or of each token, [B, T, outputs].

        Args:
            hidden_BTD: Hidden states.
            attention_mask_BT: True at real tokens, of which the mean is taken; None when there is no padding.
        """
        hidden = hidden_BTD
        if self.pooling == "first":
            hidden = hidden_BTD[:, 0]
        elif self.pooling == "mean":
            if attention_mask_BT is None:
                attention_mask_BT = torch.ones_like(hidden_BTD[..., 0])
            real_BT1 = attention_mask_BT[..., None].to(hidden_BTD.dtype)
            hidden = (hidden_BTD * real_BT1).sum(1) / real_BT1.sum(1)
        return self.output(self.dropout(self.norm(functional.gelu(self.dense(hidden)))))  # type: ignore[no-any-return]


def build_task_head(
    shape: TaskHead, *, hidden_size: int, layer_norm_eps: float, rotary: bool, norm: Norm, dense_bias: bool, norm_bias: bool
) -> SequenceHead | TokenHead | TransformHead:
    """Build the head that transformers has for this task on such an encoder."""
    if rotary:
        return TransformHead(shape, hidden_size=hidden_size, layer_norm_eps=layer_norm_eps, dense_bias=dense_bias, norm_bias=norm_bias)
    if shape.kind == "sequence":
        return SequenceHead(hidden_size=hidden_size, num_outputs=shape.num_outputs, dropout=shape.dropout, norm=norm)
    return TokenHead(hidden_size=hidden_size, num_outputs=shape.num_outputs, dropout=shape.dropout)
