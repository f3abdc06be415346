"""`pld pretrain`: train an encoder."""

from __future__ import annotations

import json
import math
import shlex
import time
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from pldcli.commands.config import Overrides, complete_preset
from pldcli.errors import OutputError, UsageError
from pldcli.system.command_line import command_line
from pldcli.system.workers import processes_to_start

if TYPE_CHECKING:
    from pldcli.config import Config
    from pldcli.data.prepared import PreparedData
    from pldcli.pretrained import Pretrained
    from pldcli.pretraining.estimate import Estimate
    from pldcli.pretraining.recorder import PretrainResult

__all__ = ["pretrain"]

_AUTO = "auto"


def pretrain(
    overrides: Overrides = None,
    preset: Annotated[
        str,
        typer.Option(
            help="A shipped preset, a YAML file, or auto: what `pld advise` chooses for --budget.", autocompletion=complete_preset
        ),
    ] = "bert-base-pld",
    data: Annotated[Path, typer.Option(help="The prepared directory.")] = Path("data"),
    out: Annotated[Path | None, typer.Option(help="The run directory.", show_default="runs/PRESET")] = None,
    init_from: Annotated[
        str | None,
        typer.Option(
            help="Begin with the weights of a run, a checkpoint or a Hugging Face directory; short for train.init_from=...",
            show_default=False,
        ),
    ] = None,
    budget: Annotated[
        str | None,
        typer.Option(help="Train for so long (24h, 90m): steps are timed once, and train.total_steps is set.", show_default=False),
    ] = None,
    gpus: Annotated[
        int | None,
        typer.Option(min=1, help="Train in so many processes here, one per GPU; on a CPU they share its cores.", show_default=False),
    ] = None,
    max_restarts: Annotated[
        int, typer.Option(min=0, help="With --gpus: where a process dies, resume from the newest checkpoint, at most so often.")
    ] = 0,
    stop_after: Annotated[
        str | None,
        typer.Option(help="Stop after so long (3h), saved; the same command resumes. For queues with a limit.", show_default=False),
    ] = None,
    resume: Annotated[str, typer.Option(help="auto, never, or the path of a checkpoint.")] = "auto",
    device: Annotated[str | None, typer.Option(help="auto, cpu or cuda; short for runtime.device=...", show_default=False)] = None,
    on_divergence: Annotated[
        str | None,
        typer.Option(help="stop, or rollback to the newest checkpoint; short for train.on_divergence=...", show_default=False),
    ] = None,
    allow_bin: Annotated[
        bool, typer.Option("--allow-bin", help="Let --init-from read pytorch_model.bin, through torch's weights-only loader.")
    ] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Estimate what the run would take, and stop.")] = False,
) -> None:
    """Pre-train an encoder with layer dropping; a run that was stopped resumes.

    Several machines: torchrun --nnodes 2 --nproc-per-node 8 ... -m pldcli pretrain ...
    """
    from pldcli import presets
    from pldcli.bench.step_time import budget_seconds, parse_seconds

    stop_at = None if stop_after is None else time.monotonic() + parse_seconds(stop_after, "--stop-after")
    processes = processes_to_start(gpus)
    if max_restarts and (gpus or 1) == 1:
        raise UsageError("--max-restarts does nothing without --gpus", hint="leave it out, or say how many")
    if processes > 1 and budget is not None:
        hint = "time a step with `pld bench`, and set train.total_steps"
        raise UsageError("steps are timed in one process", where="--budget with --gpus", hint=hint)
    wanted = [
        *(overrides or []),
        *([f"runtime.device={device}"] if device else []),
        *([f"train.on_divergence={on_divergence}"] if on_divergence else []),
        *([f"train.init_from={json.dumps(init_from, ensure_ascii=False)}"] if init_from else []),
    ]
    seconds = 0.0 if budget is None else budget_seconds(budget, wanted)
    place = out or Path("runs") / Path(preset).stem
    if preset == _AUTO:
        preset, budget = _advised(data, place, budget, wanted, resume=resume, dry_run=dry_run), None
    first = presets.resolve(preset, wanted).config  # what is wrong without the data shows before it is read
    if allow_bin and first.train.init_from is None:
        raise UsageError("--allow-bin does nothing without --init-from", hint="leave it out")
    from pldcli.data.prepared import open_prepared
    from pldcli.runs.run_directory import RunDirectory

    prepared = open_prepared(data)
    earlier = None
    if (budget is not None or first.train.init_from is not None) and not dry_run and resume != "never":
        earlier = RunDirectory(place if resume == "auto" else Path(resume))
    stored = presets.load(earlier.config) if earlier and earlier.config.is_file() else None
    source, shape = None, {}
    if first.train.init_from is not None:
        if stored and earlier and earlier.has_weights:  # a run that resumes does not need the model that it began with
            settings = stored.model
        else:
            source = _open_source(first.train.init_from, allow_bin)
            settings = source.settings
        shape = {f"model.{name}": value for name, value in settings if name != "dropout"}
    config = presets.resolve(preset, wanted, from_data={"model.vocab_size": prepared.vocab_size}, from_model=shape).config
    if budget is not None:
        config = _within(config, seconds, prepared, stored)
    config.share_of_group(processes)
    from pldcli.pretraining import pretrain as engine

    if dry_run:
        estimated = engine.dry_run(config, prepared=prepared, source=source, processes=processes)
        if estimated.is_main:
            _show_estimate(estimated)
        return
    if processes > 1:
        from pldcli.system.launcher import run_processes

        places = ["--preset", preset, "--data", str(data), "--out", str(place), "--resume", resume, *(["--allow-bin"] if allow_bin else [])]

        def arguments() -> list[str]:
            left = [] if stop_at is None else ["--stop-after", f"{max(1.0, stop_at - time.monotonic()):.0f}s"]
            return ["pretrain", *wanted, *places, *left]

        kept, say = lambda: RunDirectory(place).what_is_saved, partial(typer.echo, err=True)
        raise typer.Exit(run_processes(processes, arguments, kept=kept, max_restarts=max_restarts, say=say))
    result = engine.pretrain(config, prepared=prepared, out=place, source=source, resume=resume, stop_at=stop_at, command=command_line())
    if result.is_main:
        _show(result, data, is_causal=config.objective.is_causal)


def _advised(data: Path, place: Path, budget: str | None, wanted: list[str], *, resume: str, dry_run: bool) -> str:
    """Let `pld advise` choose, and write its preset beside the run; a run that is there keeps its configuration."""
    from pldcli.runs.run_directory import RunDirectory

    stored = RunDirectory(place).config
    if resume != "never" and stored.is_file():
        return str(stored)
    if budget is None or dry_run:
        what = "--dry-run says nothing about it" if dry_run else "needs a --budget of time"
        raise UsageError(
            what, where=f"--preset {_AUTO}", hint="try `pld advise --budget 2h`" if dry_run else "add --budget 2h, for example"
        )
    from pldcli.advice.advise import FIRST_WORDS
    from pldcli.commands.advise import write_advice

    place = place.resolve() if place.name in ("", "..") else place
    chosen = place.with_name(f"{place.name}.yaml")
    if chosen.exists() and not chosen.read_text(encoding="utf-8", errors="replace").startswith(FIRST_WORDS):
        raise OutputError("is there, and `pld advise` did not write it", where=str(chosen), hint="choose another --out, or move the file")
    write_advice(chosen, data=data, budget=budget, overrides=wanted, command=command_line())
    return str(chosen)


def _within(config: Config, seconds: float, prepared: PreparedData, stored: Config | None) -> Config:
    """Set the number of steps that fit into a budget; a run that resumes keeps its own."""
    from pldcli.bench.budget import calibrate
    from pldcli.console.units import duration

    if stored is not None:
        total_steps = stored.train.total_steps
        typer.echo(f"{total_steps:,} steps, as the run that is there", err=True)
    else:
        found = calibrate(config, data=prepared, seconds=seconds)
        total_steps = found.total_steps
        typer.echo(f"a step takes {found.step_seconds * 1e3:,.1f} ms here: {total_steps:,} steps in {duration(seconds)}", err=True)
    return config.replace(train={"total_steps": total_steps})


def _open_source(init_from: str, allow_bin: bool) -> Pretrained:
    """Read the model that a run begins with."""
    from pldcli.runs.model_source import open_model

    source = open_model(Path(init_from), allow_bin=allow_bin)
    if source.without_masked_lm:
        typer.echo(f"note: {init_from} {source.without_masked_lm}: that head begins at random", err=True)
    for note in source.notes:
        typer.echo(f"note: {note}", err=True)
    return source


def _show(result: PretrainResult, data: Path, *, is_causal: bool) -> None:
    from pldcli.console.units import duration, quantity

    run, position = result.run, result.position
    following = f"next: {shlex.join(['pld', 'evaluate', str(run.path), '--data', str(data)])}"
    if result.was_finished:
        typer.echo(f"{run.path} is finished: {position.step:,} steps, model in {run.model}; {following}")
        return
    typer.echo(f"finished {position.step:,} steps, {quantity(position.tokens)} tokens in {duration(position.train_seconds)} of training")
    if position.skipped_steps:
        typer.echo(f"note: the updates of {position.skipped_steps:,} steps were left out: loss or gradient not finite, or a spike")
    if (score := result.score) is not None:
        typer.echo(f"validation loss {score.loss:.4f}, perplexity {score.perplexity:.2f}, accuracy {score.accuracy:.3f}")
    if result.has_read_context is False:
        asked = shlex.join(["pld", "advise", "--data", str(data), "--budget", f"{math.ceil(position.train_seconds / 60)}m"])
        typer.echo(
            f"note: the unigram baseline (token frequencies alone) reaches {result.unigram_loss:.4f}: this model has hardly learned from "
            f"context yet; train longer{'' if is_causal else f', or ask for the model that learns most in the time: {asked}'}"
        )
    typer.echo(f"model {run.model} ({result.read_back})")
    if (failure := result.read_back.failure) is not None:
        typer.echo(f"warning: {run.model}: {failure}", err=True)
    typer.echo(f"card {run.card}\n{following}")


def _show_estimate(estimated: Estimate) -> None:
    from pldcli.console.units import duration, quantity
    from pldcli.presets import dump

    groups, alone = estimated.config.pld.draws_per_step, estimated.measured_in < estimated.world_size
    saved = 1.0 - estimated.flops_per_token_scheduled / estimated.flops_per_token_dense
    rows = {
        "parameters": f"{estimated.num_parameters:,}",
        "FLOPs per token, dense": quantity(estimated.flops_per_token_dense),
        "FLOPs per token, scheduled": f"{quantity(estimated.flops_per_token_scheduled)} (mean over the run, {saved:.1%} saved)",
        "tokens": f"{estimated.num_tokens:,} in {estimated.num_sequences:,} sequences ({1 - estimated.packing_efficiency:.1%} padding)",
        "epochs": f"{estimated.epochs:.2f}",
        "a step reads": f"{estimated.config.curriculum.describe()} tokens",
        "device": f"{estimated.device}, {estimated.precision}, {estimated.world_size} process(es)",
        "one step": f"{groups} gate group(s) x {estimated.micro_steps} forward(s) x {estimated.micro_batch_size} sequences per process",
        "memory": f"about {estimated.memory_bytes / 1e9:.1f} GB per process",
        "disk": f"about {estimated.disk_bytes / 1e9:.2f} GB, a checkpoint {estimated.checkpoint_bytes / 1e9:.2f} GB",
        "time": f"about {duration(estimated.seconds)} on this machine, from measured steps{' of one process, alone' if alone else ''}",
    }
    typer.echo(dump(estimated.config))
    for name, value in rows.items():
        typer.echo(f"{name:<28}{value}")
    for warning in estimated.warnings:
        typer.echo(f"warning: {warning}")
