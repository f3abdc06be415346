"""FLOPs and parameters of an encoder, by one convention.

Forward plus backward per token: 6 x (parameters of matrix products) + 12 L D x (tokens that it attends to), and the head's
6 (D^2 + V D) x mask rate because it runs at masked positions only, once more for each exit, with the entries of a sampled softmax for V;
a span-boundary head's 6 (4 D^2 + V D) x mask rate. Where the mask rate moves, its mean over the run stands for every step. Look-ups,
norms and biases are not counted, dropped blocks never are.

A token attends to the T of its row, padding included; where rows are packed documents that do not see each other, to those of
its document; in local blocks to those of its window at most. A block that runs counts as the mean of global and local ones. That is
what attention needs: on a CPU and wherever else torch has no kernel for packed documents, all T x T scores are computed and masked,
and the excess is not counted.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

__all__ = ["Flops", "count_parameters"]


@dataclass(frozen=True)
class Flops:
    """FLOPs per token of one forward and backward pass."""

    matrices: float
    """Of one block's matrix products with parameters."""
    attention: float
    """Of one block, for each token attended to."""
    attended_tokens: float
    """Mean number of tokens that a token attends to."""
    head: float
    num_blocks: int
    num_local: int = 0
    """Blocks with local attention."""
    window: float = 0
    """The most tokens that one of those attends to."""

    @classmethod
    def of_encoder(
        cls,
        *,
        num_blocks: int,
        hidden_size: int,
        intermediate_size: int,
        vocab_size: int,
        seq_len: int,
        mask_rate: float,
        gated: bool = False,
        head_transform: bool = True,
        span_boundary: bool = False,
        num_exits: int = 0,
        num_entries: int | None = None,
        num_local: int = 0,
        window: float = 0,
    ) -> Flops:
        """Count for an encoder with a tied masked-LM head, which exits use too, on sequences of `seq_len` tokens that see each other.

        With `num_entries` that head scores only so many of the vocabulary.
        """
        matrices = 4 * hidden_size**2 + (3 if gated else 2) * hidden_size * intermediate_size
        entries = vocab_size if num_entries is None else num_entries
        head = (1 + num_exits) * 6.0 * (head_transform * hidden_size**2 + entries * hidden_size) * mask_rate
        head += span_boundary * 6.0 * (4 * hidden_size**2 + vocab_size * hidden_size) * mask_rate
        return cls(6.0 * matrices, 12.0 * hidden_size, seq_len, head, num_blocks, num_local, window)

    def attending_to(self, tokens: float) -> Flops:
        """Count for tokens that attend to this many on average."""
        return replace(self, attended_tokens=tokens)

    @property
    def per_block(self) -> float:
        """FLOPs per token of one block, the mean of global and local ones."""
        local = self.num_local / self.num_blocks
        attended = (1.0 - local) * self.attended_tokens + local * min(self.window, self.attended_tokens)
        return self.matrices + self.attention * attended

    @property
    def dense(self) -> float:
        """FLOPs per token with every block running."""
        return self.executed(self.num_blocks)

    def executed(self, kept_blocks: float) -> float:
        """Return the FLOPs per token with `kept_blocks` of the blocks running."""
        return self.per_block * kept_blocks + self.head

    def total_saved(self, kept_fraction: float) -> float:
        """Return the fraction of all FLOPs saved when `kept_fraction` of the blocks run."""
        return 1.0 - self.executed(kept_fraction * self.num_blocks) / self.dense


def count_parameters(
    *,
    num_blocks: int,
    hidden_size: int,
    intermediate_size: int,
    vocab_size: int,
    num_positions: int,
    num_token_types: int,
    num_norms: int,
    next_sentence: bool,
    gated: bool = False,
    attention_bias: bool = True,
    mlp_bias: bool = True,
    norm_bias: bool = True,
    head_transform: bool = True,
    span_boundary: bool = False,
) -> int:
    """Count the parameters of an encoder with its masked-LM head; the tied decoder counts once.

    `num_norms` are the LayerNorms outside of the head; `next_sentence` adds a pooler with a two-way classifier,
    `span_boundary` a head with two layers and embeddings of 64 places in a span.
    """
    width, inner = hidden_size, (2 if gated else 1) * intermediate_size
    norm = (1 + norm_bias) * width
    embeddings = (vocab_size + num_positions + num_token_types) * width
    attention = 4 * (width + attention_bias) * width
    feed_forward = (width + mlp_bias) * inner + (intermediate_size + mlp_bias) * width
    masked_head = head_transform * ((width + mlp_bias) * width + norm + vocab_size)
    sentence_head = (width + 1) * width + 2 * (width + 1)
    boundary_head = (64 + 3 * width + 1) * width + (width + 1) * width + 4 * width + vocab_size
    heads = masked_head + next_sentence * sentence_head + span_boundary * boundary_head
    return embeddings + num_norms * norm + num_blocks * (attention + feed_forward) + heads
