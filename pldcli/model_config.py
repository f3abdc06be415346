"""The shape of a model: its section of the configuration."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Annotated, Any, Self

from pydantic import Field, Strict, model_validator

from pldcli.choices import AttentionInit, FeedForward, LmHead, Norm, PositionEmbedding
from pldcli.errors import UsageError
from pldcli.flops import Flops
from pldcli.settings import AS_NUMBER, Count, Natural, Positive, Settings, Share

__all__ = ["ModelConfig"]

_NEWER_SETTINGS = (
    *("position_embedding", "global_rope_theta", "local_rope_theta", "feed_forward", "attention_bias", "mlp_bias", "norm_bias"),
    *("embedding_norm", "first_attention_norm", "global_layers", "local_attention", "lm_head"),
)
"""Of a model: those that the first version did not have."""


class ModelConfig(Settings):
    """The encoder. Names and defaults as BERT-base."""

    num_hidden_layers: Annotated[int, Field(ge=1, le=10_000), AS_NUMBER] = 12
    """Number of ST blocks, L."""
    hidden_size: Count = 768
    """Width of the residual stream, D."""
    num_attention_heads: Count = 12
    """Attention heads, H; must divide hidden_size."""
    intermediate_size: Count = 3072
    """Width of the feed-forward layer, F."""
    vocab_size: Annotated[int, Field(ge=6), AS_NUMBER] = 30528
    """Rows of the embedding table, V. The prepared data's vocabulary takes the place of a preset's value."""
    max_position_embeddings: Count = 512
    """The longest sequence the model can read, in tokens: with learned positions the rows of their table."""
    type_vocab_size: Natural = 2
    """Token types (first and second segment); 0 for none."""
    norm: Norm = "pre"
    """Where LayerNorm stands: `pre` (before each sublayer, as the ST block needs) or `post` (BERT's original)."""
    position_embedding: PositionEmbedding = "learned"
    """`learned`: a table that is added to the words; `rotary`: queries and keys are rotated by their positions (RoFormer)."""
    global_rope_theta: Positive = 10_000.0
    """Base of the periods of rotary positions in blocks with global attention. ModernBERT: 160,000, for 8,192 tokens."""
    local_rope_theta: Positive = 10_000.0
    """The same in blocks with local attention."""
    feed_forward: FeedForward = "gelu"
    """`gelu` as BERT; `geglu` (ModernBERT) and `swiglu`: the product of two projections, one of them activated (Shazeer 2020)."""
    attention_bias: bool = True
    """Biases of attention's matrices. ModernBERT has none, here or in the two below."""
    mlp_bias: bool = True
    """Biases of the feed-forward matrices, and of the dense layer of heads."""
    norm_bias: bool = True
    """Biases of every LayerNorm."""
    embedding_norm: bool = True
    """LayerNorm behind the embeddings; GPT-2 has none."""
    first_attention_norm: bool = True
    """LayerNorm before the first block's attention; off in ModernBERT, whose embeddings are normalised. For `norm: pre`."""
    global_layers: Count | Annotated[tuple[Natural, ...], Strict(False)] = 1
    """Blocks that attend to all tokens: every k-th one, counted from the first, or a list of their numbers from 0. Others are local."""
    local_attention: Annotated[int, Field(ge=2), AS_NUMBER] = 128
    """Window of the local blocks in tokens: half of it on each side of a token."""
    lm_head: LmHead = "transform"
    """Before the tied decoder: `transform` (dense layer, GELU, norm; decoder with a bias; BERT) or `plain` (nothing; GPT-2)."""
    dropout: Share = 0.1
    """Dropout of embeddings, attention weights and sublayer outputs alike."""
    layer_norm_eps: Positive = 1e-12
    """Epsilon of every LayerNorm."""
    initializer_range: Positive = 0.02
    """Standard deviation of initial weights."""
    attention_init: AttentionInit = "normal"
    """`normal` as BERT; `local`: heads begin by looking 1, 2, ... tokens back or ahead, and small models learn from context far sooner."""

    @model_validator(mode="after")
    def _check_heads(self) -> Self:
        heads, size = self.num_attention_heads, self.hidden_size
        if size % heads:
            raise UsageError(f"{heads} heads do not divide hidden_size {size}", where="model.num_attention_heads")
        if self.attention_init == "local" and not size >= 2 * heads >= 4:
            what = f"local needs 2 heads or more, of size 2 or more, not {heads} in hidden_size {size}"
            raise UsageError(what, where="model.attention_init")
        if self.position_embedding == "rotary" and size // heads % 2:
            what = f"rotary positions need heads of even size, not {size // heads}"
            raise UsageError(what, where="model.num_attention_heads", hint=f"change it or hidden_size {size}")
        if self.attention_init == "local" and self.position_embedding == "rotary" and not self.attention_bias:
            what = "local needs biases where positions are rotary"
            raise UsageError(what, where="model.attention_init", hint="add model.attention_bias=true")
        return self

    @model_validator(mode="after")
    def _check_layers(self) -> Self:
        if not self.first_attention_norm and (self.norm == "post" or not self.embedding_norm):
            what = "only Pre-LN blocks behind normalised embeddings can do without their first norm"
            raise UsageError(what, where="model.first_attention_norm", hint="leave it true")
        if self.global_layer_numbers and self.global_layer_numbers[-1] >= self.num_hidden_layers:
            what = f"there is no block {self.global_layer_numbers[-1]} of {self.num_hidden_layers} counted from 0"
            raise UsageError(what, where="model.global_layers")
        if self.has_local_layers and self.local_attention // 2 >= self.max_position_embeddings:
            what = f"a window of {self.local_attention} tokens is wider than model.max_position_embeddings {self.max_position_embeddings}"
            raise UsageError(what, where="model.local_attention", hint="narrow it, or use model.global_layers=1")
        return self

    @property
    def global_layer_numbers(self) -> tuple[int, ...]:
        """Number the blocks with global attention, from 0, ascending."""
        if isinstance(self.global_layers, int):
            return tuple(range(0, self.num_hidden_layers, self.global_layers))
        return tuple(sorted(set(self.global_layers)))

    @property
    def has_local_layers(self) -> bool:
        """Return whether a block attends to a window only."""
        return len(self.global_layer_numbers) < self.num_hidden_layers

    def flops(
        self, seq_len: int, mask_rate: float, *, span_boundary: bool = False, num_exits: int = 0, num_entries: int | None = None
    ) -> Flops:
        """Count the FLOPs per token of rows of `seq_len` tokens, of which the heads see a share of `mask_rate`, over so many entries."""
        return Flops.of_encoder(
            num_blocks=self.num_hidden_layers,
            hidden_size=self.hidden_size,
            intermediate_size=self.intermediate_size,
            gated=self.feed_forward != "gelu",
            vocab_size=self.vocab_size,
            seq_len=seq_len,
            mask_rate=mask_rate,
            head_transform=self.lm_head == "transform",
            span_boundary=span_boundary,
            num_exits=num_exits,
            num_entries=num_entries,
            num_local=self.num_hidden_layers - len(self.global_layer_numbers),
            window=2 * (self.local_attention // 2) + 1,
        )

    def __repr_args__(self) -> Iterator[tuple[str | None, Any]]:
        """Leave out what is new and as it always was: stored fingerprints of models are made of this text."""
        for name, value in super().__repr_args__():
            if name not in _NEWER_SETTINGS or value != type(self).model_fields[name].default:
                yield name, value
