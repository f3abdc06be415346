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
    "pld pretrain --preset auto --data data --budget 1h",
    "pld evaluate runs/auto --fill 'a sentence with one word [MASK]'",
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
    size = f"{quantity(shown.parameters)} parameters, {shown.runs[0].position.step:,} steps, {duration(shown.seconds)} in all"
    _say(console, f"One seed, {size}: this shows that the machinery works, not what the method is worth.")
    _say(console, f"curves: {out / 'loss_by_tokens.png'}, {out / 'loss_by_train_seconds.png'}")
    _say(console, f"models: {out / 'runs'}; the README.md of each run has the line that trains it alone, to the same weights")
    console.print()
    _say(console, "next, with text of your own:")
    for line in _NEXT:
        typer.echo(f"  {line}")


def _rows(shown: Demo) -> list[list[str]]:
    from pldcli.console.units import duration, quantity

    tokens = [run.position.tokens for run in shown.runs]
    losses = [run.score.loss for run in shown.runs]
    flops = [run.position.executed_flops for run in shown.runs]
    steps = [run.seconds_per_step for run in shown.runs]
    return [
        ["tokens seen", *(f"{count:,}" for count in tokens), "equal" if tokens[0] == tokens[1] else "not equal"],
        ["validation loss", *(f"{loss:.4f}" for loss in losses), f"{losses[1] - losses[0]:+.4f}"],
        ["unigram baseline", f"{shown.unigram_loss:.4f}", f"{shown.unigram_loss:.4f}", ""],
        ["loss below it", *(f"{shown.unigram_loss - loss:.4f}" for loss in losses), ""],
        ["validation accuracy", *(f"{run.score.accuracy:.1%}" for run in shown.runs), ""],
        ["time per step", *(f"{1e3 * seconds:.1f} ms" for seconds in steps), f"{steps[1] / steps[0] - 1:+.1%}"],
        ["blocks that ran", *(f"{run.kept_fraction:.1%}" for run in shown.runs), ""],
        ["FLOPs executed", *(quantity(count) for count in flops), f"{flops[1] / flops[0] - 1:+.1%}"],
        ["FLOPs saved by schedule", *(f"{run.predicted_saving:.1%}" for run in shown.runs), ""],
        ["training time", *(duration(run.position.train_seconds) for run in shown.runs), ""],
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
