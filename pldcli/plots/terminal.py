"""Charts of characters."""

from __future__ import annotations

from collections.abc import Sequence

__all__ = ["block_chart", "sparkline"]

_BLOCKS = " ▁▂▃▄▅▆▇█"


def block_chart(
    values: Sequence[float], *, low: float, high: float, height: int, width: int, title: str, left: str, right: str
) -> list[str]:
    """Draw values as bars of block characters with an axis.

    Args:
        values: At least one, evenly spaced over the run.
        low: Value at the foot of the chart.
        high: Value at its top.
        height: Rows of the bars.
        width: Columns of everything.
        title: Line above.
        left: Label under the first value.
        right: Label under the last.

    Returns:
        Lines of at most `width` characters.
    """
    margin = max(len(f"{low:g}"), len(f"{high:g}"))
    columns = max(1, width - margin - 2)
    picked = [values[i * (len(values) - 1) // max(1, columns - 1)] for i in range(columns)]
    eighths = [round(8 * height * min(1.0, max(0.0, (value - low) / (high - low)))) for value in picked]
    lines = [title]
    for row in reversed(range(height)):
        label = f"{high:g}" if row == height - 1 else f"{low:g}" if row == 0 else ""
        lines.append(f"{label:>{margin}} │" + "".join(_BLOCKS[min(8, max(0, eighth - 8 * row))] for eighth in eighths).rstrip())
    lines.append(" " * margin + " └" + "─" * columns)
    lines.append(" " * (margin + 2) + left + right.rjust(columns - len(left)))
    return lines


def sparkline(values: Sequence[float], *, low: float, high: float, width: int) -> str:
    """Draw values as one row of block characters; the lowest is a thin line, so that it is seen."""
    picked = [values[i * (len(values) - 1) // max(1, width - 1)] for i in range(width)]
    return "".join(_BLOCKS[1 + round(7 * min(1.0, max(0.0, (value - low) / (high - low))))] for value in picked)
