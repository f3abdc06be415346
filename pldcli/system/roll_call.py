"""Which of several processes ended a job: each that fails, or has lost the others, says so in a store that all of them reach.

The others see only that a connection is closed, or that nothing came for a while. Who says nothing either was killed, or hangs.
"""

from __future__ import annotations

import json
import os
import signal
import socket
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal, Protocol

from pldcli.system.error_file import ERROR_FILE, write_ending

__all__ = ["LOST", "Loss", "Reason", "RollCall"]

Reason = Literal["failed", "lost", "timed out"]
"""Why a process ends: by itself, because a connection to another was closed, or because another did not answer."""

LOST = "lost"
"""In the file that torchrun's agent reads, the reason of a process that did not fail by itself."""
_PATIENCE_SECONDS = 3.0
"""For the others to say why they end: they lose each other at the same time."""
_LOOK_SECONDS = 0.05


class _Store(Protocol):
    """Of `torch.distributed`, as far as it is needed here."""

    def set(self, key: str, value: str) -> None: ...

    def get(self, key: str) -> bytes: ...

    def check(self, keys: list[str]) -> bool: ...


@dataclass(frozen=True)
class Loss:
    """What became of the other processes."""

    what: str
    hint: str
    hung: tuple[int, ...] = ()
    """Ranks that did not answer."""


@dataclass(frozen=True)
class RollCall:
    """One process's view of all."""

    store: _Store
    rank: int
    world_size: int
    timeout_seconds: float
    """After which a process gives up waiting for another."""

    def arrive(self) -> None:
        """Say where this process runs."""
        self.store.set(f"process/{self.rank}", json.dumps([socket.gethostname(), os.getpid()]))

    def leave(self, reason: Reason) -> None:
        """Say why this process ends; the first reason counts."""
        key = f"left/{self.rank}"
        _within_patience(lambda: None if self.store.check([key]) else self.store.set(key, reason))

    def find_loss(self) -> Loss:
        """Find out which process ended the job, after this one has left it."""
        reasons = _within_patience(self._hear) or {self.rank: "lost"}
        others = [rank for rank in range(self.world_size) if rank != self.rank]
        if failed := [rank for rank in others if reasons.get(rank) == "failed"]:
            return Loss(f"lost {self._named(failed)}", "it says why" if len(failed) == 1 else "they say why")
        silent = [rank for rank in others if rank not in reasons]
        if not silent:
            return Loss("lost the other processes", "one of them says why")
        if "timed out" not in reasons.values():
            return Loss(f"lost {self._named(silent)}", "it was killed" if len(silent) == 1 else "they were killed")
        what = f"{self._named(silent)} did not answer for {self.timeout_seconds:g} s"
        return Loss(what, "raise runtime.timeout_seconds where that is no failure", tuple(silent))

    def _hear(self) -> dict[int, str]:
        """Collect the reasons of all processes until one has failed by itself, all have said theirs, or patience ends."""
        until = time.monotonic() + _PATIENCE_SECONDS
        reasons: dict[int, str] = {}
        while len(reasons) < self.world_size and "failed" not in reasons.values() and time.monotonic() < until:
            for rank in range(self.world_size):
                if rank not in reasons and self.store.check([f"left/{rank}"]):
                    reasons[rank] = self.store.get(f"left/{rank}").decode()
            time.sleep(_LOOK_SECONDS)
        return reasons

    def report(self, loss: Loss) -> None:
        """Tell torchrun's agent that this process did not fail by itself, and end those that hang, for which the agent would wait.

        Only processes that the same agent started on this machine.
        """
        if ERROR_FILE not in os.environ:
            return
        _within_patience(lambda: write_ending(loss.what, **{LOST: {"hung": bool(loss.hung)}}))
        if loss.hung and threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGTERM, signal.SIG_IGN)  # the agent's answer to what follows; this process still has to say what is wrong
        for rank in loss.hung:
            where = _within_patience(partial(self._where, rank))
            if where is not None and where[0] == socket.gethostname() and _parent_of(where[1]) == os.getppid():
                os.kill(where[1], signal.SIGKILL)

    def _where(self, rank: int) -> list[Any]:
        """Return the machine and the number of a process."""
        where: list[Any] = json.loads(self.store.get(f"process/{rank}"))
        return where

    def _named(self, ranks: Sequence[int]) -> str:
        numbers = " and ".join([", ".join(map(str, ranks[:-1])), str(ranks[-1])] if len(ranks) > 1 else [str(ranks[0])])
        return f"process{'es' if len(ranks) > 1 else ''} {numbers} of {self.world_size}"


def _parent_of(process: int) -> int | None:
    """Return the parent of a process, where /proc says it."""
    try:
        return int(Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[1])
    except (OSError, ValueError, IndexError):
        return None


def _within_patience(ask: Callable[[], Any]) -> Any:
    """Return an answer of the store or the disk; None where there is none in good time: either may be gone with what is to be reported."""
    answers: list[Any] = []

    def run() -> None:
        try:
            answers.append(ask())
        except Exception:  # noqa: BLE001 - what ends the process is told in any case
            answers.append(None)

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    thread.join(2 * _PATIENCE_SECONDS)
    return answers[0] if answers else None
