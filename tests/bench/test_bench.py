import dataclasses
import json
import math

import numpy as np
import pytest
import torch

from pldcli.bench import bench as module
from pldcli.bench.bench import bench, random_stream
from pldcli.data.prepared import open_prepared
from pldcli.errors import DeviceError, UsageError
from tests.conftest import tiny_config

SMALL = ("train.micro_batch_size=2", "pld.theta_bar=0.4")


@pytest.fixture(scope="module")
def measured():
    lines = []
    return bench(tiny_config(*SMALL, "pld.draws_per_step=2"), data=None, steps=12, report=lines.append), lines


def test_both_modes_take_turns(measured):
    found, lines = measured
    assert [mode.name for mode in found.modes] == ["dense", "dropped"]
    assert [line.split(":")[0] for line in lines] == [f"part {part} of 5, {name}" for part in range(1, 6) for name in ("dense", "dropped")]
    assert (found.steps, found.sequences_per_step, found.micro_batch_size, found.processes) == (15, 4, 2, 1), "rounded up to whole parts"
    for mode in found.modes:
        assert len(mode.step_seconds) == len(mode.flops_per_step) == 5
        assert mode.tokens_per_step == 4 * 32
        assert mode.tokens_per_second == pytest.approx(128 / mode.seconds)
        assert 0 < sum(mode.phase_seconds.values()) <= mode.seconds * 1.001
        assert mode.peak_memory_bytes > 50e6 and 0 < found.mfu(mode) < 1


def test_what_dropping_saved_is_counted_by_the_blocks_that_ran(measured):
    found, _ = measured
    config = tiny_config(*SMALL, "pld.draws_per_step=2", "pld.schedule=constant", "train.total_steps=18")
    plans = [config.pld_schedule.plan(step, group, seed=0) for step in range(3, 18) for group in range(2)]
    kept = sum(plan.kept_blocks for plan in plans) / len(plans)
    dense, dropped = found.modes
    assert dense.kept_blocks == pytest.approx(3) and dropped.kept_blocks == pytest.approx(kept) and kept < 3
    operations, time = found.saved
    assert operations == pytest.approx(config.flops.total_saved(kept / 3))
    assert time == pytest.approx(1 - dropped.seconds / dense.seconds)
    assert len(found.saved_by_part) == 5
    given = tiny_config(*SMALL)
    assert found.whole_run_saved == pytest.approx(given.flops.total_saved(given.pld_schedule.mean_kept_fraction))


def test_json_holds_everything(measured):
    found, _ = measured
    read = json.loads(json.dumps(found.to_json()))
    assert read["modes"]["dense"]["step_seconds"] == found.modes[0].seconds
    assert set(read["modes"]["dropped"]["phase_seconds"]) == {"data", "forward", "backward", "optimizer", "other"}
    assert (read["operations_saved"], read["time_saved"]) == found.saved
    assert read["text"] == "random tokens" and read["peak_source"] == "the fastest matrix product, measured here"


def test_a_configuration_that_drops_nothing_has_one_mode():
    found = bench(tiny_config(preset="bert-tiny-preln"), data=None, steps=5)
    assert [mode.name for mode in found.modes] == ["dense"] and found.saved is None and found.saved_by_part == []
    assert found.to_json()["time_saved"] is None


def test_rows_may_come_from_prepared_text(prepared):
    size = open_prepared(prepared).vocab_size
    found = bench(tiny_config(*SMALL, f"model.vocab_size={size}"), data=prepared, steps=5)
    assert found.text == str(prepared)
    with pytest.raises(UsageError, match="rows cannot hold the"):
        bench(tiny_config(*SMALL, f"model.vocab_size={size - 1}"), data=prepared, steps=5)


@pytest.mark.parametrize(
    ("sizes", "tried", "best"),
    [
        ({1: 10.0, 2: 30.0, 4: 29.0, 8: 31.0, 16: 30.0, 32: 30.0}, [1, 2, 4, 8, 16, 32], 8),
        ({1: 10.0, 2: 20.0, 4: None}, [1, 2, 4], 2),
    ],
)
def test_micro_batches_double_until_memory_ends_or_they_are_no_faster(monkeypatch, sizes, tried, best):
    """Speeds made up; then the measurement uses the fastest one."""

    def attempt(config, source, runtime):
        size = config.train.micro_batch_size
        assert config.train.global_batch_size == size and config.pld.draws_per_step == 1 and config.pld.theta_bar == 1
        return module.MicroBatch(size, sizes[size], 7)

    monkeypatch.setattr(module, "_try", attempt)
    found = bench(tiny_config(*SMALL, "pld.draws_per_step=2"), data=None, steps=5, search=True)
    assert [trial.sequences for trial in found.micro_batches] == tried
    assert found.micro_batch_size == best and found.sequences_per_step == 2 * best


def test_micro_batches_end_where_a_sampled_softmax_has_too_few_entries(monkeypatch):
    monkeypatch.setattr(module, "_try", lambda config, *_: module.MicroBatch(size := config.train.micro_batch_size, 10.0 * size, 7))
    config = tiny_config(*SMALL)
    config = config.replace(objective={"sampled_softmax": 4 * config.most_targets})
    with module.launch("cpu") as runtime:
        found = module.find_micro_batch(config, module.Source(config, None), runtime, lambda line: None)
        assert [trial.sequences for trial in found] == [1, 2]


def test_a_size_is_really_tried():
    config = module._with_micro_batch(module._dense(tiny_config(*SMALL)), 4, 1)
    with module.launch("cpu") as runtime:
        trial = module._try(config, module.Source(config, None), runtime)
    assert trial.sequences == 4 and trial.tokens_per_second > 0 and trial.peak_memory_bytes > 50e6


def test_memory_that_runs_out(monkeypatch):
    config = module._with_micro_batch(module._dense(tiny_config(*SMALL)), 4, 1)
    with module.launch("cpu") as runtime:
        source = module.Source(config, None)
        with monkeypatch.context() as patched:
            patched.setattr(module, "device_memory_bytes", lambda device, sharing: 1000)
            assert module._try(config, source, runtime).tokens_per_second is None

        def full(*arguments):
            raise torch.OutOfMemoryError("no")

        monkeypatch.setattr(module, "place", full)
        assert module._try(config, source, runtime).tokens_per_second is None
    with pytest.raises(DeviceError, match="out of memory with a single sequence"):
        bench(tiny_config(*SMALL), data=None, steps=5, search=True)


def test_refusals():
    with pytest.raises(UsageError, match="--steps: must be at least 5, not 4"):
        bench(tiny_config(), data=None, steps=4)
    for change in ("data.layout=nsp-pairs", "data.packing=documents"):
        with pytest.raises(UsageError, match="random tokens have no documents"):
            bench(tiny_config(change), data=None, steps=5)


def test_random_tokens_are_ordinary_and_the_same_each_time():
    one, other = random_stream(50), random_stream(50)
    assert one.slice(10, 20).tolist() == one.take(torch.tensor([10]).numpy(), 10)[0].tolist() == other.slice(10, 20).tolist()
    tokens = one.slice(0, one.num_tokens)
    assert (tokens.min(), tokens.max()) == (5, 49)


def test_the_modes_train_one_model_with_one_optimizer(monkeypatch):
    seen = []
    assemble = module.assemble

    def watched(*arguments, **named):
        seen.append(assemble(*arguments, **named))
        return seen[-1]

    monkeypatch.setattr(module, "assemble", watched)
    bench(tiny_config(*SMALL), data=None, steps=5)
    dense, dropped = seen
    assert dense.model is dropped.model and dense.optimizer is dropped.optimizer
    assert dense.schedule.theta_bar == 1 and dropped.schedule == dataclasses.replace(dropped.schedule, time="constant", theta_bar=0.4)


@pytest.mark.parametrize(
    ("changes", "theta"),
    [
        (("pld.schedule=growing",), 0.4),
        (("pld.schedule=growing", "pld.recovery_fraction=0.5"), 0.4),
        (("pld.schedule=constant", "pld.recovery_fraction=0.9"), 0.4),
        (("pld.schedule=exponential", "pld.gamma=0.1", "train.total_steps=10", "pld.recovery_fraction=0.2"), 0.4 + 0.6 * math.exp(-0.7)),
        (("pld.schedule=linear", "train.total_steps=10", "pld.recovery_fraction=0.2"), 1 - 0.6 * 7 / 8),
    ],
)
def test_as_many_blocks_are_dropped_as_in_the_step_of_the_run_that_drops_most(monkeypatch, changes, theta):
    seen = []
    monkeypatch.setattr(module, "assemble", lambda *a, inner=module.assemble, **named: seen.append(inner(*a, **named)) or seen[-1])
    monkeypatch.setattr(module, "_measured_peak", lambda *_: 1e12)
    config = tiny_config(*SMALL, *changes)
    found = bench(config, data=None, steps=10)
    schedule, run = seen[1].schedule, config.pld_schedule
    assert [schedule.theta(step) for step in range(12)] == [pytest.approx(theta)] * 12
    assert theta == pytest.approx(min(run.theta(step) for step in range(run.total_steps)))
    plans = [[schedule.plan(step, 0, seed=0).kept_blocks for step in range(first, first + 2)] for first in range(2, 12, 2)]
    assert found.modes[1].kept_blocks_by_part == tuple(sum(part) / 2 for part in plans) and found.modes[1].kept_blocks < 2.5
    assert found.modes[0].kept_blocks_by_part == (3.0,) * 5


def test_a_run_that_never_drops_before_its_recovery_has_one_mode(monkeypatch):
    """A single step, which is recovery, or at which theta is still 1."""
    monkeypatch.setattr(module, "_measured_peak", lambda *_: 1e12)
    for change in ("pld.recovery_fraction=0.5", "pld.schedule=exponential"):
        assert len(bench(tiny_config(*SMALL, change, "train.total_steps=1"), data=None, steps=5).modes) == 1


def test_packed_documents_are_counted_by_what_attends_to_what(prepared, monkeypatch):
    monkeypatch.setattr(module, "_measured_peak", lambda *_: 1e12)
    size = open_prepared(prepared).vocab_size
    config = tiny_config(*SMALL, f"model.vocab_size={size}", "data.packing=documents", "pld.schedule=constant")
    found = bench(config, data=prepared, steps=5)
    samples = module.Source(config, open_prepared(prepared)).samples(config)[32]
    assert samples.attended_tokens < 0.9 * 32
    rows = samples.rows(np.arange(2, 12))  # two a step, after the step that warms up
    lengths = [np.bincount(row)[1:] for row in rows.segments]
    pairs, tokens = (sum(int((length**power).sum()) for length in lengths) for power in (2, 1))
    flops, (dense, dropped) = config.flops, found.modes
    assert dense.tokens_per_step == tokens / 5
    assert sum(dense.flops_per_step) == pytest.approx(tokens * flops.head + 3 * (tokens * flops.matrices + pairs * 12 * 32))
    assert dropped.kept_blocks == sum(dropped.kept_blocks_by_part) / 5 and dropped.kept_blocks % 0.2 == pytest.approx(0, abs=1e-9)
    scheduled = flops.attending_to(samples.attended_tokens)
    assert found.whole_run_saved == pytest.approx(scheduled.total_saved(config.pld_schedule.mean_kept_fraction))
    assert found.whole_run_saved < flops.total_saved(0.6)
