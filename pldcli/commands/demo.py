"""`pld demo`: see it work in three minutes, without a file or a network."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from pldcli.engine.demo import DemoRun

__all__ = ["demo"]


def demo(
    out: Annotated[Path, typer.Option(help="A directory to make; everything stays there.")] = Path("demo"),
    steps: Annotated[int | None, typer.Option(min=1, help="Optimizer steps of each run.", show_default="what takes a minute here")] = None,
) -> None:
    """Train a tiny encoder with and without layer dropping on the documentation installed here, and compare. Three minutes at most."""
    from pldcli.engine.demo import demo as run

    baseline, dropped = run(out, steps=steps)
    _show(baseline, dropped, out)


def _show(baseline: DemoRun, dropped: DemoRun, out: Path) -> None:
    from pldcli.commands.screen import screen, table
    from pldcli.engine.display import quantity

    rows = [
        ["tokens seen", f"{baseline.tokens:,}", f"{dropped.tokens:,}", "equal"],
        ["validation loss", f"{baseline.mlm_loss:.4f}", f"{dropped.mlm_loss:.4f}", f"{dropped.mlm_loss - baseline.mlm_loss:+.4f}"],
        ["validation accuracy", f"{baseline.mlm_accuracy:.4f}", f"{dropped.mlm_accuracy:.4f}", ""],
        [
            "time per step",
            f"{1e3 * baseline.seconds_per_step:.0f} ms",
            f"{1e3 * dropped.seconds_per_step:.0f} ms",
            f"{dropped.seconds_per_step / baseline.seconds_per_step - 1:+.1%}",
        ],
        ["blocks kept", f"{baseline.kept_fraction:.1%}", f"{dropped.kept_fraction:.1%}", ""],
        [
            "operations executed",
            quantity(baseline.executed_flops),
            quantity(dropped.executed_flops),
            f"{dropped.executed_flops / baseline.executed_flops - 1:+.1%} (schedule: {-dropped.predicted_saving:+.1%})",
        ],
        ["training seconds", f"{baseline.train_seconds:.1f}", f"{dropped.train_seconds:.1f}", ""],
    ]
    console = screen()
    console.print()
    console.print(table(["equal tokens", "dense", "layer dropping", "difference"], rows, right=["dense", "layer dropping"]))
    console.print()
    typer.echo("One seed, a tiny model, a million tokens: this shows that the machinery works, not what the method is worth.")
    typer.echo(f"curves {out / 'loss_by_tokens.png'}, {out / 'loss_by_train_seconds.png'}; runs and models in {out / 'runs'}")
    typer.echo(f"next: pld evaluate {out / 'runs' / 'pld'} --data {out / 'data'}")
