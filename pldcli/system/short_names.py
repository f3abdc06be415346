"""Names of paths, as short as tells them apart."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from pathlib import Path

__all__ = ["shortest_names"]


def shortest_names(paths: Sequence[Path]) -> list[str]:
    """Name each path by as many of its last parts as tell it from the others."""
    times: dict[int, Counter[str]] = {}

    def is_shared(path: Path, depth: int) -> bool:
        if depth not in times:
            times[depth] = Counter(_end(one, depth) for one in paths)
        return times[depth][_end(path, depth)] > 1

    names = []
    for path in paths:
        depth = 1
        while depth < len(path.parts) and is_shared(path, depth):
            depth += 1
        names.append(_end(path, depth))
    return names


def _end(path: Path, depth: int) -> str:
    return "/".join(path.parts[-depth:])
