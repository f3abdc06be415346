"""Attention, as functions: who may look at whom, rotary positions, and the kernels.

Shapes: B batch, T tokens, H heads, K head size; a chunk has C tokens, and local attention on a CPU runs in N chunks.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional
from torch.nn.attention.varlen import varlen_attn

from pldcli.dropout import dropout

__all__ = ["Attention", "Rows", "attend", "attention_of", "kernel_fits", "rope_frequencies", "rotate", "rotation"]

_LEAST_CAPABILITY, _MOST_HEAD_SIZE = (8, 0), 256
"""Requirements of FlashAttention 2, torch's kernel for sequences of unequal length: Ampere or later; 16 bits only."""

_EVERYWHERE = -1, -1
_FEWEST_CHUNKS = 4
"""A row of fewer chunks attends under a mask of all T x T scores: each chunk reads itself and both of its neighbours."""


class Attention(NamedTuple):
    """How the blocks of one kind, global or local, attend in one forward pass."""

    mask: Tensor | None = None
    """True where a query may look: [B or 1, 1, 1 or T, T], or in chunks [B or 1, N, 1, C, 3C]; None for everywhere."""
    boundaries: Tensor | None = None
    """For the kernel instead of a mask, [documents + 1]: where documents begin in the flattened sequences, and where the last one ends."""
    window: tuple[int, int] = _EVERYWHERE
    """For the kernel: the most tokens to look back and ahead; -1 for all."""
    causal: bool = False
    """Without a mask: look at no later token."""
    chunk: int = 0
    """Tokens of a chunk; 0 where attention is not cut into chunks."""
    rotation: tuple[Tensor, Tensor] | None = None
    """Cosines and sines of rotary positions, [B or 1, T, 1, 1, K / 2] each."""


@dataclass(frozen=True, kw_only=True)
class Rows:
    """What restricts attention in the rows of a batch, beside windows."""

    num_tokens: int
    real: Tensor | None = None
    """[B, T], True at real tokens; None without padding."""
    segments: Tensor | None = None
    """[B, T], the document of its row that a token belongs to; None for one document."""
    boundaries: Tensor | None = None
    """The same documents for torch's kernel, where it is to be used."""
    causal: bool = False
    prefix_lengths: Tensor | None = None
    """[B], with `causal`: so many first tokens that every token may look at."""

    def visible(self, queries: Tensor, keys: Tensor, window: tuple[int, int]) -> Tensor:
        """Return where queries may look at keys, with an axis in front for the batch.

        Args:
            queries: Positions, [..., Q, 1].
            keys: Positions, [..., 1, K]; those outside of the row are not visible.
            window: The most tokens to look back and ahead; -1 for all.
        """
        inside = keys.clamp(0, self.num_tokens - 1)
        visible = (keys == inside)[None]
        if self.real is not None:
            visible = visible & self.real.bool()[:, inside]
        if self.segments is not None:
            visible = visible & (self.segments[:, queries.clamp(max=self.num_tokens - 1)] == self.segments[:, inside])
        if self.causal:
            earlier = (keys <= queries)[None]
            if self.prefix_lengths is not None:
                earlier = earlier | (keys < self.prefix_lengths.view(-1, *(1,) * keys.ndim))
            visible = visible & earlier
        if window == _EVERYWHERE:
            return visible
        back, ahead = window
        # Padding far from any token would look at nothing at all, whose softmax is not a number: it looks at itself.
        return visible & (queries - keys <= back) & (keys - queries <= ahead) | (queries == keys)


def attention_of(rows: Rows, reach: int | None, *, kernel: bool, device: torch.device, batch_size: int) -> Attention:
    """Choose how the blocks of one kind attend.

    Args:
        rows: What restricts attention apart from the window.
        reach: Tokens that local attention looks back and ahead; None for global attention.
        kernel: Whether torch's kernel for documents of unequal length, which has windows, can be used.
        device: Where to make masks.
        batch_size: Number of rows.
    """
    T, prefix = rows.num_tokens, rows.prefix_lengths is not None
    # Causal windows hold `reach` tokens, the query's own among them, as those of `modernbert-decoder`.
    back = T if reach is None else reach - rows.causal
    window = (back, 0 if rows.causal and not prefix else back) if back < T - 1 else _EVERYWHERE
    is_local, plain = window != _EVERYWHERE, rows.real is None and rows.segments is None and not prefix
    if kernel and not prefix and (rows.boundaries is not None or (plain and is_local)):
        ends = rows.boundaries
        if ends is None:
            ends = torch.arange(0, (batch_size + 1) * T, T, dtype=torch.int32, device=device)
        return Attention(boundaries=ends, window=(window[0], 0) if rows.causal else window)
    if plain and not is_local:
        return Attention(causal=rows.causal)
    if is_local and reach is not None and reach * _FEWEST_CHUNKS <= T and not prefix:
        starts = reach * torch.arange(-(-T // reach), device=device)[:, None, None]
        queries, keys = starts + torch.arange(reach, device=device)[:, None], starts + torch.arange(-reach, 2 * reach, device=device)
        return Attention(mask=rows.visible(queries, keys, window)[:, :, None], chunk=reach)
    places = torch.arange(T, device=device)
    return Attention(mask=rows.visible(places[:, None], places[None], window)[:, None])


def kernel_fits(x: Tensor, head_size: int) -> bool:
    """Return whether torch has a kernel for documents of unequal length, and windows, on this device under this autocast."""
    if not x.is_cuda or not torch.is_autocast_enabled("cuda"):
        return False
    fits = head_size % 8 == 0 and head_size <= _MOST_HEAD_SIZE
    return fits and torch.cuda.get_device_capability(x.device) >= _LEAST_CAPABILITY


def attend(qkv_BT3HK: Tensor, how: Attention, p_drop: float) -> Tensor:
    """Attend, [B, T, H, K], with rotary positions where there are any.

    Args:
        qkv_BT3HK: Queries, keys and values.
        how: Who looks at whom.
        p_drop: Dropout of the attention weights.
    """
    B, T = qkv_BT3HK.shape[:2]
    q, k, v = qkv_BT3HK.unbind(2)
    if how.rotation is not None:
        q, k = rotate(qkv_BT3HK[:, :, :2], *how.rotation).unbind(2)
    if how.boundaries is not None:
        q, k, v = (x.flatten(0, 1) for x in (q, k, v))  # the kernel wants one long sequence, cut at the boundaries
        mixed = varlen_attn(q, k, v, how.boundaries, how.boundaries, T, T, window_size=how.window)
        assert isinstance(mixed, Tensor)
        return mixed.view(B, T, *mixed.shape[1:])
    q, k, v = (x.transpose(1, 2) for x in (q, k, v))
    mixed = _in_chunks(q, k, v, how, p_drop) if how.chunk else scaled_dot_product(q, k, v, how.mask, p_drop, how.causal)
    return mixed.transpose(1, 2)


def _in_chunks(q_BHTK: Tensor, k_BHTK: Tensor, v_BHTK: Tensor, how: Attention, p_drop: float) -> Tensor:
    """Attend in chunks, each to itself and its neighbours: time and memory grow with T, not with its square."""
    assert how.mask is not None
    (B, H, T, K), C, N = q_BHTK.shape, how.chunk, how.mask.shape[1]

    def chunks(x_BHTK: Tensor, before: int) -> Tensor:
        missing = (N + before) * C - T
        return functional.pad(x_BHTK, (0, 0, before * C, missing)).view(B, H, N + 2 * before, C, K)

    def with_neighbours(x_BHTK: Tensor) -> Tensor:
        padded = chunks(x_BHTK, 1)
        return torch.cat([padded[:, :, :-2], padded[:, :, 1:-1], padded[:, :, 2:]], 3)

    # To the kernel a chunk of a row is a row: its mask is the same for all heads.
    q, k, v = (x.transpose(1, 2).flatten(0, 1) for x in (chunks(q_BHTK, 0), with_neighbours(k_BHTK), with_neighbours(v_BHTK)))
    mixed = scaled_dot_product(q, k, v, how.mask.expand(B, -1, -1, -1, -1).flatten(0, 1), p_drop)
    return mixed.view(B, N, H, C, K).transpose(1, 2).reshape(B, H, N * C, K)[:, :, :T]


def scaled_dot_product(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, p_drop: float, causal: bool = False) -> Tensor:
    """Attend, [B, H, T, K]: with torch's kernels, or on a CPU in bf16 or with dropout with scores and softmax in float32."""
    # On a CPU torch rounds bf16 scores to bf16, with three times the error, or computes everything in float32, which takes longer;
    # and it has no fused kernel with dropout there.
    if q.device.type != "cpu" or (q.dtype != torch.bfloat16 and (p_drop == 0.0 or q.dtype == torch.float64)):
        return functional.scaled_dot_product_attention(q, k, v, mask, p_drop, is_causal=causal)
    with torch.autocast("cpu", enabled=False):
        scores = (q.float() * q.shape[-1] ** -0.5) @ k.float().transpose(-1, -2)
    if causal:
        mask = torch.ones(q.shape[-2], k.shape[-2], dtype=torch.bool, device=q.device).tril()
    if mask is not None:
        scores = scores.masked_fill(~mask, -torch.inf)
    weights = dropout(scores.softmax(-1).to(v.dtype), p_drop)
    mixed: Tensor = weights @ v
    return mixed


def rope_frequencies(head_size: int, theta: float, device: torch.device | None = None) -> Tensor:
    """Return the angular frequencies of rotary positions, in radians per token, [K / 2].

    Computed on the device: a copy of them from the host would wait there, in every forward pass, for all that is queued before it.

    Source: Su et al. 2021 (RoFormer, arXiv 2104.09864), section 3.2.2.
    """
    return theta ** -(torch.arange(0, head_size, 2, device=device).float() / head_size)


def rotation(positions: Tensor, frequencies: Tensor) -> tuple[Tensor, Tensor]:
    """Compute the cosines and sines that `rotate` wants, from positions [T] or [B, T]."""
    angles = positions[..., None, None, None].float() * frequencies
    angles = angles if positions.ndim == 2 else angles[None]
    return angles.cos(), angles.sin()


def rotate(x: Tensor, cosines: Tensor, sines: Tensor) -> Tensor:
    """Rotate queries or keys by their positions: dimensions i and i + K / 2 are a pair.

    In float32, as the angles are, whatever format the queries have.

    Args:
        x: [B, T, ..., H, K].
        cosines: Of `rotation`.
        sines: Of `rotation`.
    """
    first, second = x.to(cosines.dtype).chunk(2, -1)
    return torch.cat([first * cosines - second * sines, second * cosines + first * sines], -1).to(x.dtype)
