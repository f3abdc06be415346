"""How scores of a model look on the screen and as JSON."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from pldcli.console.screen import screen, table

if TYPE_CHECKING:
    from pldcli.engine.validation import LmScore
    from pldcli.evaluation.depth import DepthReport, Gates
    from pldcli.evaluation.evaluate import Evaluated
    from pldcli.evaluation.fill_mask import Candidate
    from pldcli.evaluation.task import TaskScore
    from pldcli.evaluation.zero_shot import MinimalPairs, PseudoPerplexity

__all__ = [
    "block_names",
    "depths_json",
    "draw_depths",
    "fill_json",
    "lm_json",
    "pairs_json",
    "show_depths",
    "show_fill",
    "show_lm",
    "show_pairs",
    "show_task",
    "show_texts",
    "task_json",
    "texts_json",
]

_NAMES = {
    "mlm_loss": "masked-LM loss",
    "mlm_accuracy": "accuracy",
    "clm_loss": "next-token loss",
    "clm_accuracy": "accuracy",
    "pseudo_perplexity": "pseudo-perplexity",
    "pseudo_log_likelihood": "log-likelihood",
}


def lm_json(score: LmScore) -> dict[str, Any]:
    """Name every number of a language model's score."""
    return {**score.values, "num_targets": score.num_targets, "tokens_per_second": score.tokens_per_second}


def show_lm(result: Evaluated[LmScore]) -> None:
    """Print a language model's score."""
    score = result.score
    _heading(result)
    _lines(
        (_NAMES[f"{score.kind}_loss"], f"{score.loss:.4f}"),
        ("perplexity", f"{score.perplexity:.2f}"),
        ("accuracy", f"{score.accuracy:.4f}"),
        ("targets", f"{score.num_targets:,}"),
        ("tokens/s", f"{score.tokens_per_second:,.0f}"),
    )


def texts_json(score: PseudoPerplexity, *, each: bool) -> dict[str, Any]:
    """Name every number of a pseudo-perplexity, and those of each text where wanted."""
    whole = {**score.values, "num_tokens": score.num_tokens, "num_texts": len(score.texts)}
    return whole | ({"texts": [asdict(text) for text in score.texts]} if each else {})


def show_texts(result: Evaluated[PseudoPerplexity]) -> None:
    """Print a pseudo-perplexity."""
    score = result.score
    _heading(result)
    _lines(
        ("pseudo-perplexity", f"{score.pseudo_perplexity:.2f}"),
        ("log-likelihood", f"{score.pseudo_log_likelihood:,.1f}"),
        ("texts", f"{len(score.texts):,}"),
        ("tokens", f"{score.num_tokens:,}"),
    )


def pairs_json(score: MinimalPairs, *, each: bool) -> dict[str, Any]:
    """Name the shares of right choices, and the numbers of each pair where wanted."""
    groups = {name: {value: asdict(group) for value, group in kinds.items()} for name, kinds in score.groups.items()}
    files = {file: asdict(found) for file, found in score.files.items()}
    whole = {**score.values, "num_pairs": len(score.scores), "num_ties": score.num_ties, "files": files, "groups": groups}
    pairs = [{"good": pair.good, "bad": pair.bad, "right": pair.is_right} for pair in score.scores]
    return whole | ({"pairs": pairs} if each else {})


def show_pairs(result: Evaluated[MinimalPairs]) -> None:
    """Print the share of right choices, and that of each file and kind of pairs."""
    score, many = result.score, len(result.score.files) > 1
    _heading(result)
    _lines(
        ("accuracy", f"{score.accuracy:.4f}"),
        *([("mean of files", f"{score.mean_accuracy:.4f}")] if many else []),
        ("pairs", f"{len(score.scores):,}"),
        ("ties", f"{score.num_ties:,} (count as wrong)"),
    )
    for name, kinds in [*([("file", score.files)] if many else []), *score.groups.items()]:
        rows = [[_plain(value), f"{group.accuracy:.4f}", f"{group.num_pairs:,}"] for value, group in kinds.items()]
        typer.echo("")
        screen().print(table([_plain(name), "accuracy", "pairs"], rows, right=["accuracy", "pairs"], fold=[_plain(name)]))


def fill_json(text: str, masks: Sequence[Sequence[Candidate]]) -> dict[str, Any]:
    """List the candidates of each mask."""
    return {"text": text, "masks": [[asdict(candidate) for candidate in candidates] for candidates in masks]}


def show_fill(masks: Sequence[Sequence[Candidate]]) -> None:
    """Print the candidates of each mask."""
    for number, candidates in enumerate(masks, 1):
        if len(masks) > 1:
            typer.echo(f"{chr(10) if number > 1 else ''}mask {number} of {len(masks)}")
        rows = [
            [_plain(candidate.token), f"{candidate.probability:.4f}", str(candidate.token_id), _plain(candidate.text)]
            for candidate in candidates
        ]
        screen().print(table(["token", "probability", "id", "text"], rows, right=["probability", "id"], fold=["text"]))


def task_json(result: TaskScore) -> dict[str, Any]:
    """Name every score of a task, split by split."""
    splits = {
        name: {"examples": len(examples), **scored.scores, "tokens_per_second": scored.num_tokens / max(scored.seconds, 1e-9)}
        for name, (examples, scored) in result.splits.items()
    }
    return {"task": result.task.name, "model": result.source, "splits": splits}


def show_task(result: TaskScore) -> None:
    """Print a task's scores, split by split."""
    typer.echo(f"{result.source} on {result.task.name}, {result.precision}")
    metrics = list(dict.fromkeys(name for _, scored in result.splits.values() for name in scored.scores))
    headings = ["split", "examples", *map(_named, metrics), "tokens/s"]
    rows = [
        [
            name,
            f"{len(examples):,}",
            *(f"{scored.scores[metric]:.4f}" if metric in scored.scores else "no labels" for metric in metrics),
            f"{scored.num_tokens / max(scored.seconds, 1e-9):,.0f}",
        ]
        for name, (examples, scored) in result.splits.items()
    ]
    screen().print(table(headings, rows, right=headings[1:], fold=["split"]))


def depths_json(report: DepthReport, picture: Path) -> dict[str, Any]:
    """List the scores and speeds of each depth."""
    rows = [
        {
            "blocks": score.num_blocks,
            "kept": [number for number, runs in enumerate(score.gates, 1) if runs],
            **score.values,
            "tokens_per_second": score.tokens_per_second,
            "relative_speed": score.relative_speed,
        }
        for score in report.scores
    ]
    return {"num_blocks": report.num_blocks, "chosen": report.reason, "depths": rows, "picture": str(picture)}


def show_depths(result: Evaluated[DepthReport], picture: Path) -> None:
    """Print the scores and speeds of each depth."""
    report = result.score
    _heading(result)
    typer.echo(f"kept: {report.reason}")
    names = list(map(_named, report.scores[0].values))
    headings = ["blocks", *names, "tokens/s", "speed", "kept"]
    rows = [
        [
            f"{score.num_blocks} of {report.num_blocks}",
            *(_number(value) for value in score.values.values()),
            f"{score.tokens_per_second:,.0f}",
            f"{score.relative_speed:.2f}x",
            block_names(score.gates),
        ]
        for score in report.scores
    ]
    screen().print(table(headings, rows, right=["blocks", *names, "tokens/s", "speed"], fold=["kept"]))
    typer.echo(f"picture written to {picture}")


def draw_depths(result: Evaluated[DepthReport], picture: Path) -> None:
    """Draw the headline score and the speed against depth."""
    from pldcli.evaluation.plots import plot_depths

    scores = result.score.scores
    name, _ = next(iter(scores[0].values.items()))
    plot_depths(
        [score.num_blocks for score in scores],
        [score.values[name] for score in scores],
        [score.relative_speed for score in scores],
        picture,
        title=f"{result.source} on {result.what}",
        score_label=_named(name),
        num_blocks=result.score.num_blocks,
    )


def block_names(gates: Gates) -> str:
    """Write blocks as ranges, for example `1-4 7 9`."""
    ranges: list[list[int]] = []
    for number, runs in enumerate(gates, 1):
        if runs and ranges and ranges[-1][1] == number - 1:
            ranges[-1][1] = number
        elif runs:
            ranges.append([number, number])
    return " ".join(str(first) if first == last else f"{first}-{last}" for first, last in ranges)


def _named(score: str) -> str:
    """Name a score in words, between which a heading may wrap."""
    return _NAMES.get(score) or score.replace("_", " ")


def _heading(result: Evaluated[Any]) -> None:
    typer.echo(f"{result.source} on {result.what}, {result.seq_len} tokens per row, {result.precision}")


def _lines(*lines: tuple[str, str]) -> None:
    width = max(16, *(len(name) + 2 for name, _ in lines))
    for name, text in lines:
        typer.echo(f"{name:<{width}}{text}")


def _number(value: float) -> str:
    return f"{value:.4f}" if abs(value) < 100 else f"{value:,.1f}"


def _plain(text: str) -> str:
    """Keep brackets from Rich, which takes them for markup."""
    return text.replace("[", "\\[")
