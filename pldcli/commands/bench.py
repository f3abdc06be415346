"""`pld bench`: how fast a preset trains on this machine, and where the time goes."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from pldcli.commands.config import Overrides, complete_preset

if TYPE_CHECKING:
    from pldcli.bench.result import Bench, Mode

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
    _show(result, preset)
    if plot is not None:
        typer.echo(f"plot {plot}")


def _show(result: Bench, preset: str) -> None:
    from pldcli.console.screen import screen, table

    console = screen()
    processes = f", {result.processes} processes" if result.processes > 1 else ""
    compiled = "compiled" if result.compiled else "not compiled"
    typer.echo(f"{preset} on {result.hardware}, {result.threads} thread(s){processes}; {result.precision}, {compiled}; {result.text}")
    typer.echo(
        f"{result.steps} steps of each mode, {result.sequences_per_step} x {result.seq_len} tokens, micro-batch {result.micro_batch_size}\n"
    )
    names = tuple(mode.name for mode in result.modes)
    columns = [_column(mode, result) for mode in result.modes]
    rows = [(name, *(column[name] for column in columns)) for name in columns[0]]
    console.print(table(("", *names), rows, right=names))
    typer.echo("\n" + "\n".join(_sentences(result)))


def _column(mode: Mode, result: Bench) -> dict[str, str]:
    from pldcli.console.units import quantity

    low, high = min(mode.step_seconds), max(mode.step_seconds)
    return {
        "tokens per second": f"{mode.tokens_per_second:,.0f}",
        "step": _milliseconds(mode.seconds),
        f"  least and most of {len(mode.step_seconds)} parts": f"{_milliseconds(low)}, {_milliseconds(high)}",
        **{f"  {phase}": f"{_milliseconds(seconds)}, {seconds / mode.seconds:5.1%}" for phase, seconds in mode.phase_seconds.items()},
        "blocks run": f"{mode.kept_blocks:.2f} of {result.num_blocks}",
        "executed FLOP per second": quantity(mode.flops_per_second),
        "MFU": f"{result.mfu(mode):.1%}",
        "peak memory": f"{mode.peak_memory_bytes / 1e9:.2f} GB",
    }


def _sentences(result: Bench) -> list[str]:
    from pldcli.console.units import quantity

    lines = [f"MFU: executed operations per second, of {quantity(result.peak_flops_per_second)},\n{result.peak_source}."]
    if result.saved is None:
        lines.append("This configuration drops nothing: add pld.theta_bar=0.5 to see what dropping saves.")
    else:
        (operations, time), parts = result.saved, [measured / predicted for predicted, measured in result.saved_by_part if predicted]
        lines.append(f"Dropping saved {operations:.1%} of the operations of these steps and {time:.1%} of their time:")
        spread = f" ({min(parts):.2f} to {max(parts):.2f} in parts)" if parts else ""
        ratio = f"{time / operations:.2f}" if operations else "no"
        lines.append(f"{ratio} of what was predicted{spread}.")
        lines.append(f"Over a whole run the schedule saves {result.whole_run_saved:.1%} of the operations.")
    if result.micro_batches:
        lines.append(f"Fastest micro-batch: train.micro_batch_size={result.micro_batch_size}")
    return lines


def _milliseconds(seconds: float) -> str:
    milliseconds = seconds * 1e3
    return f"{milliseconds:,.0f} ms" if milliseconds >= 100 else f"{milliseconds:.1f} ms" if milliseconds >= 1 else f"{milliseconds:.2f} ms"
