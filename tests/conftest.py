from __future__ import annotations

import os
import random
import signal
import socket
import subprocess
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pldcli.cli import run
from pldcli.config import Config
from pldcli.data.prepared import write_manifest
from pldcli.data.shards import ShardWriter
from pldcli.data.stream import TokenStream
from pldcli.plots import canvas
from pldcli.presets import resolve
from pldcli.system.workers import available_cores
from pldcli.tokenization.tokenizer import SpecialTokens, Tokenizer
from tests.forks import BELOW, Forks

ROOT = Path(__file__).parents[1]

TINY = (
    "model.num_hidden_layers=3",
    "model.hidden_size=32",
    "model.num_attention_heads=2",
    "model.intermediate_size=64",
    "data.seq_len=32",
    "train.global_batch_size=8",
    "train.total_steps=12",
    "runtime.precision=fp32",
    "runtime.device=cpu",
    "eval.max_sequences=64",
)
"""Changes that make bert-tiny-pld a run of a second."""


BLANK = {"png": b"\x89PNG\r\n\x1a\n", "svg": b"<svg></svg>"}
"""Pictures of tests that do not ask for drawn ones."""
DRAWN = canvas._drawn

SLOW_FILES = (
    "tests/engine/test_sharding.py",
    "tests/commands/test_study.py",
    "tests/test_benchmarks",
    "tests/system/test_launcher.py",
    "tests/test_docs",
    "tests/pretraining/test_pretrain.py",
    "tests/finetuning/test_finetune",
    "tests/study/test_calibration.py",
    "tests/test_demo.py",
    "tests/test_faults.py",
    "tests/test_readme.py",
)
"""Begun first: of two workers that share files, none is left with a long one at the end."""


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_auto_num_workers() -> int:
    """Use one worker more than there are cores: many a test waits for signals and time limits."""
    return available_cores() + 1


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Put slow files first, all others in their order."""
    items.sort(key=lambda item: not item.nodeid.startswith(SLOW_FILES))


@pytest.fixture(scope="session", autouse=True)
def _blank_pictures() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        leave_pictures_blank(patch.setattr)
        yield


def leave_pictures_blank(setattr: Callable[[Any, str, Any], None] = setattr) -> None:
    """Make up figures but do not draw them, which takes three quarters of a tiny run's time."""
    setattr(canvas, "_drawn", lambda figure, kind, *left_out: BLANK[kind])


@pytest.fixture
def drawn(monkeypatch: pytest.MonkeyPatch) -> None:
    """Draw pictures as users see them."""
    monkeypatch.setattr(canvas, "_drawn", DRAWN)


def pytest_configure() -> None:
    """Compute on one thread, here and in every process that a test starts: sums then come out the same to the last bit."""
    os.environ["OMP_NUM_THREADS"] = "1"
    signal.signal(signal.SIGINT, signal.default_int_handler)  # which a shell turns off in what it starts in the background
    import torch

    torch.set_num_threads(1)


@dataclass(frozen=True)
class Outcome:
    """What a command line did."""

    code: int
    out: str
    err: str


@pytest.fixture
def pld(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Callable[..., Outcome]:
    """Run a command line in this process, through the real error boundary."""
    monkeypatch.setenv("PLD_TRACEBACK", "0")
    monkeypatch.delenv("COLUMNS", raising=False)

    def call(*arguments: object) -> Outcome:
        capsys.readouterr()
        code = run([str(argument) for argument in arguments])
        written = capsys.readouterr()
        return Outcome(code, written.out, written.err)

    return call


@pytest.fixture(scope="session")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Prepare some 150 kB of real English: documentation of the standard library, a line per document."""
    from pldcli.corpus.docstrings import docstring_corpus
    from pldcli.preparation.prepare import prepare

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", SyntaxWarning)
        lines = [line for text in docstring_corpus(150_000) for line in text.splitlines()]
    place = tmp_path_factory.mktemp("prepared")
    (place / "corpus.txt").write_text("\n".join(lines), encoding="utf-8")
    line_by_line = {"document_per": "line", "keep_duplicates": True}
    prepare([place / "corpus.txt"], place / "data", **line_by_line, vocab_size=512, processes=1, quiet=True)
    return place / "data"


def write_prepared(directory: Path, documents: Sequence[Sequence[int]] = ((5, 6), (7,)), *, vocab_size: int = 100, **sizes: int) -> Path:
    """Write documents of token ids as both splits of prepared data, whose tokenizer nobody can read."""
    special = SpecialTokens(pad_id=0, unk_id=1, cls_id=2, sep_id=3, mask_id=4)
    tokenizer = Tokenizer(
        json_text="{}", sentencepiece=None, special=special, vocab_size=vocab_size, fingerprint="f", model_type="bpe", normaliser="none"
    )
    directory.mkdir()
    tokenizer.save(directory)
    shards = {}
    for split in ("train", "validation"):
        with ShardWriter(directory, split, vocab_size=vocab_size, end_id=special.sep_id, **sizes) as writer:
            for document in documents:
                for part in np.array_split(np.array(document, np.uint32), 2):
                    writer.add(part)
                writer.end_document()
        shards |= writer.shards
    facts = {"sources": [], "counts": {}, "skipped": {}, "replaced_bytes": 0, "repeated_lines": []}
    write_manifest(directory, tokenizer, document_per="line", shards=shards, **facts)
    return directory


class Process:
    """A process that `Processes` started."""

    def __init__(self, started: subprocess.Popen[bytes], place: Path) -> None:
        self.number, self.wait, self._place = started.pid, started.wait, place

    def kill(self, signal_number: int) -> None:
        """Send a signal."""
        os.kill(self.number, signal_number)

    @property
    def out(self) -> str:
        """What it wrote to stdout so far."""
        return (self._place / "out").read_text(encoding="utf-8")

    @property
    def err(self) -> str:
        """What it wrote to stderr so far."""
        return (self._place / "err").read_text(encoding="utf-8")


def wait_for(condition: Callable[[], bool], *, seconds: float = 60.0) -> None:
    """Look again and again until something holds."""
    until = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < until, "waited in vain"
        time.sleep(0.005)


class Processes:
    """Start processes that have imported torch already, and note what they write.

    Args:
        directory: Empty.
        forks: Where they come from.
        environment: Variables besides those of this process.
    """

    def __init__(self, directory: Path, forks: Forks, environment: Mapping[str, str] | None = None) -> None:
        self._directory, self._forks, self._environment = directory, forks, environment or {}

    def pld(self, *arguments: object, environment: Mapping[str, str] | None = None) -> Process:
        """Start a command line."""
        return self._start(["-m", "pldcli", *map(str, arguments)], environment)

    def python(self, code: str, environment: Mapping[str, str] | None = None) -> Process:
        """Start a piece of Python."""
        return self._start(["-c", code], environment)

    def together(self, code: str, count: int = 2, *, local: int | None = None) -> list[Process]:
        """Run a piece of Python in several processes that find each other, until all have ended well.

        Args:
            code: For each of them.
            count: How many.
            local: How many of them are told that they share a machine; None tells them nothing.
        """
        started = [self.python(code, environment) for environment in meeting(count, local)]
        assert [process.wait() for process in started] == [0] * count, "".join(process.err for process in started)
        return started

    def close(self) -> None:
        """End the server."""
        self._forks.close()

    def _start(self, words: Sequence[str], environment: Mapping[str, str] | None) -> Process:
        place = Path(tempfile.mkdtemp(dir=self._directory))
        variables = {**os.environ, "OMP_NUM_THREADS": "1", **self._environment, **(environment or {})}
        with (place / "out").open("wb") as out, (place / "err").open("wb") as err:
            return Process(self._forks.Popen([sys.executable, *words], stdout=out, stderr=err, env=variables), place)


def meeting(count: int, local: int | None = None) -> list[dict[str, str]]:
    """Make the environments of processes that find each other here, by rank; `local` as of `Processes.together`."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        shared = {"WORLD_SIZE": str(count), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(probe.getsockname()[1])}
    shared |= {"LOCAL_WORLD_SIZE": str(local)} if local else {}
    return [shared | {"RANK": str(rank), "LOCAL_RANK": str(rank % (local or count))} for rank in range(count)]


@pytest.fixture(scope="session")
def forks() -> Iterator[Forks]:
    """Where processes come from that need not import torch."""
    server = Forks.start()
    yield server
    server.close()


@pytest.fixture(scope="session")
def processes(forks: Forks, tmp_path_factory: pytest.TempPathFactory) -> Processes:
    """Start processes without waiting for torch each time, those that they start included."""
    return Processes(tmp_path_factory.mktemp("processes"), forks, {BELOW: "1"})


@pytest.fixture
def forked(forks: Forks, monkeypatch: pytest.MonkeyPatch) -> None:
    """Let whatever starts Python have it without waiting for torch."""
    forks.install(monkeypatch.setattr)


def made_up_stream(*, seed: int = 0, documents: int = 120) -> TokenStream:
    """Make up documents over ids 5..63 in which each id hints at the next; the same on every machine."""
    draw = random.Random(seed)
    ids: list[int] = []
    ends = []
    for _ in range(documents):
        token = 5 + int(draw.random() * 59)
        for _ in range(5 + int(draw.random() * 50)):
            ids.append(token)
            token = 5 + (token * 3 + int(draw.random() * 4)) % 59
        ids.append(3)
        ends.append(len(ids))
    return TokenStream([(np.array(ids, np.int64), np.array(ends, np.int64))], end_id=3)


class MadeUpData:
    """What `build_trainer` needs of prepared data, without a file."""

    path, vocab_size, data_fingerprint, fingerprint = Path("made-up"), 64, "data", "tokenizer"
    special = SpecialTokens(pad_id=0, unk_id=1, cls_id=2, sep_id=3, mask_id=4)

    def stream(self, split: str) -> TokenStream:
        return made_up_stream(seed=split == "validation")


def tiny_config(*changes: str, preset: str = "bert-tiny-pld") -> Config:
    """Resolve a configuration for `MadeUpData`; the last of several changes to a key counts."""
    chosen = dict(change.split("=", 1) for change in (*TINY, "model.vocab_size=64", "model.local_attention=32", *changes))
    return resolve(preset, [f"{key}={value}" for key, value in chosen.items()]).config


def tiny_trainer(*changes: str, preset: str = "bert-tiny-pld", runtime: Any = None) -> Any:
    """Build a trainer on `MadeUpData`."""
    import torch

    from pldcli.engine.runtime import Runtime
    from pldcli.pretraining.assembly import build_trainer

    return build_trainer(tiny_config(*changes, preset=preset), MadeUpData(), runtime or Runtime(torch.device("cpu")))


@pytest.fixture(scope="session")
def real_data() -> Path:
    """Find the data sets that tests may use where they are: too large, and not ours, to be kept beside the tests."""
    path = Path(os.environ.get("PLD_TEST_DATA") or Path(tempfile.gettempdir()) / "pld-data")
    if not path.is_dir():
        pytest.skip(f"no data at {path}: set PLD_TEST_DATA")
    return path
