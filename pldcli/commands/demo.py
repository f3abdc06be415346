"""`pld demo`: see it work in three minutes, without a file or a network."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from pldcli.engine.demo import Demo

__all__ = ["demo"]


def demo(
    out: Annotated[Path, typer.Option(help="A directory to make; everything stays there.")] = Path("demo"),
    steps: Annotated[
        int | None, typer.Option(min=1, help="Optimizer steps of each run.", show_default="as many as there is time for")
    ] = None,
) -> None:
    """Train a tiny encoder with and without layer dropping on the documentation installed here, and compare.

    Three minutes on two cores; where other programs use them too it takes fewer steps.
    """
    from pldcli.engine.demo import demo as run

    _show(run(out, steps=steps), out)


def _show(shown: Demo, out: Path) -> None:
    from pldcli.commands.screen import screen, table
    from pldcli.engine.display import duration, quantity

    dense, dropped = shown.runs

    def below(loss: float) -> str:
        return f"{loss - shown.unigram_loss:+.4f}"

    rows = [
        ["tokens seen", f"{dense.tokens:,}", f"{dropped.tokens:,}", "equal" if dense.tokens == dropped.tokens else "not equal"],
        ["validation loss", f"{dense.mlm_loss:.4f}", f"{dropped.mlm_loss:.4f}", f"{dropped.mlm_loss - dense.mlm_loss:+.4f}"],
        [f"against token frequencies ({shown.unigram_loss:.4f})", below(dense.mlm_loss), below(dropped.mlm_loss), ""],
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
            f"{dropped.executed_flops / dense.executed_flops - 1:+.1%} (schedule: {-dropped.predicted_saving:+.1%})",
        ],
        ["training time", duration(dense.train_seconds), duration(dropped.train_seconds), ""],
    ]
    console = screen()
    console.print()
    console.print(table(["after equal tokens", "dense", "layer dropping", "difference"], rows, right=["dense", "layer dropping"]))
    if shown.blind:
        typer.echo(
            f"\nnote: {' and '.join(shown.blind)} not clearly below what token frequencies alone score: hardly anything was learned from "
            "context yet, so these losses say nothing of dropping"
        )
    if shown.masks:
        console.print()
        console.print(
            table(["masks filled in held-out text", "dense", "layer dropping"], _mask_rows(shown), fold=["masks filled in held-out text"])
        )
    size = f"{quantity(shown.parameters)} parameters, {dense.steps:,} steps, {duration(shown.seconds)} in all"
    typer.echo(f"\nOne seed, {size}: this shows that the machinery works, not what the method is worth.")
    typer.echo(f"curves: {out / 'loss_by_tokens.png'}, {out / 'loss_by_train_seconds.png'}; runs and models: {out / 'runs'}")
    typer.echo("alone, to the same weights:")
    for run in shown.runs:
        typer.echo(f"  {run.command}")
    typer.echo("\nnext, with text of your own:")
    typer.echo("  pld prepare-data your-text.txt --vocab-size 8192 --out data")
    typer.echo("  pld pretrain --preset bert-small-pld --data data --budget 1h")
    typer.echo("  pld evaluate runs/bert-small-pld --fill 'a sentence of yours with one word [MASK]'")


def _mask_rows(shown: Demo) -> list[list[str]]:
    from rich.markup import escape

    rows = []
    for mask in shown.masks:
        guesses = ["\n".join(f"{token} {probability:.0%}" for token, probability in guess) for guess in mask.guesses]
        rows.append([f"{escape(mask.text)}\n[dim]there it was: {escape(mask.word)}[/]", *map(escape, guesses)])
    return rows
