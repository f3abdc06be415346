"""`pld bench`: how fast a preset trains on this machine, and where the time goes."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from pldcli.commands.config import Overrides, complete_preset

__all__ = ["bench"]


def bench(
    overrides: Overrides = None,
    preset: Annotated[str, typer.Option(help="A shipped preset or a YAML file.", autocompletion=complete_preset)] = "bert-base-pld",
    data: Annotated[Path | None, typer.Option(help="A prepared directory.", show_default="random tokens")] = None,
    steps: Annotated[int, typer.Option(help="Steps of each mode that count.")] = 20,
    find_micro_batch: Annotated[
        bool, typer.Option("--find-micro-batch", help="Try sizes until memory ends, and take the fastest.")
    ] = False,
    plot: Annotated[Path | None, typer.Option(help="Draw the phases of a step to this .png or .svg.", show_default=False)] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
    device: Annotated[str | None, typer.Option(help="auto, cpu or cuda; short for runtime.device=...", show_default=False)] = None,
) -> None:
    """Time training steps of a preset here: dense, and with layers dropped, in turn."""
    from pldcli.plots.canvas import check_picture_path
    from pldcli.presets import resolve

    if plot is not None:
        check_picture_path(plot)
    wanted = [*(overrides or []), *([f"runtime.device={device}"] if device else [])]
    vocabulary = {}
    if data is not None:
        from pldcli.data.prepared import open_prepared

        vocabulary = {"model.vocab_size": open_prepared(data, verify=False).vocab_size}
    config = resolve(preset, wanted, from_data=vocabulary).config
    from pldcli.bench import bench as engine

    result = engine.bench(
        config, data=data, steps=steps, search=find_micro_batch, report=lambda line: typer.echo(line, err=True, color=False)
    )
    if not result.is_main:
        return
    if plot is not None:
        from pldcli.bench.plots import plot_phases

        plot_phases(
            {mode.name: {str(phase): seconds for phase, seconds in mode.phase_seconds.items()} for mode in result.modes},
            plot,
            title=f"{preset}: a step of {result.sequences_per_step} x {result.seq_len} tokens, {result.precision}, {result.hardware}",
        )
    if as_json:
        typer.echo(json.dumps({"preset": preset, **result.to_json()}, indent=1))
        return
    from pldcli.bench.tables import conclusions, heading, mode_table
    from pldcli.console.screen import screen

    for line in heading(result, preset):
        typer.echo(line)
    screen().print(mode_table(result))
    typer.echo("\n" + "\n".join(conclusions(result)))
    if plot is not None:
        typer.echo(f"plot {plot}")
