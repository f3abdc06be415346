"""ST-BERT: a BERT encoder of switchable transformer blocks, with its heads.

Shapes: B batch, T tokens, D hidden, H heads, K head size, F feed-forward, V vocabulary, M masked positions, L blocks.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.attention.varlen import varlen_attn
from torch.utils.checkpoint import checkpoint

from pldcli.choices import AttentionInit, Norm
from pldcli.dropout import Dropout, dropout

__all__ = ["Block", "Embeddings", "MaskedLmHead", "NextSentenceHead", "SequenceHead", "StBert", "TaskHead", "TokenHead"]


_LOUD_POSITIONS = 2.0
"""`local` initialisation: standard deviation of position embeddings, in that of word embeddings."""

_NEARBY_SCORE = 12.0
"""`local` initialisation: attention score of the position that a head looks at; its neighbours score about 1 less, far ones about 10."""

_PERIODS = 4.0, 256.0
"""`local` initialisation: shortest and longest period of the sinusoids, in tokens."""

_LEAST_CAPABILITY, _MOST_HEAD_SIZE = (8, 0), 256
"""Requirements of FlashAttention 2, torch's kernel for sequences of unequal length: Ampere or later; 16 bits only."""


@dataclass(frozen=True)
class TaskHead:
    """The shape of a head for fine-tuning."""

    kind: Literal["sequence", "token"]
    """One output vector per sequence, or one per token."""
    num_outputs: int
    """Number of labels; 1 for a number; 2 for start and end of an answer."""
    dropout: float = 0.0
    """In training, before its layers."""


class Embeddings(nn.Module):
    """Sum of word, position and token-type embeddings, normalised."""

    def __init__(
        self,
        *,
        vocab_size: int,
        hidden_size: int,
        max_position_embeddings: int,
        type_vocab_size: int,
        dropout: float,
        layer_norm_eps: float,
    ) -> None:
        super().__init__()
        self.word = nn.Embedding(vocab_size, hidden_size)
        self.position = nn.Embedding(max_position_embeddings, hidden_size)
        self.token_type = nn.Embedding(type_vocab_size, hidden_size)
        self.norm = nn.LayerNorm(hidden_size, eps=layer_norm_eps)
        self.dropout = Dropout(dropout)

    def forward(self, input_ids_BT: Tensor, token_type_ids_BT: Tensor | None = None, position_ids_BT: Tensor | None = None) -> Tensor:
        """Embed, [B, T, D]; by default all token types are 0, and positions count from 0."""
        no_types = token_type_ids_BT is None or self.token_type.num_embeddings == 1
        types = self.token_type.weight[0] if no_types else self.token_type(token_type_ids_BT)
        positions = self.position.weight[: input_ids_BT.shape[1]] if position_ids_BT is None else self.position(position_ids_BT)
        x_BTD = self.word(input_ids_BT) + (positions + types)  # these two are mostly [T, D]: one addition of [B, T, D] instead of two
        x_BTD = self.dropout(self.norm(x_BTD))
        return x_BTD  # type: ignore[no-any-return]


class Block(nn.Module):
    """A transformer block whose two sublayers share one residual scale.

    Pre-LN is the paper's ST block; Post-LN is its failing control. A block knows no gate: `StBert.forward` skips it.

    Source: Zhang & He 2020, section 4.1, equations 4 and 5.
    """

    def __init__(
        self,
        *,
        hidden_size: int,
        num_attention_heads: int,
        intermediate_size: int,
        norm: Norm,
        dropout: float,
        layer_norm_eps: float,
    ) -> None:
        super().__init__()
        self.num_heads = num_attention_heads
        self.pre_norm = norm == "pre"
        self.attention_norm = nn.LayerNorm(hidden_size, eps=layer_norm_eps)
        self.qkv = nn.Linear(hidden_size, 3 * hidden_size)
        self.attention_output = nn.Linear(hidden_size, hidden_size)
        self.ffn_norm = nn.LayerNorm(hidden_size, eps=layer_norm_eps)
        self.ffn_input = nn.Linear(hidden_size, intermediate_size)
        self.ffn_output = nn.Linear(intermediate_size, hidden_size)
        self.dropout = Dropout(dropout)

    def forward(
        self,
        x_BTD: Tensor,
        attention_mask: Tensor | None = None,
        residual_scale: Tensor | None = None,
        boundaries_N: Tensor | None = None,
    ) -> Tensor:
        """Run both sublayers.

        Args:
            x_BTD: The residual stream.
            attention_mask: True where attention may look, [B, 1, 1, T] or [B, 1, T, T]; None for everywhere.
            residual_scale: Factor of both sublayers' outputs, a 0-d tensor (a compiled block would recompile for every number); None for 1.
            boundaries_N: Instead of a mask, for documents that do not attend to each other: where each begins in the flattened sequences,
                and where the last one ends.
        """
        if self.pre_norm:
            h_BTD = x_BTD + _scaled(self._attention(self.attention_norm(x_BTD), attention_mask, boundaries_N), residual_scale)
            return h_BTD + _scaled(self._ffn(self.ffn_norm(h_BTD)), residual_scale)
        h_BTD = self.attention_norm(x_BTD + _scaled(self._attention(x_BTD, attention_mask, boundaries_N), residual_scale))
        return self.ffn_norm(h_BTD + _scaled(self._ffn(h_BTD), residual_scale))  # type: ignore[no-any-return]

    @torch.no_grad()
    def look_nearby(self) -> None:
        """Initialise each head to attend one, two, ... tokens back or ahead, given position embeddings of `_sinusoids`.

        Queries read the first copy of the sinusoids and keys the second, rotated by the head's distance. Word embeddings, which are in all
        dimensions, then add noise to a score and no preference.
        """
        hidden_size, num_frequencies = self.qkv.in_features, self.qkv.in_features // 4
        head_size = hidden_size // self.num_heads
        pairs = torch.arange(head_size // 2)
        stride = num_frequencies // len(pairs)
        loudness = _LOUD_POSITIONS**2 / (_LOUD_POSITIONS**2 + 1.0)  # the positions' share of the variance
        scale = (_NEARBY_SCORE * head_size**0.5 / (2 * len(pairs) * loudness)) ** 0.5
        query_HKD, key_HKD = self.qkv.weight.view(3, self.num_heads, head_size, hidden_size)[:2]
        for head in range(self.num_heads):
            distance = (head // 2 + 1) * (1 if head % 2 else -1)
            chosen = pairs * stride + head % stride
            sine, cosine = chosen, num_frequencies + chosen
            query_HKD[head, pairs, sine] += scale
            query_HKD[head, len(pairs) + pairs, cosine] += scale
            turn = _frequencies(num_frequencies)[chosen] * distance
            sine, cosine = 2 * num_frequencies + sine, 2 * num_frequencies + cosine
            key_HKD[head, pairs, sine] += scale * turn.cos()
            key_HKD[head, pairs, cosine] -= scale * turn.sin()
            key_HKD[head, len(pairs) + pairs, cosine] += scale * turn.cos()
            key_HKD[head, len(pairs) + pairs, sine] += scale * turn.sin()

    def _attention(self, x_BTD: Tensor, attention_mask: Tensor | None, boundaries_N: Tensor | None = None) -> Tensor:
        B, T, D = x_BTD.shape
        qkv_BT3HK = self.qkv(x_BTD).view(B, T, 3, self.num_heads, D // self.num_heads)
        if boundaries_N is not None:
            q, k, v = qkv_BT3HK.flatten(0, 1).unbind(1)  # the kernel wants one long sequence, cut at the boundaries
            mixed = varlen_attn(q, k, v, boundaries_N, boundaries_N, T, T)
            assert isinstance(mixed, Tensor)
            mixed_BTD = mixed.reshape(B, T, D)
        else:
            q_BHTK, k_BHTK, v_BHTK = qkv_BT3HK.permute(2, 0, 3, 1, 4).unbind(0)
            dropped = self.dropout.p if self.training else 0.0
            mixed_BTD = _attend(q_BHTK, k_BHTK, v_BHTK, attention_mask, dropped).transpose(1, 2).reshape(B, T, D)
        return self.dropout(self.attention_output(mixed_BTD))  # type: ignore[no-any-return]

    def _ffn(self, x_BTD: Tensor) -> Tensor:
        return self.dropout(self.ffn_output(functional.gelu(self.ffn_input(x_BTD))))  # type: ignore[no-any-return]


def _frequencies(number: int) -> Tensor:
    """Space angular frequencies evenly on a log scale, in radians per token."""
    shortest, longest = _PERIODS
    frequencies: Tensor = 2.0 * math.pi / shortest * (shortest / longest) ** torch.linspace(0.0, 1.0, number)
    return frequencies


def _sinusoids(num_positions: int, hidden_size: int) -> Tensor:
    """Compute sines and cosines with a variance of 1, both twice, [positions, 4 * (D // 4)]."""
    angles = torch.arange(num_positions)[:, None] * _frequencies(hidden_size // 4)
    both: Tensor = 2.0**0.5 * torch.cat([angles.sin(), angles.cos()] * 2, 1)
    return both


def _scaled(x: Tensor, scale: Tensor | None) -> Tensor:
    return x if scale is None else scale * x


def _attend(q_BHTK: Tensor, k_BHTK: Tensor, v_BHTK: Tensor, mask: Tensor | None, p_drop: float) -> Tensor:
    """Attend, [B, H, T, K]: with torch's kernels, or on a CPU in bf16 or with dropout with scores and softmax in float32."""
    # On a CPU torch rounds bf16 scores to bf16, with three times the error, or computes everything in float32, which takes longer;
    # and it has no fused kernel with dropout there.
    if q_BHTK.device.type != "cpu" or (q_BHTK.dtype != torch.bfloat16 and (p_drop == 0.0 or q_BHTK.dtype == torch.float64)):
        return functional.scaled_dot_product_attention(q_BHTK, k_BHTK, v_BHTK, mask, p_drop)
    with torch.autocast("cpu", enabled=False):
        scores_BHTT = (q_BHTK.float() * q_BHTK.shape[-1] ** -0.5) @ k_BHTK.float().transpose(-1, -2)
    if mask is not None:
        scores_BHTT = scores_BHTT.masked_fill(~mask, -torch.inf)
    weights_BHTT = dropout(scores_BHTT.softmax(-1).to(v_BHTK.dtype), p_drop)
    mixed_BHTK: Tensor = weights_BHTT @ v_BHTK
    return mixed_BHTK


class MaskedLmHead(nn.Module):
    """BERT's masked-LM head; its decoder is tied to the word embeddings, which are an argument of the call."""

    def __init__(self, *, vocab_size: int, hidden_size: int, layer_norm_eps: float) -> None:
        super().__init__()
        self.dense = nn.Linear(hidden_size, hidden_size)
        self.norm = nn.LayerNorm(hidden_size, eps=layer_norm_eps)
        self.bias = nn.Parameter(torch.zeros(vocab_size))

    def forward(self, hidden_MD: Tensor, word_embeddings_VD: Tensor, multiple: int = 1) -> Tensor:
        """Return the logits of the vocabulary at each masked position, [M, V].

        Args:
            hidden_MD: Hidden states.
            word_embeddings_VD: The decoder's weight.
            multiple: Pad V to a multiple of this with logits of minus infinity: tensor cores need a multiple of 8 at least.
        """
        bias_V: Tensor = self.bias
        if missing := -len(bias_V) % multiple:
            word_embeddings_VD = functional.pad(word_embeddings_VD, (0, 0, 0, missing))
            bias_V = functional.pad(bias_V, (0, missing), value=-torch.inf)
        return functional.linear(self.norm(functional.gelu(self.dense(hidden_MD))), word_embeddings_VD, bias_V)


class NextSentenceHead(nn.Module):
    """BERT's pooler and two-way classifier."""

    def __init__(self, *, hidden_size: int) -> None:
        super().__init__()
        self.pooler = nn.Linear(hidden_size, hidden_size)
        self.classifier = nn.Linear(hidden_size, 2)

    def forward(self, hidden_BTD: Tensor) -> Tensor:
        """Return logits of "continues" (0) and "random" (1) from the first token, [B, 2]."""
        return self.classifier(torch.tanh(self.pooler(hidden_BTD[:, 0])))  # type: ignore[no-any-return]


class SequenceHead(nn.Module):
    """Dense, tanh, output, from the first token.

    BERT's head (pooler, dropout, classifier) after Post-LN blocks; RoBERTa's, with dropout before the dense layer too, after Pre-LN ones.

    Source: Devlin et al. 2019, section 4.1; Liu et al. 2019 (RoBERTa), its released classification head.
    """

    def __init__(self, *, hidden_size: int, num_outputs: int, dropout: float, norm: Norm) -> None:
        super().__init__()
        self.dense = nn.Linear(hidden_size, hidden_size)
        self.output = nn.Linear(hidden_size, num_outputs)
        self.dropout = Dropout(dropout)
        self.drops_input = norm == "pre"

    def forward(self, hidden_BTD: Tensor) -> Tensor:
        """Return the outputs of each sequence, [B, outputs]."""
        first_BD = hidden_BTD[:, 0]
        if self.drops_input:
            first_BD = self.dropout(first_BD)
        return self.output(self.dropout(torch.tanh(self.dense(first_BD))))  # type: ignore[no-any-return]


class TokenHead(nn.Module):
    """One linear layer at every token."""

    def __init__(self, *, hidden_size: int, num_outputs: int, dropout: float) -> None:
        super().__init__()
        self.output = nn.Linear(hidden_size, num_outputs)
        self.dropout = Dropout(dropout)

    def forward(self, hidden_BTD: Tensor) -> Tensor:
        """Return the outputs of each token, [B, T, outputs]."""
        return self.output(self.dropout(hidden_BTD))  # type: ignore[no-any-return]


class StBert(nn.Module):
    """The encoder with its heads.

    Args:
        norm: `pre` for ST blocks and a final LayerNorm, `post` for BERT's order.
        masked_lm: With a masked-LM head.
        next_sentence: With a next-sentence head.
        task_head: With a head for fine-tuning.
        seed: Seed of the initial weights.

    The other arguments are those of `ModelConfig`.
    """

    def __init__(
        self,
        *,
        num_hidden_layers: int,
        hidden_size: int,
        num_attention_heads: int,
        intermediate_size: int,
        vocab_size: int,
        max_position_embeddings: int,
        type_vocab_size: int = 2,
        norm: Norm = "pre",
        dropout: float = 0.1,
        layer_norm_eps: float = 1e-12,
        initializer_range: float = 0.02,
        attention_init: AttentionInit = "normal",
        masked_lm: bool = True,
        next_sentence: bool = False,
        task_head: TaskHead | None = None,
        seed: int = 0,
    ) -> None:
        super().__init__()
        self.embeddings = Embeddings(
            vocab_size=vocab_size,
            hidden_size=hidden_size,
            max_position_embeddings=max_position_embeddings,
            type_vocab_size=type_vocab_size,
            dropout=dropout,
            layer_norm_eps=layer_norm_eps,
        )
        self.blocks = nn.ModuleList(
            Block(
                hidden_size=hidden_size,
                num_attention_heads=num_attention_heads,
                intermediate_size=intermediate_size,
                norm=norm,
                dropout=dropout,
                layer_norm_eps=layer_norm_eps,
            )
            for _ in range(num_hidden_layers)
        )
        self.final_norm = nn.LayerNorm(hidden_size, eps=layer_norm_eps) if norm == "pre" else nn.Identity()
        self.mlm_head = MaskedLmHead(vocab_size=vocab_size, hidden_size=hidden_size, layer_norm_eps=layer_norm_eps) if masked_lm else None
        self.nsp_head = NextSentenceHead(hidden_size=hidden_size) if next_sentence else None
        self.task_head = _task_head(task_head, hidden_size=hidden_size, norm=norm) if task_head else None
        self.dropout, self.head_size = dropout, hidden_size // num_attention_heads
        self.checkpoint_activations = False
        """In training, store a block's input only, and recompute the block in its backward pass."""
        self.initialize(initializer_range, attention=attention_init, seed=seed)

    @property
    def units(self) -> list[nn.Module]:
        """List the parts of which each has gradients as a whole or not at all: embeddings, norm, heads, and each block."""
        heads = [head for head in (self.mlm_head, self.nsp_head, self.task_head) if head is not None]
        return [self.embeddings, self.final_norm, *heads, *self.blocks]

    @torch.no_grad()
    def initialize(self, initializer_range: float, *, attention: AttentionInit = "normal", seed: int) -> None:
        """Initialise every weight.

        With `local` attention, positions are sinusoids, and the heads of every block attend 1, 2, ... tokens back and ahead.

        Source: Devlin et al. 2019 (normal weights, zero biases, unit norms); for `local` Vaswani et al. 2017, section 3.5 (sinusoids, of
        which a fixed distance is a rotation), and You et al. 2020 (arXiv 2005.00742), whose heads look at fixed distances throughout.
        """
        generator = torch.Generator().manual_seed(seed)  # its own, on the CPU: the same weights on every device and process
        for name, parameter in self.named_parameters():
            if name.endswith("bias"):
                parameter.zero_()
            elif name.endswith("norm.weight"):
                parameter.fill_(1.0)
            else:
                parameter.normal_(0.0, initializer_range, generator=generator)
        if attention == "local":
            places = self.embeddings.position.weight
            known = _sinusoids(*places.shape) * _LOUD_POSITIONS * initializer_range
            places[:, : known.shape[1]] = known
            for block in self.blocks:
                block.look_nearby()  # type: ignore[operator]

    def forward(
        self,
        input_ids_BT: Tensor,
        *,
        token_type_ids_BT: Tensor | None = None,
        attention_mask_BT: Tensor | None = None,
        segments_BT: Tensor | None = None,
        position_ids_BT: Tensor | None = None,
        boundaries_N: Tensor | None = None,
        gates: Sequence[bool] | None = None,
        residual_scales_L: Tensor | None = None,
    ) -> Tensor:
        """Encode.

        Args:
            input_ids_BT: Token ids.
            token_type_ids_BT: Segment of each token; None for all 0.
            attention_mask_BT: True at real tokens; None when there is no padding.
            segments_BT: The document of its sequence that a token belongs to; documents do not attend to each other. None for one document.
            position_ids_BT: Positions within the documents; None for those within the sequence.
            boundaries_N: The same documents as `Block` reads them, used where torch has a kernel for that.
            gates: Which blocks run, [L]; None for all.
            residual_scales_L: Per block, the factor of its sublayers' outputs; None for 1.

        Returns:
            Hidden states, [B, T, D].
        """
        mask = None if attention_mask_BT is None else attention_mask_BT.bool()[:, None, None, :]
        x_BTD = self.embeddings(input_ids_BT, token_type_ids_BT, position_ids_BT)
        if segments_BT is not None:
            boundaries_N = boundaries_N if self.has_varlen_kernel(x_BTD) else None
            mask = None if boundaries_N is not None else segments_BT[:, None, :, None] == segments_BT[:, None, None, :]
        recomputes = self.checkpoint_activations and self.training and torch.is_grad_enabled()
        for index, block in enumerate(self.blocks):
            # Layer dropping: a block whose gate is off is not called, so it costs nothing and its gradients stay None. This is a branch
            # of the host outside of the compiled blocks, so gates that change never recompile anything.
            if gates is None or gates[index]:
                inputs = (x_BTD, mask, None if residual_scales_L is None else residual_scales_L[index], boundaries_N)
                x_BTD = checkpoint(block, *inputs, use_reentrant=False) if recomputes else block(*inputs)
        x_BTD = self.final_norm(x_BTD)
        return x_BTD  # type: ignore[no-any-return]

    def has_varlen_kernel(self, x_BTD: Tensor) -> bool:
        """Return whether torch has a kernel for documents of unequal length here; elsewhere all T x T scores are computed and masked."""
        if not x_BTD.is_cuda or not torch.is_autocast_enabled("cuda") or (self.training and self.dropout > 0.0):
            return False
        fits = self.head_size % 8 == 0 and self.head_size <= _MOST_HEAD_SIZE
        return fits and torch.cuda.get_device_capability(x_BTD.device) >= _LEAST_CAPABILITY

    def mlm_logits(self, hidden_MD: Tensor) -> Tensor:
        """Return the logits of the vocabulary at these hidden states, [M, V]."""
        assert self.mlm_head is not None
        return self.mlm_head(hidden_MD, self.embeddings.word.weight)  # type: ignore[no-any-return]


def _task_head(shape: TaskHead, *, hidden_size: int, norm: Norm) -> nn.Module:
    if shape.kind == "sequence":
        return SequenceHead(hidden_size=hidden_size, num_outputs=shape.num_outputs, dropout=shape.dropout, norm=norm)
    return TokenHead(hidden_size=hidden_size, num_outputs=shape.num_outputs, dropout=shape.dropout)
