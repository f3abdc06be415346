"""`pld demo`: see it work in three minutes, without a file or a network."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from rich.console import Console

    from pldcli.demo import Demo

__all__ = ["demo"]

_NEXT = (
    "pld prepare-data your-text.txt --vocab-size 8192 --out data",
    "pld pretrain --preset bert-small-pld --data data --budget 1h",
    "pld evaluate runs/bert-small-pld --fill 'a sentence with one word [MASK]'",
)


def demo(
    out: Annotated[Path, typer.Option(help="A directory to make; everything stays there.")] = Path("demo"),
    steps: Annotated[
        int | None, typer.Option(min=1, help="Optimizer steps of each run.", show_default="as many as there is time for")
    ] = None,
) -> None:
    """Train a tiny encoder with and without layer dropping on the documentation installed here, and compare.

    Three minutes on two cores; where other programs use them too it takes fewer steps.
    """
    from pldcli.demo import demo as run

    _show(run(out, steps=steps), out)


def _show(shown: Demo, out: Path) -> None:
    from pldcli.console.screen import screen, table
    from pldcli.console.units import duration, quantity

    console = screen()
    console.print()
    console.print(table(["after equal tokens", "dense", "layer dropping", "difference"], _rows(shown), right=["dense", "layer dropping"]))
    if shown.masks:
        title = "masks filled in held-out text"
        console.print()
        console.print(table([title, "dense", "layer dropping"], _mask_rows(shown), fold=[title]))
    console.print()
    if shown.blind:
        _say(
            console,
            f"note: {' and '.join(shown.blind)} not clearly below the unigram baseline (what token frequencies alone score): hardly "
            "anything was learned from context yet, so these losses say nothing of dropping",
        )
    size = f"{quantity(shown.parameters)} parameters, {shown.runs[0].steps:,} steps, {duration(shown.seconds)} in all"
    _say(console, f"One seed, {size}: this shows that the machinery works, not what the method is worth.")
    _say(console, f"curves: {out / 'loss_by_tokens.png'}, {out / 'loss_by_train_seconds.png'}")
    _say(console, f"models: {out / 'runs'}; the README.md of each run has the line that trains it alone, to the same weights")
    console.print()
    _say(console, "next, with text of your own:")
    for line in _NEXT:
        typer.echo(f"  {line}")


def _rows(shown: Demo) -> list[list[str]]:
    from pldcli.console.units import duration, quantity

    dense, dropped = shown.runs

    return [
        ["tokens seen", f"{dense.tokens:,}", f"{dropped.tokens:,}", "equal" if dense.tokens == dropped.tokens else "not equal"],
        ["validation loss", f"{dense.mlm_loss:.4f}", f"{dropped.mlm_loss:.4f}", f"{dropped.mlm_loss - dense.mlm_loss:+.4f}"],
        ["unigram baseline", f"{shown.unigram_loss:.4f}", f"{shown.unigram_loss:.4f}", ""],
        ["loss below it", *(f"{shown.unigram_loss - run.mlm_loss:.4f}" for run in shown.runs), ""],
        ["validation accuracy", f"{dense.mlm_accuracy:.1%}", f"{dropped.mlm_accuracy:.1%}", ""],
        [
            "time per step",
            f"{1e3 * dense.seconds_per_step:.1f} ms",
            f"{1e3 * dropped.seconds_per_step:.1f} ms",
            f"{dropped.seconds_per_step / dense.seconds_per_step - 1:+.1%}",
        ],
        ["blocks that ran", f"{dense.kept_fraction:.1%}", f"{dropped.kept_fraction:.1%}", ""],
        [
            "FLOPs executed",
            quantity(dense.executed_flops),
            quantity(dropped.executed_flops),
            f"{dropped.executed_flops / dense.executed_flops - 1:+.1%}",
        ],
        ["FLOPs saved by schedule", *(f"{run.predicted_saving:.1%}" for run in shown.runs), ""],
        ["training time", duration(dense.train_seconds), duration(dropped.train_seconds), ""],
    ]


def _say(console: Console, text: str) -> None:
    console.print(text, highlight=False, markup=False)


def _mask_rows(shown: Demo) -> list[list[str]]:
    from rich.markup import escape

    rows = []
    for mask in shown.masks:
        guesses = ["\n".join(f"{token} {probability:.0%}" for token, probability in guess) for guess in mask.guesses]
        rows.append([f"{escape(mask.text)}\n[dim]there it was: {escape(mask.word)}[/]", *map(escape, guesses)])
    return rows
