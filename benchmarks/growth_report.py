"""What benchmarks/growth.py makes of its measurements: a table per axis, and a plot."""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pldcli.plots.canvas import COLOURS, picture
from reporting import head, megabytes, row, spread

__all__ = ["AXES", "Results", "document", "draw"]


@dataclass(frozen=True)
class Axis:
    """What is varied, and how a reader calls it."""

    label: str
    values: tuple[float, ...]


CORPUS_COLUMNS = (
    "MB of text",
    "prepare, s",
    "MB/s",
    "memory to prepare, MB",
    "of workers, MB",
    "open and verify, s",
    "batches of a step, ms",
    "tokens/s of the loader",
    "memory of the loader, MB",
    "mapped, MB",
)
AXES = {
    "length": Axis("tokens per sequence", (64, 128, 256, 512, 1024)),
    "depth": Axis("blocks", (2, 4, 8, 12)),
    "width": Axis("hidden size", (128, 256, 512, 768)),
    "vocabulary": Axis("vocabulary", (2048, 8192, 30528, 60032)),
    "micro-batch": Axis("sequences per step", (1, 4, 16, 64)),
    "corpus": Axis("MB of text", (10, 100, 300)),
}


class Results:
    """What has been measured: per axis, per value, per round."""

    def __init__(self, axes: dict[str, dict[float, dict[int, dict[str, Any]]]], base: Mapping[str, int]) -> None:
        self.axes, self.base = axes, base

    def every(self) -> list[dict[str, Any]]:
        return [result for values in self.axes.values() for rounds in values.values() for result in rounds.values()]

    def origin(self, axis: str) -> float:
        """Give the value that others are compared with: the base point's, or the smallest."""
        values = self.axes[axis]
        return self.base[axis] if self.base.get(axis) in values else min(values)

    def ratios(self, axis: str, value: float, *path: str) -> list[float]:
        """Divide a quantity by that of the origin, round by round."""
        origin = self.axes[axis][self.origin(axis)]
        pairs = [
            (quantity(result, *path), quantity(origin[number], *path))
            for number, result in self.axes[axis][value].items()
            if number in origin
        ]
        return [ours / theirs for ours, theirs in pairs if ours is not None and theirs]


def quantity(result: Mapping[str, Any], *path: str) -> float | None:
    """Look a number up; of a list of times take the median."""
    found: Any = result
    for name in path:
        found = found[name]
    number: float | None = statistics.median(found) if isinstance(found, list) else found
    return number


def document(found: Results, *, precision: str, threads: int) -> str:
    """Write all tables; the precision asked for shows where no training step was measured."""
    every = found.every()
    commands = sorted({result["command"] for result in every})
    machines = sorted({f"{result['hardware']}; {result['software']}" for result in every})
    formats = sorted({result["format"] for result in every if "format" in result})
    base = ", ".join(f"{key} {value:,}" for key, value in found.base.items())
    lines = ["# Growth of cost", "", *(f"    {command}" for command in commands), ""]
    lines += [
        f"Base point: {base}; {', '.join(formats) or precision}, {threads} thread(s). Every measurement is a fresh "
        f"process; times are medians of all steps with their range; ratios are taken round by round, their median and range shown. "
        f"{'; '.join(machines)}.",
        "",
    ]
    for axis in found.axes:
        lines += [f"## {title(axis)}", "", *(corpus_table(found) if axis == "corpus" else step_table(axis, found)), ""]
    return "\n".join(lines)


def step_table(axis: str, found: Results) -> list[str]:
    origin = found.origin(axis)
    rates = ("seconds per step", "tokens/s", "µs per token", "MFLOP per token", "GFLOP/s")
    lines = [head(AXES[axis].label, *rates, f"time, {origin:,} = 1", f"operations, {origin:,} = 1", "time / operations", "memory, MB")]
    for value, rounds in sorted(found.axes[axis].items()):
        seconds = [second for result in rounds.values() for second in result["seconds"]]
        median, one = statistics.median(seconds), next(iter(rounds.values()))
        ratios, operations = found.ratios(axis, value, "seconds"), found.ratios(axis, value, "flops")
        cells = [
            f"{value:,}",
            spread(seconds, 4),
            f"{one['tokens'] / median:,.0f}",
            f"{1e6 * median / one['tokens']:.1f}",
            f"{one['flops'] / one['tokens'] / 1e6:.2f}",
            f"{one['flops'] / median / 1e9:.1f}",
            spread(ratios, 3),
            f"{operations[0]:.3f}" if operations else "-",
            f"{statistics.median(ratios) / operations[0]:.3f}" if operations else "-",
            megabytes(middle(rounds, "memory_bytes")),
        ]
        lines.append(row(*cells))
    rounds = next(iter(found.axes[axis].values()))
    device = next(iter(rounds.values()))["device"]
    lines += ["", f"{growth(axis, found)} {memory_note(device, middle(rounds, 'floor_bytes'))}"]
    return lines


def growth(axis: str, found: Results) -> str:
    """Say with which power of the axis time and operations of a step grow: the slope on log scales."""
    values = sorted(found.axes[axis])
    if len(values) < 2:
        return ""
    time_slope, flops_slope = (slope(values, [middle(found.axes[axis][value], name) for value in values]) for name in ("seconds", "flops"))
    ends = [values[-2:], *(([values[:2]]) if len(values) > 2 else [])]
    steep = [slope(pair, [middle(found.axes[axis][value], "seconds") for value in pair]) for pair in ends]
    where = (
        f" ({steep[-1]:.2f} from {values[0]:,} to {values[1]:,}, {steep[0]:.2f} from {values[-2]:,} to {values[-1]:,})"
        if len(values) > 2
        else ""
    )
    return f"Time of a step grows with the power {time_slope:.2f} of this{where}, its operations with {flops_slope:.2f}."


def slope(x: Sequence[float], y: Sequence[float | None]) -> float:
    logs = [math.log(value) for value in y if value is not None]
    return statistics.linear_regression([math.log(value) for value in x], logs).slope


def memory_note(device: str, floor: float | None) -> str:
    if device == "cuda":
        return "Memory: the device's peak."
    return f"Memory: peak beyond a floor of {megabytes(floor)} MB."


def corpus_table(found: Results) -> list[str]:
    lines = [head(*CORPUS_COLUMNS)]
    one: dict[str, Any] = {}
    for value, rounds in sorted(found.axes["corpus"].items()):
        one = next(iter(rounds.values()))
        steps = [second for result in rounds.values() for second in result["batches"]["seconds"]]
        prepares = [result["prepare"]["seconds"] for result in rounds.values()]
        tokens = one["shape"]["length"] * one["shape"]["micro-batch"]
        cells = [
            f"{value:g}",
            spread(prepares, 1),
            f"{one['prepare']['bytes'] / 1e6 / statistics.median(prepares):.2f}",
            megabytes(middle(rounds, "prepare", "memory_bytes")),
            megabytes(middle(rounds, "prepare", "workers_bytes")) if one["prepare"]["workers"] else "none",
            spread([result["batches"]["open_seconds"] for result in rounds.values()], 2),
            f"{1e3 * statistics.median(steps):.3f}",
            f"{tokens / statistics.median(steps):,.0f}",
            megabytes(middle(rounds, "batches", "memory_bytes"), 1),
            megabytes(middle(rounds, "batches", "mapped_bytes")),
        ]
        lines.append(row(*cells))
    repeated = ", ".join(
        f"{statistics.median(r['times_repeated'] for r in rounds.values()):.2f}" for _, rounds in sorted(found.axes["corpus"].items())
    )
    shape, floors = one["shape"], (megabytes(one["prepare"]["floor_bytes"]), megabytes(one["batches"]["floor_bytes"]))
    note = (
        f"Prepared by {one['processes']} process(es), vocabulary {shape['vocabulary']:,}; each size holds the text given so many times: "
        f"{repeated}. Memory to prepare: the peak beyond a floor of {floors[0]} MB; of workers: the sum of their peaks, libraries counted "
        f"in each. The loader builds {len(one['batches']['seconds'])} steps of {shape['micro-batch']} x {shape['length']} tokens in the "
        f"measuring process; its memory is anonymous memory beyond a floor of {floors[1]} MB; mapped: pages of the data's files, which can "
        f"be dropped."
    )
    return [*lines, "", note]


def title(axis: str) -> str:
    return AXES[axis].label[0].upper() + AXES[axis].label[1:]


def middle(rounds: Mapping[int, Mapping[str, Any]], *path: str) -> float | None:
    values = [found for result in rounds.values() if (found := quantity(result, *path)) is not None]
    return statistics.median(values) if values else None


# The plot


def draw(found: Results, path: Path) -> None:
    """Draw one panel per axis on log scales, everything relative to its value at the origin; a dotted line has slope 1."""
    columns = min(3, len(found.axes))
    rows = -(-len(found.axes) // columns)
    with picture(path, width=4.6 * columns, height=0.5 + 3.9 * rows) as figure:
        panels = figure.subplots(rows, columns, squeeze=False)
        for panel, axis in zip(panels.flat, found.axes, strict=False):
            draw_axis(panel, axis, found)
        for panel in list(panels.flat)[len(found.axes) :]:
            panel.set_visible(False)


def draw_axis(panel: Any, axis: str, found: Results) -> None:
    from matplotlib.ticker import FixedLocator, FuncFormatter, NullLocator

    curves: list[tuple[str, str, tuple[str, ...]]]
    if axis == "corpus":
        curves = [
            ("time to prepare", "o-", ("prepare", "seconds")),
            ("memory to prepare", "s-", ("prepare", "memory_bytes")),
            ("time of a step's batches", "^-", ("batches", "seconds")),
            ("memory of the loader's process", "v-", ("batches", "anonymous_bytes")),
        ]
    else:
        curves = [("time of a step", "o-", ("seconds",)), ("operations", "--", ("flops",)), ("memory", "s-", ("memory_bytes",))]
    values, origin = sorted(found.axes[axis]), found.origin(axis)
    panel.plot(values, [value / origin for value in values], ":", color="#777777", linewidth=1.3, label="slope 1", zorder=1)
    seen = [value / origin for value in values]
    for (label, style, path), colour in zip(curves, COLOURS, strict=False):
        measured = [(value, ratios) for value in values if (ratios := found.ratios(axis, value, *path)) and min(ratios) > 0]
        x, y = [value for value, _ in measured], [statistics.median(ratios) for _, ratios in measured]
        errors = [[m - min(r) for m, (_, r) in zip(y, measured, strict=True)], [max(r) - m for m, (_, r) in zip(y, measured, strict=True)]]
        panel.errorbar(
            x,
            y,
            yerr=errors if style != "--" else None,
            fmt=style,
            color=colour,
            markersize=5,
            linewidth=1.6,
            capsize=2,
            label=label,
            zorder=3,
        )
        seen += y
    panel.set(xscale="log", yscale="log", title=title(axis), xlabel=AXES[axis].label, ylabel=f"relative to that at {origin:,g}")
    panel.xaxis.set_major_locator(FixedLocator(values))
    panel.xaxis.set_minor_locator(NullLocator())
    panel.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,g}"))
    low, high = min(seen) / 1.3, max(seen) * 1.3
    ticks = [tick for exponent in range(-4, 5) for tick in (10.0**exponent, 2 * 10.0**exponent, 5 * 10.0**exponent) if low <= tick <= high]
    panel.set_ylim(low, high)
    panel.yaxis.set_major_locator(FixedLocator(ticks))
    panel.yaxis.set_minor_locator(NullLocator())
    panel.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    panel.legend(loc="upper left", fontsize=8.5)
