from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from matplotlib.axes import Axes

from pldcli.plots import canvas
from pldcli.study.jobs import Outcome, State
from pldcli.study.spec import Spec
from pldcli.study_report.plots import draw_lines
from pldcli.study_report.sensitivity import find_lines

pytestmark = pytest.mark.usefixtures("drawn")

PLD = {"preset": "bert-tiny-pld"}
DIVERGED = Outcome(State.DIVERGED, 12)


def finished(loss: float) -> Outcome:
    return Outcome(State.FINISHED, 40, loss)


def drawn(spec: Spec, outcomes: dict[str, list[Outcome]], path: Path, monkeypatch: pytest.MonkeyPatch) -> Axes:
    kept = []
    monkeypatch.setattr(canvas, "save_figure", lambda figure, _: kept.append(figure))
    [(key, lines)] = find_lines(spec, outcomes).items()
    assert draw_lines(key, lines, path)
    return kept[0].axes[0]


def test_a_wide_range_of_numbers_is_logarithmic_and_divergence_is_marked(
    spec_of: Callable[..., Spec], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    spec = spec_of({"a": PLD | {"grid": {"optim.learning_rate": ["1e-3", "2e-3", "16e-3"]}}})
    outcomes = {"a-1e-3": [finished(3.0), finished(4.0)], "a-2e-3": [finished(2.5)], "a-16e-3": [DIVERGED]}
    axes = drawn(spec, outcomes, tmp_path / "a.png", monkeypatch)
    assert axes.get_xscale() == "log" and [label.get_text() for label in axes.get_xticklabels()] == ["1e-3", "2e-3", "16e-3"]
    lines = {str(line.get_label()): line for line in axes.lines}
    assert lines["a: diverged"].get_xdata() == [0.016]
    [[means, _, _]] = axes.containers
    assert list(means.get_ydata()) == [3.5, 2.5]


def test_words_stand_side_by_side(spec_of: Callable[..., Spec], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    spec = spec_of({"a": PLD | {"grid": {"runtime.precision": ["fp32", "bf16"]}}})
    axes = drawn(spec, {"a-fp32": [finished(3.0)], "a-bf16": [finished(2.0)]}, tmp_path / "a.png", monkeypatch)
    assert [label.get_text() for label in axes.get_xticklabels()] == ["fp32", "bf16"]
    narrow = spec_of({"a": PLD | {"grid": {"pld.theta_bar": [0.5, 0.9]}}})
    assert drawn(narrow, {"a-0.5": [finished(3.0)]}, tmp_path / "a.png", monkeypatch).get_xscale() == "linear"


def test_nothing_to_draw_yet(spec_of: Callable[..., Spec], tmp_path: Path) -> None:
    spec = spec_of({"a": PLD | {"grid": {"pld.theta_bar": [0.5]}}})
    [(key, lines)] = find_lines(spec, {"a-0.5": [Outcome(State.NOT_STARTED)]}).items()
    assert not draw_lines(key, lines, tmp_path / "a.png") and not (tmp_path / "a.png").exists()
    [(key, lines)] = find_lines(spec, {"a-0.5": [finished(2.0)]}).items()
    assert draw_lines(key, lines, tmp_path / "a.png") and (tmp_path / "a.png").read_bytes().startswith(b"\x89PNG")
