"""Analyse runs: every checkpoint of every run, measured on the same validation sequences under fixed masks."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from pldcli.analysis.probe import probe, remove_blocks
from pldcli.analysis.results import Analysis, AnalyzedRun, GateChoice, Probe, Removal, State
from pldcli.choices import Device
from pldcli.comparison.read import name_runs, read_config
from pldcli.config import Config
from pldcli.console.progress import Progress
from pldcli.data.loader import Batch
from pldcli.data.prepared import PreparedData, open_prepared
from pldcli.engine.runtime import Runtime, launch, out_of_memory
from pldcli.engine.validation import fixed_batches
from pldcli.errors import CheckpointError, DataError, UsageError
from pldcli.model import StBert
from pldcli.pld import Dropping, Plan
from pldcli.pretraining.assembly import initial_model
from pldcli.runs import checkpoint
from pldcli.runs.model_source import check_tokenizer, open_model, recorded_data
from pldcli.runs.run_directory import RunDirectory

__all__ = ["Settings", "analyze", "plans"]

_SEED = 20201
"""Of the gates of one keep probability: the same for every run and step."""


@dataclass(frozen=True)
class Settings:
    """How much is measured, and under which gates."""

    num_sequences: int = 64
    """Validation sequences, the first ones. Gradient norms depend on their number; only those of equal numbers compare."""
    batch_size: int = 16
    """Sequences of a forward pass; changes nothing but memory."""
    gates: GateChoice | None = None
    """Measure under dropped blocks too."""
    num_draws: int = 8
    """Draws of gates, if there are any."""
    device: Device = "auto"

    def __post_init__(self) -> None:
        """Check the numbers.

        Raises:
            UsageError: One is not positive.
        """
        for name, value in (("--sequences", self.num_sequences), ("--batch-size", self.batch_size), ("--draws", self.num_draws)):
            if value < 1:
                raise UsageError(f"must be at least 1, not {value}", where=name)


@dataclass(frozen=True)
class _Moment:
    """A model of a run that can be opened."""

    step: int
    source: str
    place: Path | None
    """A checkpoint or the finished model; None for the initial weights."""


@dataclass(frozen=True)
class _Subject:
    """A run with everything that is needed to measure it."""

    name: str
    directory: RunDirectory
    config: Config
    prepared: PreparedData
    batches: list[Batch]
    moments: tuple[_Moment, ...]
    """The newest first: what does not fit the data shows at once, and the first that can be read is the trained model."""

    def model(self, moment: _Moment) -> StBert:
        """Open a model in float32.

        Raises:
            CheckpointError: It cannot be read.
            DataError: It was trained with another tokenizer.
        """
        init_from, blocks = self.config.train.init_from, self.config.model.num_hidden_layers
        if moment.place is None:
            model = initial_model(self.config, self.prepared, open_model(Path(init_from)) if init_from else None)
        else:
            loaded = open_model(moment.place, data=self.prepared.path)
            if loaded.settings.num_hidden_layers < blocks:
                what = f"only {loaded.settings.num_hidden_layers} of {blocks} blocks have run until here"
                raise CheckpointError(what, where=str(moment.place), hint="train the run on, to where all do")
            check_tokenizer(loaded, self.prepared)
            model = loaded.masked_lm()
        model.scales_whole_blocks = self.config.pld.residual == "block"
        return model


def analyze(targets: Sequence[Path], *, data: Path | None = None, settings: Settings | None = None) -> Analysis:
    """Measure runs: per block over training, under gates where wanted, and the trained model without each block.

    Of each run the initial weights, every checkpoint that is there, and the finished model are measured, in float32 and without dropout.

    Args:
        targets: Run directories.
        data: The prepared directory whose validation split is read; by default what each run was trained on.
        settings: How much, and under which gates.

    Raises:
        CheckpointError: There is no such run, or it has only incomplete checkpoints and no model.
        DataError: The data is damaged, has no validation text, or was tokenized with another tokenizer.
        UsageError: A run is named twice, or there are several processes.
        DeviceError: There is no such device, or its memory is too small.

    Source: Zhang & He 2020, sections 3 and 5.
    """
    settings = settings or Settings()
    with launch(settings.device) as runtime:
        if runtime.world_size > 1:
            raise UsageError("analysis runs in one process", hint="start it without torchrun")
        subjects = _open(targets, data, settings)
        notes = _notes(subjects, settings)
        draws = settings.num_draws if settings.gates is not None else 0
        passes = sum(len(subject.moments) * (1 + draws) + 2 * subject.config.model.num_hidden_layers + 1 for subject in subjects)
        with (
            Progress("Analysing", total=passes, unit="passes") as progress,
            out_of_memory(settings.batch_size, runtime.device, key="--batch-size", otherwise="analyse it on a larger machine"),
        ):
            runs = tuple(_analyze(subject, settings, runtime, progress, notes) for subject in subjects)
    return Analysis(runs, settings.gates, draws, tuple(notes))


def plans(config: Config, gates: GateChoice, step: int, num_draws: int) -> list[Plan]:
    """Draw gates with their residual scales.

    Args:
        config: Of the run.
        gates: `schedule` for the plans with which the run's update after `step` completed ones begins: its own schedule and seed; after
            the last update those of the last one. A number for that keep probability in every block, scaled by its inverse: the same
            plans for every step and every run of so many blocks. Blocks are then drawn independently of one another, and each runs
            in the same number of draws, to the next whole one: a few throws of a coin would say more of luck than of dropping.
        step: Completed updates.
        num_draws: How many.
    """
    if gates == "schedule":
        at = min(step, config.train.total_steps - 1)
        return [config.pld_schedule.plan(at, group, seed=config.train.seed) for group in range(num_draws)]
    num_blocks = config.model.num_hidden_layers
    over_draws = Dropping(num_draws, 1, time="constant", theta_bar=gates, depth_rule="uniform", draw="fixed-depth")
    by_block = [over_draws.plan(0, block, seed=_SEED).gates for block in range(num_blocks)]
    same = ((gates,) * num_blocks, (1.0 / gates,) * num_blocks)
    return [Plan(drawn, *same) for drawn in zip(*by_block, strict=True)]


def _open(targets: Sequence[Path], data: Path | None, settings: Settings) -> list[_Subject]:
    opened: dict[Path, PreparedData] = {}
    subjects = []
    for target, name in zip(targets, name_runs(targets), strict=True):
        directory = RunDirectory(target)
        config = read_config(directory)
        moments = _moments(directory, config)
        source = data or recorded_data(target)
        prepared = opened.get(source) or opened.setdefault(source, open_prepared(source))
        rows = fixed_batches(
            prepared,
            config.data.seq_len,
            causal=config.objective.is_causal,
            max_sequences=settings.num_sequences,
            batch_size=settings.batch_size,
        )
        batches = list(rows)
        if not batches:
            raise DataError("has no validation text", where=str(prepared.path), hint="prepare more text, or name another with --data")
        subjects.append(_Subject(name, directory, config, prepared, batches, moments))
    return subjects


def _moments(run: RunDirectory, config: Config) -> tuple[_Moment, ...]:
    """List what can be measured of a run, the newest first. The finished model is the checkpoint of the last step."""
    total_steps, found = config.train.total_steps, []
    if (run.model / "config.json").is_file():
        found.append(_Moment(total_steps, "model", run.model))
    for path in reversed(checkpoint.list_checkpoints(run.checkpoints)):
        step = path.name.removeprefix("step-")
        if step.isdecimal() and not (found and int(step) == total_steps):
            found.append(_Moment(int(step), path.name, path))
    if not found:
        hint = f"train it further; it saves every {config.checkpoint.every_steps:,} steps and keeps {config.checkpoint.keep}"
        raise CheckpointError("this run has no checkpoint and no model yet", where=str(run.path), hint=hint)
    return (*found, _Moment(0, "initial weights", None))


def _analyze(subject: _Subject, settings: Settings, runtime: Runtime, progress: Progress, notes: list[str]) -> AnalyzedRun:
    """Measure one run; a model that cannot be read is left out and noted."""
    states: list[State] = []
    removal: Removal | None = None
    for moment in subject.moments:
        if moment.place is None and removal is None:
            break  # nothing that was trained can be read
        progress.describe(f"{subject.name}, step {moment.step:,}")
        try:
            model = subject.model(moment).to(runtime.device)
        except (CheckpointError, UsageError) as error:
            notes.append(f"left out: {error}")
            continue
        if removal is None:
            removal = remove_blocks(model, subject.batches, runtime, step=moment.step, done=lambda: progress.advance(1))
        states.append(_state(subject, moment, model, settings, runtime, progress))
    if removal is None:
        raise CheckpointError("no checkpoint of this run can be read", where=str(subject.directory.path), hint=notes[-1])
    return AnalyzedRun(
        name=subject.name,
        path=str(subject.directory.path),
        norm=subject.config.model.norm,
        seq_len=subject.config.data.seq_len,
        num_sequences=sum(len(batch.input_ids) for batch in subject.batches),
        data=str(subject.prepared.path),
        states=tuple(reversed(states)),
        removal=removal,
    )


def _state(subject: _Subject, moment: _Moment, model: StBert, settings: Settings, runtime: Runtime, progress: Progress) -> State:
    """Probe a model with every block, and under gates; equal plans are computed once."""
    whole = probe(model, subject.batches, runtime.device)
    progress.advance(1)
    draws: list[Probe] = []
    known: dict[Plan, Probe] = {}
    if settings.gates is not None:
        for plan in plans(subject.config, settings.gates, moment.step, settings.num_draws):
            if all(plan.gates) and all(scale == 1.0 for scale in plan.residual_scales):
                known[plan] = whole
            elif plan not in known:
                known[plan] = probe(model, subject.batches, runtime.device, plan)
            draws.append(known[plan])
            progress.advance(1)
    return State(moment.step, moment.source, whole, tuple(draws))


def _notes(subjects: Sequence[_Subject], settings: Settings) -> list[str]:
    """Return what keeps numbers from being compared."""
    notes = []
    if len({subject.prepared.data_fingerprint for subject in subjects}) > 1:
        notes.append("the runs are measured on different validation text: name one prepared directory with --data")
    if len({subject.config.data.seq_len for subject in subjects}) > 1:
        notes.append("the runs have sequences of different lengths: their gradient norms do not compare")
    if settings.gates == "schedule":
        notes += [
            f"{subject.name} drops nothing: its schedule runs every block" for subject in subjects if subject.config.pld_schedule.is_dense
        ]
    return notes
