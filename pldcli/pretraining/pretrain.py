"""Pre-training assembled: data, model, optimizer and trainer in; a run directory with a finished model out."""

from __future__ import annotations

from contextlib import AbstractContextManager, ExitStack
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from rich.console import Console

from pldcli import presets
from pldcli.config import Config
from pldcli.data.loader import PairSamples, Samples, SpanSamples, StepBatches
from pldcli.data.masking import Masking
from pldcli.data.packing import PackedSamples
from pldcli.data.shards import PreparedData, TokenStream, open_prepared
from pldcli.data.tokenizer import SpecialTokens
from pldcli.engine import checkpoint
from pldcli.engine.checkpoint import Snapshot
from pldcli.engine.model_source import open_model
from pldcli.engine.objectives import MaskedLm
from pldcli.engine.optim import build_optimizer, learning_rate
from pldcli.engine.precision import resolve_precision
from pldcli.engine.run_directory import RunDirectory
from pldcli.engine.runtime import Runtime, launch, out_of_memory
from pldcli.engine.trainer import Trainer
from pldcli.engine.validation import token_shares
from pldcli.errors import CheckpointError, DataError, UsageError
from pldcli.model import StBert
from pldcli.pretraining.display import RunDisplay
from pldcli.pretraining.estimate import Estimate, estimate, fitting_micro_batch, measure_step_seconds, warnings
from pldcli.pretraining.recorder import Bookkeeper, PretrainResult
from pldcli.pretraining.starting_point import find_starting_point
from pldcli.system import atomic
from pldcli.system.signals import stop_requests

__all__ = [
    "DryRun",
    "PretrainResult",
    "assemble",
    "build_trainer",
    "check_vocabulary",
    "compiles",
    "cut_rows",
    "dry_run",
    "initial_model",
    "place",
    "pretrain",
]

_CUDA_VOCAB_MULTIPLE = 64


@dataclass(frozen=True)
class DryRun:
    """What a run would be and take."""

    config: Config
    estimate: Estimate
    warnings: list[str]
    device: str
    precision: str
    micro_batch_size: int
    micro_steps: int
    world_size: int
    is_main: bool = True
    """Whether this process speaks to the user."""


def pretrain(
    config: Config,
    *,
    data: Path,
    out: Path,
    resume: str = "auto",
    command: str = "",
    allow_bin: bool = False,
    console: Console | None = None,
) -> PretrainResult:
    """Pre-train to the end of the schedule, or go on with a run that was stopped.

    Args:
        config: The resolved configuration.
        data: A prepared directory.
        out: The run directory.
        resume: `auto` (the newest checkpoint that verifies), `never`, or the path of a checkpoint.
        command: What the user typed, for the model card.
        allow_bin: Read a pickle of weights to begin with where there is no safetensors file.
        console: Where to show progress.

    Raises:
        PldError: Bad data, another run's checkpoint, out of memory, divergence, a full disk, or a stop with the state saved.
    """
    with launch(config.runtime.device) as runtime:
        return _pretrain(
            config,
            runtime,
            open_prepared(data, share=(runtime.rank, runtime.world_size)),
            RunDirectory(out),
            resume,
            command,
            allow_bin,
            console or Console(),
        )


def dry_run(config: Config, *, data: Path, allow_bin: bool = False) -> DryRun:
    """Work out what a run would take, from a few measured steps; nothing is written.

    Raises:
        PldError: As `pretrain`, for what shows before the first step.
    """
    with launch(config.runtime.device) as runtime:
        trainer = build_trainer(config, open_prepared(data, share=(runtime.rank, runtime.world_size)), runtime, allow_bin=allow_bin)
        with _out_of_memory(trainer):
            estimated = _estimate(config, trainer)
        batches = trainer.batches
        return DryRun(
            config,
            estimated,
            warnings(estimated),
            str(runtime.device),
            trainer.precision.name,
            batches.micro_batch_size,
            batches.micro_steps,
            runtime.world_size,
            runtime.is_main,
        )


def build_trainer(
    config: Config, prepared: PreparedData, runtime: Runtime, *, initial: bool = True, allow_bin: bool = False
) -> Trainer[StepBatches]:
    """Put the parts of a run together at its first step.

    Args:
        config: The resolved configuration.
        prepared: What it is trained on.
        runtime: Device and processes.
        initial: Load the weights that the run begins with; off where a checkpoint's will take their place.
        allow_bin: Read a pickle of weights where there is no safetensors file.

    Raises:
        CheckpointError: The model to begin with cannot be read, or has another shape.
        UsageError: The vocabulary or the batch does not fit.
        DataError: The training text is shorter than a sequence.
    """
    check_vocabulary(config, prepared)
    config.share_of_group(runtime.world_size)
    model = initial_model(config, prepared, initial=initial, allow_bin=allow_bin)
    samples = cut_rows(config, prepared.stream("train"), prepared.special)
    masking = Masking.of(config.objective.mask_probability, prepared.special, prepared.vocab_size)
    return assemble(config, place(model, config, runtime), samples, masking, runtime)


def cut_rows(config: Config, stream: TokenStream, special: SpecialTokens) -> PairSamples | PackedSamples | SpanSamples:
    """Cut a stream as the configuration says.

    Raises:
        DataError: There is too little text.
    """
    cut: type[PairSamples | PackedSamples | SpanSamples] = (
        PairSamples if config.data.layout == "nsp-pairs" else PackedSamples if config.data.packing == "documents" else SpanSamples
    )
    return cut(stream, special, config.data.seq_len, seed=config.train.seed)


def check_vocabulary(config: Config, prepared: PreparedData) -> None:
    """Make sure that the model has a row for every entry of the tokenizer.

    Raises:
        UsageError: It does not.
    """
    if config.model.vocab_size < prepared.vocab_size:
        raise UsageError(
            f"{config.model.vocab_size} rows cannot hold the {prepared.vocab_size} entries of the tokenizer in {prepared.path}",
            where="model.vocab_size",
            hint="leave it out: the prepared data's size is taken",
        )


def place(model: StBert, config: Config, runtime: Runtime) -> StBert:
    """Move a model to the device, ready to be trained; compile its parts where the configuration says so."""
    model.to(runtime.device).train()
    model.checkpoint_activations = config.runtime.checkpoint_activations
    if compiles(config, runtime):
        for part in (model.embeddings, *model.blocks):
            part.compile()
    return model


def assemble(
    config: Config,
    model: StBert,
    samples: Samples,
    masking: Masking,
    runtime: Runtime,
    *,
    optimizer: torch.optim.Optimizer | None = None,
) -> Trainer[StepBatches]:
    """Put a trainer together.

    Args:
        config: The resolved configuration.
        model: In its place.
        samples: What it reads.
        masking: Chooses targets.
        runtime: Device and processes.
        optimizer: Of the model; a fresh one by default.

    Raises:
        UsageError: The batch does not divide.
    """
    train, on_cuda = config.train, runtime.device.type == "cuda"
    fitting = fitting_micro_batch(config, sum(parameter.numel() for parameter in model.parameters()), runtime.device)
    micro_steps, micro_batch_size = config.forwards_per_group(runtime.world_size, most_sequences=fitting)
    batches = StepBatches(
        samples,
        masking,
        train.global_batch_size,
        config.pld.draws_per_step,
        micro_steps,
        micro_batch_size,
        runtime.rank,
        runtime.world_size,
        pin_memory=on_cuda,
    )
    return Trainer(
        model,
        objective=MaskedLm(config.objective.next_sentence, compiles(config, runtime), _CUDA_VOCAB_MULTIPLE if on_cuda else 1),
        schedule=config.pld_schedule,
        optimizer=optimizer or build_optimizer(model, config.optim),
        batches=batches,
        learning_rate=lambda step: learning_rate(step, train.total_steps, config.optim),
        max_grad_norm=config.optim.max_grad_norm,
        precision=resolve_precision(config.runtime.precision, runtime.device),
        runtime=runtime,
        flops=config.flops,
        seed=train.seed,
    )


def initial_model(config: Config, prepared: PreparedData, *, initial: bool = True, allow_bin: bool = False) -> StBert:
    """Build the model with random weights, or with those of `train.init_from`, as a run has them before its first step.

    Args:
        config: The resolved configuration.
        prepared: What it is trained on.
        initial: Load the weights of `train.init_from`.
        allow_bin: Read a pickle of weights where there is no safetensors file.

    Raises:
        CheckpointError: The model to begin with cannot be read.
        DataError: Its tokenizer is not that of the data.
        UsageError: It has another shape.
    """
    next_sentence, seed = config.objective.next_sentence, config.train.seed
    if config.train.init_from is None or not initial:
        model = StBert(**dict(config.model), next_sentence=next_sentence, seed=seed)
        if config.train.unigram_bias and initial:
            _begin_at_frequencies(model, prepared)
        return model
    loaded = open_model(Path(config.train.init_from), allow_bin=allow_bin)
    if loaded.tokenizer.fingerprint != prepared.fingerprint:
        raise DataError(
            f"was prepared with another tokenizer than that of {loaded.where}",
            where=str(prepared.path),
            hint=f"prepare it again with `pld prepare-data --tokenizer {loaded.where}`",
        )
    for name, value in loaded.settings.replace(dropout=config.model.dropout):
        if getattr(config.model, name) != value:
            what = f"{getattr(config.model, name)} does not fit the {value} of {loaded.where}"
            raise UsageError(what, where=f"model.{name}", hint="leave it out: the model's own value is taken")
    return loaded.masked_lm(next_sentence=next_sentence, fresh_head=True, dropout=config.model.dropout, seed=seed)


@torch.no_grad()
def _begin_at_frequencies(model: StBert, prepared: PreparedData) -> None:
    """Let the masked-LM head answer with the training text's token frequencies; rows without a token get the lowest."""
    assert model.mlm_head is not None
    shares_V = token_shares(prepared.stream("train"), prepared.vocab_size, prepared.special)
    logs_V = np.log(np.maximum(shares_V, shares_V[shares_V > 0].min()))
    model.mlm_head.bias.fill_(float(logs_V.min()))
    model.mlm_head.bias[: len(logs_V)] = torch.from_numpy(logs_V).float()


def _pretrain(
    config: Config,
    runtime: Runtime,
    prepared: PreparedData,
    run: RunDirectory,
    resume: str,
    command: str,
    allow_bin: bool,
    console: Console,
) -> PretrainResult:
    goes_on = resume != "never" and bool(run.has_model or checkpoint.list_checkpoints(run.checkpoints) or resume != "auto")
    trainer = build_trainer(config, prepared, runtime, initial=not goes_on, allow_bin=allow_bin)
    display = RunDisplay(
        console,
        title=str(run.path),
        total_steps=config.train.total_steps,
        save_every=config.checkpoint.every_steps,
        quiet=not runtime.is_main,
    )
    with ExitStack() as stack:
        if runtime.is_main:
            run.check_usable()
            if resume == "never" and (aside := run.set_aside()):
                display.say(f"the run that was there is now {aside}")
            stack.enter_context(run.lock())
            for place in (run.path, run.checkpoints):
                atomic.remove_leftovers_in(place)
        runtime.wait_for_all()
        start = find_starting_point(run, config, prepared.data_fingerprint, resume, display.say)
        runtime.wait_for_all()  # every process has looked before one of them writes
        if start.end is not None:
            return PretrainResult(run, start.end, True, None, None, None, is_main=runtime.is_main)
        if start.snapshot is not None:
            _restore(trainer, start.snapshot)
        position = start.position
        stop = stack.enter_context(stop_requests())
        if runtime.is_main:
            if start.stranded_step:
                where = atomic.set_aside(run.metrics)
                display.say(f"warning: the {start.stranded_step:,} steps done here left no checkpoint; their metrics are now {where}")
            atomic.write_text(run.config, presets.dump(config))  # first: it marks the directory as a run
        books = Bookkeeper(config, prepared, run, trainer, display, stack, position, resume)
        with _out_of_memory(trainer):
            books.announce(_estimate(config, trainer), command, resumed=start.snapshot is not None)
            if compiles(config, runtime):
                trainer.warm_up()
            stack.enter_context(display)
            position = books.train(position, stop)
        return books.finish(position, command)


def compiles(config: Config, runtime: Runtime) -> bool:
    """Tell whether blocks are compiled here."""
    return config.runtime.compile == "on" or (config.runtime.compile == "auto" and runtime.device.type == "cuda")


def _restore(trainer: Trainer[StepBatches], snapshot: Snapshot) -> None:
    try:
        trainer.model.load_state_dict(snapshot.weights, strict=True)
    except RuntimeError as error:
        raise CheckpointError("weights do not fit the configuration", where=str(snapshot.path)) from error
    checkpoint.restore_optimizer(snapshot.optimizer, trainer.model, trainer.optimizer)
    trainer.scaler.load_state_dict(snapshot.scaler)


def _estimate(config: Config, trainer: Trainer[StepBatches]) -> Estimate:
    step_seconds = measure_step_seconds(trainer, config)
    return estimate(config, trainer.model, trainer.batches, seconds=step_seconds * config.train.total_steps)


def _out_of_memory(trainer: Trainer[StepBatches]) -> AbstractContextManager[None]:
    size, device = trainer.batches.micro_batch_size, trainer.runtime.device
    return out_of_memory(size, device, key="train.micro_batch_size", otherwise="choose a smaller model or shorter sequences")
