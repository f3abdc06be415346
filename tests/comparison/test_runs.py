from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import pytest

from pldcli.comparison.runs import Run, group_runs
from tests.conftest import tiny_config

START: Mapping[str, Any] = {
    "started": "2026-03-01T08:00:00+00:00",
    "hardware": "a processor, 2 cores",
    "device": "cpu",
    "precision": "fp32",
    "threads": 1,
    "processes": 1,
    "data_fingerprint": "d" * 64,
    "tokenizer_fingerprint": "t" * 64,
    "packages": {"torch": "2.13.0"},
}


def made_up_run(
    name: str = "a",
    *changes: str,
    losses: Sequence[float | None] = (4.0, 3.0, 2.0, 1.0),
    seconds_per_step: float = 2.0,
    starts: Sequence[Mapping[str, Any]] | None = None,
    frequency_loss: float | None = None,
    **more: Any,
) -> Run:
    """Make a run of 40 steps that was validated every 10 steps and logged every 5.

    A step has 256 tokens, a token 1000 executed FLOPs; the training loss is the next validation's plus 1.
    """
    config = tiny_config("train.total_steps=40", "eval.every_steps=10", *changes)

    rows: list[dict[str, Any]] = []
    noticed = {} if frequency_loss is None else {"eval/frequency_loss": frequency_loss}
    for step in range(5, 10 * len(losses) + 1, 5):
        loss = losses[(step - 1) // 10]
        spent = {"progress/tokens": 256 * step, "progress/executed_flops": 256e3 * step, "progress/train_seconds": seconds_per_step * step}
        rate = config.optim.learning_rate * (1 - step / 40)
        rows.append({"step": step, "train/loss": None if loss is None else loss + 1, "optim/learning_rate": rate, **spent})
        if step % 10 == 0:
            rows.append({"step": step, "eval/mlm_loss": loss, **noticed, **spent, "progress/wall_seconds": 10.0})
    known = {"state": "finished", "starts": tuple([START] if starts is None else starts), **more}
    return Run(rows=tuple(rows), name=name, path=f"runs/{name}", config=config, source=f"runs/{name}/metrics.jsonl", **known)


def test_what_a_run_comes_to() -> None:
    run = made_up_run(seconds_per_step=0.5)
    assert (run.final.step, run.final.loss, run.last_step, run.is_complete) == (40, 1.0, 40, True)
    assert (run.seconds_per_step, run.tokens_per_second, run.flops_per_token) == (0.5, 512.0, 1000.0)
    assert run.step_seconds_per_token == run.run_seconds_per_token == 0.5 / 256
    assert made_up_run(losses=(4.0, 3.0)).is_complete is False


def test_packed_documents_are_predicted_by_what_they_attend_to() -> None:
    """As the run wrote it down of its rows."""
    packed = made_up_run("a", "data.packing=documents", starts=[{**START, "attended_tokens": 20.5}])
    schedule, flops = packed.config.pld_schedule, packed.config.flops
    kept = 3 * schedule.mean_kept_fraction
    assert packed.predicted_flops_per_token == pytest.approx(flops.executed(kept) - kept * 12 * 32 * (32 - 20.5))
    assert made_up_run().predicted_flops_per_token == pytest.approx(flops.executed(kept)), "a run that wrote nothing down"


def test_time_per_step_is_the_median_so_one_slow_stretch_does_not_count() -> None:
    run = made_up_run()
    seconds = "progress/train_seconds"
    slow = tuple({**row, seconds: row[seconds] + 1000 * (row["step"] > 20)} for row in run.rows)
    assert replace(run, rows=slow).seconds_per_step == 2.0
    once = replace(run, rows=tuple(row for row in slow if row["step"] in (5, 40) and ("train/loss" in row) == (row["step"] == 5)))
    assert once.seconds_per_step is None and once.step_seconds_per_token is None


def test_the_loss_of_the_whole_model_is_told_from_sums() -> None:
    """With losses after fewer blocks, train/loss is their sum; with causal steps in between, those of one kind count."""
    kind = ("objective.kind=causal", "model.type_vocab_size=0", "model.embedding_norm=false", "model.lm_head=plain")
    causal = made_up_run("a", *kind, "objective.exits=[1]")
    rows = made_up_run().rows
    summed = tuple(row | {"train/loss": 9.0, "train/clm_loss": 5.0} if "train/loss" in row else row for row in rows)
    assert {one.loss for one in replace(causal, rows=summed).training} == {5.0}
    mixed = made_up_run("a", "objective.causal_share=0.5")
    some = tuple(row | {"train/clm_loss": 5.0} if row["step"] % 10 else row for row in rows)
    assert [one.step for one in replace(mixed, rows=some).training] == [10, 20, 30, 40]


def test_smoothing_averages_the_last_twentieth_of_the_run() -> None:
    run = made_up_run("a", "train.total_steps=200")  # 5 % are 10 steps: two rows
    assert [row.loss for row in run.smoothed] == [5.0, 5.0, 4.5, 4.0, 3.5, 3.0, 2.5, 2.0]
    assert [row.step for row in run.smoothed] == [row.step for row in run.training]
    assert run.final_training_loss == 2.0
    alone = made_up_run("a", "train.total_steps=40")
    assert [row.loss for row in alone.smoothed] == [row.loss for row in alone.training]


def test_smoothing_keeps_what_is_not_finite() -> None:
    run = made_up_run("a", "train.total_steps=400", losses=(4.0, None, 2.0))
    assert [row.loss for row in run.smoothed] == [5.0, 5.0, None, None, 4.0, 3.0]


def test_predicted_operations_follow_the_schedule() -> None:
    dense, dropping = made_up_run("a", "pld.theta_bar=1"), made_up_run("b", "pld.schedule=constant", "pld.theta_bar=0.5")
    flops = dense.config.flops
    assert dense.predicted_flops_per_token == flops.dense
    assert dropping.predicted_flops_per_token == pytest.approx(flops.executed(2.0))  # keep 5/6, 4/6 and 3/6 of 3 blocks
    growing = made_up_run("c", "pld.schedule=growing", "pld.theta_bar=0.5", losses=(4.0, 3.0))
    assert growing.predicted_flops_per_token < made_up_run("c", "pld.schedule=growing", "pld.theta_bar=0.5").predicted_flops_per_token


def test_learning_rate_share_is_that_of_the_row_before() -> None:
    run = made_up_run()
    assert run.learning_rate_share(20) == run.learning_rate_share(24.9) == pytest.approx(0.5)
    assert run.learning_rate_share(4) is None


def test_runs_that_differ_in_their_seed_alone_are_one_system() -> None:
    runs = [
        made_up_run("pld-seed0"),
        made_up_run("pre-0", "pld.theta_bar=1"),
        made_up_run("pld-seed1", "train.seed=1", "checkpoint.keep=7", "train.log_every_steps=3"),
        made_up_run("pre-1", "pld.theta_bar=1", "train.seed=1"),
        made_up_run("pre-hot", "pld.theta_bar=1", "optim.learning_rate=2e-3"),
    ]
    systems = group_runs(runs)
    assert [(system.name, [run.name for run in system.runs], system.seeds) for system in systems] == [
        ("pld", ["pld-seed0", "pld-seed1"], (0, 1)),
        ("pre", ["pre-0", "pre-1"], (0, 1)),
        ("pre-hot", ["pre-hot"], (0,)),
    ]


@pytest.mark.parametrize("change", ["eval.max_sequences=7", "train.total_steps=41", "model.dropout=0.3", "runtime.precision=bf16"])
def test_any_other_difference_makes_another_system(change: str) -> None:
    assert len(group_runs([made_up_run("a"), made_up_run("b", change)])) == 2


def test_other_data_makes_another_system() -> None:
    other = [{**START, "data_fingerprint": "e" * 64}]
    assert len(group_runs([made_up_run("a"), made_up_run("b", "train.seed=1", starts=other)])) == 2


def test_runs_of_one_budget_may_have_other_numbers_of_steps() -> None:
    def run(name: str, steps: int, command: str) -> Run:
        return made_up_run(name, f"train.total_steps={steps}", starts=[{**START, "command": command}])

    commands = ["pld pretrain --budget 2h --data d", "pld pretrain --budget=2h", "pld pretrain --budget 3h", "pld pretrain"]
    runs = [run(name, 40 + number, command) for number, (name, command) in enumerate(zip("abcd", commands, strict=True))]
    assert [[run.name for run in system.runs] for system in group_runs(runs)] == [["a", "b"], ["c"], ["d"]]


@pytest.mark.parametrize(
    ("names", "common"),
    [
        (["x-seed0", "x-seed1"], "x"),
        (["x-s10", "x-s11"], "x"),
        (["x-lr-2-0", "x-lr-2-1"], "x-lr-2"),
        (["focus", "focus2"], "focus"),
        (["lr2", "lr2-again"], "lr2"),
        (["pld/seed-0", "pld/seed-1"], "pld"),
        (["first", "second"], "first"),
    ],
)
def test_a_system_has_the_name_that_its_runs_share(names: list[str], common: str) -> None:
    [system] = group_runs([made_up_run(name, f"train.seed={seed}") for seed, name in enumerate(names)])
    assert system.name == common


def test_systems_never_share_a_name() -> None:
    runs = [made_up_run("x-0"), made_up_run("x-1", "train.seed=1"), made_up_run("x", "model.dropout=0.3")]
    assert [system.name for system in group_runs(runs)] == ["x-0", "x"]


def test_numbers_of_a_system() -> None:
    [system] = group_runs(
        [
            made_up_run("a-0", finetuned={"rte": (0.5, 0.6)}),
            made_up_run("a-1", "train.seed=1", losses=(4.0, 3.0, 2.0, None), finetuned={"rte": (0.7,), "cola": (0.1,)}),
        ]
    )
    assert system.final_losses == (1.0,)
    assert system.finetuned == {"rte": (0.5, 0.6, 0.7), "cola": (0.1,)}
    assert system.mean("seconds_per_step") == 2.0
    assert system.mean("final_training_loss") == 2.0
