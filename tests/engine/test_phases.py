import time

import pytest
import torch

from pldcli.engine import phases as module
from pldcli.engine import trainer as trainer_module
from pldcli.engine.phases import PHASES, PhaseTimer
from pldcli.runs.checkpoint import Position
from pldcli.system.signals import StopRequest
from tests.conftest import tiny_trainer


class Clock:
    """Time that passes when told."""

    now = 100.0

    def perf_counter(self):
        return self.now


@pytest.fixture
def clock(monkeypatch):
    clock = Clock()
    monkeypatch.setattr(module, "time", clock)
    return clock


def test_time_goes_to_the_phase_that_began_last(clock):
    timer = PhaseTimer(torch.device("cpu"))
    for phase, seconds in [("data", 1.0), ("forward", 2.0), ("backward", 4.0), ("forward", 8.0), ("optimizer", 16.0), ("other", 32.0)]:
        timer.begin(phase)
        clock.now += seconds
    timer.pause()
    clock.now += 1000.0
    timer.begin("data")
    clock.now += 0.5
    timer.pause()
    assert timer.read() == {"data": 1.5, "forward": 10.0, "backward": 4.0, "optimizer": 16.0, "other": 32.0}
    assert timer.read() == dict.fromkeys(PHASES, 0.0)


def test_what_nobody_reads_for_long_does_not_pile_up(clock):
    timer = PhaseTimer(torch.device("cpu"))
    for _ in range(5000):
        timer.begin("forward")
        clock.now += 0.25
        timer.begin("data")
        clock.now += 0.5
    timer.pause()
    assert len(timer._marks) <= module._MOST_MARKS + 1
    assert timer.read() == {"data": 2500.0, "forward": 1250.0, "backward": 0.0, "optimizer": 0.0, "other": 0.0}


class Ticks:
    """A clock that goes on by one with each look at it."""

    now = 0.0

    def perf_counter(self):
        self.now += 1.0
        return self.now


@pytest.mark.parametrize("every", [1, 3])
def test_phases_add_up_to_the_training_time(every, monkeypatch):
    """And a caller's own time belongs to none."""
    ticks = Ticks()
    monkeypatch.setattr(module, "time", ticks)
    monkeypatch.setattr(trainer_module, "time", ticks)
    trainer, before = tiny_trainer("train.micro_batch_size=2", "pld.draws_per_step=2"), 0.0
    for seen in trainer.steps(Position(), observe=lambda step: step % every == 0, stop=StopRequest()):
        passed, before = seen.position.train_seconds - before, seen.position.train_seconds
        assert passed > 15 * every and 0 <= passed - sum(seen.phase_seconds.values()) <= 2
        assert seen.phase_seconds["forward"] == seen.phase_seconds["backward"] == 4 * every, "four micro-steps"
        assert seen.phase_seconds["data"] == seen.phase_seconds["optimizer"] == every
        ticks.now += 1000.0


def test_a_slow_loader_is_seen(monkeypatch):
    trainer = tiny_trainer()
    batches = type(trainer.batches)
    monkeypatch.setattr(
        batches, "from_step", lambda self, first, stop: (time.sleep(0.02) or self.step(step) for step in range(first, stop))
    )
    seen = list(trainer.steps(Position(), observe=lambda step: step == 5, stop=StopRequest()))
    assert seen[0].phase_seconds["data"] >= 5 * 0.02


def test_what_was_measured_before_the_first_step_does_not_count(monkeypatch):
    ticks, trainer = Ticks(), tiny_trainer()
    monkeypatch.setattr(module, "time", ticks)
    trainer.phases.begin("forward")
    ticks.now += 1000.0
    first = next(trainer.steps(Position(), observe=lambda step: True, stop=StopRequest()))
    assert 0 < first.phase_seconds["forward"] < 1000.0
