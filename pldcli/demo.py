"""Demonstration on a small scale: a corpus, a baseline and its layer-dropping twin, their comparison, and three masks filled."""

from __future__ import annotations

import shlex
import shutil
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch
from rich.console import Console

from pldcli import presets
from pldcli.config import Config
from pldcli.corpus.docstrings import docstring_corpus
from pldcli.data.prepared import PreparedData, open_prepared
from pldcli.engine.validation import LmScore, fixed_batches, score_lm, unigram_baseline
from pldcli.errors import PreemptedError, StoppedError
from pldcli.evaluation.fill_mask import fill_mask
from pldcli.evaluation.subject import open_subject
from pldcli.plots.curves import Curve, plot_curves
from pldcli.preparation.prepare import prepare
from pldcli.pretraining.recorder import PretrainResult
from pldcli.pretraining.twins import train_in_turn
from pldcli.runs.checkpoint import Position
from pldcli.runs.metrics import read_metrics, reads_context
from pldcli.system import atomic
from pldcli.system.output_place import check_new
from pldcli.tokenization.tokenizer import Tokenizer, load_prepared_tokenizer

__all__ = ["Demo", "DemoRun", "FilledMask", "demo"]

_SIZE, _SYSTEMS = "modern-tiny", ("preln", "pld")
_CORPUS_BYTES = 2_000_000
_HELD_OUT = 25
"""One document in so many is for validation: with few targets losses are noisy."""
_VOCABULARY = 256
"""Small, so that words have several pieces, which predict one another: a small model learns that first, and soon."""
_TRAIN_UNTIL_SECONDS = 140.0
"""After the start; what follows training takes some ten seconds on a quiet core."""
_MOST_STEPS = 6000
_WARMUP_STEPS = 60
_CHANGES = (
    # Two heads of size 32: narrower ones begin too blurred to look at a single neighbour.
    "model.hidden_size=64",
    "model.num_attention_heads=2",
    "model.intermediate_size=128",
    "data.seq_len=32",
    # Rows are shorter than the windows of the size.
    "model.global_layers=1",
    # Muon gains next to nothing here, and takes as long as half of the rest of the step.
    "optim.name=adamw",
    "optim.learning_rate=3e-3",
    "optim.schedule=wsd",
    "optim.decay_fraction=0.25",
    "pld.gamma=0.05",
    "train.global_batch_size=16",
    "train.unigram_bias=true",
    "train.log_every_steps=20",
    "eval.every_steps=200",
    "eval.max_sequences=256",
)
"""The preset made smaller: its model reads context after half a minute, and its schedule may end at any step."""
_NUM_MASKS = 3
_WORDS_AROUND = 5
_FEWEST_LETTERS = 3


Guesses = tuple[tuple[str, float], ...]
"""The most likely tokens in one place, with their probabilities."""


@dataclass(frozen=True)
class DemoRun:
    """One of the two runs, measured."""

    name: str
    position: Position
    score: LmScore
    kept_fraction: float
    """Share of the blocks' FLOPs that was executed."""
    predicted_saving: float
    """Share of all FLOPs that the schedule saves."""

    @property
    def seconds_per_step(self) -> float:
        """Mean time of a step."""
        return self.position.train_seconds / self.position.step


@dataclass(frozen=True)
class FilledMask:
    """A word of the validation text, and what the models find most likely in its place."""

    text: str
    """With `[MASK]`."""
    word: str
    guesses: tuple[Guesses, ...]
    """Per run."""


@dataclass(frozen=True)
class Demo:
    """Results of the demonstration."""

    runs: tuple[DemoRun, DemoRun]
    """The baseline and its twin."""
    unigram_loss: float
    """Of the unigram baseline, on the same targets."""
    masks: tuple[FilledMask, ...]
    parameters: int
    seconds: float
    """Of the whole demonstration."""

    @property
    def blind(self) -> list[str]:
        """Names of the runs that are not clearly better than the unigram baseline."""
        return [run.name for run in self.runs if not reads_context(run.score.loss, self.unigram_loss)]


def demo(out: Path, *, steps: int | None = None, console: Console | None = None) -> Demo:
    """Build a corpus from installed documentation, train both systems in turn on equal tokens, and compare.

    Both train on one thread: the model is too small to gain from a second one, and one thread is not held up by other programs.

    Args:
        out: A directory to make; everything stays there.
        steps: Optimizer steps of each run; by default as many as there is time for.
        console: Where to show progress.

    Raises:
        OutputError: `out` exists.
        StoppedError, PreemptedError: A signal arrived; both runs are saved.
    """
    console, began = console or Console(), time.monotonic()
    check_new(out, hint="remove it, or choose another place with --out")
    say = _speaker(console)
    data = _prepare(out, say)
    prepared = open_prepared(data)
    configs = {system: _config(system, steps or _MOST_STEPS, prepared.vocab_size) for system in _SYSTEMS}

    def command(system: str, config: Config) -> str:
        line = ["pld", "pretrain", "--preset", f"{_SIZE}-{system}", *_changes(config.train.total_steps)]
        return f"OMP_NUM_THREADS=1 {shlex.join([*line, '--data', str(data), '--out', str(out / 'runs' / system)])}"

    with _one_thread():
        say(f"3/4 training {' and '.join(f'{_SIZE}-{system}' for system in _SYSTEMS)}, made smaller, a step of each in turn")
        until = None if steps else began + _TRAIN_UNTIL_SECONDS
        try:
            trained = train_in_turn(configs, prepared=prepared, directory=out / "runs", until=until, command=command, console=console)
        except (StoppedError, PreemptedError) as error:
            raise type(error)(error.what, where=str(out), hint=_how_to_resume(out, data)) from error
        for _, result in trained.values():
            if (failure := result.read_back.failure) is not None:
                say(f"warning: {result.run.model}: {failure}")
        say("4/4 scoring both models on text that neither has read, and filling masks")
        masked = list(_masked_texts(prepared, load_prepared_tokenizer(data)))
        measured = [_measure(system, config, result, prepared, masked) for system, (config, result) in trained.items()]
        unigram = unigram_baseline(prepared, fixed_batches(prepared, configs[_SYSTEMS[0]].data.seq_len))
    masks = tuple(
        FilledMask(*one, guesses) for one, guesses in zip(masked, zip(*(guesses for _, guesses in measured), strict=True), strict=True)
    )
    _plot(out)
    return Demo((measured[0][0], measured[1][0]), unigram, masks, configs[_SYSTEMS[0]].num_parameters, time.monotonic() - began)


@contextmanager
def _one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


def _how_to_resume(out: Path, data: Path) -> str:
    run = out / "runs" / _SYSTEMS[0]
    line = shlex.join(["pld", "pretrain", "--preset", str(run / "config.yaml"), "--data", str(data), "--out", str(run)])
    return f"remove {out} to start over, or finish a run with `{line}`"


def _speaker(console: Console) -> Callable[[str], None]:
    return lambda text: console.print(text, highlight=False, markup=False, soft_wrap=True)


def _prepare(out: Path, say: Callable[[str], None]) -> Path:
    """Write the corpus and the held-out text, and prepare both."""
    say("1/4 collecting documentation strings of the Python installed here")
    documents = docstring_corpus(_CORPUS_BYTES)
    corpus, held_out, data = out / "corpus.txt", out / "held-out.txt", out / "data"
    try:
        atomic.write_text(corpus, "\n\n".join(text for i, text in enumerate(documents) if i % _HELD_OUT) + "\n")
        atomic.write_text(held_out, "\n\n".join(documents[::_HELD_OUT]) + "\n")
        say(f"    {len(documents):,} documents, {(corpus.stat().st_size + held_out.stat().st_size) / 1e6:.1f} MB")
        line = ["pld", "prepare-data", str(corpus), "--validation", str(held_out), "--vocab-size", str(_VOCABULARY), "--out", str(data)]
        say(f"2/4 {shlex.join(line)}")
        prepare([corpus], data, validation=[held_out], vocab_size=_VOCABULARY)
    except BaseException:
        shutil.rmtree(out, ignore_errors=True)  # nothing in it is worth a second try that begins with removing it
        raise
    return data


def _changes(steps: int) -> list[str]:
    return [
        *_CHANGES,
        f"train.total_steps={steps}",
        f"optim.warmup_fraction={min(_WARMUP_STEPS / steps, 0.1):.6g}",
        f"checkpoint.every_steps={steps}",
    ]


def _config(system: str, steps: int, vocab_size: int) -> Config:
    return presets.resolve(f"{_SIZE}-{system}", _changes(steps), from_data={"model.vocab_size": vocab_size}).config


def _measure(
    system: str, config: Config, result: PretrainResult, prepared: PreparedData, masked: Sequence[tuple[str, str]]
) -> tuple[DemoRun, list[Guesses]]:
    """Read a model once: score it, and fill the masks of all texts."""
    with open_subject(result.run.path) as subject:
        score = score_lm(subject.model, fixed_batches(prepared, subject.loaded.seq_len), subject.precision, subject.runtime)
        filled = [fill_mask(subject, text, top=3)[0] for text, _ in masked]
    flops, position = config.flops, result.position
    kept_fraction = (position.executed_flops / position.tokens - flops.head) / (flops.per_block * flops.num_blocks)
    run = DemoRun(f"{_SIZE}-{system}", position, score, kept_fraction, config.run_flops().saved)
    return run, [tuple((candidate.token, candidate.probability) for candidate in candidates) for candidates in filled]


def _masked_texts(prepared: PreparedData, tokenizer: Tokenizer) -> Iterator[tuple[str, str]]:
    """Choose words to mask: in evenly spaced validation documents, the first that is one token and has words on both sides.

    Yields:
        A text with `[MASK]`, and the word that stood there.
    """
    stream = prepared.stream("validation")
    ends = stream.document_ends.tolist()
    found = 0
    for number in range(0, len(ends), max(1, len(ends) // (4 * _NUM_MASKS))):
        document = stream.slice(ends[number - 1] if number else 0, ends[number] - 1)
        words = tokenizer.fast.decode(document.tolist()).split()
        if (place := _place_to_mask(words, tokenizer)) is not None:
            around = words[place - _WORDS_AROUND : place], words[place + 1 : place + 1 + _WORDS_AROUND]
            yield " ".join([*around[0], "[MASK]", *around[1]]), words[place]
            found += 1
        if found == _NUM_MASKS:
            return


def _place_to_mask(words: Sequence[str], tokenizer: Tokenizer) -> int | None:
    for place in range(_WORDS_AROUND, len(words) - _WORDS_AROUND):
        word = words[place]
        if len(word) >= _FEWEST_LETTERS and word.isalpha() and len(tokenizer.fast.encode(word, add_special_tokens=False).ids) == 1:
            return place
    return None


def _plot(out: Path) -> None:
    """Draw validation loss against tokens and against seconds."""
    rows = {
        system: [row for row in read_metrics(out / "runs" / system / "metrics.jsonl") if row.get("eval/mlm_loss") is not None]
        for system in _SYSTEMS
    }
    for name, label in (("tokens", "training tokens"), ("train_seconds", "training seconds")):
        curves = [
            Curve(f"{_SIZE}-{system}", [row[f"progress/{name}"] for row in own], [row["eval/mlm_loss"] for row in own])
            for system, own in rows.items()
        ]
        plot_curves(curves, out / f"loss_by_{name}.png", title="validation loss, all blocks running", x_label=label, y_label="loss (nats)")
