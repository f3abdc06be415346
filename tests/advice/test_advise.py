from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import yaml

from pldcli import presets
from pldcli.advice import advise as module
from pldcli.advice import evidence as record
from pldcli.advice.advise import Advice, advise
from pldcli.advice.evidence import Comparison, Evidence, Recorded, body_parameters
from pldcli.advice.law import Law, Point, fit, fresh_tokens, leave_one_out
from pldcli.bench.budget import Calibration
from pldcli.config import Config
from pldcli.data.prepared import PreparedData, open_prepared
from pldcli.errors import UsageError

FLOPS_PER_SECOND = 1e10
SHAPES = {1: (1, 16), 2: (2, 32), 3: (4, 64)}
LAW = Law(floor=0.2, a=0.02, alpha=0.5, b=0.1, beta=0.5)


def shape(number: int) -> dict[str, int]:
    blocks, width = SHAPES[number]
    sizes = {"num_hidden_layers": blocks, "hidden_size": width, "num_attention_heads": 2, "intermediate_size": 2 * width}
    return {f"model.{name}": value for name, value in sizes.items()}


def run(number: int, tokens: float, **recipe: Any) -> Recorded:
    overrides = [f"{key}={value}" for key, value in shape(number).items()]
    model = presets.resolve("modern-tiny-preln", overrides).config
    parameters = body_parameters(model)
    settings = {**shape(number), **{key.replace("__", "."): value for key, value in recipe.items()}}
    loss = 7.0 * LAW.loss(Point(parameters, 512, tokens))
    return Recorded("modern-tiny", settings, parameters, int(tokens), 10**9, loss, 7.0, 512)


EVIDENCE = Evidence(
    text="a text",
    runs=(
        *(run(number, tokens, train__global_batch_size=4) for number in (1, 2, 3) for tokens in (1e5, 4e5, 2e6)),
        *(run(number, 2e7, train__global_batch_size=8, optim__muon_learning_rate=0.01) for number in (1, 2, 3)),
    ),
    comparisons=(),
)


@pytest.fixture
def timed(monkeypatch: pytest.MonkeyPatch) -> list[Config]:
    """A machine of so many FLOPs a second, and what it was asked to time."""
    asked: list[Config] = []

    def calibrate(config: Config, *, data: PreparedData, seconds: float) -> Calibration:
        asked.append(config)
        tokens = config.train.global_batch_size * config.data.seq_len
        step_seconds = config.flops.dense * tokens / FLOPS_PER_SECOND
        if step_seconds > seconds:
            raise UsageError("a step takes too long", where="--budget")
        return Calibration(step_seconds, int(seconds / step_seconds))

    monkeypatch.setattr(module, "calibrate", calibrate)
    return asked


def names(advice: Advice) -> list[str]:
    return [candidate.name for candidate in advice.candidates]


def test_batches_that_only_gate_groups_would_not_divide(prepared: Path, timed: list[Config]) -> None:
    """Large sizes are shipped with four gate groups a step; what drops nothing has no gates."""
    advice = advise(open_prepared(prepared), seconds=1e9, overrides=["train.global_batch_size=10"], evidence=EVIDENCE)
    large = next(one for one in advice.candidates if one.name == "22 x 768")
    assert large.config.train.global_batch_size == 10 and large.config.pld.draws_per_step == 1


def test_models_that_are_one_with_what_was_asked_are_listed_once(prepared: Path, timed: list[Config]) -> None:
    overrides = ["model.num_hidden_layers=4", "model.num_attention_heads=2", "model.intermediate_size=128"]
    advice = advise(open_prepared(prepared), seconds=60.0, overrides=overrides, evidence=EVIDENCE)
    assert len(set(names(advice))) == len(names(advice)) and {"4 x 16", "4 x 32", "4 x 64"} <= set(names(advice))
    again = advise(open_prepared(prepared), seconds=60.0, overrides=["model.hidden_size=64", *overrides], evidence=EVIDENCE)
    assert names(again) == ["4 x 64"]


def test_the_preset_is_one_that_can_be_trained(prepared: Path, timed: list[Config], tmp_path: Path) -> None:
    """Checkpoints that are kept for good are saved; tokens of a batch that grows are counted."""
    overrides = ["checkpoint.keep_every_steps=1000", "train.batch_ramp=0.9", "train.initial_batch_size=1"]
    advice = advise(open_prepared(prepared), seconds=60.0, overrides=overrides, evidence=EVIDENCE)
    path = tmp_path / "auto.yaml"
    path.write_text(advice.preset("pld advise"))
    config = presets.resolve(str(path), from_data={"model.vocab_size": 512}).config
    assert 1000 % config.checkpoint.every_steps == 0 and config.checkpoint.every_steps > 1
    best = advice.candidates[0]
    assert best.tokens == config.curriculum.num_tokens < config.train.total_steps * config.train.global_batch_size * config.data.seq_len


def test_what_ends_lowest_is_chosen_and_timed(prepared: Path, timed: list[Config]) -> None:
    data = open_prepared(prepared)
    advice = advise(data, seconds=60.0, evidence=EVIDENCE)
    best = advice.candidates[0]
    # Of the larger ones that are shipped not one step fits.
    assert sorted(names(advice)) == ["1 x 16", "2 x 32", "4 x 64", "8 x 128"]
    assert advice.candidates[0].is_timed and sum(candidate.is_timed for candidate in advice.candidates) == 2  # the smallest and the largest
    shares = [candidate.share for candidate in advice.candidates]
    assert shares == sorted(shares)
    # The machine is as fast for all: what the law says of the tokens that fit decides.
    unique = data.stream("train").num_tokens
    for candidate in advice.candidates:
        config = candidate.config
        assert candidate.tokens == pytest.approx(60.0 * FLOPS_PER_SECOND / config.flops.dense, abs=config.train.global_batch_size * 128)
        assert candidate.share == pytest.approx(
            LAW.loss(Point(body_parameters(config), 512, fresh_tokens(candidate.tokens, unique))), rel=0.01
        )
    assert advice.error == leave_one_out([one.point for one in EVIDENCE.runs])
    loss, margin = advice.expected_loss(best)
    assert loss == pytest.approx(best.share * advice.unigram_loss) and margin == pytest.approx(2 * advice.error * loss)
    # The smallest one twice: only its first steps say whose recipe it takes.
    assert [one.model.hidden_size for one in timed] == [16, 16, 64]


def test_a_shape_that_only_the_law_knows_is_not_chosen(prepared: Path, timed: list[Config]) -> None:
    data = open_prepared(prepared)
    best = advise(data, seconds=60.0, evidence=EVIDENCE).candidates[0]
    runs = tuple(replace(one, is_candidate=one.shape != best.model.shape) for one in EVIDENCE.runs)
    without = advise(data, seconds=60.0, evidence=replace(EVIDENCE, runs=runs))
    assert best.name not in names(without) and len(without.candidates) == 3
    assert without.error == leave_one_out([one.point for one in EVIDENCE.runs])


def test_a_machine_that_is_slow_with_small_models(prepared: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """By the speed of the smallest model no other one would be worth a trial."""

    def calibrate(config: Config, *, data: PreparedData, seconds: float) -> Calibration:
        speed = FLOPS_PER_SECOND / (3 if config.model.hidden_size == 16 else 1)
        step_seconds = config.flops.dense * config.train.global_batch_size * config.data.seq_len / speed
        return Calibration(step_seconds, int(seconds / step_seconds))

    monkeypatch.setattr(module, "calibrate", calibrate)
    law = Law(floor=0.05, a=0.02, alpha=0.3, b=0.1, beta=0.5)
    runs = tuple(replace(one, loss=7.0 * law.loss(one.point)) for one in EVIDENCE.runs)
    advice = advise(open_prepared(prepared), seconds=10.0, evidence=replace(EVIDENCE, runs=runs))
    assert advice.candidates[0].name == "2 x 32" and advice.candidates[0].is_timed


def test_more_time_chooses_a_larger_model(prepared: Path, timed: list[Config]) -> None:
    data = open_prepared(prepared)
    widths = [advise(data, seconds=seconds, evidence=EVIDENCE).candidates[0].config.model.hidden_size for seconds in (0.5, 20.0, 3000.0)]
    assert widths == sorted(widths) and widths[0] < widths[-1]


def test_the_recipe_is_that_of_the_nearest_run(prepared: Path, timed: list[Config]) -> None:
    data = open_prepared(prepared)
    short, long = (advise(data, seconds=seconds, evidence=EVIDENCE).candidates for seconds in (1.0, 2500.0))
    for candidates, batch in ((short, 4), (long, 8)):
        mine = next(one for one in candidates if one.is_timed and one.recipe)
        assert mine.config.train.global_batch_size == batch
    assert "optim.muon_learning_rate" in next(one for one in long if one.recipe).recipe


def test_a_sampled_softmax_of_the_recipe_is_told(prepared: Path, timed: list[Config]) -> None:
    runs = tuple(replace(one, settings={**one.settings, "objective.sampled_softmax": 100}) for one in EVIDENCE.runs)
    for evidence, is_told in ((EVIDENCE, False), (replace(EVIDENCE, runs=runs), True)):
        reasons = advise(open_prepared(prepared), seconds=4.0, evidence=evidence).reasons
        assert any("30% masked, a softmax over 100 entries, Muon" in reason for reason in reasons) is is_told


def test_the_cheapest_model_has_the_recipe_of_the_nearest_run(prepared: Path, timed: list[Config]) -> None:
    """It is timed before anything is known of how many tokens it will read."""
    alone = replace(EVIDENCE, runs=tuple(one for one in EVIDENCE.runs if one.shape == shape(1)) * 2)
    (best,) = (one for one in advise(open_prepared(prepared), seconds=400.0, evidence=alone).candidates if one.name == "1 x 16")
    assert best.tokens > 1e7 and best.recipe["train.global_batch_size"] == 8


def test_the_preset_is_the_choice(prepared: Path, timed: list[Config], tmp_path: Path) -> None:
    data = open_prepared(prepared)
    advice = advise(data, seconds=30.0, overrides=["data.seq_len=64", "model.local_attention=64"], evidence=EVIDENCE)
    best = advice.candidates[0]
    assert best.config.data.seq_len == 64
    text = advice.preset("pld advise --budget 30s")
    assert text.startswith("# Chosen by: pld advise --budget 30s\n# Expected: validation loss ")
    path = tmp_path / "auto.yaml"
    path.write_text(text, encoding="utf-8")
    config = presets.resolve(str(path), from_data={"model.vocab_size": data.vocab_size}).config
    assert (config.model, config.optim, config.train, config.pld) == (
        best.config.model,
        best.config.optim,
        best.config.train,
        best.config.pld,
    )
    assert config.eval.every_steps == max(1, config.train.total_steps // 10)
    assert yaml.safe_load(text)["extends"] == ["modern-tiny", "preln"]


def test_outside_the_evidence_it_says_so(prepared: Path, timed: list[Config]) -> None:
    data = open_prepared(prepared)
    inside, outside = (advise(data, seconds=seconds, evidence=EVIDENCE) for seconds in (2.0, 1e6))
    assert inside.candidates[0].is_on_record and not any("outside the evidence" in reason for reason in inside.reasons)
    assert not outside.candidates[0].is_on_record
    assert "outside the evidence, which is runs of 100 k to 20 M tokens on a text: the loss is a guess" in outside.reasons
    assert any("± is 2 standard errors" in reason for reason in inside.reasons)
    assert "(a guess) after" in outside.preset("x") and "±" not in outside.preset("x").splitlines()[1]


@pytest.mark.parametrize(
    ("overrides", "unlike"),
    [
        (["data.seq_len=256", "optim.name=adamw"], "data.seq_len=256, optim.name=adamw"),
        (["objective.mask_probability=0.15"], "objective.mask_probability=0.15"),
        (["train.seed=3", "runtime.precision=fp32", "data.seq_len=128"], ""),
    ],
)
def test_settings_that_no_run_had_make_it_a_guess(prepared: Path, timed: list[Config], overrides: list[str], unlike: str) -> None:
    advice = advise(open_prepared(prepared), seconds=4.0, overrides=overrides, evidence=EVIDENCE)
    assert advice.candidates[0].is_on_record is not bool(unlike)
    assert any(f"no run with {unlike}: " in reason for reason in advice.reasons) is bool(unlike)
    assert any("but for what was asked" in reason for reason in advice.reasons) is bool(unlike)


@pytest.mark.parametrize(
    ("differences", "system", "words"),
    [
        ((), "preln", "no run on record is about as deep, with about as large a vocabulary, and read about as many tokens"),
        ((("pld", -0.1), ("pld", -0.1)), "preln", "nothing is dropped"),  # two pairs are not enough
        ((("pld", -0.1), ("pld", -0.02), ("pld", -0.06)), "pld", "pld -0.060 nats (3)"),
        ((("pld", -0.1), ("pld", -0.1), ("pld", 0.02)), "preln", "nothing is dropped"),
        ((*(("pld", -0.1),) * 3, *(("expansion", -0.2), ("expansion", -0.3)) * 2), "expansion", "expansion -0.250 nats (4), pld -0.100"),
    ],
)
def test_dropping_is_advised_where_it_paid(
    prepared: Path, timed: list[Config], differences: tuple[tuple[str, float], ...], system: str, words: str
) -> None:
    data = open_prepared(prepared)
    tokens = advise(data, seconds=30.0, evidence=EVIDENCE).candidates[0].tokens
    blocks, entries = advise(data, seconds=30.0, evidence=EVIDENCE).candidates[0].config.model.num_hidden_layers, data.vocab_size
    near = tuple(Comparison(name, blocks, int(entries * 1.9), int(tokens * 1.3), difference) for name, difference in differences)
    unlike = ((blocks, entries, tokens * 10), (2 * blocks, entries, tokens), (blocks, entries * 3, tokens), (blocks, entries // 3, tokens))
    far = tuple(Comparison("growing", *one, -1.0) for one in unlike) * 3
    advice = advise(data, seconds=30.0, evidence=replace(EVIDENCE, comparisons=(*near, *far)))
    assert advice.system == system
    assert words in advice.reasons[-1]
    # What it bought is taken from runs, not from the law, which would credit it with tokens that cheaper steps read.
    mean = sum(value for name, value in differences if name == system) / max(1, sum(name == system for name, _ in differences))
    dense = advise(data, seconds=30.0, evidence=EVIDENCE)
    expected = dense.expected_loss(dense.candidates[0])[0] + mean
    assert advice.expected_loss(advice.candidates[0])[0] == pytest.approx(expected)
    assert presets.system(f"modern-tiny-{system}") == yaml.safe_load(advice.preset("x"))["extends"][1]


@pytest.mark.parametrize(("scores", "system"), [((-8.0, -1.0, -2.0), "preln"), ((-8.0, 0.1, 2.0), "expansion")])
def test_a_lower_loss_that_scores_lower_is_not_advised(prepared: Path, timed: list[Config], scores: tuple[float, ...], system: str) -> None:
    data = open_prepared(prepared)
    best = advise(data, seconds=30.0, evidence=EVIDENCE).candidates[0]
    model = best.config.model
    near = tuple(Comparison("expansion", model.num_hidden_layers, model.vocab_size, best.tokens, -0.1, "cola", score) for score in scores)
    advice = advise(data, seconds=30.0, evidence=replace(EVIDENCE, comparisons=(*near, replace(near[0], task="", score=0.0))))
    assert advice.system == system
    assert f"expansion -0.100 nats (4), cola {sum(scores) / 3:+.1f} points (3)" in advice.reasons[-1]
    assert ("expansion ends lower, and scores lower after fine-tuning" in advice.reasons[-1]) is (system == "preln")


def test_another_vocabulary_makes_it_a_guess(prepared: Path, timed: list[Config]) -> None:
    runs = tuple(replace(one, vocab_size=50_000) for one in EVIDENCE.runs)
    advice = advise(open_prepared(prepared), seconds=4.0, evidence=replace(EVIDENCE, runs=runs))
    assert not advice.candidates[0].is_on_record
    assert any("no run with a vocabulary of about " in reason for reason in advice.reasons)


def test_no_time_for_a_step(prepared: Path, timed: list[Config]) -> None:
    with pytest.raises(UsageError, match="--budget"):
        advise(open_prepared(prepared), seconds=1e-6, evidence=EVIDENCE)


def test_what_is_shipped_can_be_fitted() -> None:
    shipped = record.load()
    assert shipped.text
    law = fit([one.point for one in shipped.runs])
    for one in shipped.runs:
        assert law.loss(one.point) == pytest.approx(one.point.loss, rel=0.1)
        overrides = [f"{key}={value}" for key, value in one.settings.items()]
        config = presets.resolve(f"{one.size}-preln", overrides).config  # every setting is still known
        assert one.parameters == body_parameters(config)
    assert all(f"modern-tiny-{one.system}" in presets.names() for one in shipped.comparisons)
