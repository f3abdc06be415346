"""`pld evaluate`: score a model."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from pldcli.choices import BlockChoice, Device, PrecisionChoice
from pldcli.errors import UsageError
from pldcli.evaluation import tables as scores

if TYPE_CHECKING:
    from pldcli.evaluation.depth import DepthReport
    from pldcli.evaluation.evaluate import Evaluated
    from pldcli.evaluation.subject import Opening
    from pldcli.evaluation.task import TaskSource

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
        typer.Option(metavar="FILE", help="Masked-LM loss on text or JSON lines, plain or .gz; may be repeated.", rich_help_panel=_WHAT),
    ] = None,
    pseudo_perplexity: Annotated[
        list[Path] | None,
        typer.Option(metavar="FILE", help="Mask each token of each line in turn; may be repeated.", rich_help_panel=_WHAT),
    ] = None,
    minimal_pairs: Annotated[
        list[Path] | None,
        typer.Option(
            metavar="FILE", help="Choose between sentence_good and sentence_bad of each JSON line; may be repeated.", rich_help_panel=_WHAT
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
    text_field: Annotated[str, typer.Option(help="The field of a JSON object that holds the text.", rich_help_panel=_WHAT)] = "text",
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
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
) -> None:
    """Measure masked-LM loss, perplexity and accuracy on the validation split, all blocks running, on fixed masks.

    With the options below: on any text, on a task after fine-tuning, on other material without, or with fewer blocks.
    """
    files = {"--text": text, "--pseudo-perplexity": pseudo_perplexity, "--minimal-pairs": minimal_pairs}
    measured = _only_one({**files, "--task": task, "--fill": fill})
    _check_company(
        measured,
        {"--top": top, "--each": each, "--depth": depth, "--blocks": blocks, "--out": out, "--json": as_json}
        | {"--data-dir": data_dir, "--predictions": predictions, "--skip-bad": skip_bad},
    )
    target = _target(model)
    opening: Opening = {"data": data, "precision": precision, "device": device, "allow_bin": allow_bin}
    inputs = files.get(measured) or []
    if task is not None:
        from pldcli.evaluation.task import TaskSource

        source = TaskSource(task, data_dir, skip_bad, unlabelled=predictions is not None)
        _task(target, source, depth, blocks or "keep-prob", opening, predictions, out or _PICTURE, as_json)
    elif fill is not None:
        _fill(target, fill, 5 if top is None else top, opening, as_json)
    elif depth is not None:
        material = measured.removeprefix("--") or "validation"
        _depths(target, depth, blocks or "keep-prob", material, inputs, text_field, opening, out or _PICTURE, as_json)
    else:
        _score(target, measured, inputs, text_field, opening, each, as_json)


def _only_one(choices: dict[str, Any]) -> str:
    """Find which of several options is given, or none.

    Raises:
        UsageError: More than one is.
    """
    given = [name for name, value in choices.items() if value is not None and value != []]
    if len(given) > 1:
        raise UsageError(f"{' and '.join(given)} exclude each other", hint="give one of them")
    return given[0] if given else ""


def _check_company(measured: str, given: dict[str, Any]) -> None:
    """Refuse options that would do nothing.

    Raises:
        UsageError: One of them stands without the one that it belongs to.
    """
    from pldcli.plots.canvas import check_picture_path

    there = {name for name, value in given.items() if value is not None and value is not False}
    if "--depth" in there and measured == "--fill":
        raise UsageError("--depth and --fill exclude each other", hint="give one of them")
    masters = {"--top": "--fill", "--blocks": "--depth", "--out": "--depth"}
    masters |= dict.fromkeys(("--data-dir", "--predictions", "--skip-bad"), "--task")
    for name, master in masters.items():
        if name in there and master != measured and master not in there:
            raise UsageError(f"{name} does nothing without {master}", hint="leave it out")
    if {"--predictions", "--depth"} <= there:
        raise UsageError("--predictions and --depth exclude each other", hint="give one of them")
    listed = measured in ("--pseudo-perplexity", "--minimal-pairs") and "--json" in there and "--depth" not in there
    if "--each" in there and not listed:
        raise UsageError("--each needs --json and --pseudo-perplexity or --minimal-pairs, without --depth")
    if "--out" in there:
        check_picture_path(given["--out"])


def _target(model: Path | None) -> Path:
    from pldcli.engine.model_source import latest_run

    target = model or latest_run()
    if model is None:
        typer.echo(f"evaluating {target}", err=True)
    return target


def _score(target: Path, measured: str, inputs: list[Path], text_field: str, opening: Opening, each: bool, as_json: bool) -> None:
    from pldcli.evaluation import evaluate as engine

    if measured == "--pseudo-perplexity":
        texts = engine.pseudo_perplexity(target, inputs, text_field=text_field, **opening)
        _print(texts.notes, scores.texts_json(texts.score, each=each) if as_json else None, lambda: scores.show_texts(texts))
    elif measured == "--minimal-pairs":
        pairs = engine.evaluate_pairs(target, inputs, **opening)
        _print(pairs.notes, scores.pairs_json(pairs.score, each=each) if as_json else None, lambda: scores.show_pairs(pairs))
    else:
        found = engine.evaluate_text(target, inputs, text_field=text_field, **opening) if inputs else engine.evaluate(target, **opening)
        _print(found.notes, scores.masked_lm_json(found.score) if as_json else None, lambda: scores.show_masked_lm(found))


def _task(
    target: Path,
    source: TaskSource,
    depth: str | None,
    blocks: Any,
    opening: Opening,
    predictions: Path | None,
    out: Path,
    as_json: bool,
) -> None:
    from pldcli.evaluation import task as engine

    how = {name: value for name, value in opening.items() if name != "data"}
    if depth is not None:
        _show_depths(engine.evaluate_task_depths(target, source, depth, blocks, **how), out, as_json)  # type: ignore[arg-type]
        return
    found = engine.evaluate_task(target, source, **how)  # type: ignore[arg-type]
    if predictions is not None:
        engine.write_predictions(found, predictions)
    _print(found.notes, scores.task_json(found) if as_json else None, lambda: scores.show_task(found, predictions))


def _fill(target: Path, text: str, top: int, opening: Opening, as_json: bool) -> None:
    from pldcli.evaluation import evaluate as engine

    found = engine.fill_mask(target, text, top=top, **opening)
    _print(found.notes, scores.fill_json(text, found.score) if as_json else None, lambda: scores.show_fill(found.score))


def _depths(
    target: Path, depth: str, blocks: Any, material: Any, inputs: list[Path], text_field: str, opening: Opening, out: Path, as_json: bool
) -> None:
    from pldcli.evaluation import evaluate as engine

    found = engine.evaluate_depths(target, depth, blocks, material=material, inputs=inputs, text_field=text_field, **opening)
    _show_depths(found, out, as_json)


def _show_depths(found: Evaluated[DepthReport], out: Path, as_json: bool) -> None:
    scores.draw_depths(found, out)
    _print(found.notes, scores.depths_json(found.score, out) if as_json else None, lambda: scores.show_depths(found, out))


def _print(notes: tuple[str, ...], values: dict[str, Any] | None, show: Any) -> None:
    """Print JSON where there is some, else what `show` prints; notes go to stderr."""
    for note in notes:
        typer.echo(f"note: {note}", err=True)
    if values is not None:
        typer.echo(json.dumps(values))
    else:
        show()
