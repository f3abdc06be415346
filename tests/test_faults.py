"""A quick form of the fault matrix; `python -m tests.faults` is the whole one."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.faults import damage, programs, several, stops
from tests.faults.ground import Fault, Ground


@pytest.fixture(scope="module")
def ground(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Ground]:
    made = Ground(tmp_path_factory.mktemp("faults") / "ground", seed=1)
    yield made
    made.processes.close()


@pytest.mark.parametrize(
    ("fault", "trials"),
    [
        (damage.flipped, 100),
        (damage.cut, 20),
        (damage.zeroed, 20),
        (damage.missing, 20),
        (damage.extra, 10),
        (stops.killed, 3),
        (stops.signalled, 3),
        (stops.full_at_each_call, 3),
        (programs.prepare_killed, 2),
        (several.not_a_number, 2),
    ],
    ids=lambda value: value.__name__ if callable(value) else str(value),
)
def test_runs_end_where_they_would_have_ended_anyway(ground: Ground, fault: Fault, trials: int) -> None:
    tally = fault(ground, trials)
    assert tally.failures == [] and tally.trials >= trials


def test_a_fault_that_does_harm_is_told(ground: Ground, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(damage, "verify", lambda path: None)
    monkeypatch.setattr(damage, "verify_prepared", lambda path: None)
    assert len(damage.flipped(ground, 5).failures) == 5
