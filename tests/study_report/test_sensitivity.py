from __future__ import annotations

from collections.abc import Callable

from pldcli.study.jobs import Outcome, State
from pldcli.study.spec import Spec
from pldcli.study_report.sensitivity import find_lines

PLD = {"preset": "bert-tiny-pld"}
DIVERGED = Outcome(State.DIVERGED, 12)


def finished(loss: float) -> Outcome:
    return Outcome(State.FINISHED, 40, loss)


def test_grids_over_one_key_share_a_picture(spec_of: Callable[..., Spec]) -> None:
    rates = {"optim.learning_rate": ["4e-3", "1e-3"]}
    spec = spec_of({"preln": PLD, "a": PLD | {"grid": rates}, "b": PLD | {"grid": rates | {"pld.theta_bar": [0.5, 0.9]}}})
    outcomes = {system: [finished(3.0), DIVERGED] for system in spec.systems}
    del outcomes["b-1e-3-0.9"]
    [(key, lines)] = find_lines(spec, outcomes).items()
    assert (key, [line.name for line in lines]) == ("optim.learning_rate", ["a", "b, theta_bar 0.5", "b, theta_bar 0.9"])
    assert [(point.value, point.label, point.system) for point in lines[0].points] == [(0.001, "1e-3", "a-1e-3"), (0.004, "4e-3", "a-4e-3")]
    assert len(lines[2].points) == 1
    assert (lines[0].points[0].losses, lines[0].points[0].diverged) == ((3.0,), (12,))
