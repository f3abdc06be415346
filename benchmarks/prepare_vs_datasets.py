"""Time `pld prepare-data` against the usual recipe with `datasets`, and against datatrove's tokenizer, in turn, on this machine.

    pip install -e '.[bench]' 'datatrove[io]'
    python benchmarks/prepare_vs_datasets.py --corpus text/ --tokenizer vocab.txt --sizes-mb 10 40 --out table.md

Both tokenise with the same tokenizer.json and train none; special tokens are not added to documents by either. Of a SentencePiece model
such a file is made; prepare-data works with the model itself too, as it does where it trained one, beside the bare library. The recipe is
load_dataset("json"), a map that calls the fast tokenizer in batches, and a map that cuts what came out into blocks of 128 tokens.
It is measured as it usually stands (with the attention mask and token types that the tokenizer gives) and with ids only. Where
datatrove is installed, its JsonlReader reads and its DocumentTokenizer writes, as they come; it shuffles documents at the end.

Every measurement is a fresh process with a cache directory of its own, in turn. Start-up is what the same command takes on a text of
a few lines. prepare-data is told to keep repeated text; it reads the corpus twice, hashes it, and splits off documents for validation.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib.util
import itertools
import json
import os
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any

from measuring import output_of_process, rotated, say
from pldcli.corpus.reader import Reader
from pldcli.corpus.sources import find_sources
from pldcli.system import atomic
from pldcli.system.machine import memory_counters
from pldcli.tokenization.tokenizer import load_tokenizer
from reporting import command, hardware, head, row, software, spread

BLOCK_TOKENS = 128
TOLERANCE = 1e-3
"""Of token counts: over-long lines are cut by prepare-data, and a special token's name is text to it."""
SYSTEMS = {
    "pld": "pld prepare-data",
    "pld-sentencepiece": "pld prepare-data, the same vocabulary as a SentencePiece model",
    "datasets": "datasets, usual recipe",
    "datasets-ids": "datasets, ids only",
    "datatrove": "datatrove, DocumentTokenizer",
    "sentencepiece": "SentencePiece itself, ids only",
}
OF_SENTENCEPIECE = {"pld-sentencepiece", "sentencepiece"}
ENCODED_AT_ONCE = 1000
START_UP_TEXTS = ("A text of a few lines.", "It is here to be tokenised in no time.", "What remains is the start.")
SAMPLE_SECONDS = 0.2


@dataclass(frozen=True)
class Run:
    """One process of one system."""

    seconds: float
    peak_mb: float
    """Resident memory of the largest process."""
    peak_private_mb: float
    """Of these, what is no page of a file; sampled."""
    num_tokens: int
    """Of text: without marks between documents."""


@dataclass
class Found:
    """What was measured of one size."""

    megabytes: float
    num_copies: int
    runs: dict[str, list[Run]] = field(default_factory=dict)
    start_up: dict[str, float] = field(default_factory=dict)
    """Per system, seconds."""

    def seconds(self, name: str, *, start_up: bool) -> list[float]:
        """List a system's times, with start-up or without."""
        return [run.seconds - (0.0 if start_up else self.start_up[name]) for run in self.runs[name]]

    @property
    def ours(self) -> str:
        """Name what the others are compared with: prepare-data with the SentencePiece model, where there is one."""
        return "pld-sentencepiece" if "pld-sentencepiece" in self.runs else "pld"

    def ratios(self, name: str, *, start_up: bool) -> list[float]:
        """Divide a system's times by prepare-data's, pair by pair."""
        ours = self.seconds(self.ours, start_up=start_up)
        return [theirs / own for own, theirs in zip(ours, self.seconds(name, start_up=start_up), strict=True)]

    def rows(self) -> list[str]:
        """Write the lines of the table."""
        lines = []
        for name, runs in self.runs.items():
            rates = [f"{self.megabytes / statistics.median(self.seconds(name, start_up=which)):.2f}" for which in (True, False)]
            memory = [f"{max(run.peak_mb for run in runs):,.0f}", f"{max(run.peak_private_mb for run in runs):,.0f}"]
            ratios = ["1" if name == self.ours else spread(self.ratios(name, start_up=which)) for which in (True, False)]
            cells = [
                f"{self.megabytes:.1f}",
                SYSTEMS[name],
                f"{runs[0].num_tokens:,}",
                *rates,
                f"{self.start_up[name]:.1f}",
                *memory,
                *ratios,
            ]
            lines.append(row(*cells))
        return lines


COLUMNS = (
    "MB",
    "system",
    "tokens of text",
    "MB/s",
    "MB/s without start-up",
    "start-up, s",
    "peak memory, MB",
    "of it private",
    "its time / pld's",
    "without start-up",
)


def main() -> None:
    options = parse()
    if options.run:
        print(json.dumps(run_and_measure(json.loads(options.run))))
        return
    if options.recipe:
        given = json.loads(options.recipe)
        recipe = {"datatrove": with_datatrove, "sentencepiece": with_sentencepiece}.get(given["name"], with_datasets)
        print(json.dumps(recipe(**given)))
        return
    measured: list[Found] = []
    with tempfile.TemporaryDirectory() as scratch:
        place = Path(scratch)
        tokenizer = load_tokenizer(options.tokenizer)
        tokenizer.save(place)
        absent = OF_SENTENCEPIECE if tokenizer.sentencepiece is None else set()
        absent = absent if has_datatrove() else {*absent, "datatrove"}
        names = [name for name in SYSTEMS if name not in absent]
        start_up = measure_start_up(names, options, place)
        for size in options.sizes_mb:
            corpus = place / f"corpus-{size:g}.jsonl"
            num_copies = cut_corpus(options.corpus, round(size * 1e6), corpus)
            measured.append(measure(names, options, place, corpus, num_copies, start_up))
            corpus.unlink()
            say(*measured[-1].rows())
            if options.out:
                atomic.write_text(options.out, report(measured, options))
    print(report(measured, options))


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    hidden = {"--run", "--recipe"} & set(sys.argv)
    parser.add_argument("--corpus", nargs="+", type=Path, required=not hidden, help="text or JSON-lines files, or directories of them")
    parser.add_argument("--tokenizer", type=Path, required=not hidden, help="a vocab.txt, a tokenizer.json or a SentencePiece .model")
    parser.add_argument("--sizes-mb", nargs="+", type=float, default=[10.0, 40.0], help="millions of bytes to take of the corpus")
    parser.add_argument("--pairs", type=int, default=5, help="measurements of each system")
    parser.add_argument("--workers", type=int, default=1, help="processes that tokenise, in both")
    parser.add_argument("--threads", type=int, default=1, help="of a tokenizer in one process, in both")
    parser.add_argument("--out", type=Path, help="a markdown file for the table, written after each size")
    parser.add_argument("--run", help=argparse.SUPPRESS)
    parser.add_argument("--recipe", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if not hidden and (options.pairs < 1 or options.workers < 1 or min(options.sizes_mb) <= 0):
        parser.error("--pairs and --workers must be at least 1, and --sizes-mb more than 0")
    return options


def cut_corpus(inputs: Sequence[Path], num_bytes: int, out: Path) -> int:
    """Write documents as JSON lines until there are so many bytes of text; return how often the corpus was begun.

    From the second time on each document begins with a line that says so: equal documents would all fall into the same split.
    """
    written, num_copies = 0, 0
    with out.open("w", encoding="utf-8") as file:
        while written < num_bytes:
            num_copies += 1
            before = written
            for number, text in enumerate(documents(inputs)):
                marked = text if num_copies == 1 else f"Copy {num_copies} of text {number}.\n{text}"
                if written + len(marked.encode()) > num_bytes:
                    marked = marked.encode()[: num_bytes - written].decode(errors="ignore")
                write_document(file, marked)
                written += len(marked.encode())
                if written >= num_bytes:
                    break
            if written == before:
                sys.exit("the corpus holds no text")
    return num_copies


def has_datatrove() -> bool:
    """Return whether it is installed with what its reader needs."""
    return all(importlib.util.find_spec(name) for name in ("datatrove", "orjson"))


def write_document(file: IO[str], text: str) -> None:
    file.write(json.dumps({"text": text.strip()}, ensure_ascii=False) + "\n")


def documents(inputs: Sequence[Path]) -> Iterator[str]:
    """Read the corpus as prepare-data does."""
    for source in find_sources(inputs)[0]:
        parts: list[str] = []
        for text, last in Reader(source).pieces():
            parts.append(text)
            if last:
                yield "".join(parts)
                parts = []


def measure_start_up(names: Sequence[str], options: argparse.Namespace, place: Path) -> dict[str, float]:
    """Time each system on next to nothing."""
    corpus = place / "start.jsonl"
    with corpus.open("w", encoding="utf-8") as file:
        for text in START_UP_TEXTS:
            write_document(file, text)
    seconds: dict[str, list[float]] = {name: [] for name in names}
    for _, name in itertools.product(range(options.pairs), names):
        seconds[name].append(run_once(name, corpus, options, place).seconds)
    return {name: statistics.median(found) for name, found in seconds.items()}


def measure(
    names: Sequence[str], options: argparse.Namespace, place: Path, corpus: Path, num_copies: int, start_up: dict[str, float]
) -> Found:
    """Let the systems work in turn, another one first each time."""
    found = Found(corpus.stat().st_size / 1e6, num_copies, {name: [] for name in names}, start_up)
    for turn in range(options.pairs):
        for name in rotated(names, turn):
            found.runs[name].append(run_once(name, corpus, options, place))
    require_equal_tokens({name: runs[0].num_tokens for name, runs in found.runs.items()})
    return found


def require_equal_tokens(num_tokens: dict[str, int]) -> None:
    """Refuse to compare systems that did not make the same of the text."""
    if max(num_tokens.values()) - min(num_tokens.values()) > TOLERANCE * min(num_tokens.values()):
        sys.exit(f"the systems made different numbers of tokens: {num_tokens}")


def run_once(name: str, corpus: Path, options: argparse.Namespace, place: Path) -> Run:
    """Start a system in a directory that is not there before and not there afterwards."""
    with tempfile.TemporaryDirectory(dir=place) as scratch:
        if name.startswith("pld"):
            tokenizer = place / ("sentencepiece.model" if name == "pld-sentencepiece" else "tokenizer.json")
            words = [
                "-m",
                "pldcli",
                "prepare-data",
                str(corpus),
                "--out",
                f"{scratch}/data",
                "--tokenizer",
                str(tokenizer),
                "--keep-duplicates",
            ]
            words += ["--processes", str(options.workers)]
        else:
            given = {
                "corpus": str(corpus),
                "tokenizer": str(place / "tokenizer.json"),
                "cache": f"{scratch}/cache",
                "workers": options.workers,
            }
            words = [__file__, "--recipe", json.dumps({"name": name, **given})]
        answer = in_a_process([__file__, "--run", json.dumps([sys.executable, *words])], options.threads, scratch)
        measured = json.loads(answer)
        if name.startswith("pld"):
            counts = json.loads(Path(scratch, "data", "manifest.json").read_text(encoding="utf-8"))["counts"].values()
            num_tokens = sum(count["tokens"] - count["documents"] for count in counts)
        else:
            num_tokens = json.loads(measured["out"].splitlines()[-1])["tokens"]
    return Run(measured["seconds"], measured["peak_mb"], measured["peak_private_mb"], num_tokens)


def in_a_process(words: Sequence[str], threads: int, home: str) -> str:
    """Run Python with caches in `home`; return what it wrote."""
    counts = dict.fromkeys(("RAYON_NUM_THREADS", "OMP_NUM_THREADS"), str(threads))
    environment = {**os.environ, **counts, "HF_HOME": home, "HF_HUB_OFFLINE": "1"}
    return output_of_process(words, environment=environment)


def run_and_measure(words: Sequence[str]) -> dict[str, Any]:
    """Run a command; tell its time, and the memory of its largest process.

    This is a process of its own, and a small one: what the system counts as a child's peak is never below its parent's memory.
    """
    with tempfile.TemporaryFile("w+") as out:
        began = time.perf_counter()
        child = subprocess.Popen(words, stdout=out)
        sampler = Sampler(child.pid)
        sampler.start()
        _, status, usage = os.wait4(child.pid, 0)
        seconds = time.perf_counter() - began
        sampler.over.set()
        sampler.join()
        if code := os.waitstatus_to_exitcode(status):
            sys.exit(code)
        out.seek(0)
        kilobytes = 1024 if sys.platform == "linux" else 1
        return {
            "seconds": seconds,
            "peak_mb": usage.ru_maxrss * kilobytes / 1e6,
            "peak_private_mb": sampler.peak_bytes / 1e6,
            "out": out.read(),
        }


class Sampler(threading.Thread):
    """Looks at a process and its descendants again and again, for the largest one's memory that is no page of a file."""

    def __init__(self, root: int) -> None:
        super().__init__(daemon=True)
        self.over = threading.Event()
        self.peak_bytes = 0
        self._root = root

    def run(self) -> None:
        import psutil

        began = time.monotonic()
        while not self.over.wait(min(SAMPLE_SECONDS, 0.05 * (time.monotonic() - began))):  # a short process too is seen near its end
            with contextlib.suppress(psutil.NoSuchProcess):
                root = psutil.Process(self._root)
                for process in (root, *root.children(recursive=True)):
                    self._look(process.pid)

    def _look(self, number: int) -> None:
        self.peak_bytes = max(self.peak_bytes, memory_counters(number).get("RssAnon", 0))


def with_datatrove(name: str, corpus: str, tokenizer: str, cache: str, workers: int) -> dict[str, int]:
    """Tokenise with datatrove's step as it comes; every process takes whole files, so that several get pieces of the corpus."""
    from datatrove.executor import LocalPipelineExecutor
    from datatrove.pipeline.readers import JsonlReader
    from datatrove.pipeline.tokens import DocumentTokenizer

    pieces = Path(cache, "pieces")
    pieces.mkdir(parents=True)
    lines = Path(corpus).read_text(encoding="utf-8").splitlines(keepends=True) if workers > 1 else []
    for number in range(workers):
        piece = pieces / f"{number:03}.jsonl"
        if workers > 1:
            piece.write_text("".join(lines[number::workers]), encoding="utf-8")
        else:
            piece.symlink_to(Path(corpus).resolve())
    out = Path(cache, "tokens")
    step = DocumentTokenizer(str(out), tokenizer_name_or_path=tokenizer, eos_token=None)
    settings = {"tasks": workers, "workers": workers, "logging_dir": str(Path(cache, "logs"))}
    LocalPipelineExecutor(pipeline=[JsonlReader(str(pieces)), step], **settings).run()
    with Path(corpus).open(encoding="utf-8") as file:
        num_documents = sum(1 for _ in file)
    num_tokens = sum(path.stat().st_size for path in out.glob("*.ds")) // step.token_size
    return {"tokens": num_tokens - num_documents * step.tokenizer.num_special_tokens_to_add(is_pair=False)}  # it adds those of the file


def with_sentencepiece(name: str, corpus: str, tokenizer: str, cache: str, workers: int) -> dict[str, int]:
    """Encode with the library on as many threads as the others have processes, and write the ids."""
    import numpy as np
    import sentencepiece

    processor = sentencepiece.SentencePieceProcessor(model_file=str(Path(tokenizer).with_name("sentencepiece.model")))
    num_tokens = 0
    Path(cache).mkdir()
    with Path(corpus).open(encoding="utf-8") as file, Path(cache, "ids").open("wb") as out:
        while texts := [json.loads(line)["text"] for line in itertools.islice(file, ENCODED_AT_ONCE)]:
            ids = np.fromiter(itertools.chain.from_iterable(processor.encode(texts, num_threads=workers)), np.uint16)
            out.write(ids.tobytes())
            num_tokens += len(ids)
    return {"tokens": num_tokens}


def with_datasets(name: str, corpus: str, tokenizer: str, cache: str, workers: int) -> dict[str, int]:
    """Tokenise and cut into blocks with `datasets`."""
    from datasets import load_dataset
    from transformers import PreTrainedTokenizerFast

    fast = PreTrainedTokenizerFast(tokenizer_file=tokenizer)
    given: dict[str, Any] = {"return_attention_mask": False, "return_token_type_ids": False} if name == "datasets-ids" else {}

    def tokenise(examples: dict[str, list[str]]) -> Any:
        return fast(examples["text"], add_special_tokens=False, **given)

    def group(examples: dict[str, list[list[int]]]) -> dict[str, list[list[int]]]:
        joined = {name: list(itertools.chain.from_iterable(rows)) for name, rows in examples.items()}
        total = len(joined["input_ids"]) // BLOCK_TOKENS * BLOCK_TOKENS
        return {name: [ids[i : i + BLOCK_TOKENS] for i in range(0, total, BLOCK_TOKENS)] for name, ids in joined.items()}

    num_proc = workers if workers > 1 else None
    text = load_dataset("json", data_files=corpus, split="train", cache_dir=cache)
    tokenised = text.map(tokenise, batched=True, num_proc=num_proc, remove_columns=["text"])
    blocks = tokenised.map(group, batched=True, num_proc=num_proc)
    lengths = (len(values) for chunk in tokenised.data.column("input_ids").chunks for values in [chunk.flatten()])
    return {"tokens": sum(lengths), "blocks": len(blocks)}


def report(measured: Sequence[Found], options: argparse.Namespace) -> str:
    packages = ["datasets", *(["datatrove"] if "datatrove" in measured[0].runs else []), "transformers", "tokenizers", "pyarrow"]
    facts = (
        f"{options.pairs} processes of each in turn, {options.workers} process(es) that tokenise, {options.threads} thread(s) in a "
        f"tokenizer; medians, ratios pair by pair (lowest to highest), memory the highest of all. "
        f"{hardware('cpu')}; {software(*packages)}."
    )
    copies = [f"{found.megabytes:.1f} MB hold the corpus {found.num_copies} times" for found in measured if found.num_copies > 1]
    if copies:
        facts += f" The corpus is smaller than asked: {', '.join(copies)}, which helps whoever remembers words."
    rows = "\n".join(line for found in measured for line in found.rows())
    return f"# Preparing data against datasets and datatrove\n\n    {command()}\n\n{facts}\n\n{head(*COLUMNS)}\n{rows}\n"


if __name__ == "__main__":
    main()
