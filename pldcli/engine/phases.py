"""Time of training steps by phase: data, forward, backward, optimizer, other."""

from __future__ import annotations

import time
from collections import deque
from typing import Any, Literal

import torch

__all__ = ["PHASES", "Phase", "PhaseTimer"]

Phase = Literal["data", "forward", "backward", "optimizer", "other"]
PHASES: tuple[Phase, ...] = ("data", "forward", "backward", "optimizer", "other")

_MOST_MARKS = 1000


class PhaseTimer:
    """Attribute time to phases by marks at their beginnings.

    On CUDA a mark is an event in the stream, so device time is measured and nothing waits until it is read; time in which the
    device idles because the next batch is late counts as `data`.
    """

    def __init__(self, device: torch.device) -> None:
        self._on_cuda = device.type == "cuda"
        self._marks: deque[tuple[Phase | None, Any]] = deque()
        self._free: list[Any] = []
        self._seconds: dict[Phase, float] = dict.fromkeys(PHASES, 0.0)

    def begin(self, phase: Phase) -> None:
        """Begin a phase, and end the one before."""
        self._mark(phase)

    def pause(self) -> None:
        """Stop attributing time until the next phase begins."""
        self._mark(None)

    def read(self) -> dict[Phase, float]:
        """Return the seconds of each phase since the last reading; the device must have been synchronized."""
        self._add_up()
        if self._on_cuda:
            self._free += [event for _, event in self._marks]
        self._marks.clear()
        seconds, self._seconds = self._seconds, dict.fromkeys(PHASES, 0.0)
        return seconds

    def _add_up(self) -> None:
        """Add up the phases that are over on the device."""
        while len(self._marks) > 1 and (not self._on_cuda or self._marks[1][1].query()):
            (phase, start), (_, end) = self._marks.popleft(), self._marks[0]
            if phase is not None:
                self._seconds[phase] += start.elapsed_time(end) / 1000.0 if self._on_cuda else end - start
            if self._on_cuda:
                self._free.append(start)

    def _mark(self, phase: Phase | None) -> None:
        if len(self._marks) > _MOST_MARKS:
            self._add_up()  # where nobody reads for long
        if not self._on_cuda:
            self._marks.append((phase, time.perf_counter()))
            return
        event = self._free.pop() if self._free else torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]
        event.record()
        self._marks.append((phase, event))
