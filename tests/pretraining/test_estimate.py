import copy
from dataclasses import replace

import numpy as np
import pytest
import torch

from pldcli.data.prepared import open_prepared
from pldcli.pretraining import estimate as module
from pldcli.pretraining.estimate import estimate, fitting_micro_batch, measure_step_seconds
from pldcli.pretraining.pretrain import dry_run
from pldcli.runs.checkpoint import Position
from pldcli.system import workers
from pldcli.system.signals import StopRequest
from tests.conftest import made_up_stream, tiny_config, tiny_trainer

CPU = torch.device("cpu")


@pytest.fixture(autouse=True)
def a_step_takes_a_quarter_of_a_second(monkeypatch):
    monkeypatch.setattr(module, "measure_step_seconds", lambda *_: 0.25)


def test_the_numbers_of_a_run():
    config, trainer = tiny_config("pld.schedule=constant", "pld.theta_bar=0.4"), tiny_trainer()
    found = estimate(config, trainer)
    block = 4 * 33 * 32 + 33 * 64 + 65 * 32 + 4 * 32
    parameters = (64 + 512 + 2) * 32 + 64 + 3 * block + 64 + 33 * 32 + 64 + 64
    assert found.num_parameters == parameters
    per_block, head = 6 * (4 * 32**2 + 2 * 32 * 64) + 12 * 32 * 32, 6 * (32**2 + 64 * 32) * 0.15
    assert found.flops_per_token_dense == pytest.approx(3 * per_block + head)
    # keep probabilities 0.8, 0.6, 0.4
    assert found.flops_per_token_scheduled == pytest.approx(1.8 * per_block + head)
    assert (found.num_tokens, found.num_sequences, found.seconds) == (12 * 8 * 32, 96, 3.0)
    assert found.epochs == 96 / (made_up_stream().num_tokens // 30)
    assert found.checkpoint_bytes == 12 * parameters and found.disk_bytes == 3 * 12 * parameters + 4 * parameters
    assert found.memory_bytes > 16 * parameters


def test_packed_documents_are_counted_by_what_they_attend_to():
    changes = ("data.packing=documents", "pld.schedule=constant", "pld.theta_bar=0.4")
    config, trainer = tiny_config(*changes), tiny_trainer(*changes)
    found = estimate(config, trainer)
    samples = trainer.batches.samples[32]
    segments = samples.rows(np.arange(samples.num_sequences)).segments
    lengths = np.concatenate([np.bincount(row)[1:] for row in segments])
    attended = (lengths**2).sum() / lengths.sum()
    per_block, head = 6 * (4 * 32**2 + 2 * 32 * 64) + 12 * 32 * attended, 6 * (32**2 + 64 * 32) * 0.15
    assert attended < 0.9 * 32
    assert found.flops_per_token_dense == pytest.approx(3 * per_block + head)
    assert found.flops_per_token_scheduled == pytest.approx(1.8 * per_block + head)


def test_checkpoints_are_as_large_as_said(tmp_path):
    from pldcli.runs import checkpoint
    from pldcli.runs.checkpoint import Position
    from pldcli.system.signals import StopRequest

    trainer = tiny_trainer("pld.theta_bar=1", "train.total_steps=1")
    list(trainer.steps(Position(), observe=lambda step: True, stop=StopRequest()))
    held = checkpoint.hold(
        Position(1), tiny_config(), trainer.model, trainer.optimizer, scaler={}, guard={}, data_fingerprint="", tokenizer_fingerprint=""
    )
    path = checkpoint.write(tmp_path, held, keep=1)
    size = sum(file.stat().st_size for file in path.iterdir())
    assert size == pytest.approx(estimate(tiny_config(), trainer).checkpoint_bytes, rel=0.1)


def test_measuring_leaves_no_trace():
    trainer, fresh = tiny_trainer(), tiny_trainer()
    seconds = measure_step_seconds(trainer, tiny_config())
    assert 0 < seconds < 10
    for ours, theirs in zip(trainer.model.parameters(), fresh.model.parameters(), strict=True):
        assert torch.equal(ours, theirs) and ours.grad is None
    assert not trainer.optimizer.state


def test_measured_time_is_weighed_by_the_schedule(monkeypatch):
    """A model of which a block takes 2 s, and the rest 1 s, for a forward and backward of 8 sequences."""
    now = 0.0
    monkeypatch.setattr(module.time, "perf_counter", lambda: now)
    trainer = tiny_trainer("train.micro_batch_size=8")

    def forward_backward(batch, plan, counts):
        nonlocal now
        now += (1.0 + 2.0 * sum(plan.gates)) * len(batch.input_ids) / 8

    monkeypatch.setattr(trainer, "forward_backward", forward_backward)
    config = tiny_config("pld.schedule=constant", "pld.theta_bar=0.4")
    assert measure_step_seconds(trainer, config) == pytest.approx(1 + 2 * 1.8)
    assert measure_step_seconds(trainer, tiny_config("pld.theta_bar=1", "train.global_batch_size=32")) == pytest.approx(4 * 7)
    trainer.batches = replace(trainer.batches, world_size=2)
    assert measure_step_seconds(trainer, config) == pytest.approx((1 + 2 * 1.8) / 2)


@pytest.mark.parametrize("optimizer", ["adamw", "muon", "lamb", "stable-adamw"])
def test_updates_are_measured_without_one(optimizer, monkeypatch):
    """An update takes 3 s and 4 s for each block that has gradients; weights, also those of a trainer that goes on, stay as they were."""
    now = 0.0
    monkeypatch.setattr(module.time, "perf_counter", lambda: now)
    changes = ("pld.schedule=constant", "pld.theta_bar=0.4", f"optim.name={optimizer}")
    trainer = tiny_trainer(*changes)
    for _, one in zip(range(2), trainer.steps(Position(), observe=lambda step: True, stop=StopRequest()), strict=False):
        assert one.grad_norm > 0
    step = type(trainer.optimizer).step

    def timed_step(self):
        nonlocal now
        now += 3.0 + 4.0 * sum(block.ffn_output.weight.grad is not None for block in trainer.model.blocks)
        step(self)

    monkeypatch.setattr(type(trainer.optimizer), "step", timed_step)
    state = copy.deepcopy([*trainer.model.state_dict().values(), *trainer.optimizer.state_dict()["state"].values()])
    assert measure_step_seconds(trainer, tiny_config(*changes)) == pytest.approx(3 + 4 * 1.8)
    assert trainer.optimizer.param_groups[0]["lr"] > 0
    for before, after in zip(state, [*trainer.model.state_dict().values(), *trainer.optimizer.state_dict()["state"].values()], strict=True):
        torch.testing.assert_close(before, after, rtol=0, atol=0)


def test_one_process_stands_for_those_that_would_be_started(prepared, monkeypatch):
    threads = []
    monkeypatch.setattr(module, "measure_step_seconds", lambda *_: threads.append(torch.get_num_threads()) or 1.0)
    monkeypatch.setattr(module, "device_memory_bytes", lambda device, sharing: (1 << 30) // sharing)
    monkeypatch.setattr(workers, "available_cores", lambda: 8)
    monkeypatch.delenv("OMP_NUM_THREADS")
    data = open_prepared(prepared)

    def found(processes, sharding):
        config = tiny_config("model.vocab_size=512", "train.global_batch_size=256", f"runtime.sharding={sharding}")
        return dry_run(config, prepared=data, processes=processes)

    one, four, full, hybrid = found(1, "none"), found(4, "none"), found(4, "full"), found(4, "hybrid")
    assert [it.world_size for it in (one, four, full, hybrid)] == [1, 4, 4, 4]
    assert [it.micro_batch_size * it.micro_steps for it in (one, four, full, hybrid)] == [256, 64, 64, 64]
    assert four.memory_bytes - full.memory_bytes == 12 * one.num_parameters and full.memory_bytes == hybrid.memory_bytes
    assert threads == [1, 2, 2, 2] and torch.get_num_threads() == 1
    monkeypatch.setattr(module, "device_memory_bytes", lambda device, sharing: (16 << 20) // sharing)
    assert found(4, "none").micro_batch_size < four.micro_batch_size, "they share the host's memory"


def test_what_a_user_wants_to_know():
    trainer = tiny_trainer()
    usual = replace(estimate(tiny_config(), trainer), epochs=40.0, seconds=86_400.0)
    assert usual.warnings == []
    [line] = replace(usual, seconds=86_401.0 * 3).warnings
    assert "about 3.0 days here" in line
    [line] = replace(usual, epochs=1234.5).warnings
    assert "passes over the text 1,234 times" in line
    assert len(replace(usual, epochs=41.0, seconds=1e9).warnings) == 2


def test_how_many_sequences_fit(monkeypatch):
    assert fitting_micro_batch(tiny_config(), 10**5, CPU) == 4096 // 32
    assert fitting_micro_batch(tiny_config("data.seq_len=512"), 10**5, CPU) == 8
    assert fitting_micro_batch(tiny_config("objective.sampled_softmax=51"), 10**5, CPU) == 10  # up to 5 targets each
    memory = 10**6 * 16 + 40 * 10**6
    monkeypatch.setattr(module, "device_memory_bytes", lambda device, sharing: memory // sharing)
    few = fitting_micro_batch(tiny_config(), 10**6, CPU)
    assert 1 <= few < 128
    assert fitting_micro_batch(tiny_config("model.num_hidden_layers=6"), 10**6, CPU) < few
    assert fitting_micro_batch(tiny_config(), 10**5, CPU, sharing=2) < fitting_micro_batch(tiny_config(), 10**5, CPU)
    assert fitting_micro_batch(tiny_config(), 10**9, CPU) == 1, "never none"
