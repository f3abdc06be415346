"""Time of training steps by phase: data, forward, backward, optimizer, other."""

from __future__ import annotations

import time
from typing import Any, Literal

import torch

__all__ = ["PHASES", "Phase", "PhaseTimer"]

Phase = Literal["data", "forward", "backward", "optimizer", "other"]
PHASES: tuple[Phase, ...] = ("data", "forward", "backward", "optimizer", "other")


class PhaseTimer:
    """Attribute time to phases by marks at their beginnings.

    On CUDA a mark is an event in the stream, so device time is measured and nothing waits until it is read; time in which the
    device idles because the next batch is late counts as `data`.
    """

    def __init__(self, device: torch.device) -> None:
        self._on_cuda = device.type == "cuda"
        self._marks: list[tuple[Phase | None, Any]] = []
        self._free: list[Any] = []

    def begin(self, phase: Phase) -> None:
        """Begin a phase, and end the one before."""
        self._mark(phase)

    def pause(self) -> None:
        """Stop attributing time until the next phase begins."""
        self._mark(None)

    def read(self) -> dict[Phase, float]:
        """Return the seconds of each phase since the last reading; the device must have been synchronized."""
        seconds: dict[Phase, float] = dict.fromkeys(PHASES, 0.0)
        for (phase, start), (_, end) in zip(self._marks, self._marks[1:], strict=False):
            if phase is not None:
                seconds[phase] += start.elapsed_time(end) / 1000.0 if self._on_cuda else end - start
        if self._on_cuda:
            self._free += [event for _, event in self._marks]
        self._marks = []
        return seconds

    def _mark(self, phase: Phase | None) -> None:
        if not self._on_cuda:
            self._marks.append((phase, time.perf_counter()))
            return
        event = self._free.pop() if self._free else torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]
        event.record()
        self._marks.append((phase, event))
