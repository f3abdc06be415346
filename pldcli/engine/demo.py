"""The whole way on a small scale: a corpus, a baseline, its layer-dropping twin, and the honest comparison."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console

from pldcli import atomic, presets
from pldcli.config import Config
from pldcli.data.docstrings import docstring_corpus
from pldcli.data.prepare import prepare
from pldcli.data.shards import read_vocab_size
from pldcli.engine.evaluate import evaluate
from pldcli.engine.metrics import read_metrics
from pldcli.engine.pretrain import dry_run, pretrain
from pldcli.errors import OutputError
from pldcli.plotting import Curve, plot_curves

__all__ = ["DemoRun", "demo"]

_SYSTEMS = ("preln", "pld")
_CORPUS_BYTES = 6_000_000
_VOCABULARY = 512
_BATCH, _SEQ_LEN, _MASKED = 16, 32, 0.3
"""Many small steps, short rows and a small vocabulary: the model gets past the frequencies of tokens within a minute."""
_SECONDS_FOR_BASELINE = 65.0
_FEWEST_STEPS, _MOST_STEPS = 200, 4000


@dataclass(frozen=True)
class DemoRun:
    """One of the two runs, measured."""

    name: str
    tokens: int
    train_seconds: float
    seconds_per_step: float
    kept_fraction: float
    """Share of the block work that was executed, from the executed operations."""
    executed_flops: float
    mlm_loss: float
    mlm_accuracy: float
    predicted_saving: float
    """Share of all operations that the schedule saves."""


def demo(out: Path, *, steps: int | None = None, console: Console | None = None) -> list[DemoRun]:
    """Build a corpus from installed documentation, train both systems on equal tokens, and compare.

    Args:
        out: A directory to make; everything stays there.
        steps: Optimizer steps of each run; by default what this machine does in about a minute.
        console: Where to show progress.

    Returns:
        The baseline and its twin.

    Raises:
        OutputError: `out` exists.
    """
    console = console or Console()
    if out.exists():
        raise OutputError("is already there", where=str(out), hint="remove it, or choose another place with --out")
    say = _speaker(console)
    say("1/4 collecting documentation strings of the Python installed here")
    documents = docstring_corpus(_CORPUS_BYTES)
    corpus, data = out / "corpus.txt", out / "data"
    atomic.write_text(corpus, "\n\n".join(documents) + "\n")
    say(f"    {len(documents):,} documents, {corpus.stat().st_size / 1e6:.1f} MB in {corpus}")
    say(f"2/4 pld prepare-data {corpus} --vocab-size {_VOCABULARY} --out {data}")
    prepare([corpus], data, vocab_size=_VOCABULARY)
    steps = steps or _affordable_steps(data)
    runs = []
    for number, system in enumerate(_SYSTEMS, 3):
        changes = _changes(steps)
        place = out / "runs" / system
        command = f"pld pretrain --preset bert-tiny-{system} {' '.join(changes)} --data {data} --out {place}"
        say(f"{number}/4 {command}")
        config = _config(system, steps, data)
        pretrain(config, data=data, out=place, command=command, console=console)
        runs.append(_measure(system, config, place, data))
    _plot(out)
    return runs


def _speaker(console: Console) -> Callable[[str], None]:
    return lambda text: console.print(text, highlight=False, markup=False, soft_wrap=True)


def _changes(steps: int) -> list[str]:
    every = max(1, steps // 10)
    return [
        f"train.total_steps={steps}",
        f"train.global_batch_size={_BATCH}",
        f"data.seq_len={_SEQ_LEN}",
        f"objective.mask_probability={_MASKED}",
        f"train.log_every_steps={max(1, steps // 50)}",
        f"eval.every_steps={every}",
        "eval.max_sequences=256",
        f"checkpoint.every_steps={steps}",
    ]


def _config(system: str, steps: int, data: Path) -> Config:
    vocabulary = {"model.vocab_size": read_vocab_size(data)}
    return presets.resolve(f"bert-tiny-{system}", _changes(steps), from_data=vocabulary).config


def _affordable_steps(data: Path) -> int:
    """Choose a number of steps from a few measured ones, in tens."""
    seconds = dry_run(_config(_SYSTEMS[0], 100, data), data=data).estimate.seconds
    assert seconds
    return max(_FEWEST_STEPS, min(_MOST_STEPS, int(_SECONDS_FOR_BASELINE / (seconds / 100)) // 10 * 10))


def _measure(system: str, config: Config, place: Path, data: Path) -> DemoRun:
    last = [row for row in read_metrics(place / "metrics.jsonl") if "train/loss" in row][-1]
    score = evaluate(place, data=data).score
    flops, schedule = config.flops, config.pld_schedule
    executed, tokens = last["progress/executed_flops"], last["progress/tokens"]
    return DemoRun(
        name=f"bert-tiny-{system}",
        tokens=tokens,
        train_seconds=last["progress/train_seconds"],
        seconds_per_step=last["progress/train_seconds"] / last["step"],
        kept_fraction=(executed / tokens - flops.head) / (flops.per_block * flops.num_blocks),
        executed_flops=executed,
        mlm_loss=score.mlm_loss,
        mlm_accuracy=score.mlm_accuracy,
        predicted_saving=flops.total_saved(schedule.mean_kept_fraction),
    )


def _plot(out: Path) -> None:
    """Draw validation loss against tokens and against seconds."""
    rows = {
        system: [row for row in read_metrics(out / "runs" / system / "metrics.jsonl") if row.get("eval/mlm_loss") is not None]
        for system in _SYSTEMS
    }
    for name, label in (("tokens", "training tokens"), ("train_seconds", "training seconds")):
        curves = [
            Curve(f"bert-tiny-{system}", [row[f"progress/{name}"] for row in own], [row["eval/mlm_loss"] for row in own])
            for system, own in rows.items()
        ]
        plot_curves(curves, out / f"loss_by_{name}.png", title="validation loss, all blocks running", x_label=label, y_label="loss (nats)")
