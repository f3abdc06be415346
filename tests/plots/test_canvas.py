"""What all pictures have in common."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from pldcli.plots.canvas import legend_label, picture

pytestmark = pytest.mark.usefixtures("drawn")


def test_dollar_signs_in_names_are_no_formulas(tmp_path: Path) -> None:
    with picture(tmp_path / "a.svg", width=3.0, height=2.0) as figure:
        axes = figure.subplots()
        axes.plot([1, 1000], [1, 2], label="from_$5_to_$10")
        axes.set(title="$x_$", xscale="log", yticks=[1], yticklabels=["$7_and_$8"])
        axes.legend()
    written = re.sub(r"<!--.*?-->", "", (tmp_path / "a.svg").read_text())
    assert all(name in written for name in ("from_$5_to_$10", "$x_$", "$7_and_$8")) and "mathdefault" not in written


def test_names_that_begin_with_an_underscore_are_in_legends(tmp_path: Path) -> None:
    with picture(tmp_path / "a.svg", width=3.0, height=2.0) as figure:
        axes = figure.subplots()
        for name in ("_run", "run"):
            axes.plot([1, 2], [1, 2], label=legend_label(name))
        axes.legend()
    assert [text.strip() for text in re.findall(r"<text[^>]*>([^<]*run)</text>", (tmp_path / "a.svg").read_text())] == ["_run", "run"]
