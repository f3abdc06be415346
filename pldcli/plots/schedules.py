"""Schedules and runs as pictures: files, and block characters for terminals."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pldcli.expansion import Expansion
from pldcli.pld import Schedule
from pldcli.plots.canvas import colour, evenly_spaced, legend_label, picture, thousands, whole_numbers
from pldcli.run_flops import RunFlops

if TYPE_CHECKING:
    from matplotlib.axes import Axes

__all__ = ["NamedSchedule", "listed", "plot_schedules", "sentences", "summary"]

_MAX_HEAT_MAPS = 6


@dataclass(frozen=True)
class NamedSchedule:
    """A schedule with what a picture says about it."""

    name: str
    flops: RunFlops

    @property
    def schedule(self) -> Schedule:
        """Return which blocks run."""
        return self.flops.schedule

    def saved_until(self, steps: int) -> float:
        """Compute the share of the dense run's FLOPs that the first `steps` steps save."""
        saved = self.flops.dense_until(steps) - self.flops.executed_until(steps)
        return saved / self.flops.dense_until(self.schedule.total_steps)


def plot_schedules(schedules: Sequence[NamedSchedule], path: Path) -> None:
    """Draw theta, keep probabilities, expected kept blocks and the saving of one or more schedules."""
    with picture(path, width=11.5, height=7.8) as figure:
        if len(schedules) == 1:
            steps, blocks = schedules[0].schedule.total_steps, schedules[0].schedule.num_blocks
            figure.suptitle(f"{schedules[0].name}: {blocks} blocks, {steps:,} steps", fontsize=12)
        areas: Any = figure.subfigures(2, 2, hspace=0.04, wspace=0.03)
        theta, heat, kept, saving = areas.flat
        _draw_theta(theta, schedules)
        _draw_heat_maps(heat, schedules)
        _draw_kept_blocks(kept, schedules)
        _draw_saving(saving, schedules)


def _draw_theta(area: Any, schedules: Sequence[NamedSchedule]) -> None:
    axes = area.subplots()
    stages = any(isinstance(named.schedule, Expansion) for named in schedules)
    _prepare(axes, schedules, f"Keep ratio of the deepest block{', or share of blocks' if stages else ''}, θ(t)", y_label="θ")
    _overlay(axes, schedules, lambda named, step: named.schedule.theta(step))
    axes.set_ylim(0.0, 1.05)
    settled = [named.schedule.first_step_dropping(0.99) for named in schedules]
    parts = [step / named.schedule.total_steps for step, named in zip(settled, schedules, strict=True) if step]
    if parts and max(parts) <= 0.1:
        _draw_first_part(axes, schedules, until=1.5 * max(parts))
    if len(schedules) > 1:
        area.legend(*axes.get_legend_handles_labels(), loc="outside lower center", ncols=min(3, len(schedules)), fontsize=8.5)


def _draw_first_part(axes: Axes, schedules: Sequence[NamedSchedule], *, until: float) -> None:
    """Show the fall at the start larger, in the half of the panel that the curves leave free."""
    mixed = _mixed(schedules)
    lowest = min(named.schedule.lowest_theta for named in schedules)
    inset = axes.inset_axes((0.42, 0.56 if lowest <= 0.55 else 0.12, 0.52, 0.27))
    _overlay(inset, schedules, lambda named, step: named.schedule.theta(step), until=until)
    inset.set_title(f"the first {until:.0%} of the run", fontsize=8.5, fontweight="normal")
    inset.set_xlim(0, until * (1.0 if mixed else schedules[0].schedule.total_steps))
    inset.tick_params(labelsize=7.5)
    inset.xaxis.set_major_formatter(_percent if mixed else thousands)
    inset.locator_params(nbins=5)
    inset.patch.set_facecolor("#fafafa")


def _draw_heat_maps(area: Any, schedules: Sequence[NamedSchedule]) -> None:
    """Draw block against time, coloured by keep probability: one map per schedule."""
    shown = schedules[:_MAX_HEAT_MAPS]
    columns = 1 if len(shown) == 1 else 2 if len(shown) <= 4 else 3
    rows = math.ceil(len(shown) / columns)
    grid = area.subplots(rows, columns, squeeze=False)
    image = None
    for axes, named in zip(grid.flat, shown, strict=False):
        schedule = named.schedule
        steps = evenly_spaced(schedule.total_steps, 600)
        table = list(zip(*(schedule.keep_probs(step) for step in steps), strict=True))
        extent = (0, 1.0 if _mixed(schedules) else schedule.total_steps, 0.5, schedule.num_blocks + 0.5)
        image = axes.imshow(
            table, origin="lower", aspect="auto", extent=extent, vmin=0, vmax=1, cmap="viridis", interpolation="nearest", rasterized=True
        )
        axes.grid(visible=False)
        axes.yaxis.set_major_locator(whole_numbers())
        axes.xaxis.set_major_formatter(_percent if _mixed(schedules) else thousands)
        axes.locator_params(axis="x", nbins=5 if columns == 1 else 3)
        if len(shown) == 1:
            axes.set(title="Keep probability of each block", ylabel="block", xlabel="step")
        else:
            axes.set_title(named.name, fontsize=8.5, fontweight="normal")
            axes.tick_params(labelsize=7.5)
    for axes in grid.flat[len(shown) :]:
        axes.set_visible(False)
    if len(shown) > 1:
        more = f" (first {len(shown)})" if len(schedules) > len(shown) else ""
        area.suptitle(f"Keep probability of each block{more}", x=0.03, ha="left", fontsize=10.5, fontweight="bold")
        area.supylabel("block", fontsize=9.5)
    assert image is not None
    area.colorbar(image, ax=list(grid.flat), fraction=0.05, pad=0.02)


def _draw_kept_blocks(area: Any, schedules: Sequence[NamedSchedule]) -> None:
    axes = area.subplots()
    _prepare(axes, schedules, "Expected number of blocks that run", y_label="blocks")
    _overlay(axes, schedules, lambda named, step: named.schedule.expected_kept_blocks(step))
    deepest = max(named.schedule.num_blocks for named in schedules)
    axes.set_ylim(0, deepest * 1.12)
    axes.yaxis.set_major_locator(whole_numbers())
    levels = []
    for number, named in enumerate(schedules):
        blocks, mean = named.schedule.num_blocks, named.schedule.mean_kept_fraction * named.schedule.num_blocks
        axes.axhline(blocks, color=colour(number), linewidth=0.8, linestyle=":")
        levels.append((mean, f"mean {mean:.2f} of {blocks}", colour(number)))
    if len(schedules) == 1:
        mean, text, shade = levels[0]
        across = axes.get_yaxis_transform()  # x in parts of the axes, y in data
        axes.text(0.98, mean - 0.045 * deepest, text, color=shade, ha="right", va="top", transform=across)
    else:
        labels = [legend_label(f"{named.name}: {text}") for named, (_, text, _) in zip(schedules, levels, strict=True)]
        axes.legend(axes.get_lines()[: len(schedules)], labels, loc="best", fontsize=8.5)


def _draw_saving(area: Any, schedules: Sequence[NamedSchedule]) -> None:
    axes = area.subplots()
    _prepare(axes, schedules, "FLOPs saved so far, of all of the dense run's", y_label="saved")
    _overlay(axes, schedules, lambda named, step: named.saved_until(step + 1))
    axes.yaxis.set_major_formatter(_percent)
    finals = [named.saved_until(named.schedule.total_steps) for named in schedules]
    axes.set_ylim(0, max(0.1, 1.15 * max(finals)))
    labels = [f"{final:.1%} saved" for final in finals]
    if len(schedules) > 1:
        labels = [legend_label(f"{named.name}: {label}") for named, label in zip(schedules, labels, strict=True)]
    axes.legend(axes.get_lines(), labels, loc="upper left", fontsize=8.5)


def _prepare(axes: Axes, schedules: Sequence[NamedSchedule], title: str, *, y_label: str) -> None:
    mixed = _mixed(schedules)
    axes.set(title=title, ylabel=y_label, xlabel="part of the run" if mixed else "step")
    axes.xaxis.set_major_formatter(_percent if mixed else thousands)
    axes.set_xlim(0, 1.0 if mixed else schedules[0].schedule.total_steps)
    axes.locator_params(axis="x", nbins=5)


def _overlay(axes: Axes, schedules: Sequence[NamedSchedule], value: Any, *, until: float = 1.0) -> None:
    """Draw one line per schedule, dense where schedules move fast: at the start."""
    for number, named in enumerate(schedules):
        total = named.schedule.total_steps
        last = max(1, math.ceil(until * total))
        steps = sorted({*evenly_spaced(last, 400), *(step for k in range(300) if (step := int(last ** (k / 299)) - 1) < total), total - 1})
        x = [step / total for step in steps] if _mixed(schedules) else steps
        # Equal curves stay visible: later lines are thinner and dashed.
        dashes = "-" if number == 0 else (0, (5, 1 + number))
        marker = "o" if len(steps) == 1 else ""
        y = [value(named, step) for step in steps]
        axes.plot(x, y, color=colour(number), linewidth=1.8, linestyle=dashes, marker=marker, label=legend_label(named.name))


def _mixed(schedules: Iterable[NamedSchedule]) -> bool:
    """Return whether runs differ in length, so that time is drawn as a part of the run."""
    return len({named.schedule.total_steps for named in schedules}) > 1


def _percent(value: float, _position: object = None) -> str:
    return f"{100 * value:g} %"


def summary(named: NamedSchedule) -> dict[str, Any]:
    """Describe a schedule in a few numbers; fractions are averages over the run."""
    schedule = named.schedule
    return {
        "preset": named.name,
        "total_steps": schedule.total_steps,
        "num_blocks": schedule.num_blocks,
        "mean_kept_fraction": schedule.mean_kept_fraction,
        "block_flops_saved": named.flops.saved_of_blocks,
        "total_flops_saved": named.flops.saved,
        "step_half_on": schedule.first_step_dropping(0.5),
        "step_99_on": schedule.first_step_dropping(0.99),
    }


def listed(named: NamedSchedule, points: int) -> list[dict[str, Any]]:
    """List so many steps, evenly chosen with the first and the last: what runs, and what a step reads."""
    schedule, curriculum = named.schedule, named.flops.curriculum
    return [
        {
            "step": step,
            "theta": schedule.theta(step),
            "keep_probs": list(schedule.keep_probs(step)),
            "expected_kept_blocks": schedule.expected_kept_blocks(step),
            "num_sequences": curriculum.at(step).num_sequences,
            "seq_len": curriculum.at(step).seq_len,
        }
        for step in evenly_spaced(schedule.total_steps, points)
    ]


def sentences(named: NamedSchedule) -> list[str]:
    """Return what the pictures show, in lines of less than 80 columns."""
    numbers, schedule = summary(named), named.schedule
    blocks = numbers["num_blocks"]
    times = [
        f"{label} at step {step:,} ({step / schedule.total_steps:.2%})"
        for label, step in (("half on", numbers["step_half_on"]), ("99 % on", numbers["step_99_on"]))
        if step is not None
    ]
    return [
        f"{named.name}: {numbers['total_steps']:,} steps, {blocks} blocks, theta {schedule.theta(0):g} to "
        f"{schedule.theta(schedule.total_steps - 1):.4g}",
        *([f"  dropping is {', '.join(times)}"] if times else []),
        f"  {(1.0 - numbers['block_flops_saved']) * blocks:.2f} of {blocks} blocks run on average, which saves "
        f"{numbers['total_flops_saved']:.1%} of all FLOPs",
        f"  a step reads {named.flops.curriculum.describe()} tokens",
    ]
