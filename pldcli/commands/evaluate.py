"""`pld evaluate`: score a model."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable, Mapping, Set
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from pldcli.choices import BlockChoice, Device, PrecisionChoice
from pldcli.errors import UsageError
from pldcli.evaluation import tables
from pldcli.system.error_file import note_beginning
from pldcli.system.workers import processes_to_start

if TYPE_CHECKING:
    from pldcli.evaluation.depth import DepthReport
    from pldcli.evaluation.evaluate import Evaluated
    from pldcli.evaluation.fill_mask import Candidate
    from pldcli.evaluation.subject import Opening
    from pldcli.evaluation.task import TaskScore

__all__ = ["evaluate"]


_WHAT, _DEPTH = "What to measure", "Fewer blocks"
_PICTURE = Path("depth.png")


def evaluate(
    model: Annotated[
        Path | None,
        typer.Argument(
            metavar="[RUN or MODEL DIR]", help="A run, a checkpoint or a Hugging Face directory.", show_default="the latest run"
        ),
    ] = None,
    data: Annotated[
        Path | None, typer.Option(help="The prepared directory whose validation split is read.", show_default="the run's own, else data")
    ] = None,
    text: Annotated[
        list[Path] | None,
        typer.Option(metavar="FILE", help="Loss on text or JSON lines, plain or .gz; may be repeated.", rich_help_panel=_WHAT),
    ] = None,
    pseudo_perplexity: Annotated[
        list[Path] | None,
        typer.Option(metavar="FILE", help="Mask each token of each line in turn; may be repeated.", rich_help_panel=_WHAT),
    ] = None,
    minimal_pairs: Annotated[
        list[Path] | None,
        typer.Option(
            metavar="FILE or DIR",
            help="Choose between sentence_good and sentence_bad of each line, accuracy per file too; may be repeated.",
            rich_help_panel=_WHAT,
        ),
    ] = None,
    task: Annotated[
        str | None,
        typer.Option(metavar="TASK or FILE", help="A fine-tuned model on a task of `pld tasks`, or on a file.", rich_help_panel=_WHAT),
    ] = None,
    data_dir: Annotated[
        Path | None, typer.Option(help="Where the files of --task are.", show_default="the Hugging Face hub", rich_help_panel=_WHAT)
    ] = None,
    predictions: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Write every prediction of --task as JSON lines.", rich_help_panel=_WHAT)
    ] = None,
    skip_bad: Annotated[
        bool, typer.Option("--skip-bad", help="Leave out unusable rows of the file of --task.", rich_help_panel=_WHAT)
    ] = False,
    fill: Annotated[str | None, typer.Option(metavar="TEXT", help="Fill each \\[MASK] of a text.", rich_help_panel=_WHAT)] = None,
    top: Annotated[int | None, typer.Option(help="Candidates per mask of --fill.", show_default="5", rich_help_panel=_WHAT)] = None,
    text_field: Annotated[
        str | None, typer.Option(help="The field of a JSON object that holds the text.", show_default="text", rich_help_panel=_WHAT)
    ] = None,
    each: Annotated[bool, typer.Option("--each", help="With --json: the scores of every line or pair too.", rich_help_panel=_WHAT)] = False,
    depth: Annotated[
        str | None, typer.Option(metavar="6,8,10,12", help="Score with only so many blocks, and time it.", rich_help_panel=_DEPTH)
    ] = None,
    blocks: Annotated[
        BlockChoice | None, typer.Option(help="Which blocks are kept.", show_default="keep-prob", rich_help_panel=_DEPTH)
    ] = None,
    out: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="Picture of --depth, .png or .svg.", show_default=str(_PICTURE), rich_help_panel=_DEPTH),
    ] = None,
    allow_bin: Annotated[
        bool, typer.Option("--allow-bin", help="Read a pytorch_model.bin where there are no safetensors, running no code of it.")
    ] = False,
    precision: Annotated[PrecisionChoice, typer.Option(help="Number format; fp32 gives the same number everywhere.")] = "fp32",
    device: Annotated[Device, typer.Option(help="Where to run.")] = "auto",
    gpus: Annotated[
        int | None,
        typer.Option(min=1, help="Share the work over so many processes, one per GPU; on a CPU they share its cores.", show_default=False),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
    save: Annotated[Path | None, typer.Option(metavar="FILE", help="Write the JSON object to a file.", show_default=False)] = None,
) -> None:
    """Measure loss, perplexity and accuracy on the validation split, all blocks running: on fixed masks, or of next tokens.

    With the options below: on any text, on a task after fine-tuning, on other material without, or with fewer blocks.
    """
    given: dict[str, Any] = {
        "--text": text,
        "--pseudo-perplexity": pseudo_perplexity,
        "--minimal-pairs": minimal_pairs,
        "--task": task,
        "--fill": fill,
        "--top": top,
        "--each": each,
        "--data-dir": data_dir,
        "--predictions": predictions,
        "--skip-bad": skip_bad,
        "--depth": depth,
        "--blocks": blocks,
        "--out": out,
        "--text-field": text_field,
        "--json": as_json,
        "--gpus": gpus,
    }
    measurement = _chosen({name for name, value in given.items() if value is not None and value is not False and value != []})
    if depth is not None:
        from pldcli.evaluation.depth import parse_depths

        parse_depths(depth)  # a typing error shows before torch loads
    from pldcli.plots.canvas import check_picture_path
    from pldcli.runs.model_source import latest_run
    from pldcli.system.json_text import finite
    from pldcli.system.output_place import check_file

    given["--out"] = out or _PICTURE
    check_picture_path(given["--out"])
    for option, place in (("--predictions", predictions), ("--save", save)):
        check_file(place, option)
    target = model or latest_run()
    if (processes := processes_to_start(gpus)) > 1:
        from pldcli.system.launcher import run_processes

        raise typer.Exit(run_processes(processes, lambda: sys.argv[1:], kept=lambda: "and what they measured is gone"))
    is_main = os.environ.get("RANK", "0") == "0"
    if model is None and is_main:
        typer.echo(f"evaluating {target}", err=True)
    note_beginning()
    found = measurement.run(target, given, {"data": data, "precision": precision, "device": device, "allow_bin": allow_bin})
    if not is_main:  # several processes measure together, and one of them says what came out
        return
    measurement = measurement if depth is None else _DEPTHS
    for note in found.notes:
        typer.echo(f"note: {note}", err=True)
    values = finite(measurement.values(found, given)) if as_json or save is not None else {}
    try:
        if predictions is not None:
            from pldcli.evaluation.task import write_predictions

            write_predictions(found, predictions)
        if depth is not None:
            tables.draw_depths(found, given["--out"])
        if save is not None:
            from pldcli.system import atomic
            from pldcli.system.seal import paths_sha256

            _, inputs = _files(given)
            weights = sorted(Path(found.source).glob("*.safetensors"))
            hashed = {"data": inputs, "model": weights}
            prints = {name: paths_sha256(places) for name, places in hashed.items() if places}
            about = {"inputs": list(map(str, inputs)), "fingerprints": prints}
            atomic.write_text(save, json.dumps({"model": str(target), **about, **values}) + "\n")
    finally:  # a file that cannot be written must not take away what was measured
        if as_json:
            typer.echo(json.dumps(values))
        else:
            measurement.show(found, given)
    if predictions is not None and not as_json:
        typer.echo(f"predictions written to {predictions}")


def _files(given: Mapping[str, Any]) -> tuple[str, list[Path]]:
    """Return the option that names files to score, and the files; nothing where the validation split is scored."""
    option = next((name for name in ("--text", "--pseudo-perplexity", "--minimal-pairs") if given[name]), "")
    return option, given.get(option, [])


def _material(target: Path, given: Mapping[str, Any], opening: Opening) -> Evaluated[Any]:
    from pldcli.evaluation import evaluate as engine

    option, inputs = _files(given)
    what: Any = {
        "material": option.removeprefix("--") or "validation",
        "inputs": inputs,
        "text_field": given["--text-field"] or "text",
    }
    if given["--depth"] is not None:
        return engine.evaluate_depths(target, given["--depth"], given["--blocks"] or "keep-prob", **what, **opening)
    return engine.evaluate(target, **what, **opening)


def _task(target: Path, given: Mapping[str, Any], opening: Opening) -> TaskScore | Evaluated[DepthReport]:
    from pldcli.evaluation import task as engine

    source = engine.TaskSource(given["--task"], given["--data-dir"], given["--skip-bad"], unlabelled=given["--predictions"] is not None)
    if given["--depth"] is not None:
        return engine.evaluate_task_depths(target, source, given["--depth"], given["--blocks"] or "keep-prob", **opening)
    return engine.evaluate_task(target, source, **opening)


def _fill(target: Path, given: Mapping[str, Any], opening: Opening) -> Evaluated[list[list[Candidate]]]:
    from pldcli.evaluation import evaluate as engine

    return engine.fill_mask(target, given["--fill"], top=5 if given["--top"] is None else given["--top"], **opening)


@dataclass(frozen=True, kw_only=True)
class _Measurement:
    """Something to measure, which options belong to it, and how its result is written."""

    run: Callable[[Path, Mapping[str, Any], Opening], Any]
    values: Callable[[Any, Mapping[str, Any]], dict[str, Any]]
    """For --json."""
    show: Callable[[Any, Mapping[str, Any]], None]
    options: tuple[str, ...] = ()
    """They do nothing without it."""
    excludes: tuple[str, ...] = ()


_LM = _Measurement(
    run=_material,
    values=lambda found, _: tables.lm_json(found.score),
    show=lambda found, _: tables.show_lm(found),
)
_MEASUREMENTS = {
    "": _LM,
    "--text": replace(_LM, options=("--text-field",)),
    "--pseudo-perplexity": _Measurement(
        run=_material,
        values=lambda found, given: tables.texts_json(found.score, each=given["--each"]),
        show=lambda found, _: tables.show_texts(found),
        options=("--text-field", "--each"),
        excludes=("--gpus",),
    ),
    "--minimal-pairs": _Measurement(
        run=_material,
        values=lambda found, given: tables.pairs_json(found.score, each=given["--each"]),
        show=lambda found, _: tables.show_pairs(found),
        options=("--each",),
        excludes=("--gpus",),
    ),
    "--task": _Measurement(
        run=_task,
        values=lambda found, _: tables.task_json(found),
        show=lambda found, _: tables.show_task(found),
        options=("--data-dir", "--predictions", "--skip-bad"),
    ),
    "--fill": _Measurement(
        run=_fill,
        values=lambda found, given: tables.fill_json(given["--fill"], found.score),
        show=lambda found, _: tables.show_fill(found.score),
        options=("--top",),
        excludes=("--depth", "--gpus"),
    ),
}
"""By the option that asks for each; one of them at a time."""
_DEPTHS = _Measurement(
    run=_material,
    values=lambda found, given: tables.depths_json(found.score, given["--out"]),
    show=lambda found, given: tables.show_depths(found, given["--out"]),
    options=("--blocks", "--out"),
    excludes=("--predictions", "--each", "--gpus"),
)
"""Any of them but --fill, with fewer blocks."""
_JSON_ONLY = ("--each",)


def _chosen(there: Set[str]) -> _Measurement:
    """Find what is to be measured.

    Args:
        there: The options that are given.

    Raises:
        UsageError: Two options exclude each other, or one stands without another that it belongs to.
    """
    asked = [name for name in _MEASUREMENTS if name in there]
    if len(asked) > 1:
        raise UsageError(f"{' and '.join(asked)} exclude each other", hint="give one of them")
    parts = {name: _MEASUREMENTS[name] for name in asked or [""]} | ({"--depth": _DEPTHS} if "--depth" in there else {})
    owners: dict[str, list[str]] = {}
    for name, measurement in (_MEASUREMENTS | {"--depth": _DEPTHS}).items():
        for option in measurement.options:
            owners.setdefault(option, []).append(name)
    for option, names in owners.items():
        if option in there and not parts.keys() & names:
            raise UsageError(f"{option} does nothing without {' or '.join(names)}", hint="leave it out")
    for name, measurement in parts.items():
        for other in measurement.excludes:
            if other in there:
                raise UsageError(f"{other} and {name} exclude each other", hint="give one of them")
    for option in _JSON_ONLY:
        if option in there and "--json" not in there:
            raise UsageError(f"{option} does nothing without --json", hint="leave it out")
    return next(iter(parts.values()))
