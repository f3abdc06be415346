from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

from pldcli.analysis.plots import plot_gradients, plot_removal, plot_similarity
from pldcli.analysis.results import Analysis, BlockProbe, Probe, Removal, State
from pldcli.errors import UsageError
from pldcli.plots import canvas
from tests.analysis.test_results import made_up_analysis, made_up_run

pytestmark = pytest.mark.usefixtures("drawn")

DRAW = [plot_gradients, plot_similarity, plot_removal]


@pytest.fixture
def panels(monkeypatch: pytest.MonkeyPatch) -> Callable[..., list[Any]]:
    """Draw, and keep the figure instead of the file."""

    def draw(plot: Callable[..., None], analysis: Analysis, **options: Any) -> list[Any]:
        figures: list[Any] = []
        monkeypatch.setattr(canvas, "save_figure", lambda figure, _: figures.append(figure))
        plot(analysis, Path("a.png"), **options)
        figures[0].draw_without_rendering()
        return list(figures[0].axes)

    return draw


@pytest.mark.parametrize("plot", DRAW)
@pytest.mark.parametrize("kind", [".png", ".svg"])
def test_a_picture_is_written_and_has_the_same_bytes_every_time(plot: Callable[..., None], kind: str, tmp_path: Path) -> None:
    for name in ("a", "b"):
        plot(made_up_analysis(), tmp_path / f"{name}{kind}")
    content = (tmp_path / f"a{kind}").read_bytes()
    assert content == (tmp_path / f"b{kind}").read_bytes()
    assert content.startswith(b"\x89PNG") if kind == ".png" else b"post (Post-LN)" in content


@pytest.mark.parametrize("plot", DRAW)
def test_other_endings_are_refused(plot: Callable[..., None], tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="must end in"):
        plot(made_up_analysis(), tmp_path / "a.pdf")


def lines(axes: Any) -> dict[str, list[float]]:
    return {line.get_label(): list(line.get_ydata()) for line in axes.get_lines()}


def test_gradients_are_a_column_per_run_and_a_line_per_step(panels: Any) -> None:
    post, pre, post_input, _ = found = panels(plot_gradients, made_up_analysis())
    assert [axes.get_title(loc="left").splitlines() for axes in (post, pre)] == [
        ["post (Post-LN)", "Gradient of the block's weights"],
        ["pre (Pre-LN)", "Gradient of the block's weights"],
    ]
    assert lines(post) == {"0": [1.0, 2.0, 3.0], "10": [0.5, 1.0, 1.5], "20": pytest.approx([1 / 3, 2 / 3, 1.0])}
    assert lines(post_input)["0"] == pytest.approx([0.1, 0.2, 0.3])
    assert [axes.get_yscale() for axes in found] == ["log"] * 4
    assert post.get_ylim() == pre.get_ylim()
    assert list(post.get_xticks()) == [1, 2, 3]


def test_under_gates_means_are_drawn_with_the_range_of_the_last_moment(panels: Any) -> None:
    weights, inputs = panels(plot_gradients, made_up_analysis(made_up_run()), dropped=True)
    assert lines(weights)["0"][:2] == [6.0, 8.0] and math.isnan(lines(weights)["0"][2])
    [band] = inputs.collections
    height = band.get_paths()[0].get_extents()
    assert (height.ymin, height.ymax) == pytest.approx((4 / 30, 3 * 8 / 30))
    assert "keep probability 0.5 in every block, mean of 2 draws" in weights.figure.get_suptitle()


@pytest.mark.parametrize("gates", [0.123456, "schedule"])
@pytest.mark.parametrize(("plot", "options"), [(plot_gradients, {"dropped": True}), (plot_similarity, {})])
def test_the_title_of_a_narrow_picture_is_not_cut(plot: Any, options: dict[str, Any], gates: Any, panels: Any) -> None:
    figure = panels(plot, made_up_analysis(made_up_run(), gates=gates), **options)[0].figure
    [title] = [text for text in figure.texts if text.get_text() == figure.get_suptitle()]
    box = title.get_window_extent()
    assert box.x0 >= 0 and box.x1 <= figure.bbox.width


def test_distances_and_angles_begin_at_zero_and_all_fit_in(panels: Any) -> None:
    small, large = made_up_run("small", steps=(0, 1, 2, 3)), made_up_run("large", norm="post")
    found = panels(plot_similarity, made_up_analysis(small, replace(large, states=large.states[:1])))
    assert len(found) == 6
    assert lines(found[4])["3"] == pytest.approx([5.0, 10.0, 15.0])
    for axes in found:
        low, high = axes.get_ylim()
        assert low == 0.0 and high > max(max(values) for values in lines(axes).values())


def test_the_order_of_steps_shows_in_grey(panels: Any) -> None:
    """A later line is darker, and has another marker."""
    axes = panels(plot_similarity, made_up_analysis(made_up_run(steps=(0, 1, 2, 3, 4, 5, 6))))[0]
    from matplotlib.colors import to_rgb

    colours = [to_rgb(line.get_color()) for line in axes.get_lines()]
    greys = [0.299 * red + 0.587 * green + 0.114 * blue for red, green, blue in colours]
    assert greys == sorted(greys, reverse=True) and greys[0] < 0.75
    assert min(before - after for before, after in pairwise(greys)) > 0.03
    assert len({line.get_marker() for line in axes.get_lines()}) == 7


def test_many_checkpoints_are_thinned(panels: Any) -> None:
    axes = panels(plot_gradients, made_up_analysis(made_up_run(steps=tuple(range(40)))))[0]
    assert list(lines(axes)) == ["0", "6", "13", "19", "26", "32", "39"]


def test_bars_stand_beside_one_another(panels: Any) -> None:
    alone, from_here = panels(plot_removal, made_up_analysis())
    post, pre = alone.containers
    assert [bar.get_height() for bar in post] == [0.5, 0.25, 0.125]
    assert [bar.get_x() + bar.get_width() for bar in post] == pytest.approx([bar.get_x() for bar in pre])
    assert {bar.get_hatch() for bar in post} != {bar.get_hatch() for bar in pre}
    assert list(from_here.get_lines()[0].get_ydata()) == [4.0, 1.0, 0.125]


def test_what_is_not_finite_leaves_gaps(panels: Any, tmp_path: Path) -> None:
    block = BlockProbe(math.nan, math.nan, math.inf, math.nan, math.nan)
    diverged = replace(
        made_up_run(),
        states=(State(9, "model", Probe((True,) * 3, math.nan, (block,) * 3)),),
        removal=Removal(9, math.nan, (1.0,) * 3, (1.0,) * 3),
    )
    for plot in DRAW:
        for axes in panels(plot, made_up_analysis(diverged, gates=None)):
            assert not any(math.isfinite(value) for name, values in lines(axes).items() if name == "9" for value in values)


def test_deep_models_have_fewer_ticks(panels: Any) -> None:
    run = made_up_run()
    state = run.states[0]
    deep = replace(run.states[0], whole=replace(state.whole, blocks=state.whole.blocks * 8, gates=(True,) * 24), draws=())
    run = replace(run, states=(deep,), removal=Removal(0, 1.0, (1.5,) * 24, (1.5,) * 24))
    axes = panels(plot_gradients, made_up_analysis(run, gates=None))[0]
    assert len([tick for tick in axes.get_xticks() if 1 <= tick <= 24]) < 12
