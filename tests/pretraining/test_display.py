import io

import pytest
from rich.console import Console

from pldcli.console.units import duration, quantity
from pldcli.pretraining import display as module
from pldcli.pretraining.display import RunDisplay

LONG = {
    "train/loss": 10.12345,
    "optim/learning_rate": 1.2345e-4,
    "optim/grad_norm": 123.456,
    "pld/theta": 0.5123,
    "pld/kept_blocks": 18.25,
    "speed/tokens_per_second": 1_234_567.0,
    "progress/tokens": 123_456_789_012,
}
EVALUATION = {"step": 1000, "eval/mlm_loss": 10.98765, "eval/mlm_accuracy": 0.4321, "eval/frequency_loss": 6.5}


def row(step, *, loss=10.12345, seconds=0.0, **more):
    return LONG | {"step": step, "train/loss": loss, "progress/wall_seconds": seconds} | more


def show(width, *rows, total=1_000_000, terminal=True, evaluation=EVALUATION, quiet=False, name="runs/a-run"):
    console = Console(file=io.StringIO(), force_terminal=terminal, width=width, height=40, record=True, legacy_windows=False)
    with RunDisplay(console, title=name, total_steps=total, save_every=5000, quiet=quiet) as display:
        if evaluation:
            display.evaluated(evaluation)
        for one in rows:
            display.logged(one)
    return console.export_text()


@pytest.mark.parametrize("width", [80, 120])
@pytest.mark.parametrize(("hours", "left"), [(11, "4.1 days"), (2.6678, "23 h 59 min"), (0.1, "53 min 56 s")])
def test_the_panel_shows_everything_whole(width, hours, left):
    text = show(width, row(990_000, loss=20.12345), row(991_001, seconds=hours * 3600.0, **{"speed/mfu": 0.4567}))
    lines = text.splitlines()
    assert max(map(len, lines)) <= width
    assert "…" not in text
    # 1,001 steps took so long: 8,999 are left
    for shown in (
        ("loss", "10.1235"), ("smoothed", "14.9952"), ("learning rate", "1.2"), ("theta", "0.512"),
        ("kept blocks", "18.25"), ("tokens/s", "1.23 M"), ("MFU", "45.7%"), ("time left", left), ("next checkpoint", "995,000"),
        ("validation", "10.9877"), ("tokens", "123 G"), ("gradient norm", "123.456"), ("991,001/1,000,000", ""), ("99%", ""),
        ("runs/a-run", ""),
    ):  # fmt: skip
        for part in shown:
            assert part in text, f"{part}\n{text}"
    assert "1.234e-04" in text or "1.235e-04" in text or "1.23e-04" in text


def test_values_stand_beside_their_names():
    text = show(120, row(1, loss=1.0), row(2, loss=2.0, seconds=10.0), total=10)
    for name, value in (
        ("loss", "2.0000"),
        ("smoothed", "1.5128"),
        ("MFU", "-"),
        ("next checkpoint", "step 10"),
        ("time left", "1 min 20 s"),
    ):
        assert any(f"{name} {value}" in " ".join(line.split()) for line in text.splitlines()), f"{name}\n{text}"


def test_the_next_checkpoint():
    for step, total, expected in ((4999, 20_000, "5,000"), (5000, 20_000, "10,000"), (19_999, 20_000, "20,000"), (1, 300, "300")):
        assert f"step {expected}" in " ".join(show(100, row(step), total=total).split())


def test_plain_lines_elsewhere(monkeypatch):
    now = 100.0
    monkeypatch.setattr(module.time, "monotonic", lambda: now)
    console = Console(file=io.StringIO(), force_terminal=False, width=40)
    with RunDisplay(console, title="r", total_steps=100, save_every=10, quiet=False) as display:
        display.logged(row(1, loss=4.0))
        display.logged(row(2, loss=9.0, seconds=1.0))  # too soon after the last line
        now += 6
        display.logged(row(3, loss=3.0, seconds=2.0))
        display.evaluated({"step": 3, "eval/mlm_loss": 2.5, "eval/mlm_accuracy": 0.25, "eval/frequency_loss": 3.5})
        display.logged(row(100, loss=2.0, seconds=99.0))  # the last one always
        display.say("[bold]as it is[/bold]")
    assert console.file.getvalue().splitlines() == [
        "step 1/100  loss 4.0000 (4.0000)  lr 1.23e-04  theta 0.512  blocks 18.25  1.23 M tokens/s  ? left",
        "step 3/100  loss 3.0000 (5.3146)  lr 1.23e-04  theta 0.512  blocks 18.25  1.23 M tokens/s  1 min 37 s left",
        "step 3/100  validation loss 2.5000 (unigram baseline: 3.5000)  accuracy 0.250",
        "step 100/100  loss 2.0000 (4.4212)  lr 1.23e-04  theta 0.512  blocks 18.25  1.23 M tokens/s  0 s left",
        "[bold]as it is[/bold]",
    ]


def test_time_left_follows_the_work_that_is_left(monkeypatch):
    """After 10 steps in 10 s, 90 are left that do four times as much each."""
    now = 100.0
    monkeypatch.setattr(module.time, "monotonic", lambda: now)
    console = Console(file=io.StringIO(), force_terminal=False, width=40)
    work = lambda step: min(step, 11) + 4 * max(0, step - 11)  # noqa: E731
    with RunDisplay(console, title="r", total_steps=101, save_every=10, quiet=False, work=work) as display:
        display.logged(row(1, seconds=1.0))
        now += 6
        display.logged(row(11, seconds=11.0))
    assert console.file.getvalue().splitlines()[-1].endswith("6 min 00 s left")


@pytest.mark.parametrize("terminal", [True, False])
def test_other_processes_are_quiet(terminal):
    assert show(80, row(1), row(2), terminal=terminal, quiet=True) == ""


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0, "0 s"), (42.4, "42 s"), (60, "1 min 00 s"), (425, "7 min 05 s"), (3600, "1 h 00 min"), (11520, "3 h 12 min"), (449280, "5.2 days"),
     (59.7, "1 min 00 s"), (119.6, "2 min 00 s"), (7199.6, "2 h 00 min"), (172800, "2.0 days")],
)  # fmt: skip
def test_durations(seconds, text):
    assert duration(seconds) == text


@pytest.mark.parametrize(
    ("number", "text"),
    [(0, "0"), (12.34, "12.3"), (1234, "1.23 k"), (999_999, "1 M"), (2.5e9, "2.5 G"), (1.26e12, "1.26 T"), (999.9, "1 k")],
)
def test_quantities(number, text):
    assert quantity(number) == text


@pytest.mark.parametrize("error", [OSError(5, "Input/output error"), SystemExit(1)])
def test_a_terminal_that_is_gone_ends_nothing(error: BaseException) -> None:
    class Gone(io.StringIO):
        def write(self, text: str) -> int:
            raise error

    display = RunDisplay(Console(file=Gone(), force_terminal=False), title="a", total_steps=10, save_every=5, quiet=False)
    with display:
        display.say("one")
        display.say("two")
