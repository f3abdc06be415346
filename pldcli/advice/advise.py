"""Choose a model and its recipe for a budget of time: steps are timed here, and losses predicted from runs on record."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from statistics import fmean
from typing import Any, NamedTuple, TypeVar

import numpy as np
import yaml

from pldcli import presets
from pldcli.advice import evidence as record
from pldcli.advice.evidence import SHAPE, Comparison, Evidence, body_parameters
from pldcli.advice.law import Point, fit, fresh_tokens, leave_one_out
from pldcli.bench.budget import calibrate
from pldcli.config import RUN_CONTROL, Config, flatten
from pldcli.console.units import duration, quantity
from pldcli.curriculum import largest_divisor
from pldcli.data.prepared import PreparedData
from pldcli.engine.validation import fixed_batches, unigram_baseline
from pldcli.settings import parse, spelled

__all__ = ["FIRST_WORDS", "Advice", "Candidate", "advise"]

_Key = TypeVar("_Key")

FIRST_WORDS = "# Chosen by:"
"""Of a preset that was chosen here."""

_DENSE = "preln"
"""The system that drops nothing."""
_ONE_GROUP = {"pld.draws_per_step": 1}
"""Gates of the system that drops nothing: a batch needs not divide into as many groups as a size is shipped with."""
_SHIPPED = ("modern-tiny", "modern-small", "modern-base", "modern-large")
"""Sizes that are candidates though perhaps no run of theirs is on record."""
_TIMED = 5
"""So many candidates are timed at most; the others are estimated from FLOPs."""
_PROMISING = 1.05
"""An estimate this much above the best of what was timed may still turn out below it."""
_WORTH_TIMING = 100
"""Steps: timing a model of which fewer fit takes too much of the budget."""
_LEAST_PAIRS = 3
"""Comparisons that have to agree before dropping or growing is advised."""
_NEAR = 4.0
"""Runs whose tokens differ by no more than this factor say something about one another."""
_AS_DEEP = 1.5
"""Likewise of their blocks, for what dropping bought."""
_AS_FINE = 2.0
"""Likewise of their vocabularies: where words are made of many pieces depth is worth more, and growing late less."""
_BEYOND = 1.5
"""So far outside the runs on record a prediction still counts as within them."""
_WIDE = 2.0
"""Standard errors on both sides of a prediction."""
_CLOSE = 1.01
"""Predictions closer to one another than this are told as close."""
_SAVES = 10
"""Checkpoints and validations of the run."""
_TEACHING = ("model", "pld", "data", "objective", "optim", "train")
"""Sections whose settings change what is learnt, but for the seed and what says how a run is carried out."""


class _Model(NamedTuple):
    """A shipped size, and the shape that replaces its own, by dotted key."""

    size: str
    shape: dict[str, Any]


@dataclass(frozen=True)
class Candidate:
    """A model that was considered."""

    model: _Model
    """What it is made of."""
    recipe: dict[str, Any]
    """Settings beside the shape that differ from the size's, by dotted key."""
    config: Config
    """With as many steps as fit."""
    step_seconds: float
    is_timed: bool
    """Measured here; otherwise estimated from FLOPs."""
    share: float
    """Predicted loss as a share of the unigram baseline."""
    is_on_record: bool
    """Parameters, tokens and vocabulary lie within those of the runs on record, and no setting of the user's differs from theirs."""

    @property
    def name(self) -> str:
        """Name the shape as blocks x width."""
        return f"{self.config.model.num_hidden_layers} x {self.config.model.hidden_size}"

    @property
    def tokens(self) -> int:
        """Tokens that it reads in the budget."""
        return self.config.curriculum.num_tokens


@dataclass(frozen=True)
class Advice:
    """What to train, and why."""

    candidates: tuple[Candidate, ...]
    """The choice, which was timed; then the others, that with the lowest loss first."""
    system: str
    """Shipped system that says what is dropped."""
    unigram_loss: float
    """Of the data's unigram baseline, in nats."""
    error: float
    """Relative standard error of a prediction, at runs that the law was not fitted to."""
    reasons: tuple[str, ...]
    overrides: tuple[str, ...]
    """`KEY=VALUE` of every candidate, which the preset holds too."""

    def expected_loss(self, candidate: Candidate) -> tuple[float, float]:
        """Return the predicted validation loss, in nats, and how far to both sides the true one may lie."""
        loss = candidate.share * self.unigram_loss
        return loss, _WIDE * self.error * loss

    def written_loss(self, candidate: Candidate) -> str:
        """Write what `expected_loss` returns, or that it is a guess."""
        loss, margin = self.expected_loss(candidate)
        return f"{loss:.2f} ± {margin:.2f}" if candidate.is_on_record else f"{loss:.2f} (a guess)"

    def preset(self, command: str) -> str:
        """Write the choice as a preset file.

        Args:
            command: What was typed.
        """
        best = self.candidates[0]
        total_steps = best.config.train.total_steps
        comment = (  # after the first line
            f"Expected: validation loss {self.written_loss(best)} after {duration(total_steps * best.step_seconds)} of training.",
            *(f"{reason[0].upper()}{reason[1:]}." for reason in self.reasons),
        )
        asked, every = parse(self.overrides), max(1, total_steps // _SAVES)
        kept = asked.get("checkpoint.keep_every_steps")
        saves = {"checkpoint.every_steps": every if kept is None else largest_divisor(kept, every), "eval.every_steps": every}
        dense = _ONE_GROUP if self.system == _DENSE else {}
        flat = best.model.shape | best.recipe | dense | saves | asked | {"train.total_steps": total_steps}
        sections: dict[str, Any] = {"extends": [best.model.size, self.system]}
        for key, value in flat.items():
            section, _, name = key.partition(".")
            sections.setdefault(section, {})[name] = value
        return f"{FIRST_WORDS} {command}\n" + "".join(f"# {line}\n" for line in comment) + yaml.safe_dump(sections, sort_keys=False)


def advise(
    prepared: PreparedData,
    *,
    seconds: float,
    overrides: Sequence[str] = (),
    evidence: Evidence | None = None,
    report: Callable[[str], None] = lambda line: None,
) -> Advice:
    """Choose among the shapes on record and the shipped sizes what reaches the lowest loss within a budget.

    Args:
        prepared: What is to be trained on.
        seconds: Training time, without validation and saving.
        overrides: `KEY=VALUE` for every candidate.
        evidence: In place of what is shipped.
        report: Told what is going on.

    Raises:
        UsageError: A setting is wrong, or not even one step fits.
    """
    evidence = evidence or record.load()
    chooser = _Chooser(prepared, seconds, overrides, evidence)
    candidates = chooser.candidates(report)
    dense = candidates[0]
    unigram = unigram_baseline(prepared, fixed_batches(prepared, dense.config.data.seq_len))
    system, difference, of_system = _choose_system(dense, evidence.comparisons)
    if system != _DENSE:
        # The law knows dense runs alone, and would credit the other system with the tokens that its cheaper steps read.
        best = replace(chooser.time(dense, system), share=dense.share + difference / unigram)
        candidates = (best, *candidates[1:])
    reasons = (*_reasons(candidates, evidence, chooser), of_system)
    return Advice(candidates, system, unigram, chooser.error, reasons, tuple(overrides))


class _Chooser:
    """Configure, time and judge candidates."""

    def __init__(self, prepared: PreparedData, seconds: float, overrides: Sequence[str], evidence: Evidence) -> None:
        self.prepared, self.seconds, self.overrides, self.runs = prepared, seconds, overrides, evidence.runs
        self.unique_tokens = prepared.unique_tokens
        points = [run.point for run in self.runs]
        self.law, self.error = fit(points), leave_one_out(points)
        self.has_known_vocabulary = _is_within(prepared.vocab_size, [run.vocab_size for run in self.runs])

    def candidates(self, report: Callable[[str], None]) -> tuple[Candidate, ...]:
        """Time the most promising candidates and estimate the others.

        Raises:
            UsageError: Not even one step of one of them fits.
        """

        def timed(guess: Candidate) -> Candidate:
            report(f"timing {guess.name}")
            return self.time(guess)

        models = self._models()
        first = timed(self._estimate(models[0], []))
        # Only now it is known which run on record read about as many tokens: its recipe may be another one.
        again = self._estimate(models[0], [first])
        found = [first if again.recipe == first.recipe else timed(again)]
        # Small models have fewer FLOPs per second than large ones: both ends of what is on record say how many those between have.
        known = {tuple(run.shape.values()) for run in self.runs}
        large = [one for one in self._estimates(models, found) if tuple(one.model.shape.values()) in known]
        large = [one for one in large if one.config.train.total_steps >= _WORTH_TIMING]
        if large:
            found.append(timed(max(large, key=lambda one: one.config.flops.dense)))
        for _ in range(_TIMED - len(found)):
            promising = min(self._estimates(models, found), key=lambda guess: guess.share, default=None)
            if promising is None or promising.share >= _PROMISING * min(one.share for one in found):
                break
            found.append(timed(promising))
        best = min(found, key=lambda one: one.share)
        others = [*(one for one in found if one is not best), *self._estimates(models, found)]
        return (best, *sorted(others, key=lambda one: one.share))

    def time(self, guess: Candidate, system: str = _DENSE) -> Candidate:
        """Measure steps of a candidate here, with what another system drops, and count those that fit.

        Raises:
            UsageError: Not even one fits.
        """
        config = self._config(guess.model, guess.recipe, system)
        found = calibrate(config, data=self.prepared, seconds=self.seconds)
        return self._judge(replace(guess, step_seconds=found.step_seconds, is_timed=True), config, found.total_steps)

    def _models(self) -> list[_Model]:
        """List the shapes on record and those shipped, the cheapest first."""
        models = [_Model(run.size, run.shape) for run in self.runs if run.is_candidate]
        for size in _SHIPPED:
            shipped = presets.resolve(f"{size}-{_DENSE}").config.model
            models.append(_Model(size, {f"model.{name}": getattr(shipped, name) for name in SHAPE}))
        different: dict[tuple[int, ...], _Model] = {}
        for model in models:
            # With what the user asked for, models of several shapes may be one: then that which had the shape before, or else the first.
            shape = tuple(getattr(self._config(model, {}).model, name) for name in SHAPE)
            if shape not in different or (tuple(model.shape.values()) == shape != tuple(different[shape].shape.values())):
                different[shape] = model
        return [different[shape] for shape in sorted(different, key=lambda shape: shape[0] * shape[1] ** 2)]

    def _estimates(self, models: Sequence[_Model], timed: Sequence[Candidate]) -> list[Candidate]:
        """Estimate the models that were not timed and of which at least one step fits."""
        guesses = [self._estimate(model, timed) for model in models if all(model != one.model for one in timed)]
        return [guess for guess in guesses if guess.step_seconds < self.seconds]

    def _estimate(self, model: _Model, timed: Sequence[Candidate]) -> Candidate:
        """Predict from FLOPs how many tokens a model reads, and take over the recipe of the run on record that read about as many."""
        per_token = self._config(model, {}).flops.dense
        flops_per_second = _speed(timed, per_token)
        tokens = self.seconds * flops_per_second / per_token
        same = [run for run in self.runs if run.shape == model.shape]
        recipe = min(same, key=lambda run: abs(math.log(max(1.0, tokens) / run.tokens))).recipe if same else {}
        config = self._config(model, recipe)
        step_seconds = _step_flops(config) / flops_per_second
        guess = Candidate(model, recipe, config, step_seconds, is_timed=False, share=1.0, is_on_record=False)
        return self._judge(guess, config, max(1, int(self.seconds / step_seconds)))

    def _judge(self, candidate: Candidate, config: Config, total_steps: int) -> Candidate:
        """Predict the loss after so many steps."""
        config = config.replace(train={"total_steps": total_steps})
        parameters = body_parameters(config)
        tokens = fresh_tokens(config.curriculum.num_tokens, self.unique_tokens)
        softmax_share = config.softmax_entries / config.model.vocab_size
        share = self.law.loss(Point(parameters, config.model.vocab_size, tokens, softmax_share=softmax_share))
        inside = _is_within(parameters, [run.parameters for run in self.runs])
        inside &= _is_within(tokens, [run.point.tokens for run in self.runs])
        inside &= not self.unlike(candidate) and self.has_known_vocabulary
        return replace(candidate, config=config, share=min(1.0, share), is_on_record=inside)

    def unlike(self, candidate: Candidate) -> list[str]:
        """List the user's settings, as `KEY=VALUE`, that make a candidate learn otherwise than the runs on record of its size did."""
        keys = [key for key in parse(self.overrides) if key.partition(".")[0] in _TEACHING and key not in (*RUN_CONTROL, "train.seed")]
        asked, recorded = (flatten(self._config(candidate.model, candidate.recipe, overrides=given)) for given in (self.overrides, ()))
        return [f"{key}={asked[key]}" for key in keys if asked[key] != recorded[key]]

    def _config(self, model: _Model, recipe: dict[str, Any], system: str = _DENSE, *, overrides: Sequence[str] | None = None) -> Config:
        settings = model.shape | recipe | (_ONE_GROUP if system == _DENSE else {})
        texts = [f"{key}={spelled(value)}" for key, value in settings.items()]
        vocabulary = {"model.vocab_size": self.prepared.vocab_size}
        given = self.overrides if overrides is None else overrides
        if (kept := parse(given).get("checkpoint.keep_every_steps")) is not None:
            texts.append(f"checkpoint.every_steps={kept}")
        return presets.resolve(f"{model.size}-{system}", [*texts, *given], from_data=vocabulary).config


def _speed(timed: Sequence[Candidate], flops_per_token: float) -> float:
    """Read FLOPs per second off what was timed: between two by FLOPs per token, beyond them as at the last; 1 if nothing was."""
    speeds = sorted((one.config.flops.dense, _step_flops(one.config) / one.step_seconds) for one in timed)
    sizes, rates = zip(*speeds, strict=True) if speeds else ((1.0,), (1.0,))
    return float(np.exp(np.interp(math.log(flops_per_token), np.log(sizes), np.log(rates))))


def _step_tokens(config: Config) -> float:
    """Return the tokens of a step, their mean where the batch grows."""
    return config.curriculum.num_tokens / config.train.total_steps


def _step_flops(config: Config) -> float:
    return config.flops.dense * _step_tokens(config)


def _is_within(value: float, known: Sequence[float]) -> bool:
    return min(known) / _BEYOND <= value <= max(known) * _BEYOND


def _choose_system(best: Candidate, comparisons: Sequence[Comparison]) -> tuple[str, float, str]:
    """Choose whether to drop or to grow from what it bought in runs of about as many tokens; return that in nats and the reason, too.

    What ends lower in all of them is chosen, but not where all fine-tuned scores fell: a lower loss is not always a better encoder.
    """
    near = [
        one
        for one in comparisons
        if 1 / _NEAR <= best.tokens / one.tokens <= _NEAR
        and 1 / _AS_DEEP <= best.config.model.num_hidden_layers / one.num_hidden_layers <= _AS_DEEP
        and 1 / _AS_FINE <= best.config.model.vocab_size / one.vocab_size <= _AS_FINE
    ]
    if not near:
        unlike = "no run on record is about as deep, with about as large a vocabulary, and read about as many tokens"
        return _DENSE, 0.0, f"dropping and growing: {unlike}, so nothing is dropped"
    differences = _grouped((one.system, one.difference) for one in near)
    scores = _grouped(((one.system, one.task), one.score) for one in near if one.task)
    means = {name: fmean(values) for name, values in differences.items()}
    ranked = sorted(means, key=lambda name: means[name])
    lower = [name for name in ranked if len(differences[name]) >= _LEAST_PAIRS and max(differences[name]) < 0]
    fell = {name for (name, _), values in scores.items() if max(values) < 0}
    paid = [name for name in lower if name not in fell]

    def told_of(name: str) -> str:
        points = [f", {task} {fmean(values):+.1f} points ({len(values)})" for (one, task), values in scores.items() if one == name]
        return f"{name} {means[name]:+.3f} nats ({len(differences[name])}){''.join(points)}"

    told = ", ".join(map(told_of, ranked))
    refused = f": {lower[0]} ends lower, and scores lower after fine-tuning" if lower else ""
    system, verdict = (paid[0], paid[0]) if paid else (_DENSE, f"nothing is dropped{refused}")
    reason = f"dropping and growing: {verdict}; beside the same model without, at equal time (runs): {told}"
    return system, means.get(system, 0.0), reason


def _grouped(pairs: Iterable[tuple[_Key, float]]) -> dict[_Key, list[float]]:
    found: dict[_Key, list[float]] = {}
    for key, value in pairs:
        found.setdefault(key, []).append(value)
    return found


def _reasons(candidates: Sequence[Candidate], evidence: Evidence, chooser: _Chooser) -> Iterator[str]:
    best = candidates[0]
    config, optim = best.config, best.config.optim
    timed = [one for one in candidates if one.is_timed]
    close = [one.name for one in timed[1:] if one.share < _CLOSE * best.share]
    also = f"; {' and '.join(close)} would end within {_CLOSE - 1:.0%} of it" if close else ""
    yield f"depth and width: {best.name} ends lowest of {len(timed)} timed here{also}"
    rates = (
        f"AdamW {optim.learning_rate:g}" if optim.name != "muon" else f"Muon {optim.muon_learning_rate:g}, AdamW {optim.learning_rate:g}"
    )
    entries = config.objective.sampled_softmax
    softmax = f"a softmax over {entries:,} entries, " if entries else ""
    unlike = chooser.unlike(best)
    source = "as the nearest run on record" if best.recipe else f"as {best.model.size} has it"
    yield (
        f"recipe: {config.train.global_batch_size} x {config.data.seq_len} tokens a step, {config.objective.mask_probability:.0%} masked, "
        f"{softmax}{rates}, {source}{' but for what was asked' if unlike else ''}"
    )
    yield f"text: {quantity(best.tokens)} tokens are {best.tokens / chooser.unique_tokens:.2g} passes over it"
    if best.is_on_record:
        yield f"± is {_WIDE:g} standard errors of predictions for runs that the law had not seen, on {evidence.text}"
    elif unlike or not chooser.has_known_vocabulary:
        what = unlike or [f"a vocabulary of about {chooser.prepared.vocab_size:,} entries"]
        yield f"outside the evidence, which has no run with {', '.join(what)}: the loss is a guess"
    else:
        least, most = (quantity(edge(run.tokens for run in evidence.runs)) for edge in (min, max))
        yield f"outside the evidence, which is runs of {least} to {most} tokens on {evidence.text}: the loss is a guess"
