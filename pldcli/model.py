"""ST-BERT: a BERT encoder of switchable transformer blocks, with its heads.

Shapes: B batch, T tokens, D hidden, H heads, K head size, F feed-forward, V vocabulary, M masked positions, L blocks.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.checkpoint import checkpoint

from pldcli.attention import Attention, Rows, attend, attention_of, kernel_fits, rope_frequencies, rotation
from pldcli.choices import AttentionInit, FeedForward, LmHead, Norm, PositionEmbedding
from pldcli.dropout import Dropout
from pldcli.heads import MaskedLmHead, NextSentenceHead, SequenceHead, SpanBoundaryHead, TaskHead, TokenHead, TransformHead, build_task_head

__all__ = [
    "Block",
    "Embeddings",
    "MaskedLmHead",
    "NextSentenceHead",
    "SequenceHead",
    "SpanBoundaryHead",
    "StBert",
    "TaskHead",
    "TokenHead",
    "TransformHead",
]


_LOUD_POSITIONS = 2.0
"""`local` initialisation: standard deviation of position embeddings, in that of word embeddings."""

_NEARBY_SCORE = 12.0
"""`local` initialisation: attention score of the position that a head looks at; its neighbours score about 1 less, far ones about 10."""

_PERIODS = 4.0, 256.0
"""`local` initialisation: shortest and longest period of the sinusoids, in tokens."""

_ROTARY_PERIODS = 256.0
"""`local` initialisation with rotary positions: longest period of the pairs of dimensions that a head begins with, in tokens."""


class Embeddings(nn.Module):
    """Sum of word embeddings and, where there are any, of learned positions and token types, normalised."""

    def __init__(
        self,
        *,
        vocab_size: int,
        hidden_size: int,
        num_positions: int,
        type_vocab_size: int,
        dropout: float,
        norm: nn.Module,
    ) -> None:
        super().__init__()
        self.word = nn.Embedding(vocab_size, hidden_size)
        self.position = nn.Embedding(num_positions, hidden_size) if num_positions else None
        self.token_type = nn.Embedding(type_vocab_size, hidden_size) if type_vocab_size else None
        self.norm = norm
        self.dropout = Dropout(dropout)

    def forward(self, input_ids_BT: Tensor, token_type_ids_BT: Tensor | None = None, position_ids_BT: Tensor | None = None) -> Tensor:
        """Embed, [B, T, D]; by default all token types are 0, and positions count from 0."""
        added = []
        if self.position is not None:
            no_positions = position_ids_BT is None
            added.append(self.position.weight[: input_ids_BT.shape[1]] if no_positions else self.position(position_ids_BT))
        if self.token_type is not None:
            no_types = token_type_ids_BT is None or self.token_type.num_embeddings == 1
            added.append(self.token_type.weight[0] if no_types else self.token_type(token_type_ids_BT))
        x_BTD = self.word(input_ids_BT)
        if added:
            x_BTD = x_BTD + sum(added[1:], added[0])  # these are mostly [T, D]: one addition of [B, T, D] instead of two
        return self.dropout(self.norm(x_BTD))  # type: ignore[no-any-return]


class Block(nn.Module):
    """A transformer block whose two sublayers share one residual scale.

    Pre-LN is the paper's ST block; Post-LN is its failing control. A block knows no gate: `StBert.forward` skips it.

    Args:
        is_global: Attend to all tokens, not only to a window.
        bare_attention: Without the norm before attention, for a first block behind normalised embeddings.

    The other arguments are those of `ModelConfig`.

    Source: Zhang & He 2020, section 4.1, equations 4 and 5; Shazeer 2020 (arXiv 2002.05202) for gated feed-forward layers.
    """

    def __init__(
        self,
        *,
        hidden_size: int,
        num_attention_heads: int,
        intermediate_size: int,
        norm: Norm,
        feed_forward: FeedForward,
        attention_bias: bool,
        mlp_bias: bool,
        norm_bias: bool,
        dropout: float,
        layer_norm_eps: float,
        is_global: bool = True,
        bare_attention: bool = False,
    ) -> None:
        super().__init__()
        self.num_heads = num_attention_heads
        self.pre_norm, self.is_global = norm == "pre", is_global
        self.activation = functional.silu if feed_forward == "swiglu" else functional.gelu
        self.is_gated = feed_forward != "gelu"
        self.attention_norm = nn.Identity() if bare_attention else nn.LayerNorm(hidden_size, layer_norm_eps, bias=norm_bias)
        self.qkv = nn.Linear(hidden_size, 3 * hidden_size, bias=attention_bias)
        self.attention_output = nn.Linear(hidden_size, hidden_size, bias=attention_bias)
        self.ffn_norm = nn.LayerNorm(hidden_size, layer_norm_eps, bias=norm_bias)
        self.ffn_input = nn.Linear(hidden_size, intermediate_size * (2 if self.is_gated else 1), bias=mlp_bias)
        self.ffn_output = nn.Linear(intermediate_size, hidden_size, bias=mlp_bias)
        self.dropout = Dropout(dropout)

    def forward(
        self, x_BTD: Tensor, attention: Attention | None = None, residual_scale: Tensor | None = None, whole: bool = False
    ) -> Tensor:
        """Run both sublayers.

        Args:
            x_BTD: The residual stream.
            attention: Who looks at whom, and rotary positions; None for everyone at everyone, without positions.
            residual_scale: Factor of both sublayers' outputs, a 0-d tensor (a compiled block would recompile for every number); None for 1.
            whole: Multiply all that the block adds instead. Only so is the mean over gates, at a scale of 1 / p, the block itself: one by
                one, the second sublayer reads what the first, made larger, has added.
        """
        attention = attention or Attention()
        if whole and residual_scale is not None:
            return x_BTD + residual_scale * (self.forward(x_BTD, attention) - x_BTD)
        if self.pre_norm:
            h_BTD = x_BTD + _scaled(self._attention(self.attention_norm(x_BTD), attention), residual_scale)
            return h_BTD + _scaled(self._ffn(self.ffn_norm(h_BTD)), residual_scale)
        h_BTD = self.attention_norm(x_BTD + _scaled(self._attention(x_BTD, attention), residual_scale))
        return self.ffn_norm(h_BTD + _scaled(self._ffn(h_BTD), residual_scale))  # type: ignore[no-any-return]

    def _attention(self, x_BTD: Tensor, attention: Attention) -> Tensor:
        qkv_BT3HK = self.qkv(x_BTD).view(*x_BTD.shape[:2], 3, self.num_heads, -1)
        mixed_BTHK = attend(qkv_BT3HK, attention, self.dropout.p if self.training else 0.0)
        return self.dropout(self.attention_output(mixed_BTHK.reshape(x_BTD.shape)))  # type: ignore[no-any-return]

    def _ffn(self, x_BTD: Tensor) -> Tensor:
        if self.is_gated:
            activated_BTF, gate_BTF = self.ffn_input(x_BTD).chunk(2, -1)
            return self.dropout(self.ffn_output(self.activation(activated_BTF) * gate_BTF))  # type: ignore[no-any-return]
        return self.dropout(self.ffn_output(self.activation(self.ffn_input(x_BTD))))  # type: ignore[no-any-return]

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

    @torch.no_grad()
    def look_nearby_rotary(self, theta: float) -> None:
        """Initialise each head to attend one, two, ... tokens back or ahead, given rotary positions of this `theta`.

        The biases of queries and keys do it, since rotations act on them too: a query's pair points along the first axis, and a key's is
        turned back by the head's distance. Pairs of long periods stay as they are: nearby they tell nothing apart.
        """
        head_size = self.qkv.in_features // self.num_heads
        frequencies = rope_frequencies(head_size, theta)
        used = frequencies >= 2.0 * math.pi / _ROTARY_PERIODS
        size = torch.where(used, (_NEARBY_SCORE * head_size**0.5 / used.sum()) ** 0.5, 0.0)
        query_HK, key_HK, _ = self.qkv.bias.view(3, self.num_heads, head_size)
        for head in range(self.num_heads):
            turn = frequencies * (head // 2 + 1) * (1 if head % 2 else -1)
            query_HK[head] = torch.cat([size, torch.zeros_like(size)])
            key_HK[head] = torch.cat([size * turn.cos(), -size * turn.sin()])


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


class StBert(nn.Module):
    """The encoder with its heads.

    Args:
        norm: `pre` for ST blocks and a final LayerNorm, `post` for BERT's order.
        masked_lm: With a masked-LM head.
        next_sentence: With a next-sentence head.
        span_boundary: With a span-boundary head.
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
        position_embedding: PositionEmbedding = "learned",
        global_rope_theta: float = 10_000.0,
        local_rope_theta: float = 10_000.0,
        feed_forward: FeedForward = "gelu",
        attention_bias: bool = True,
        mlp_bias: bool = True,
        norm_bias: bool = True,
        embedding_norm: bool = True,
        first_attention_norm: bool = True,
        global_layers: int | Sequence[int] = 1,
        local_attention: int = 128,
        lm_head: LmHead = "transform",
        dropout: float = 0.1,
        layer_norm_eps: float = 1e-12,
        initializer_range: float = 0.02,
        attention_init: AttentionInit = "normal",
        masked_lm: bool = True,
        next_sentence: bool = False,
        span_boundary: bool = False,
        task_head: TaskHead | None = None,
        seed: int = 0,
    ) -> None:
        super().__init__()
        self.is_rotary = position_embedding == "rotary"
        self.embeddings = Embeddings(
            vocab_size=vocab_size,
            hidden_size=hidden_size,
            num_positions=0 if self.is_rotary else max_position_embeddings,
            type_vocab_size=type_vocab_size,
            dropout=dropout,
            norm=nn.LayerNorm(hidden_size, layer_norm_eps, bias=norm_bias) if embedding_norm else nn.Identity(),
        )
        self.blocks = nn.ModuleList(
            Block(
                hidden_size=hidden_size,
                num_attention_heads=num_attention_heads,
                intermediate_size=intermediate_size,
                norm=norm,
                feed_forward=feed_forward,
                attention_bias=attention_bias,
                mlp_bias=mlp_bias,
                norm_bias=norm_bias,
                dropout=dropout,
                layer_norm_eps=layer_norm_eps,
                is_global=index % global_layers == 0 if isinstance(global_layers, int) else index in global_layers,
                bare_attention=index == 0 and not first_attention_norm,
            )
            for index in range(num_hidden_layers)
        )
        self.final_norm = nn.LayerNorm(hidden_size, layer_norm_eps, bias=norm_bias) if norm == "pre" else nn.Identity()
        head: dict[str, Any] = {"transform": lm_head == "transform", "dense_bias": mlp_bias, "norm_bias": norm_bias}
        sizes: dict[str, Any] = {"vocab_size": vocab_size, "hidden_size": hidden_size, "layer_norm_eps": layer_norm_eps}
        self.mlm_head = MaskedLmHead(**sizes, **head) if masked_lm else None
        self.nsp_head = NextSentenceHead(hidden_size=hidden_size) if next_sentence else None
        self.sbo_head = SpanBoundaryHead(**sizes) if span_boundary else None
        of_task: dict[str, Any] = {"rotary": self.is_rotary, "norm": norm, "dense_bias": mlp_bias, "norm_bias": norm_bias}
        self.task_head = (
            build_task_head(task_head, hidden_size=hidden_size, layer_norm_eps=layer_norm_eps, **of_task) if task_head else None
        )
        self.dropout, self.head_size = dropout, hidden_size // num_attention_heads
        self.max_position_embeddings, self.reach = max_position_embeddings, local_attention // 2
        self.global_rope_theta, self.local_rope_theta = global_rope_theta, local_rope_theta
        """May be raised between steps, for longer sequences; rotary positions have no parameters."""
        self.scales_whole_blocks = False
        """What residual scales multiply: all that a block adds, not the output of each sublayer."""
        self.checkpoint_activations = False
        """In training, store a block's input only, and recompute the block in its backward pass."""
        self.initialize(initializer_range, attention=attention_init, seed=seed)

    @property
    def units(self) -> list[nn.Module]:
        """List the parts of which each has gradients as a whole or not at all: embeddings, norm, heads, and each block."""
        heads = [head for head in (self.mlm_head, self.nsp_head, self.sbo_head, self.task_head) if head is not None]
        return [self.embeddings, self.final_norm, *heads, *self.blocks]

    @torch.no_grad()
    def initialize(self, initializer_range: float, *, attention: AttentionInit = "normal", seed: int) -> None:
        """Initialise every weight.

        With `local` attention the heads of every block attend 1, 2, ... tokens back and ahead; learned positions are then sinusoids.

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
        if attention == "normal":
            return
        if self.embeddings.position is not None:
            places = self.embeddings.position.weight
            known = _sinusoids(*places.shape) * _LOUD_POSITIONS * initializer_range
            places[:, : known.shape[1]] = known
        for block in self.blocks:
            assert isinstance(block, Block)
            if self.is_rotary:
                block.look_nearby_rotary(self.global_rope_theta if block.is_global else self.local_rope_theta)
            else:
                block.look_nearby()

    def forward(
        self,
        input_ids_BT: Tensor,
        *,
        token_type_ids_BT: Tensor | None = None,
        attention_mask_BT: Tensor | None = None,
        segments_BT: Tensor | None = None,
        position_ids_BT: Tensor | None = None,
        boundaries_N: Tensor | None = None,
        causal: bool = False,
        prefix_lengths_B: Tensor | None = None,
        gates: Sequence[bool] | None = None,
        residual_scales_L: Tensor | None = None,
        exits: Sequence[int] = (),
    ) -> Tensor:
        """Encode.

        Args:
            input_ids_BT: Token ids.
            token_type_ids_BT: Segment of each token; None for all 0.
            attention_mask_BT: True at real tokens; None when there is no padding.
            segments_BT: The document of its sequence that a token belongs to; documents do not attend to each other. None for one document.
            position_ids_BT: Positions within the documents; None for those within the sequence.
            boundaries_N: Where the same documents begin in the flattened sequences, and where the last one ends; used where torch has a
                kernel for that.
            causal: No token attends to a later one.
            prefix_lengths_B: With `causal`: so many first tokens of a sequence that all its tokens attend to.
            gates: Which blocks run, [L]; None for all.
            residual_scales_L: Per block, the factor of its sublayers' outputs, or as `scales_whole_blocks` says; None for 1.
            exits: After how many blocks hidden states are wanted, too, as those of a model that ends there; ascending.

        Returns:
            Hidden states, [B, T, D]; with `exits` those of each before those of the whole model, [E + 1, B, T, D].
        """
        x_BTD = self.embeddings(input_ids_BT, token_type_ids_BT, position_ids_BT)
        rows = Rows(
            num_tokens=input_ids_BT.shape[1],
            real=attention_mask_BT if segments_BT is None else None,
            segments=segments_BT,
            boundaries=None if segments_BT is None else boundaries_N,
            causal=causal,
            prefix_lengths=prefix_lengths_B,
        )
        attention = self._attention_by_kind(x_BTD, rows, position_ids_BT)
        recomputes = self.checkpoint_activations and self.training and torch.is_grad_enabled()
        states = []
        for index, block in enumerate(self.blocks):
            if index in exits:
                states.append(self.final_norm(x_BTD))
            # Layer dropping: a block whose gate is off is not called, so it costs nothing and its gradients stay None. This is a branch
            # of the host outside of the compiled blocks, so gates that change never recompile anything.
            if gates is None or gates[index]:
                scale = None if residual_scales_L is None else residual_scales_L[index]
                inputs = (x_BTD, attention[bool(block.is_global)], scale, self.scales_whole_blocks)
                x_BTD = checkpoint(block, *inputs, use_reentrant=False) if recomputes else block(*inputs)
        states.append(self.final_norm(x_BTD))
        return torch.stack(states) if exits else states[0]

    def _attention_by_kind(self, x_BTD: Tensor, rows: Rows, position_ids_BT: Tensor | None) -> dict[bool, Attention]:
        """Prepare what all global blocks share, and all local ones."""
        kernel, device, shared = self.has_varlen_kernel(x_BTD), x_BTD.device, {}
        for is_global in {bool(block.is_global) for block in self.blocks}:
            reach = None if is_global else self.reach
            how = attention_of(rows, reach, kernel=kernel, device=device, batch_size=len(x_BTD))
            if self.is_rotary:
                positions = torch.arange(rows.num_tokens, device=device) if position_ids_BT is None else position_ids_BT
                theta = self.global_rope_theta if is_global else self.local_rope_theta
                how = how._replace(rotation=rotation(positions, rope_frequencies(self.head_size, theta, device)))
            shared[is_global] = how
        return shared

    def compile_parts(self, *, dynamic: bool | None = None) -> None:
        """Compile embeddings and blocks, each by itself.

        A whole model would be compiled anew for every pattern of gates, up to the recompile limit, then run eagerly.

        Args:
            dynamic: As of torch.compile: True where rows of each batch have a length of their own.
        """
        for part in (self.embeddings, *self.blocks):
            part.compile(dynamic=dynamic)

    def has_varlen_kernel(self, x_BTD: Tensor) -> bool:
        """Return whether torch has a kernel for documents of unequal length and for windows here; elsewhere scores are masked."""
        return kernel_fits(x_BTD, self.head_size) and not (self.training and self.dropout > 0.0)

    def mlm_logits(self, hidden_MD: Tensor) -> Tensor:
        """Return the logits of the vocabulary at these hidden states, [M, V]."""
        assert self.mlm_head is not None
        return self.mlm_head(hidden_MD, self.embeddings.word.weight)  # type: ignore[no-any-return]
