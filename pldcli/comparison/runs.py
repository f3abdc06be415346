"""A pre-training run as a comparison sees it, and the runs that are one system with several seeds."""

from __future__ import annotations

import json
import math
import re
import statistics
from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from itertools import takewhile
from typing import Any

from pldcli.config import Config, flatten
from pldcli.errors import DataError
from pldcli.run_flops import RunFlops
from pldcli.runs.metrics import validation_key

__all__ = ["AXES", "SPENT", "Measurement", "Run", "System", "group_runs", "unit_of_losses"]

AXES = {"tokens": "tokens", "step": "steps", "executed_flops": "executed FLOPs", "train_seconds": "training seconds"}
"""What a loss can be held against: attribute of a measurement, and its unit in words."""

SPENT = ("progress/tokens", "progress/executed_flops", "progress/train_seconds")
"""Metrics that say what a run had spent when a row was logged."""

_SMOOTHED_SHARE = 0.05
"""Training losses are averaged over this last part of the run's steps."""

_SAME_SYSTEM = ("train.seed", "train.log_every_steps", "train.micro_batch_size", "checkpoint.every_steps", "checkpoint.keep")
"""Keys in which the seeds of one system may differ: the seed, and what changes neither the losses nor what is validated."""


@dataclass(frozen=True)
class Measurement:
    """A loss, and what the run had spent when it was taken."""

    step: int
    tokens: float
    executed_flops: float
    train_seconds: float
    loss: float | None
    """Nats per target; None where it was not finite."""


@dataclass(frozen=True, kw_only=True)
class Run:
    """What a comparison knows of one run.

    Raises:
        DataError: Its metrics hold no validation, or a number is missing.
    """

    name: str
    path: str
    config: Config
    rows: tuple[Mapping[str, Any], ...]
    """Every row of metrics.jsonl, in the order of steps."""
    source: str = field(compare=False)
    """The file that holds the rows, for errors."""
    starts: tuple[Mapping[str, Any], ...]
    """What environment.json says of each start; the first one first."""
    state: str
    """As `pld runs` says it."""
    unreadable_lines: int = 0
    """Of metrics.jsonl."""
    finetuned: Mapping[str, tuple[float, ...]] = field(default_factory=dict)
    """Task to the score of each fine-tuning with the best setting, in [0, 1]; none where all diverged."""
    score_conditions: Mapping[str, Mapping[str, str]] = field(default_factory=dict)
    """Task to what must be alike for such scores to compare: settings, data."""
    score_notes: tuple[str, ...] = ()
    """What must be known of these scores."""

    def __post_init__(self) -> None:
        if not self.validation:
            last = max((row["step"] for row in self.rows), default=0)
            total, every = self.config.train.total_steps, self.config.eval.every_steps
            what = f"has no validation yet (step {last:,} of {total:,}, validated every {every:,})"
            raise DataError(what, where=self.path, hint="train it further, or leave it out")
        _ = self.training  # read now, so that what is damaged is told at once

    @cached_property
    def validation(self) -> tuple[Measurement, ...]:
        """Read every validation, at least one, in the order of steps."""
        return tuple(_measurement(row, name, self.source) for row in self.rows if (name := validation_key(row)))

    @cached_property
    def training(self) -> tuple[Measurement, ...]:
        """Read every logged training loss; of a run with some causal steps, those of the others."""
        name, *rarer = (f"train/{name}_loss" for name in self.config.objective.token_losses)
        # Beside a second loss, train/loss is their sum.
        return tuple(
            _measurement(row, name if name in row else "train/loss", self.source)
            for row in self.rows
            if "train/loss" in row and not any(other in row for other in rarer)
        )

    @property
    def wall_seconds(self) -> float:
        """Find the most wall seconds that were written down."""
        return max((row.get("progress/wall_seconds") or 0.0 for row in self.rows), default=0.0)

    @property
    def frequency_loss(self) -> float | None:
        """Return what token frequencies alone score on the validation rows; None where the run did not write it down."""
        return next((row["eval/frequency_loss"] for row in reversed(self.rows) if "eval/frequency_loss" in row), None)

    @property
    def seed(self) -> int:
        """Read the seed."""
        return self.config.train.seed

    @property
    def final(self) -> Measurement:
        """Return the last validation."""
        return self.validation[-1]

    @property
    def is_calibrated(self) -> bool:
        """Return whether its seconds are steps x step time, as a study measured it, and not of its own clock."""
        return "progress/measured_seconds" in self.rows[-1]

    @property
    def last_step(self) -> int:
        """Find the last step that was written down."""
        return max(row.step for row in (*self.validation, *self.training))

    @property
    def is_complete(self) -> bool:
        """Return whether the last validation is that of the schedule's last step."""
        return self.final.step >= self.config.train.total_steps

    @property
    def start(self) -> Mapping[str, Any]:
        """Return what is known of the last start."""
        return self.starts[-1] if self.starts else {}

    @cached_property
    def smoothed(self) -> tuple[Measurement, ...]:
        """Average each training loss with those of the steps just before it; what is not finite stays so."""
        window = _SMOOTHED_SHARE * self.config.train.total_steps
        inside: deque[Measurement] = deque()
        total, smooth = 0.0, []
        for row in self.training:
            if row.loss is not None:
                inside.append(row)
                total += row.loss
            while inside and inside[0].step <= row.step - window and inside[0] is not row:
                total -= inside.popleft().loss or 0.0
            smooth.append(replace(row, loss=None if row.loss is None else total / len(inside)))
        return tuple(smooth)

    @property
    def final_training_loss(self) -> float | None:
        """Return the last smoothed training loss."""
        return self.smoothed[-1].loss if self.training else None

    @property
    def seconds_per_step(self) -> float | None:
        """Take the median over the stretches between logged rows; None where there is only one row."""
        pairs = zip(self.training, self.training[1:], strict=False)
        stretches = [
            (after.train_seconds - before.train_seconds) / (after.step - before.step) for before, after in pairs if after.step > before.step
        ]
        return statistics.median(stretches) if stretches else None

    @property
    def step_seconds_per_token(self) -> float | None:
        """Divide the median time of a step by its tokens."""
        return None if self.seconds_per_step is None else self.seconds_per_step / (self.final.tokens / self.final.step)

    @property
    def run_seconds_per_token(self) -> float:
        """Divide over the whole run."""
        return self.final.train_seconds / self.final.tokens

    @property
    def tokens_per_second(self) -> float:
        """Divide over the whole run, slow stretches and all."""
        return self.final.tokens / self.final.train_seconds if self.final.train_seconds else 0.0

    @property
    def flops_per_token(self) -> float:
        """Divide over the whole run."""
        return self.final.executed_flops / self.final.tokens

    @property
    def predicted_flops_per_token(self) -> float:
        """Compute from the schedule what should have run until the last validation."""
        planned = self.planned_flops
        step = min(self.final.step, planned.schedule.total_steps)
        return planned.executed_until(step) / planned.curriculum.tokens_until(step)

    @property
    def planned_flops(self) -> RunFlops:
        """Count the FLOPs of the whole run as planned, attention as far as the run's rows have it."""
        attended = self.start.get("attended_tokens", {})
        by_length = attended if isinstance(attended, dict) else {self.config.data.seq_len: attended}
        return self.config.run_flops({int(length): tokens for length, tokens in by_length.items()})

    def learning_rate_share(self, step: float) -> float | None:
        """Return the learning rate that was logged at or just before `step`, as a share of the peak."""
        logged = [(row["step"], row.get("optim/learning_rate")) for row in self.rows if "train/loss" in row]
        before = [rate for at, rate in logged if rate is not None and at <= step]
        return before[-1] / self.config.optim.learning_rate if before else None


@dataclass(frozen=True)
class System:
    """One run, or several that differ in their seed alone."""

    name: str
    runs: tuple[Run, ...]

    @property
    def config(self) -> Config:
        """Return the first run's configuration."""
        return self.runs[0].config

    @property
    def seeds(self) -> tuple[int, ...]:
        """List the seeds, each once."""
        return tuple(dict.fromkeys(run.seed for run in self.runs))

    @property
    def is_complete(self) -> bool:
        """Return whether every run came to its end."""
        return all(run.is_complete for run in self.runs)

    @property
    def final_losses(self) -> tuple[float, ...]:
        """List the last validation loss of each run that has a finite one."""
        return tuple(run.final.loss for run in self.runs if run.final.loss is not None)

    @property
    def finetuned(self) -> dict[str, tuple[float, ...]]:
        """Collect the fine-tuning scores of all runs."""
        tasks = dict.fromkeys(task for run in self.runs for task in run.finetuned)
        return {task: tuple(score for run in self.runs for score in run.finetuned.get(task, ())) for task in tasks}

    @property
    def finetuned_by_seed(self) -> dict[str, dict[int, float]]:
        """Average the fine-tuning scores of each task over the runs of each seed of pre-training."""
        scores: dict[str, dict[int, list[float]]] = {}
        for run in self.runs:
            for task, values in run.finetuned.items():
                if values:
                    scores.setdefault(task, {}).setdefault(run.seed, []).extend(values)
        return {task: {seed: statistics.fmean(values) for seed, values in seeds.items()} for task, seeds in scores.items()}

    def mean(self, attribute: str) -> float | None:
        """Average a number of the runs; None where no run has it."""
        values = [value for run in self.runs if (value := getattr(run, attribute)) is not None]
        return statistics.fmean(values) if values else None


def unit_of_losses(runs: Sequence[Run]) -> str:
    """Name the unit of validation losses."""
    kinds = {run.config.objective.is_causal for run in runs}
    return "nats per target" if len(kinds) > 1 else "nats per next token" if True in kinds else "nats per masked token"


def group_runs(runs: Sequence[Run]) -> tuple[System, ...]:
    """Group runs that differ in their seed alone, in the order in which systems first appear.

    Of runs with the same `--budget` the number of steps may differ too: it was measured anew for each.
    """
    grouped: dict[str, list[Run]] = {}
    for run in runs:
        grouped.setdefault(_system_key(run), []).append(run)
    names = [_common_name([run.name for run in members]) for members in grouped.values()]
    return tuple(
        System(name if names.count(name) == 1 else members[0].name, tuple(members))
        for name, members in zip(names, grouped.values(), strict=True)
    )


def _measurement(row: Mapping[str, Any], name: str, where: str) -> Measurement:
    tokens, flops, seconds = (_number(row, spent, where) for spent in SPENT)
    if tokens <= 0:
        raise DataError(f"step {row['step']:,} comes after no tokens at all", where=where, hint="leave this run out")
    loss = None if row[name] is None else _number(row, name, where)
    return Measurement(row["step"], tokens, flops, seconds, loss if loss is not None and math.isfinite(loss) else None)


def _number(row: Mapping[str, Any], name: str, where: str) -> float:
    value = row.get(name)
    if not isinstance(value, int | float):
        raise DataError(f"step {row['step']:,} has no number under {name}", where=where, hint="leave this run out")
    return float(value)


def _system_key(run: Run) -> str:
    settings: dict[str, Any] = {key: value for key, value in flatten(run.config).items() if key not in _SAME_SYSTEM}
    budget = re.search(r"--budget[= ](\S+)", str(run.starts[0].get("command"))) if run.starts else None
    if budget:
        settings["train.total_steps"] = budget[1]
    data = [run.start.get("data_fingerprint"), run.start.get("tokenizer_fingerprint")]
    return json.dumps([settings, data], default=str)


def _common_name(names: Sequence[str]) -> str:
    """Return what names have in common at their start, without a cut-off number or the word seed."""
    if len(names) == 1:
        return names[0]
    shared = "".join(letters[0] for letters in takewhile(lambda letters: len(set(letters)) == 1, zip(*names, strict=False)))
    return re.sub(r"[-_./ ]+(?:seed|s)?[-_./ ]*\d*$", "", shared) or names[0]
