from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from pldcli.comparison.comparison import Comparison, compare_runs
from pldcli.comparison.plots import draw_curves, plot_comparison
from pldcli.errors import UsageError
from pldcli.plots import canvas
from tests.comparison.test_runs import made_up_run

pytestmark = pytest.mark.usefixtures("drawn")


def comparison() -> Comparison:
    runs = [made_up_run(f"pre-{seed}", "pld.theta_bar=1", f"train.seed={seed}", losses=(5.0, 4.0, 3.0, 2.5 + seed)) for seed in (0, 1)]
    runs += [made_up_run("pld", losses=(4.0, 3.0, 2.0, 1.0)), made_up_run("hot", "optim.learning_rate=9", losses=(4.0, None))]
    return compare_runs(runs)


def panels(monkeypatch: pytest.MonkeyPatch, path: Path, drawn: Comparison | None = None) -> list[Any]:
    """Draw, and keep the figure instead of the file."""
    figures: list[Any] = []
    monkeypatch.setattr(canvas, "save_figure", lambda figure, _: figures.append(figure))
    plot_comparison(drawn or comparison(), path)
    return list(figures[0].axes)


@pytest.mark.parametrize("kind", [".png", ".svg"])
def test_a_picture_is_written_and_has_the_same_bytes_every_time(kind: str, tmp_path: Path) -> None:
    for name in ("a", "b"):
        plot_comparison(comparison(), tmp_path / f"{name}{kind}")
    content = (tmp_path / f"a{kind}").read_bytes()
    assert content == (tmp_path / f"b{kind}").read_bytes()
    assert content.startswith(b"\x89PNG") if kind == ".png" else b"Validation loss against training seconds" in content


def test_other_endings_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="must end in"):
        plot_comparison(comparison(), tmp_path / "a.pdf")


def test_both_panels_hold_every_run_and_the_mean_of_seeds(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    tokens, seconds = panels(monkeypatch, tmp_path / "a.png")
    assert (tokens.get_xlabel(), seconds.get_xlabel()) == ("tokens", "training seconds")
    lines = {line.get_label(): line for line in tokens.get_lines()}
    assert {"pre (2 runs)", "pld", "hot, unfinished", "final loss of pre"} <= lines.keys()
    assert list(lines["pre (2 runs)"].get_ydata()) == [5.0, 4.0, 3.0, 3.0]
    assert list(lines["pld"].get_xdata()) == [2560.0, 5120.0, 7680.0, 10240.0]
    assert list(lines["final loss of pre"].get_ydata()) == [3.0, 3.0]
    assert list(next(line for line in seconds.get_lines() if line.get_label() == "pld").get_xdata()) == [20.0, 40.0, 60.0, 80.0]


def test_a_crossing_before_the_end_of_its_schedule_is_hollow(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    [mark] = [line for line in panels(monkeypatch, tmp_path / "a.png")[0].get_lines() if line.get_markersize() == 7]
    assert (list(mark.get_xdata()), list(mark.get_ydata()), mark.get_markerfacecolor()) == ([6400.0], [2.5], "white")


def test_seconds_on_other_hardware_are_marked_and_reach_nothing(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    dense = made_up_run("pre", "pld.theta_bar=1", losses=(4.0, 3.0, 2.5, 2.0))
    tokens, seconds = panels(monkeypatch, tmp_path / "a.png", compare_runs([dense, made_up_run("pld", starts=[{"hardware": "another"}])]))
    assert tokens.get_xlabel() == "tokens" and seconds.get_xlabel() == "training seconds, which do not compare between these runs"
    assert [[line.get_markersize() for line in panel.get_lines()].count(7) for panel in (tokens, seconds)] == [1, 0]


def test_curves_for_the_page_are_against_all_four_axes() -> None:
    validation, training = draw_curves(comparison(), "validation"), draw_curves(comparison(), "training")
    for axis in ("tokens", "steps", "executed FLOPs", "training seconds"):
        assert f"Validation loss against {axis}" in validation
        assert f"Training loss, smoothed against {axis}" in training
    assert "<metadata>" not in validation


def test_long_curves_are_thinned(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    losses = [3 + (n % 7) / 7 for n in range(900)]
    runs = [made_up_run(f"a-{seed}", "train.total_steps=9000", f"train.seed={seed}", losses=losses) for seed in (0, 1)]
    long = compare_runs([*runs, made_up_run("b", "train.total_steps=9000", "model.dropout=0.3", losses=losses)])
    drawn = {line.get_label(): line for line in panels(monkeypatch, tmp_path / "a.png", long)[0].get_lines()}
    for label in ("a (2 runs)", "b"):
        x = list(drawn[label].get_xdata())
        assert (len(x), x[0], x[-1]) == (300, 2560.0, 9000 * 256.0)


def test_the_start_does_not_stretch_the_axis(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    axes = panels(monkeypatch, tmp_path / "a.png")[0]
    low, high = axes.get_ylim()
    assert low < 1.0 and 4.0 < high < 4.5  # the 5 of the first quarter is cut off
