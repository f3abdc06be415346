"""Encode text in several processes, results in order.

Each worker is served by a thread of this process.
"""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from collections import deque
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import IO

import numpy as np
import numpy.typing as npt

from pldcli.data.tokenizer import Tokenizer, load_prepared_tokenizer
from pldcli.errors import DeviceError
from pldcli.system.workers import close_pipe, own_stdout, start_worker

__all__ = ["Encoded", "Encoder", "Part"]

Part = tuple[str, bool]
"""A text, and whether it goes on with the document of the text before it."""

_TASKS_IN_FLIGHT_PER_WORKER = 2
_COUNT = np.dtype("<u8")
_TOKEN = np.dtype("<u4")
_NEW, _CONTINUED = b"n", b"c"
"""What stands before a text that is sent to a worker."""


@dataclass(frozen=True)
class Encoded:
    """What came out of a list of texts: ids one after the other, and how many of them and of words each text has."""

    ids: npt.NDArray[np.uint32]
    num_tokens: npt.NDArray[np.uint64]
    num_words: npt.NDArray[np.uint64]


class Encoder:
    """A pool of worker processes, as a context manager.

    Args:
        tokenizer_directory: Where `Tokenizer.save` wrote.
        processes: Number of workers; 1 encodes in this process.
    """

    def __init__(self, tokenizer_directory: Path, *, processes: int) -> None:
        self._directory = tokenizer_directory
        self._processes = processes
        self._local = threading.local()
        self._workers: list[subprocess.Popen[bytes]] = []
        self._threads: ThreadPoolExecutor | None = None

    def __enter__(self) -> Encoder:
        if self._processes > 1:
            self._workers = [start_worker(__name__, [str(self._directory)]) for _ in range(self._processes)]
            idle = deque(self._workers)
            self._threads = ThreadPoolExecutor(self._processes, initializer=lambda: setattr(self._local, "worker", idle.popleft()))
        return self

    def __exit__(self, *_: object) -> None:
        for worker in self._workers:
            worker.kill()
        if self._threads is not None:
            self._threads.shutdown(wait=True, cancel_futures=True)
        for worker in self._workers:
            worker.wait()
            close_pipe(worker.stdin)
            close_pipe(worker.stdout)

    def encode(self, tasks: Iterable[list[Part]]) -> Iterator[Encoded]:
        """Encode each list of texts; at most a few lists are read ahead.

        Raises:
            DeviceError: A worker died.
        """
        if self._threads is None:
            tokenizer = load_prepared_tokenizer(self._directory)
            yield from (_encode(tokenizer, parts) for parts in tasks)
            return
        futures: deque[Future[Encoded]] = deque()
        for parts in tasks:
            futures.append(self._threads.submit(self._ask, parts))
            if len(futures) > _TASKS_IN_FLIGHT_PER_WORKER * self._processes:
                yield futures.popleft().result()
        while futures:
            yield futures.popleft().result()

    def _ask(self, parts: list[Part]) -> Encoded:
        worker: subprocess.Popen[bytes] = self._local.worker
        assert worker.stdin is not None and worker.stdout is not None
        try:
            _write(worker.stdin, [(_CONTINUED if continued else _NEW) + text.encode() for text, continued in parts])
            counts, words, ids = _read(worker.stdout)
        except (OSError, EOFError, ValueError) as error:
            raise DeviceError("a process that encodes text died", hint="if memory ran out, try fewer --processes") from error
        return Encoded(np.frombuffer(ids, _TOKEN), np.frombuffer(counts, _COUNT), np.frombuffer(words, _COUNT))


def _encode(tokenizer: Tokenizer, parts: list[Part]) -> Encoded:
    encoded = [np.array(tokenizer.encode_document_lines(text.split("\n"), continued=continued), dtype=_TOKEN) for text, continued in parts]
    return Encoded(
        ids=np.concatenate(encoded) if encoded else np.empty(0, _TOKEN),
        num_tokens=np.array([len(ids) for ids in encoded], dtype=_COUNT),
        num_words=np.array([len(text.split()) for text, _ in parts], dtype=_COUNT),
    )


def serve() -> None:
    """Answer tasks on standard input until it closes: the main function of a worker."""
    out = own_stdout()
    tokenizer = load_prepared_tokenizer(Path(sys.argv[1]))
    while True:
        try:
            encoded = _encode(tokenizer, [(part[1:].decode(), part[:1] == _CONTINUED) for part in _read(sys.stdin.buffer)])
            _write(out, [encoded.num_tokens.tobytes(), encoded.num_words.tobytes(), encoded.ids.tobytes()])
        except (EOFError, BrokenPipeError):
            os._exit(0)


def _write(pipe: IO[bytes], parts: list[bytes]) -> None:
    sizes = np.array([len(parts), *map(len, parts)], dtype=_COUNT)
    pipe.write(sizes.tobytes() + b"".join(parts))
    pipe.flush()


def _read(pipe: IO[bytes]) -> list[bytes]:
    count = int(np.frombuffer(_exactly(pipe, _COUNT.itemsize), _COUNT)[0])
    sizes = np.frombuffer(_exactly(pipe, count * _COUNT.itemsize), _COUNT)
    return [_exactly(pipe, int(size)) for size in sizes]


def _exactly(pipe: IO[bytes], size: int) -> bytes:
    data = pipe.read(size)
    if len(data) < size:
        raise EOFError
    return data
