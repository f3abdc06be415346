"""Encode text in several processes, results in order.

Each worker is served by a thread of this process.
"""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from collections import deque
from collections.abc import Generator, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from itertools import chain
from pathlib import Path
from typing import IO, NamedTuple

import numpy as np
import numpy.typing as npt

from pldcli.corpus.reader import count_words
from pldcli.errors import DeviceError
from pldcli.system.workers import close_pipe, own_stdout, start_worker
from pldcli.tokenization.tokenizer import Tokenizer, load_prepared_tokenizer

__all__ = ["Encoded", "Encoder", "Part"]

_TASKS_IN_FLIGHT_PER_WORKER = 2
_COUNT = np.dtype("<u8")
_TOKEN = np.dtype("<u4")
_NEW, _CONTINUED = b"n", b"c"
"""What stands before a text that is sent to a worker."""


class Part(NamedTuple):
    """A text to encode."""

    text: str
    continued: bool
    """It continues the document of the text before it."""
    last: bool
    """It ends its document."""


Encoded = tuple[Part, npt.NDArray[np.uint32], int]
"""A part, its ids, and how many words it has."""


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

    def encode(self, tasks: Iterable[list[Part]]) -> Generator[Encoded, None, None]:
        """Encode the parts of each task, in order; at most a few tasks are read ahead.

        Raises:
            DeviceError: A worker died.
        """
        if self._threads is None:
            tokenizer = load_prepared_tokenizer(self._directory)
            for part in chain.from_iterable(tasks):
                yield part, _ids(tokenizer, part.text, part.continued), count_words(part.text)
            return
        flying: deque[tuple[list[Part], Future[list[bytes]]]] = deque()
        for parts in tasks:
            flying.append((parts, self._threads.submit(self._ask, parts)))
            if len(flying) > _TASKS_IN_FLIGHT_PER_WORKER * self._processes:
                yield from _answer(*flying.popleft())
        while flying:
            yield from _answer(*flying.popleft())

    def _ask(self, parts: list[Part]) -> list[bytes]:
        worker: subprocess.Popen[bytes] = self._local.worker
        assert worker.stdin is not None and worker.stdout is not None
        try:
            _write(worker.stdin, [(_CONTINUED if part.continued else _NEW) + part.text.encode() for part in parts])
            return _read(worker.stdout)
        except (OSError, EOFError, ValueError) as error:
            raise DeviceError("a process that encodes text died", hint="if memory ran out, try fewer --processes") from error


def _answer(parts: list[Part], answer: Future[list[bytes]]) -> Iterator[Encoded]:
    num_words, *ids = answer.result()
    for part, own, words in zip(parts, ids, np.frombuffer(num_words, _COUNT).tolist(), strict=True):
        yield part, np.frombuffer(own, _TOKEN), words


def serve() -> None:
    """Answer tasks on standard input until it closes: the main function of a worker."""
    out = own_stdout()
    tokenizer = load_prepared_tokenizer(Path(sys.argv[1]))
    while True:
        try:
            parts = [(part[1:].decode(), part[:1] == _CONTINUED) for part in _read(sys.stdin.buffer)]
            num_words = np.array([count_words(text) for text, _ in parts], _COUNT)
            _write(out, [num_words.tobytes(), *(_ids(tokenizer, *part).tobytes() for part in parts)])
        except (EOFError, BrokenPipeError):
            os._exit(0)


def _ids(tokenizer: Tokenizer, text: str, continued: bool) -> npt.NDArray[np.uint32]:
    return np.array(tokenizer.encode_document_lines(text.split("\n"), continued=continued), _TOKEN)


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
