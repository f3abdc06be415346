from __future__ import annotations

import math
from typing import Any

import pytest

from pldcli.analysis.results import Analysis, AnalyzedRun, BlockProbe, Probe, Removal, State, measures, parse_gates
from pldcli.errors import UsageError


def made_up_probe(*, size: float, gates: tuple[bool, ...] = (True, True, True)) -> Probe:
    """Make a probe whose block i has a weight gradient of i x size, an input gradient of a tenth of that, and so on."""
    blocks = []
    for number, runs in enumerate(gates, 1):
        value = size * number
        changes = (value * 10, value / 100, min(180.0, value * 20)) if runs else (None, None, None)
        blocks.append(BlockProbe(value if runs else None, value / 10, *changes))
    return Probe(gates, 5.0 + size, tuple(blocks))


def made_up_run(name: str = "runs/a", *, norm: Any = "pre", steps: tuple[int, ...] = (0, 10, 20), draws: bool = True) -> AnalyzedRun:
    """Make a run whose gradients shrink from step to step; one of two draws leaves out block 2, both leave out block 3."""
    states = []
    for number, step in enumerate(steps, 1):
        drawn = (made_up_probe(size=4 / number, gates=(True, True, False)), made_up_probe(size=8 / number, gates=(True, False, False)))
        states.append(State(step, f"step-{step}", made_up_probe(size=1 / number), drawn if draws else ()))
    removal = Removal(steps[-1], 5.0, (5.5, 5.25, 5.125), (9.0, 6.0, 5.125))
    return AnalyzedRun(
        name=name, path=f"/x/{name}", norm=norm, seq_len=128, num_sequences=64, data="data", states=tuple(states), removal=removal
    )


def made_up_analysis(*runs: AnalyzedRun, gates: Any = 0.5, notes: tuple[str, ...] = ()) -> Analysis:
    """Put made-up runs together; one Post-LN and one Pre-LN run by default."""
    chosen = runs or (made_up_run("post", norm="post", draws=gates is not None), made_up_run("pre", draws=gates is not None))
    return Analysis(chosen, gates, 2 if gates is not None else 0, notes)


def test_values_of_a_state() -> None:
    state = made_up_run().states[0]
    assert state.values("weight_gradient_norm") == [1.0, 2.0, 3.0]
    assert state.values("distance") == [10.0, 20.0, 30.0]
    assert state.loss() == 6.0


def test_draws_are_averaged_where_the_block_ran() -> None:
    state = made_up_run().states[0]
    assert state.values("weight_gradient_norm", dropped=True)[:2] == [6.0, 8.0]
    assert math.isnan(state.values("weight_gradient_norm", dropped=True)[2])
    assert state.values("input_gradient_norm", dropped=True) == pytest.approx([0.6, 1.2, 1.8])
    assert state.ranges("weight_gradient_norm")[:2] == [(4.0, 8.0), (8.0, 8.0)]
    assert all(map(math.isnan, state.ranges("weight_gradient_norm")[2]))
    assert state.loss(dropped=True) == 11.0


def test_increases() -> None:
    removal = made_up_run().removal
    assert removal.increases() == [0.5, 0.25, 0.125]
    assert removal.increases(from_here=True) == [4.0, 1.0, 0.125]


def test_what_is_said_of_runs_and_gates() -> None:
    assert [run.title for run in made_up_analysis().runs] == ["post (Post-LN)", "pre (Pre-LN)"]
    assert made_up_run().num_blocks == 3
    assert made_up_analysis().dropping == "keep probability 0.5 in every block, mean of 2 draws"
    assert made_up_analysis(gates="schedule").dropping == "each run's own schedule, mean of 2 draws"
    assert made_up_analysis(gates=None).dropping == ""


def test_measures_are_named_once() -> None:
    assert measures() == ("weight_gradient_norm", "input_gradient_norm", "distance", "relative_distance", "angle_degrees")


def test_gates_are_read() -> None:
    assert parse_gates("schedule") == "schedule"
    assert parse_gates("0.25") == 0.25


@pytest.mark.parametrize("text", ["half", "0", "1", "-0.5", "nan", "inf", "", "50%"])
def test_other_gates_are_refused(text: str) -> None:
    with pytest.raises(UsageError) as raised:
        parse_gates(text)
    assert str(raised.value) == f"--gates: {text!r} is neither `schedule` nor a keep probability between 0 and 1; try --gates 0.5"
