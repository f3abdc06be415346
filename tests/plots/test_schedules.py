from __future__ import annotations

import math
import subprocess
import sys
from pathlib import Path

import pytest

import pldcli
from pldcli.curriculum import Curriculum
from pldcli.errors import OutputError, UsageError
from pldcli.evaluation.plots import plot_depths
from pldcli.expansion import DepthStage, Expansion
from pldcli.flops import Flops
from pldcli.pld import Dropping
from pldcli.plots.canvas import evenly_spaced
from pldcli.plots.curves import Curve, plot_curves
from pldcli.plots.schedules import NamedSchedule, plot_schedules
from pldcli.plots.terminal import block_chart, sparkline
from pldcli.run_flops import RunFlops

pytestmark = pytest.mark.usefixtures("drawn")

PNG = b"\x89PNG\r\n\x1a\n"


def named(name: str = "a", **changes: object) -> NamedSchedule:
    schedule = Dropping(**{"num_blocks": 4, "total_steps": 100, **changes})  # type: ignore[arg-type]
    flops = Flops(matrices=6.0, attention=0.5, attended_tokens=8.0, head=10.0, num_blocks=schedule.num_blocks)
    return NamedSchedule(name, RunFlops(schedule, Curriculum(total_steps=schedule.total_steps, seq_len=8, batch_size=1), flops))


@pytest.mark.parametrize(
    ("total", "points", "steps"),
    [
        (5, 2, [0, 4]),
        (5, 3, [0, 2, 4]),
        (5, 5, [0, 1, 2, 3, 4]),
        (5, 99, [0, 1, 2, 3, 4]),
        (1, 2, [0]),
        (6, 4, [0, 1, 3, 5]),
        (101, 5, [0, 25, 50, 75, 100]),
    ],
)
def test_evenly_spaced(total: int, points: int, steps: list[int]) -> None:
    assert evenly_spaced(total, points) == steps


def test_evenly_spaced_gives_as_many_as_asked_for() -> None:
    for total in range(2, 60):
        for points in range(2, total + 1):
            steps = evenly_spaced(total, points)
            assert (len(set(steps)), steps[0], steps[-1]) == (points, 0, total - 1)


def test_saving_adds_up_to_that_of_the_run() -> None:
    constant = named(time="constant", theta_bar=0.5, depth_rule="uniform")
    assert constant.saved_until(100) == pytest.approx(0.4)  # half of 40 of 50 operations
    assert constant.saved_until(25) == pytest.approx(0.1)
    assert named(theta_bar=1.0).saved_until(50) == 0.0
    falling = named(time="linear", theta_bar=0.2)
    assert falling.saved_until(100) == pytest.approx(falling.flops.saved)
    assert constant.flops.saved_of_blocks == pytest.approx(0.5)
    # The first ten of 30 steps, in which one block runs, read less than the others.
    schedule = Expansion(num_blocks=4, total_steps=30, stages=(DepthStage(1 / 3, 1),))
    curriculum = Curriculum(total_steps=30, seq_len=8, batch_size=4, ramp_fraction=2 / 3, initial_batch_size=1)
    tokens = [8 * curriculum.at(step).num_sequences for step in range(30)]
    flops = RunFlops(schedule, curriculum, named().flops.flops)
    assert len(set(tokens)) > 1
    assert flops.saved_of_blocks == pytest.approx(0.75 * sum(tokens[:10]) / sum(tokens))


@pytest.mark.parametrize("kind", [".PNG", ".svg"])
def test_a_picture_has_the_same_bytes_every_time(kind: str, tmp_path: Path) -> None:
    first, second = tmp_path / f"first{kind}", tmp_path / f"deep/er/second{kind}"
    for path in (first, second):
        plot_schedules([named("a"), named("b", num_blocks=6, total_steps=300)], path)
    content = first.read_bytes()
    assert content == second.read_bytes()
    assert content.startswith(PNG) if kind.lower() == ".png" else b"<svg" in content
    assert sorted(path.name for path in tmp_path.iterdir()) == ["deep", first.name]
    if kind == ".svg":
        for text in (b"Keep probability of each block", b"Expected number of blocks that run", b"FLOPs saved so far"):
            assert text in content


@pytest.mark.parametrize(
    "schedules",
    [
        [named(total_steps=1)],
        [named(theta_bar=1.0)],
        [named(time="growing", num_blocks=1)],
        [named(str(number), total_steps=10 + number % 2) for number in range(9)],
    ],
    ids=["one step", "nothing dropped", "one block", "nine"],
)
def test_unusual_schedules_can_be_drawn(schedules: list[NamedSchedule], tmp_path: Path) -> None:
    plot_schedules(schedules, tmp_path / "x.png")
    assert (tmp_path / "x.png").read_bytes().startswith(PNG)


@pytest.mark.parametrize(
    "series",
    [
        [Curve("loss", [1, 2, 3], [3.0, 2.0, 1.5]), Curve("eval", [1, 3], [3.1, 1.6], style="points")],
        [Curve("gap", [1, 2, 3], [1.0, math.nan, math.inf]), Curve("single", [2], [1.0])],
        [Curve("empty", [], [])],
        [],
        [Curve(str(number), [0, 1], [0, number]) for number in range(12)],
    ],
    ids=["usual", "not finite", "empty", "none", "twelve"],
)
def test_curves(series: list[Curve], tmp_path: Path) -> None:
    first, second = tmp_path / "first.svg", tmp_path / "second.svg"
    for path in (first, second):
        plot_curves(series, path, title="Loss by tokens", x_label="tokens", y_label="loss")
    content = first.read_bytes()
    assert content == second.read_bytes()
    for text in ("Loss by tokens", "tokens", *(curve.label for curve in series if curve.x)):
        assert text.encode() in content


def test_depths(tmp_path: Path) -> None:
    words = {"title": "a model on a text", "score_label": "masked-LM loss", "num_blocks": 12}
    plot_depths([12, 6, 9], [2.0, math.inf, 2.5], [1.0, 1.8, 1.3], tmp_path / "a.svg", **words)
    plot_depths([6, 9, 12], [math.inf, 2.5, 2.0], [1.8, 1.3, 1.0], tmp_path / "b.svg", **words)
    content = (tmp_path / "a.svg").read_bytes()
    assert content == (tmp_path / "b.svg").read_bytes(), "in any order"
    for text in ("a model on a text", "masked-LM loss", "Speed, all 12 blocks = 1", "times as fast"):
        assert text.encode() in content
    plot_depths([1], [2.0], [1.0], tmp_path / "one.png", **{**words, "num_blocks": 1})
    assert (tmp_path / "one.png").read_bytes().startswith(b"\x89PNG")


def test_wrong_places_are_refused(tmp_path: Path) -> None:
    for name in ("x.pdf", "x", ".png"):
        with pytest.raises(UsageError, match=r"a picture's name must end in \.png or \.svg"):
            plot_schedules([named()], tmp_path / name)
        assert not (tmp_path / name).exists()
    (tmp_path / "file").write_text("x", encoding="utf-8")
    (tmp_path / "folder.png").mkdir()
    for path in (tmp_path / "file" / "x.png", tmp_path / "folder.png"):
        with pytest.raises(OutputError, match="cannot be written"):
            plot_curves([], path, title="", x_label="", y_label="")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["file", "folder.png"]


def test_drawing_leaves_pyplot_and_its_settings_alone(tmp_path: Path) -> None:
    program = f"""
import sys, matplotlib
before = matplotlib.rcParams.copy()
from pathlib import Path
from pldcli.plots.curves import Curve, plot_curves
plot_curves([Curve("a", [1], [1])], Path({str(tmp_path / "x.png")!r}), title="t", x_label="x", y_label="y")
assert "matplotlib.pyplot" not in sys.modules
assert matplotlib.rcParams.copy() == before
"""
    subprocess.run([sys.executable, "-c", program], check=True, cwd=Path(pldcli.__file__).parents[1])


def test_block_chart() -> None:
    lines = block_chart([0.0, 0.25, 0.5, 1.0], low=0, high=1, height=2, width=7, title="θ", left="0", right="3")
    assert lines == [
        "θ",
        "1 │   █",
        "0 │ ▄██",
        "  └────",
        "   0  3",
    ]
    wide = block_chart([1.0, 0.5], low=0, high=12, height=3, width=40, title="t", left="step 0", right="1")
    assert max(map(len, wide)) == 40


def test_sparkline() -> None:
    assert sparkline([0.0, 0.5, 1.0], low=0, high=1, width=3) == "▁▅█"
    assert len(sparkline([0.3], low=0, high=1, width=9)) == 9
