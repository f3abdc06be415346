"""Serve tokenized rows in batches of similar length, so that little of a batch is padding.

The order is a function of (seed, epoch): a permutation is cut into stretches of many batches, each stretch is sorted by
length and cut into batches, and the batches are put in a random order.

Shapes: B batch, T tokens.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from pldcli.data.loader import moved_to, pinned
from pldcli.data.order import key, permute
from pldcli.data.step_batches import built_ahead
from pldcli.tasks.task import Features

__all__ = ["TaskBatch", "TaskBatches", "batches_in_order", "collate"]

_BATCHES_PER_STRETCH = 64
_IGNORED = -100


@dataclass(frozen=True)
class TaskBatch:
    """What one forward pass reads, as tensors."""

    input_ids: Tensor
    """[B, T]."""
    token_type_ids: Tensor | None
    """[B, T]; None when every token has type 0."""
    attention_mask: Tensor | None
    """[B, T], True at real tokens; None when there is no padding."""
    labels: Tensor | None
    """[B] int64 or float32, [B, T] (tags), [B, 2] (spans), or float32 [B, labels] (multi-label, 1 where one holds); -100, or NaN for
    floats, where there is nothing to learn."""

    def to(self, device: torch.device) -> TaskBatch:
        """Copy to a device; asynchronously from pinned memory."""
        return moved_to(self, device)


def collate(features: Features, rows: npt.NDArray[np.int64], *, pad_id: int, multiple: int = 1) -> TaskBatch:
    """Stack rows, padded to the longest.

    Args:
        features: All rows.
        rows: Which of them, at least one.
        pad_id: What padding is.
        multiple: Round the length up to a multiple of this.
    """
    starts, lengths = features.offsets[rows], features.lengths[rows]
    width = math.ceil(int(lengths.max()) / multiple) * multiple
    places = np.arange(width)
    real = places < lengths[:, None]
    where = np.where(real, starts[:, None] + places, 0)
    ids = np.where(real, features.input_ids[where], pad_id).astype(np.int64)
    types = np.where(real, features.token_type_ids[where], 0).astype(np.int64)
    labels = None
    if features.labels is not None:
        per_token = features.labels.ndim == 1 and len(features.labels) == len(features.input_ids)  # a row has two tokens at least
        chosen = np.where(real, features.labels[where], _IGNORED) if per_token else features.labels[rows]
        labels = torch.from_numpy(np.ascontiguousarray(chosen, np.float32 if chosen.dtype == bool else None))
    return TaskBatch(
        torch.from_numpy(ids),
        torch.from_numpy(types) if types.any() else None,
        None if real.all() else torch.from_numpy(real),
        labels,
    )


def batches_in_order(features: Features, *, most_tokens: int, pad_id: int) -> Iterator[tuple[npt.NDArray[np.int64], TaskBatch]]:
    """Yield every row once, short ones first, with about `most_tokens` tokens per batch, and which rows they are."""
    order = np.argsort(features.lengths, kind="stable")
    start = 0
    while start < len(order):
        stop = start + 1
        while stop < len(order) and features.lengths[order[stop]] * (stop - start + 1) <= most_tokens:
            stop += 1
        yield order[start:stop], collate(features, order[start:stop], pad_id=pad_id)
        start = stop


@dataclass(frozen=True)
class TaskBatches:
    """The batches of one process, step by step."""

    features: Features
    batch_size: int
    seed: int
    pad_id: int
    micro_batch_size: int
    """Most rows per forward pass."""
    rank: int = 0
    world_size: int = 1
    multiple: int = 1
    """Lengths are padded to a multiple of this."""
    pin_memory: bool = False
    """Build batches in pinned memory, from which copies to a CUDA device are asynchronous."""
    _orders: dict[int, list[npt.NDArray[np.int64]]] = field(default_factory=dict, repr=False)

    @property
    def steps_per_epoch(self) -> int:
        """Count the batches of an epoch; the last one may be smaller."""
        return math.ceil(self.features.num_rows / self.batch_size)

    def num_sequences(self, step: int) -> int:
        """Count the rows of a step, over all processes."""
        return len(self._rows(step))

    def sequences(self, first: int, stop: int) -> str:
        """Name the rows that steps first..stop-1 read, over all processes, by their place in the order of the run."""
        before, read = (sum(map(self.num_sequences, steps)) for steps in (range(first), range(first, stop)))
        return f"sequences {before} to {before + read - 1} of the run"

    def step(self, step: int) -> list[list[TaskBatch]]:
        """Build the batches of a step: one gate group, per micro-step; every process has the same number of them."""
        rows = self._rows(step)
        share = math.ceil(len(rows) / self.world_size)
        own = rows[self.rank * share : (self.rank + 1) * share]
        micro_steps = math.ceil(share / self.micro_batch_size)
        parts = [own[i * self.micro_batch_size : (i + 1) * self.micro_batch_size] for i in range(micro_steps)]
        groups = [[self._batch(part) if len(part) else self._nothing(rows[:1]) for part in parts]]
        return pinned(groups) if self.pin_memory else groups

    def from_step(self, first: int, stop: int) -> Iterator[list[list[TaskBatch]]]:
        """Yield the batches of steps first..stop-1, built ahead in a thread."""
        return built_ahead(self.step, first, stop)

    def _batch(self, rows: npt.NDArray[np.int64]) -> TaskBatch:
        return collate(self.features, rows, pad_id=self.pad_id, multiple=self.multiple)

    def _nothing(self, rows: npt.NDArray[np.int64]) -> TaskBatch:
        """Build a batch whose labels are all ignored, for a process without rows in a small last batch."""
        batch = self._batch(rows)
        assert batch.labels is not None
        empty: Any = torch.full_like(batch.labels, math.nan if batch.labels.is_floating_point() else _IGNORED)
        return TaskBatch(batch.input_ids, batch.token_type_ids, batch.attention_mask, empty)

    def _rows(self, step: int) -> npt.NDArray[np.int64]:
        epoch, within = divmod(step, self.steps_per_epoch)
        order = self._orders.get(epoch)
        if order is None:
            order = self._orders[epoch] = self._order(epoch)
            self._orders.pop(epoch - 2, None)  # another thread may be reading it: it holds on to what it found
        return order[within]

    def _order(self, epoch: int) -> list[npt.NDArray[np.int64]]:
        """Cut an epoch into batches of similar length, in random order."""
        total = self.features.num_rows
        shuffled = permute(np.arange(total), total, key(self.seed, "rows", epoch))
        stretch = _BATCHES_PER_STRETCH * self.batch_size
        lengths = self.features.lengths
        batches = []
        for start in range(0, total, stretch):
            part = shuffled[start : start + stretch]
            part = part[np.argsort(-lengths[part], kind="stable")]
            batches += [part[i : i + self.batch_size] for i in range(0, len(part), self.batch_size)]
        return [batches[i] for i in permute(np.arange(len(batches)), len(batches), key(self.seed, "batches", epoch))]
