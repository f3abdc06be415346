"""In words: how runs differ beyond dropping, and what keeps their numbers from being compared."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from datetime import datetime, timedelta
from itertools import combinations
from typing import Any

from pldcli.comparison.runs import Run, System
from pldcli.config import RUN_CONTROL, Config, describe_dropping, flatten
from pldcli.runs.metrics import CONTEXT_MARGIN, reads_context
from pldcli.settings import spelled

__all__ = ["check_runs", "differences", "find_controls", "incomparable", "unlike_seconds"]

_LABELS = {
    "model.norm": "LayerNorm",
    "model.num_hidden_layers": "blocks",
    "model.hidden_size": "hidden size",
    "model.num_attention_heads": "attention heads",
    "model.intermediate_size": "feed-forward size",
    "model.vocab_size": "vocabulary",
    "model.dropout": "dropout",
    "data.seq_len": "tokens per row",
    "data.layout": "layout of rows",
    "data.length_stages": "shorter rows at first",
    "objective.next_sentence": "next-sentence loss",
    "objective.mask_probability": "masked share",
    "objective.final_mask_probability": "masked share at the end",
    "objective.masking": "masked together",
    "objective.span_boundary": "span-boundary loss",
    "objective.exits": "losses after so many blocks",
    "objective.exit_weight": "weight of the losses after fewer blocks",
    "objective.sampled_softmax": "entries of a sampled softmax",
    "objective.kind": "objective",
    "objective.causal_share": "share of causal steps",
    "optim.name": "optimizer",
    "optim.learning_rate": "peak learning rate",
    "optim.muon_learning_rate": "peak learning rate of Muon",
    "optim.muon_momentum": "momentum of Muon",
    "optim.schedule": "learning-rate schedule",
    "optim.decay_fraction": "decay",
    "optim.decay_shape": "shape of the decay",
    "optim.warmup_fraction": "warm-up",
    "optim.warmup_steps": "steps of warm-up",
    "optim.warmup_tokens": "tokens of warm-up",
    "optim.weight_decay": "weight decay",
    "train.total_steps": "steps",
    "train.global_batch_size": "batch",
    "train.batch_ramp": "share of the run in which the batch grows",
    "train.initial_batch_size": "batch at first",
    "train.init_from": "initial weights",
    "runtime.compile": "compilation",
    "runtime.sharding": "sharding",
    "runtime.checkpoint_activations": "recomputing of activations",
    "eval.every_steps": "steps between validations",
    "eval.max_sequences": "validation rows",
}
"""Keys with a name that people use; the others go by their dotted key."""

_VALUES = {
    ("model.norm", "pre"): "Pre-LN",
    ("model.norm", "post"): "Post-LN",
    ("optim.warmup_steps", None): "not given",
    ("optim.warmup_tokens", None): "not given",
    ("train.init_from", None): "random",
}
_CHANGES_TIME = ("runtime.compile", "runtime.sharding", "runtime.checkpoint_activations")
_QUIET = {key for key in RUN_CONTROL if not key.startswith("eval.") and key not in _CHANGES_TIME} | {"train.seed"}
_STARTS = {
    "hardware": "hardware",
    "device": "device",
    "precision": "precision",
    "threads": "threads",
    "processes": "processes",
    "micro_batch_size": "micro-batch",
    "data_fingerprint": "prepared data",
    "tokenizer_fingerprint": "tokenizer",
    "pldcli": "pldcli",
}
"""What environment.json says of a start, and how a line names it."""

_TIMED_ALIKE = ("hardware", "device", "precision", "threads", "processes")

_NEVER_ZERO = {"constant": "stays at its peak", "paper-exponential": "ends at 14 % of its peak"}
"""Learning-rate schedules that do not decay to zero."""


def differences(system: System, baseline: System) -> list[str]:
    """List what differs from the baseline, a line each: dropping first, then the rest of the configuration, then where it ran."""
    lines = []
    ours, theirs = describe_dropping(system.config), describe_dropping(baseline.config)
    if ours != theirs:
        lines.append(f"dropping: {ours} (baseline: {theirs})")
    flat, other = flatten(system.config), flatten(baseline.config)
    changed = [key for key in flat if flat[key] != other[key] and not key.startswith("pld.") and key not in _QUIET]
    lines += [f"{_LABELS.get(key, key)}: {_value(key, flat[key])} (baseline: {_value(key, other[key])})" for key in changed]
    if (tokens := _planned_tokens(system.config)) != (their_tokens := _planned_tokens(baseline.config)):
        lines.append(f"total tokens: {tokens:,} (baseline: {their_tokens:,})")
    if set(system.seeds) != set(baseline.seeds):
        lines.append(f"seeds: {_listed(system.seeds)} (baseline: {_listed(baseline.seeds)})")
    configured = [line for line in lines if not line.startswith(("dropping:", "seeds:"))]
    if not configured:
        lines.append("nothing else in the configuration differs")
    return lines + _start_differences(system, baseline)


def incomparable(run: Run, baseline: Run) -> list[str]:
    """List why the validation losses of two runs are of different things; nothing where they compare."""
    reasons = []
    for key, name in (("data_fingerprint", "prepared data"), ("tokenizer_fingerprint", "vocabulary")):
        ours, theirs = run.start.get(key), baseline.start.get(key)
        if ours and theirs and ours != theirs:
            reasons.append(name)
    if not (run.starts and baseline.starts) and run.config.model.vocab_size != baseline.config.model.vocab_size:
        reasons.append("vocabulary")
    if run.config.objective.is_causal != baseline.config.objective.is_causal:
        reasons.append("kind of targets")
    if run.config.data.seq_len != baseline.config.data.seq_len:
        reasons.append("tokens per row")
    if run.config.eval.max_sequences != baseline.config.eval.max_sequences:
        reasons.append("number of validation rows")
    return reasons


def find_controls(system: System, systems: Sequence[System]) -> list[System]:
    """Find the runs that tell what dropping did: Pre-LN, else the same model, objective, optimizer, data and batch, nothing dropped."""
    mine = system.config

    def is_control(other: Config) -> bool:
        is_alike = other.model == mine.model.replace(norm="pre") and other.objective == mine.objective and other.optim == mine.optim
        batches = [(one.train.global_batch_size, one.train.batch_ramp, one.train.initial_batch_size) for one in (mine, other)]
        return other.pld_schedule.is_dense and is_alike and other.data == mine.data and batches[0] == batches[1]

    return [other for other in systems if is_control(other.config) and not any(incomparable(one, other.runs[0]) for one in system.runs)]


def check_runs(systems: Sequence[System], baseline: System) -> list[str]:
    """Warn of what a reader must know before the numbers: a line each, the gravest first."""
    return [line for check in _CHECKS for line in check(systems, baseline)]


def _losses_compare(systems: Sequence[System], baseline: System) -> Iterator[str]:
    reference = baseline.runs[0]
    for run in _runs(systems):
        if reasons := incomparable(run, reference):
            yield f"the losses of {run.name} and {reference.name} do not compare: other {' and other '.join(reasons)}"
        if run.final.loss is None:
            yield f"{run.name} diverged: its last validation loss is no finite number"
        if not run.starts:
            yield f"{run.name} has no environment.json: whether data, vocabulary and hardware are the same cannot be told"


def _context_is_read(systems: Sequence[System], baseline: System) -> Iterator[str]:
    def is_blind(run: Run) -> bool:
        return run.final.loss is not None and run.frequency_loss is not None and not reads_context(run.final.loss, run.frequency_loss)

    if blind := [run for run in _runs(systems) if is_blind(run)]:
        mark = _listed(dict.fromkeys(f"{run.frequency_loss:.4f}" for run in blind))
        yield (
            f"{_listed(run.name for run in blind)}: the final loss is not {CONTEXT_MARGIN} below that of token frequencies alone "
            f"({mark}): hardly anything was learned from context yet, so the order of such losses says nothing about dropping"
        )


def _runs_are_whole(systems: Sequence[System], baseline: System) -> Iterator[str]:
    states = {"running": "still running", "finished": "finished, but metrics.jsonl is cut off"}
    for run in _runs(systems):
        if not run.is_complete:
            at = f"at step {run.final.step:,} of {run.config.train.total_steps:,}"
            yield f"{run.name} is {states.get(run.state, 'not finished')}: its last validation is {at}, its learning rate not yet decayed"
        if run.unreadable_lines:
            yield f"{run.name}: {run.unreadable_lines} line(s) of metrics.jsonl cannot be read and are left out"


def _tokens_are_equal(systems: Sequence[System], baseline: System) -> Iterator[str]:
    planned = _planned_tokens(baseline.config)
    for system in systems:
        if (tokens := _planned_tokens(system.config)) != planned:
            yield f"{system.name} sees {tokens:,} tokens, {baseline.name} {planned:,}: their final losses are not at equal tokens"


def _baseline_decays(systems: Sequence[System], baseline: System) -> Iterator[str]:
    if ending := _NEVER_ZERO.get(baseline.config.optim.schedule):
        yield f"the learning rate of {baseline.name} {ending}: its final loss is not its best, and easier to reach"


def unlike_seconds(runs: Sequence[Run]) -> list[str]:
    """List why the training seconds of runs are no measure of each other; nothing where they are, or steps were timed by themselves."""
    if all(run.is_calibrated for run in runs):
        return []
    found = {_STARTS[key]: [str(start[key]) for run in runs for start in run.starts if key in start] for key in _TIMED_ALIKE}
    found |= {_LABELS[key]: [spelled(flatten(run.config)[key]) for run in runs] for key in _CHANGES_TIME}
    return [
        f"seconds do not compare: {name} is not the same for all runs ({'; '.join(dict.fromkeys(values))})"
        for name, values in found.items()
        if len({*values}) > 1
    ]


def _seconds_compare(systems: Sequence[System], baseline: System) -> Iterator[str]:
    runs = _runs(systems)
    yield from unlike_seconds(runs)
    beside = [(one.name, other.name) for one, other in combinations(runs, 2) if _overlap(one, other)]
    if beside:
        first, second = beside[0]
        more = f", and {len(beside) - 1} more pair(s)" if len(beside) > 1 else ""
        yield f"{first} and {second} ran at the same time{more}: on one machine they slow each other, so their seconds are no fair measure"
    if resumed := [run.name for run in runs if len(run.starts) > 1]:
        yield f"started more than once: {_listed(resumed)}; seconds add up over all starts"


def _controls_are_there(systems: Sequence[System], baseline: System) -> Iterator[str]:
    for system in systems:
        if not system.config.pld_schedule.is_dense and not find_controls(system, systems):
            yield (
                f"no control for {system.name} (Pre-LN, same shape, objective and optimizer, nothing dropped) is among these runs: "
                "what dropping did cannot be told from the rest"
            )


def _scores_compare(systems: Sequence[System], baseline: System) -> Iterator[str]:
    runs = _runs(systems)
    for task, key in dict.fromkeys((task, key) for run in runs for task, found in run.score_conditions.items() for key in found):
        names: dict[str, list[str]] = {}
        for run in runs:
            if (value := run.score_conditions.get(task, {}).get(key)) is not None:
                names.setdefault(value[:12] if key == "data" else value, []).append(run.name)
        if len(names) > 1:
            told = " | ".join(f"{_listed(those)}: {value}" for value, those in names.items())
            yield f"scores on {task} do not compare: {key} are not the same for all runs ({told})"
    yield from (note for run in runs for note in run.score_notes)


def _seeds_are_distinct(systems: Sequence[System], baseline: System) -> Iterator[str]:
    for system in systems:
        if len(system.seeds) < len(system.runs):
            names = _listed(run.name for run in system.runs)
            yield f"the same configuration ran several times with one seed ({names}): a seed counts once, by its mean"


_CHECKS: tuple[Callable[[Sequence[System], System], Iterator[str]], ...] = (
    _losses_compare,
    _context_is_read,
    _runs_are_whole,
    _tokens_are_equal,
    _baseline_decays,
    _seconds_compare,
    _controls_are_there,
    _scores_compare,
    _seeds_are_distinct,
)
"""What must hold for a fair comparison, the gravest first; each yields a line for what does not."""


def _runs(systems: Sequence[System]) -> list[Run]:
    return [run for system in systems for run in system.runs]


def _start_differences(system: System, baseline: System) -> list[str]:
    lines = []
    for key, name in _STARTS.items():
        ours, theirs = _recorded(system, key), _recorded(baseline, key)
        if ours and theirs and ours != theirs:
            lines.append(f"{name}: {_listed(ours)} (baseline: {_listed(theirs)})")
    other = _packages(baseline)
    versions = [(name, version) for name, version in _packages(system).items() if other.get(name, version) != version]
    return lines + [f"{name}: {version} (baseline: {other[name]})" for name, version in versions]


def _recorded(system: System, key: str) -> list[str]:
    """List what the starts of a system say under a key; fingerprints are cut short."""
    values = dict.fromkeys(str(start[key]) for run in system.runs for start in run.starts if start.get(key) is not None)
    return [value[:12] if key.endswith("fingerprint") else value for value in values]


def _packages(system: System) -> dict[str, str]:
    found = system.runs[0].start.get("packages")
    return {str(name): str(version) for name, version in found.items()} if isinstance(found, dict) else {}


def _planned_tokens(config: Config) -> int:
    """Count the tokens of a whole run of full rows."""
    return config.curriculum.num_tokens


def _overlap(one: Run, other: Run) -> bool:
    """Return whether two runs, each started once, were at work at the same time on the same kind of machine."""
    spans = _span(one), _span(other)
    if None in spans or one.start.get("hardware") != other.start.get("hardware"):
        return False
    (first_start, first_end), (second_start, second_end) = (span for span in spans if span)
    return first_start < second_end and second_start < first_end


def _span(run: Run) -> tuple[datetime, datetime] | None:
    if len(run.starts) != 1:
        return None
    try:
        started = datetime.fromisoformat(str(run.start.get("started")))
    except ValueError:
        return None
    return (started, started + timedelta(seconds=run.wall_seconds)) if started.tzinfo else None


def _value(key: str, value: Any) -> str:
    if key == "data.length_stages":
        return _listed(_stage(**stage) for stage in value) or "none"
    known = _VALUES.get((key, value)) if isinstance(value, str | None) else None
    return known or (f"{value:,}" if isinstance(value, int) and not isinstance(value, bool) else str(value))


def _stage(until: float, seq_len: int, global_rope_theta: float | None) -> str:
    theta = "" if global_rope_theta is None else f" at theta {global_rope_theta:,g}"
    return f"{seq_len:,} tokens{theta} until {until:.0%} of the run"


def _listed(values: Iterable[object]) -> str:
    return ", ".join(str(value) for value in values)
