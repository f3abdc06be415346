from __future__ import annotations

import pytest

from pldcli.comparison.comparison import compare_runs
from pldcli.comparison.runs import Run
from pldcli.comparison.words import incomparable
from pldcli.config import describe_dropping
from tests.comparison.test_runs import START, made_up_run
from tests.conftest import tiny_config

DENSE = "pld.theta_bar=1"


def differences(one: Run, other: Run) -> tuple[str, ...]:
    [contrast] = compare_runs([one, other]).contrasts
    return contrast.differs


def warnings(*runs: Run) -> tuple[str, ...]:
    return compare_runs(runs).warnings


@pytest.mark.parametrize(
    ("changes", "text"),
    [
        ([DENSE], "nothing dropped"),
        (["pld.theta_bar=0.5", "pld.schedule=constant"], "constant to theta_bar 0.5, depth rule paper, draw bernoulli: 2.00 of 3 blocks"),
        (["pld.theta_bar=0.5", "pld.gamma=0.001"], "gamma 0.001"),
        (["pld.theta_bar=0.5", "pld.schedule=growing", "pld.recovery_fraction=0.1"], "growing from theta 0.5, the last 10% at full depth"),
        (["pld.theta_bar=0.5", "pld.keep_first=1", "pld.keep_last=2"], "the first 1 and the last 2 always kept"),
        (["pld.draws_per_step=2"], "2 draws per step"),
        (["pld.residual=none"], "residuals not scaled"),
        (
            ["pld.schedule=expansion", "pld.stage_blocks=random", "pld.depth_stages=[{until: 0.5, blocks: 2}]", "pld.keep_first=1"],
            "2 random blocks until 50% of the run, then all, the first 1 always kept",
        ),
    ],
)
def test_what_is_dropped(changes: list[str], text: str) -> None:
    assert text in describe_dropping(tiny_config(*changes))


def test_stages_and_ramps_are_named_in_words() -> None:
    stages = "data.length_stages=[{until: 0.7, seq_len: 8, global_rope_theta: 10000}, {until: 0.9, seq_len: 16}]"
    rotary = ("model.position_embedding=rotary", "model.type_vocab_size=0", "model.feed_forward=geglu", "model.first_attention_norm=false")
    other = made_up_run("b", DENSE, *rotary, stages, "train.batch_ramp=0.25")
    assert differences(made_up_run("a", DENSE, *rotary), other) == (
        "shorter rows at first: 8 tokens at theta 10,000 until 70% of the run, 16 tokens until 90% of the run (baseline: none)",
        "share of the run in which the batch grows: 0.25 (baseline: 0.0)",
        "total tokens: 8,896 (baseline: 10,240)",
    )


def test_runs_that_differ_in_dropping_alone() -> None:
    dropping, rest = differences(made_up_run("a", DENSE), made_up_run("b"))
    assert dropping.startswith("dropping: exponential to theta_bar 0.5") and dropping.endswith("(baseline: nothing dropped)")
    assert rest == "nothing else in the configuration differs"


def test_what_changes_the_seconds_alone_is_named() -> None:
    changed = made_up_run("b", "runtime.checkpoint_activations=true")
    assert differences(made_up_run("a"), changed) == ("recomputing of activations: True (baseline: False)",)
    line = "seconds do not compare: recomputing of activations is not the same for all runs (false; true)"
    assert line in warnings(made_up_run("a"), changed)
    assert differences(made_up_run("a"), made_up_run("b", "checkpoint.background=false")) == ("nothing else in the configuration differs",)


def test_another_optimizer_and_warm_up_are_named() -> None:
    muon = made_up_run("b", "optim.name=muon", "optim.muon_learning_rate=0.01", "optim.warmup_steps=3")
    assert differences(made_up_run("a"), muon) == (
        "optimizer: muon (baseline: adamw)",
        "peak learning rate of Muon: 0.01 (baseline: 0.02)",
        "steps of warm-up: 3 (baseline: not given)",
    )


def test_each_other_difference_is_a_line() -> None:
    changes = ("model.norm=post", "optim.learning_rate=1e-4", "train.global_batch_size=16", "model.dropout=0.1", "optim.beta2=0.98")
    other = made_up_run(
        "b",
        DENSE,
        *changes,
        "model.num_hidden_layers=2",
        "train.seed=3",
        "checkpoint.keep=9",
        "train.micro_batch_size=4",
        starts=[{**START, "hardware": "an H100", "precision": "bf16", "threads": 8, "packages": {"torch": "2.14.0"}}],
    )
    assert differences(made_up_run("a", DENSE, "model.dropout=0"), other) == (
        "blocks: 2 (baseline: 3)",
        "LayerNorm: Post-LN (baseline: Pre-LN)",
        "dropout: 0.1 (baseline: 0.0)",
        "peak learning rate: 0.0001 (baseline: 0.001)",
        "optim.beta2: 0.98 (baseline: 0.999)",
        "batch: 16 (baseline: 8)",
        "total tokens: 20,480 (baseline: 10,240)",
        "seeds: 3 (baseline: 0)",
        "hardware: an H100 (baseline: a processor, 2 cores)",
        "precision: bf16 (baseline: fp32)",
        "threads: 8 (baseline: 1)",
        "torch: 2.14.0 (baseline: 2.13.0)",
    )


def test_alike_runs_on_unlike_text() -> None:
    other = made_up_run("b", DENSE, starts=[{**START, "data_fingerprint": "e" * 64}])
    assert differences(made_up_run("a", DENSE), other) == (
        "nothing else in the configuration differs",
        f"prepared data: {'e' * 12} (baseline: {'d' * 12})",
    )


@pytest.mark.parametrize(
    ("changes", "start", "reasons"),
    [
        ([], {"data_fingerprint": "e" * 64}, ["prepared data"]),
        ([], {"tokenizer_fingerprint": "u" * 64}, ["vocabulary"]),
        (["data.seq_len=16"], {}, ["tokens per row"]),
        (["eval.max_sequences=7"], {}, ["number of validation rows"]),
        (["eval.every_steps=5", "model.norm=post", "train.seed=4"], {}, []),
    ],
)
def test_what_keeps_losses_from_being_compared(changes: list[str], start: dict[str, str], reasons: list[str]) -> None:
    run, baseline = made_up_run("b", *changes, starts=[{**START, **start}]), made_up_run("a")
    assert incomparable(run, baseline) == reasons
    wanted = [f"the losses of b and a do not compare: other {reason}" for reason in reasons]
    assert [line for line in warnings(baseline, run) if "do not compare" in line] == wanted


def test_a_run_whose_surroundings_are_not_known() -> None:
    lines = warnings(made_up_run("a", DENSE), made_up_run("b", starts=[]))
    assert any(line.startswith("b has no environment.json") for line in lines)
    assert incomparable(made_up_run("b", "model.vocab_size=99", starts=[]), made_up_run("a")) == ["vocabulary"]


def test_nothing_to_warn_of() -> None:
    later = [{**START, "started": "2026-03-02T08:00:00+00:00"}]
    assert warnings(made_up_run("a", DENSE, frequency_loss=1.11), made_up_run("b", starts=later)) == ()


@pytest.mark.parametrize(
    ("run", "line"),
    [
        (
            made_up_run("b", losses=(4.0, 3.0), state="stopped"),
            "b is not finished: its last validation is at step 20 of 40, its learning rate not yet decayed",
        ),
        (made_up_run("b", losses=(4.0, 3.0), state="running"), "b is still running: its last validation is at step 20"),
        (made_up_run("b", losses=(4.0, 3.0)), "b is finished, but metrics.jsonl is cut off: its last validation is at step 20"),
        (made_up_run("b", unreadable_lines=2), "b: 2 line(s) of metrics.jsonl cannot be read and are left out"),
        (made_up_run("b", losses=(4.0, 3.0, 2.0, None)), "b diverged"),
        (
            made_up_run("b", frequency_loss=1.09),
            "b: the final loss is not 0.1 below that of token frequencies alone (1.0900): hardly anything was learned from context yet",
        ),
        (made_up_run("b", "train.total_steps=80"), "b sees 20,480 tokens, a 10,240: their final losses are not at equal tokens"),
        (made_up_run("b", starts=[{**START, "threads": 2}]), "seconds do not compare: threads is not the same for all runs (1; 2)"),
        (made_up_run("b", starts=[START, START]), "started more than once: b"),
    ],
)
def test_warnings(run: Run, line: str) -> None:
    assert [text for text in warnings(made_up_run("a", DENSE), run) if text.startswith(line)]


@pytest.mark.parametrize(("started", "warned"), [("2026-03-01T08:00:09+00:00", True), ("2026-03-01T08:00:11+00:00", False)])
def test_runs_side_by_side_are_found_by_their_clocks(started: str, warned: bool) -> None:
    beside = made_up_run("b", starts=[{**START, "started": started}])  # the first took ten seconds
    assert any("a and b ran at the same time" in line for line in warnings(made_up_run("a", DENSE), beside)) is warned
    elsewhere = made_up_run("b", starts=[{**START, "started": started, "hardware": "another"}])
    assert not any("at the same time" in line for line in warnings(made_up_run("a", DENSE), elsewhere))


@pytest.mark.parametrize("started", [None, "yesterday", "2026-03-01T08:00:00"])
def test_a_clock_that_cannot_be_read_is_no_error(started: str | None) -> None:
    lines = warnings(made_up_run("a", DENSE), made_up_run("b", starts=[{**START, "started": started}]))
    assert not any("at the same time" in line for line in lines)


def test_a_baseline_that_never_decays_is_easy_to_reach() -> None:
    lines = warnings(made_up_run("a", DENSE, "optim.schedule=constant"), made_up_run("b"))
    assert "the learning rate of a stays at its peak: its final loss is not its best, and easier to reach" in lines


def test_dropping_without_a_control() -> None:
    missing = "no control for b"
    assert any(line.startswith(missing) for line in warnings(made_up_run("a", DENSE, "model.norm=post"), made_up_run("b")))
    assert any(line.startswith(missing) for line in warnings(made_up_run("a", DENSE, "optim.learning_rate=1e-4"), made_up_run("b")))
    assert not any(line.startswith(missing) for line in warnings(made_up_run("a", DENSE), made_up_run("b")))


def test_one_seed_twice() -> None:
    lines = warnings(made_up_run("a", DENSE), made_up_run("b-0"), made_up_run("b-1"))
    assert "the same configuration ran several times with one seed (b-0, b-1): a seed counts once, by its mean" in lines
