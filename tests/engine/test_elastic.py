"""A run that goes on with another number of processes reads the same under the same gates, and has the same losses."""

import hashlib
import json
from pathlib import Path

import pytest

from pldcli.engine.runtime import launch
from pldcli.runs import checkpoint
from pldcli.runs.checkpoint import Position
from pldcli.runs.checkpoint_parts import Part
from pldcli.system.signals import StopRequest
from tests.conftest import tiny_trainer
from tests.engine.test_sharding import BATCH, CASES, hold, restored

STRETCHES = {"two shards": (2, "full", 0, 3), "four shards": (4, "full", 3, 6), "two replicas": (2, "none", 6, 9)}
"""Processes, `runtime.sharding`, and the steps from which and to which they train one after the other."""


def sequences(batches):
    """Hash what each gate group of a step reads on this process, masks among it: a row, a hash."""
    return [[hashlib.sha256(row.numpy().tobytes()).hexdigest() for batch in group for row in batch.input_ids] for group in batches]


def observed(trainer, start, stop):
    rows = []
    for one in trainer.steps(Position(step=start), observe=lambda step: True, stop=StopRequest()):
        step = one.position.step - 1
        gates = [trainer.schedule.plan(step, group, seed=trainer.seed).gates for group in range(2)]
        assert one.kept_blocks == sum(map(sum, gates)) / 2
        rows.append({"loss": one.losses["loss"], "gates": gates, "read": sequences(trainer.batches.step(step))})
        if one.position.step == stop:
            return rows
    raise AssertionError("not so many steps")


def one_of_several(place: str, name: str, before: str | None) -> None:
    """What each process does: go on after the checkpoint `before`, and save."""
    _, sharding, start, stop = STRETCHES[name]
    with launch("cpu", sharding=sharding) as runtime:
        trainer = restored(Path(before), runtime=runtime) if before else tiny_trainer(*CASES["muon"], *BATCH, runtime=runtime)
        rows = observed(trainer, start, stop)
        if sharding != "none":
            part = Part(runtime.rank + 1, runtime.num_shards, token=start)
            checkpoint.write(Path(place, name), hold(trainer, stop, part=part), keep=1)
        trainer = None
        Path(place, f"{name}.{runtime.rank}.json").write_text(json.dumps(rows))


@pytest.fixture(scope="module")
def several(processes, tmp_path_factory):
    """What each process saw of its stretch, one stretch after the other."""
    place, before, found = tmp_path_factory.mktemp("elastic"), None, {}
    for name, (count, *_, stop) in STRETCHES.items():
        code = f"from tests.engine.test_elastic import one_of_several; one_of_several({str(place)!r}, {name!r}, {before!r})"
        processes.together(code, count, local=count)
        before = str(place / name / f"step-{stop:08d}")
        found[name] = [json.loads((place / f"{name}.{rank}.json").read_text()) for rank in range(count)]
    return found


@pytest.fixture(scope="module")
def alone():
    return observed(tiny_trainer(*CASES["muon"], *BATCH), 0, 9)


@pytest.mark.parametrize("name", STRETCHES)
def test_another_number_of_processes_goes_on_as_one_would(several, alone, name):
    _, _, start, stop = STRETCHES[name]
    for step, (ranks, expected) in enumerate(zip(zip(*several[name], strict=True), alone[start:stop], strict=True), start):
        assert ranks[0]["loss"] == pytest.approx(expected["loss"], rel=1e-5), step
        assert all(rank["loss"] == ranks[0]["loss"] for rank in ranks)
        assert all(rank["gates"] == json.loads(json.dumps(expected["gates"])) for rank in ranks)
        for group, whole in enumerate(expected["read"]):
            assert [row for rank in ranks for row in rank["read"][group]] == whole, (step, group)
