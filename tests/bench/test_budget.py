from dataclasses import replace

import pytest

from pldcli.bench import budget as module
from pldcli.bench.budget import calibrate, step_times_by_part
from pldcli.bench.result import Bench, Mode
from pldcli.bench.step_time import StepTime, parse_seconds
from pldcli.errors import UsageError
from tests.conftest import tiny_config


@pytest.mark.parametrize(
    ("text", "seconds"),
    [("24h", 86400), ("90m", 5400), ("90min", 5400), ("1.5d", 129600), ("1h30m", 5400), ("1h 30m", 5400), ("45s", 45), ("2d12h", 216000)],
)
def test_times(text, seconds):
    assert parse_seconds(text, "--budget") == seconds


@pytest.mark.parametrize("text", ["", "24", "h", "24x", "1h30", "-1h", "0h", "one hour"])
def test_what_is_no_time(text):
    with pytest.raises(UsageError, match=r"--budget: .* is not a time; write 24h, 90m or 1h30m"):
        parse_seconds(text, "--budget")


def mode(name, seconds, optimizer, kept):
    phases = {"data": 0.0, "forward": seconds - optimizer, "backward": 0.0, "optimizer": optimizer, "other": 0.0}
    return Mode(name, (seconds,) * 5, 256.0, (1e6,) * 5, (kept,) * 5, phases, 1)


def measured(*modes, sequences=8):
    return Bench(modes, 8, (), 10, 3, sequences, 32, "fp32", False, "a machine", 1, 1, 1e9, "made up", 0.1, "random tokens")


@pytest.fixture
def on(monkeypatch):
    def set_(*modes, sequences=8):
        monkeypatch.setattr(module, "bench", lambda config, **_: measured(*modes, sequences=sequences))

    return set_


def test_a_dense_run_takes_its_step_time(on, tmp_path):
    on(mode("dense", 0.5, 0.1, 3.0))
    found = calibrate(tiny_config("pld.theta_bar=1"), data=tmp_path, seconds=100.0)
    assert (found.step_seconds, found.total_steps) == (0.5, 200)


def test_forward_passes_are_counted_and_the_optimizer_once(on, tmp_path):
    on(mode("dense", 0.5, 0.1, 3.0), sequences=2)  # the run's step has 8
    found = calibrate(tiny_config("pld.theta_bar=1"), data=tmp_path, seconds=171.0)
    assert found.step_seconds == pytest.approx(4 * 0.4 + 0.1) and found.total_steps == 100


def test_dropped_steps_count_as_the_schedule_has_them(on, tmp_path):
    """A dropped block takes 0.1 s; on average over the run so many are dropped."""
    on(mode("dense", 0.5, 0.1, 3.0), mode("dropped", 0.4, 0.1, 2.0))
    config = tiny_config("pld.theta_bar=0.4")
    found = calibrate(config, data=tmp_path, seconds=1000.0)
    long = tiny_config("pld.theta_bar=0.4", f"train.total_steps={found.total_steps}")
    assert found.step_seconds == pytest.approx(0.5 - 0.1 * 3 * (1 - long.pld_schedule.mean_kept_fraction), rel=1e-3)
    assert found.total_steps == int(1000.0 / found.step_seconds) > 2000


@pytest.mark.parametrize("change", ["pld.schedule=growing", "pld.recovery_fraction=0.9", "pld.theta_bar=0.99", "pld.keep_first=3"])
def test_steps_are_measured_with_half_of_the_blocks_dropped_whatever_the_schedule_drops(on, monkeypatch, tmp_path, change):
    asked = []
    on(mode("dense", 0.5, 0.1, 3.0), mode("dropped", 0.35, 0.1, 1.5))
    monkeypatch.setattr(module, "bench", lambda config, inner=module.bench, **named: asked.append(config) or inner(config, **named))
    config = tiny_config(change)
    found = calibrate(config, data=tmp_path, seconds=100.0)
    kept = {asked[0].pld_schedule.plan(step, 0, seed=0).kept_blocks for step in range(12)}
    assert kept == {1, 2}
    schedule = replace(config.pld_schedule, total_steps=found.total_steps)
    assert found.step_seconds == pytest.approx(0.5 - 0.1 * 3 * (1 - schedule.mean_kept_fraction))


def test_steps_of_every_length_and_batch_count_as_the_run_has_them(monkeypatch, tmp_path):
    """The first 30 % have half of the batch; 20 % more have sequences of 8 tokens, too, the rest those of 32, which take twice as long."""
    asked = []

    def bench(config, **_):
        asked.append((config.data.seq_len, config.data.length_stages))
        return measured(mode("dense", 0.5 if config.data.seq_len == 8 else 0.9, 0.1, 3.0), sequences=1024 // config.data.seq_len)

    monkeypatch.setattr(module, "bench", bench)
    changes = ("data.length_stages=[{until: 0.5, seq_len: 8}]", "train.batch_ramp=0.3", "train.initial_batch_size=4")
    found = calibrate(tiny_config("pld.theta_bar=1", *changes), data=tmp_path, seconds=25.0)
    # A measured step has 4 times the tokens of the run's: 0.1 + 0.4 / 4 and 0.1 + 0.8 / 4; and 0.1 + 0.4 / 8 in the ramp.
    assert asked == [(8, ()), (32, ())]
    assert found.total_steps == 106 and found.step_seconds == pytest.approx((31 * 0.15 + 22 * 0.2 + 53 * 0.3) / 106)


def test_a_stage_may_be_shorter_than_the_local_window(on, tmp_path):
    on(mode("dense", 0.5, 0.1, 3.0))
    local = (
        "model.position_embedding=rotary",
        "model.global_layers=2",
        "model.local_attention=16",
        "model.type_vocab_size=0",
        "model.feed_forward=geglu",
        "model.first_attention_norm=false",
    )
    config = tiny_config("pld.theta_bar=1", *local, "data.length_stages=[{until: 0.5, seq_len: 8}]")
    assert calibrate(config, data=tmp_path, seconds=25.0).total_steps > 1


def test_where_none_was_dropped_a_block_saves_nothing():
    """As may happen with a single block; the noise between both modes is not divided by nothing."""
    found = module.step_time(tiny_config(), measured(mode("dense", 0.5, 0.1, 3.0), mode("dropped", 0.49, 0.1, 3.0)))
    assert (found.dense_seconds, found.block_seconds) == (0.5, 0.0)


def test_no_step_fits(on, tmp_path):
    on(mode("dense", 5.0, 0.1, 3.0))
    with pytest.raises(UsageError, match=r"--budget: a step takes 5.0 s; allow more time"):
        calibrate(tiny_config("pld.theta_bar=1"), data=tmp_path, seconds=4.0)


def test_several_processes_are_refused(on, tmp_path, monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(UsageError, match="--budget: works with one process"):
        calibrate(tiny_config(), data=tmp_path, seconds=4.0)


def test_steps_are_really_measured(prepared, tmp_path):
    config = tiny_config("pld.theta_bar=0.4", "model.vocab_size=2048", "train.global_batch_size=8")
    found = calibrate(config, data=prepared, seconds=20.0)
    assert 0 < found.step_seconds < 5 and found.total_steps == max(1, int(20.0 / found.step_seconds))


def test_the_number_of_steps_belongs_to_the_run(prepared, tmp_path, pld, on):
    """It is set at the start; the same line later goes on with it, whatever the machine does then."""
    from pldcli import presets

    on(mode("dense", 0.5, 0.1, 3.0), mode("dropped", 0.4, 0.1, 2.0))
    line = ["pretrain", "--preset", "bert-tiny-pld", "--data", prepared, "--out", tmp_path / "run", "--budget", "3s"]
    line += ["model.hidden_size=16", "model.num_hidden_layers=3", "model.intermediate_size=32", "data.seq_len=32", "runtime.device=cpu"]
    line += ["train.global_batch_size=8", "eval.max_sequences=8", "model.num_attention_heads=2"]
    first = pld(*line)
    assert first.code == 0, first.err
    steps = presets.load(tmp_path / "run" / "config.yaml").train.total_steps
    assert steps == 7 and "7 steps in 3 s" in first.err
    on(mode("dense", 0.05, 0.01, 3.0))
    again = pld(*line)
    assert again.code == 0 and "7 steps, as the run that is there" in again.err and "is finished" in again.out
    assert pld(*line[:-1], "--budget", "soon").code == 2


def by_part(name, seconds, kept):
    return replace(mode(name, 0.0, 0.1, 0.0), step_seconds=seconds, kept_blocks_by_part=kept)


def test_each_part_counts_with_the_blocks_that_ran_in_it():
    """Part 2 was disturbed, dense and dropped alike; of three blocks one or two ran; a step has four forward passes of the measured one."""
    modes = by_part("dense", (0.5, 0.9, 0.5), (3.0,) * 3), by_part("dropped", (0.3, 0.7, 0.4), (1.0, 1.0, 2.0))
    approximately = [StepTime(pytest.approx(dense), pytest.approx(0.4)) for dense in (1.7, 3.3, 1.7)]
    assert step_times_by_part(tiny_config(), measured(*modes, sequences=2)) == approximately


def test_parts_in_which_nothing_was_dropped_say_nothing():
    modes = by_part("dense", (0.5, 0.5), (3.0, 3.0)), by_part("dropped", (0.5, 0.3), (3.0, 1.0))
    assert len(step_times_by_part(tiny_config(), measured(*modes, sequences=2))) == 1
