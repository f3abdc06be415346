"""The `pld` command: the table of its subcommands and the single error boundary."""

from __future__ import annotations

import errno
import inspect
import io
import os
import sys
import traceback
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, NoReturn

import typer

from pldcli import __version__
from pldcli.commands import (
    advise,
    analyze,
    bench,
    checkpoint,
    compare,
    config,
    data,
    demo,
    doctor,
    evaluate,
    export,
    finetune,
    plot_schedule,
    prepare_data,
    pretrain,
    runs,
    study,
    tasks,
    tokenizer,
)
from pldcli.errors import FULL_DISK, UNUSABLE_PLACE, OutputError, PldError, PreemptedError, StoppedError, reason_of
from pldcli.system.error_file import final_ending, write_ending
from pldcli.system.machine import share_cores
from pldcli.system.signals import stop_on_signals

__all__ = ["COMMANDS", "Entry", "app", "main", "run"]

DATA, TRAINING, RESULTS, LOOKING = "Data", "Training", "Results", "Looking around"
"""The panels of `pld --help`, in the order of the work."""


@dataclass(frozen=True)
class Entry:
    """One subcommand: how it is typed, what runs, where help lists it, and an example of its use."""

    name: str
    """One word, or a group and a word."""
    function: Callable[..., None]
    panel: str
    example: str


COMMANDS: tuple[Entry, ...] = (
    Entry("prepare-data", prepare_data.prepare_data, DATA, "pld prepare-data corpus.txt --out data --vocab-size 8192"),
    Entry("data inspect", data.inspect, DATA, "pld data inspect data --samples 3"),
    Entry("data verify", data.verify, DATA, "pld data verify data"),
    Entry("advise", advise.advise, TRAINING, "pld advise --budget 2h --data data"),
    Entry("tokenizer train", tokenizer.train, DATA, "pld tokenizer train corpus.txt --vocab-size 8192"),
    Entry("tokenizer inspect", tokenizer.inspect, DATA, "pld tokenizer inspect tokenizer other.txt"),
    Entry("pretrain", pretrain.pretrain, TRAINING, "pld pretrain --preset bert-small-pld train.total_steps=1000 --data data"),
    Entry("study", study.study, TRAINING, "pld study benchmarks/studies/tiny.yaml --dry-run"),
    Entry("finetune", finetune.finetune, TRAINING, "pld finetune glue/mrpc --data-dir glue --seeds 5"),
    Entry("demo", demo.demo, TRAINING, "pld demo --out /tmp/pld-demo"),
    Entry("evaluate", evaluate.evaluate, RESULTS, "pld evaluate runs/bert-small-pld --data data"),
    Entry("compare", compare.compare, RESULTS, "pld compare runs/bert-small-preln runs/bert-small-pld --out comparison"),
    Entry("analyze", analyze.analyze, RESULTS, "pld analyze runs/bert-small-postln runs/bert-small-preln --gates 0.5 --out analysis"),
    Entry("export", export.export, RESULTS, "pld export runs/bert-small-pld --keep-blocks 9 --out smaller"),
    Entry("checkpoint list", checkpoint.list_, RESULTS, "pld checkpoint list runs/bert-small-pld"),
    Entry("checkpoint verify", checkpoint.verify, RESULTS, "pld checkpoint verify runs/bert-small-pld"),
    Entry("checkpoint prune", checkpoint.prune, RESULTS, "pld checkpoint prune runs/bert-small-pld --keep 1"),
    Entry("runs", runs.runs, RESULTS, "pld runs"),
    Entry("tasks", tasks.tasks, LOOKING, "pld tasks"),
    Entry("plot-schedule", plot_schedule.plot_schedule, LOOKING, "pld plot-schedule --preset bert-base-pld pld.theta_bar=0.7"),
    Entry("config show", config.show, LOOKING, "pld config show bert-small-pld train.total_steps=1000"),
    Entry("config validate", config.validate, LOOKING, "pld config validate my.yaml optim.learning_rate=5e-4"),
    Entry("config list", config.list_presets, LOOKING, "pld config list"),
    Entry("config import", config.import_deepspeed, LOOKING, "pld config import deepspeed.json --out my.yaml"),
    Entry("config finetune", config.finetune_settings, LOOKING, "pld config finetune"),
    Entry("config schema", config.schema, LOOKING, "pld config schema study > study.schema.json"),
    Entry("bench", bench.bench, LOOKING, "pld bench --preset bert-small-pld --steps 20"),
    Entry("doctor", doctor.doctor, LOOKING, "pld doctor --path /scratch"),
)
"""Every subcommand, once."""

_GROUPS = {
    "checkpoint": "List, verify and remove the checkpoints of a run.",
    "config": "Show, check, list and import configurations.",
    "data": "Look after prepared data.",
    "tokenizer": "Train tokenizers, and see how they fit a text.",
}
_CONTEXT = {"help_option_names": ["-h", "--help"]}
_CommandLineError = typer.BadParameter.__mro__[1]
"""Typer's own usage error; only this path to it works in every version."""


def _version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"pld {__version__}")
        raise typer.Exit


def _root(
    context: typer.Context,
    version: Annotated[bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version and stop.")] = False,
    show_traceback: Annotated[
        bool, typer.Option("--traceback", envvar="PLD_TRACEBACK", help="Show where in the code an error arose.")
    ] = False,
) -> None:
    """Pre-train BERT-style encoders with Progressive Layer Dropping, on your own text."""
    if context.invoked_subcommand is None:
        context.get_help()


def _help_text(function: Callable[..., None]) -> str:
    """Return a docstring's part for users: what stands before Args, Returns and Raises, with brackets kept from Rich."""
    text = inspect.getdoc(function) or ""
    for section in ("Args:", "Returns:", "Raises:", "Source:"):
        text = text.partition(f"\n\n{section}")[0]
    return text.replace("[", "\\[")


def _build(commands: Sequence[Entry]) -> typer.Typer:
    app = typer.Typer(
        name="pld",
        rich_markup_mode="rich",
        pretty_exceptions_enable=False,
        context_settings=_CONTEXT,
        epilog="First steps:  pld demo  ·  pld plot-schedule  ·  pld COMMAND -h",
    )
    app.callback(invoke_without_command=True)(_root)
    groups: dict[str, typer.Typer] = {}
    for entry in commands:
        group, _, name = entry.name.rpartition(" ")
        parent = app
        if group:
            if group not in groups:
                groups[group] = typer.Typer(rich_markup_mode="rich", context_settings=_CONTEXT)
                groups[group].callback(invoke_without_command=True)(_group)
                app.add_typer(groups[group], name=group, help=_GROUPS[group], rich_help_panel=entry.panel)
            parent = groups[group]
        example = entry.example.replace("[", "\\[")
        options: dict[str, Any] = {} if group else {"rich_help_panel": entry.panel}
        parent.command(name, help=_help_text(entry.function), epilog=f"Example:  {example}", context_settings=_CONTEXT, **options)(
            entry.function
        )
    return app


def _group(context: typer.Context) -> None:
    if context.invoked_subcommand is None:
        context.get_help()


app = _build(COMMANDS)


def run(arguments: Sequence[str]) -> int:
    """Run one command line.

    Args:
        arguments: What follows `pld`.

    Returns:
        The exit code, after one line on stderr where something went wrong.
    """
    if "--traceback" in arguments:
        os.environ["PLD_TRACEBACK"] = "1"  # of processes that are started, too
    show_traceback = os.environ.get("PLD_TRACEBACK", "0").lower() not in ("", "0", "false")
    try:
        # `--traceback` counts wherever it stands: people add it at the end of the line that failed.
        code = app(sorted(arguments, key=lambda argument: argument != "--traceback"), prog_name="pld", standalone_mode=False)
        sys.stdout.flush()
    except BrokenPipeError:
        return _close_pipe()
    except SystemExit as stop:
        # Rich and Typer turn a closed pipe into this themselves.
        return _close_pipe() if isinstance(stop.__context__, OSError) and stop.__context__.errno == errno.EPIPE else _code_of(stop)
    except (KeyboardInterrupt, typer.Abort):
        return _report("interrupted", 130)
    except Exception as error:  # noqa: BLE001 - the one place where every error ends
        if show_traceback:
            traceback.print_exc()
        return _explain(error)
    if code == 130:  # Typer's reading of Ctrl-C
        return _report("interrupted", 130)
    return code if isinstance(code, int) else 0


def main() -> NoReturn:
    """Run the command line of this process and leave with its exit code."""
    share_cores()
    if isinstance(sys.stdout, io.TextIOWrapper):
        # A terminal that cannot show a character gets a question mark, not an error.
        sys.stdout.reconfigure(errors="replace")
    if (ending := final_ending()) is not None:
        sys.exit(_report(*ending))
    if sys.argv[1:2] in (["pretrain"], ["finetune"]) and "RANK" not in os.environ:
        stop_on_signals()
    code = run(sys.argv[1:])
    if not code:
        write_ending("", exit_code=code)
    sys.exit(code)


def _explain(error: Exception) -> int:
    if isinstance(error, PreemptedError | StoppedError) and os.environ.get("RANK", "0") != "0":
        write_ending(str(error), exit_code=error.exit_code)
        return error.exit_code  # of several processes, which all stop at the same step, one says so
    if isinstance(error, PldError) and type(error) is not PldError:
        return _report(str(error), error.exit_code)
    if isinstance(error, _CommandLineError):
        context = getattr(error, "ctx", None)
        command = context.command_path if context else "pld"
        message = error.format_message().rstrip(".")  # type: ignore[attr-defined]
        return _report(f"{message}; see `{command} -h`", 2)
    if isinstance(error, MemoryError):
        return _report("out of memory; close other programs, or make the work smaller (train.micro_batch_size for training)", 5)
    if isinstance(error, OSError) and error.errno in FULL_DISK:
        return _report(f"the disk is full{f' ({error.filename})' if error.filename else ''}", OutputError.exit_code)
    if isinstance(error, OSError) and error.filename and error.errno in UNUSABLE_PLACE:
        return _report(
            f"{error.filename}: cannot be used ({reason_of(error)}); choose another place, or ask for the right to it",
            OutputError.exit_code,
        )
    what = f"{type(error).__name__}: {error}" if str(error) else type(error).__name__
    return _report(f"{what}; this is a bug in pld: run the same command again with --traceback and report what it shows", 1)


def _report(message: str, code: int) -> int:
    """Print one line, unwrapped and unstyled so that paths stay whole in pipes and logs."""
    message = " ".join(message.split())
    write_ending(message, exit_code=code)
    typer.echo(f"error: {message}", err=True)
    return code


def _code_of(stop: SystemExit) -> int:
    if isinstance(stop.code, str):  # a library's last words
        return _report(stop.code, 1)
    return stop.code if isinstance(stop.code, int) else int(stop.code is not None)


def _close_pipe() -> int:
    """Replace a closed stdout, so that the interpreter's last flush is quiet; 141 is what a shell sees after SIGPIPE."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
    return 141
