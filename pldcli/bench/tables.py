"""How a measurement of speed is told on the screen."""

from __future__ import annotations

from rich.table import Table

from pldcli.bench.result import Bench, Mode
from pldcli.console.screen import table
from pldcli.console.units import quantity

__all__ = ["conclusions", "heading", "mode_table"]


def heading(result: Bench, preset: str) -> list[str]:
    """Return what was measured, where and how."""
    processes = f", {result.processes} processes" if result.processes > 1 else ""
    compiled = "compiled" if result.compiled else "not compiled"
    batch = f"{result.sequences_per_step} x {result.seq_len} tokens, micro-batch {result.micro_batch_size}"
    return [
        f"{preset} on {result.hardware}, {result.threads} thread(s){processes}; {result.precision}, {compiled}; {result.text}",
        f"{result.steps} steps of each mode, {batch}\n",
    ]


def mode_table(result: Bench) -> Table:
    """Lay out the modes beside one another."""
    names = tuple(mode.name for mode in result.modes)
    columns = [_column(mode, result) for mode in result.modes]
    rows = [(name, *(column[name] for column in columns)) for name in columns[0]]
    return table(("", *names), rows, right=names)


def _column(mode: Mode, result: Bench) -> dict[str, str]:
    low, high = min(mode.step_seconds), max(mode.step_seconds)
    return {
        "tokens per second": f"{mode.tokens_per_second:,.0f}",
        "step": _milliseconds(mode.seconds),
        f"  least and most of {len(mode.step_seconds)} parts": f"{_milliseconds(low)}, {_milliseconds(high)}",
        **{f"  {phase}": f"{_milliseconds(seconds)}, {seconds / mode.seconds:5.1%}" for phase, seconds in mode.phase_seconds.items()},
        "blocks run": f"{mode.kept_blocks:.2f} of {result.num_blocks}",
        "executed FLOPs per second": quantity(mode.flops_per_second),
        "MFU": f"{result.mfu(mode):.1%}",
        "peak memory": f"{mode.peak_memory_bytes / 1e9:.2f} GB",
    }


def conclusions(result: Bench) -> list[str]:
    """Return what the numbers come to."""
    lines = [f"MFU: executed FLOPs per second, of {quantity(result.peak_flops_per_second)},\n{result.peak_source}."]
    if result.saved is None:
        lines.append("This configuration drops nothing: add pld.theta_bar=0.5 to see what dropping saves.")
    else:
        (flops, time), parts = result.saved, [measured / predicted for predicted, measured in result.saved_by_part if predicted]
        lines.append(f"Dropping saved {flops:.1%} of the FLOPs of these steps and {time:.1%} of their time:")
        spread = f" ({min(parts):.2f} to {max(parts):.2f} in parts)" if parts else ""
        ratio = f"{time / flops:.2f}" if flops else "no"
        lines.append(f"{ratio} of what was predicted{spread}.")
        lines.append(f"Over a whole run the schedule saves {result.whole_run_saved:.1%} of the FLOPs.")
    if result.micro_batches:
        lines.append(f"Fastest micro-batch: train.micro_batch_size={result.micro_batch_size}")
    return lines


def _milliseconds(seconds: float) -> str:
    milliseconds = seconds * 1e3
    return f"{milliseconds:,.0f} ms" if milliseconds >= 100 else f"{milliseconds:.1f} ms" if milliseconds >= 1 else f"{milliseconds:.2f} ms"
