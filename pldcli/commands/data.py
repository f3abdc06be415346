"""`pld data`: look after prepared data."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from pldcli.commands.config import Overrides, complete_preset

if TYPE_CHECKING:
    from rich.text import Text

    from pldcli.inspection import Inspection, Piece

__all__ = ["inspect", "verify"]


def verify(
    directory: Annotated[Path, typer.Argument(metavar="[DIR]", help="A prepared directory.", show_default="data")] = Path("data"),
) -> None:
    """Read every byte of prepared data and compare it with its checksums, and the tokens with the vocabulary."""
    from pldcli.console.progress import Progress
    from pldcli.data.prepared import verify_prepared

    with Progress("Verifying", unit="bytes") as bar:

        def report(done: int, total: int) -> None:
            bar.total = total
            bar.update(done)

        data = verify_prepared(directory, progress=report)
    files = f"{len(data.manifest['shards'])} shards, {data.num_bytes() / 1e6:,.1f} MB"
    typer.echo(f"{directory}: sound ({files}, tokenizer and manifest)")


def inspect(
    directory: Annotated[Path, typer.Argument(metavar="[DIR]", help="A prepared directory.", show_default="data")] = Path("data"),
    overrides: Overrides = None,
    preset: Annotated[
        str, typer.Option(help="How sequences are cut and masked: a shipped preset or a YAML file.", autocompletion=complete_preset)
    ] = "modern-tiny-preln",
    samples: Annotated[int, typer.Option(min=0, help="Sequences to show as the model sees them.")] = 2,
    pieces: Annotated[int, typer.Option(min=0, help="Entries of the vocabulary to show, the most frequent ones.")] = 20,
    plot: Annotated[Path | None, typer.Option(help="Draw lengths and frequencies to this .png or .svg.", show_default=False)] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Show what prepared data hold: documents, lengths, frequent pieces, what was left out, and sequences with their masks."""
    from pldcli import inspection, presets
    from pldcli.data.prepared import open_prepared
    from pldcli.plots.canvas import check_picture_path

    if plot is not None:
        check_picture_path(plot)
    prepared = open_prepared(directory)
    wanted = ["model.global_layers=1", *(overrides or ())]  # no model is made, whose windows would have to fit
    config = presets.resolve(preset, wanted, from_data={"model.vocab_size": prepared.vocab_size}).config
    found = inspection.inspect(prepared, config, num_samples=samples, num_pieces=pieces)
    if as_json:
        typer.echo(json.dumps(found.to_json(), indent=1, ensure_ascii=False))
    else:
        _show(found)
    if plot is not None:
        inspection.draw(found, plot)
        typer.echo(f"plot {plot}", err=as_json)


def _show(found: Inspection) -> None:
    from pldcli.console.screen import print_sections, screen
    from pldcli.console.section import Section

    console = screen()
    rows, lengths = [], []
    for name, split in found.splits.items():
        per_word = f"{split.tokens / split.words:.2f}" if split.words else "-"
        rows.append(
            (name, f"{split.documents:,}", f"{split.tokens:,}", per_word, f"{split.unknown / max(1, split.tokens - split.documents):.2%}")
        )
        lengths.append((name, *(f"{length:,}" for length in split.lengths)) if split.lengths else (name, *["-"] * 5))
    headings = ("part", "documents", "tokens", "per word", "unknown")
    left_out = [f"left out: {count:,} x {cause}" for cause, count in found.skipped.items()] or ["left out: nothing"]
    if found.replaced_bytes:
        left_out.append(f"replaced: {found.replaced_bytes:,} bytes that are not of the encoding")
    sections = [Section(f"{found.path}, from {len(found.sources)} file(s)", headings, tuple(rows), notes=tuple(left_out))]
    of_lengths = ("part", "shortest", "10 %", "50 %", "90 %", "longest")
    sections.append(Section("tokens of a document", of_lengths, tuple(lengths)))
    if found.repeated_lines:
        documents = sum(split.documents for split in found.splits.values())
        lines = tuple((line, f"{count:,}", f"{count / max(1, documents):.1%}") for line, count in found.repeated_lines)
        sections.append(Section("lines that stand in many documents", ("line", "documents", "of all"), lines))
    if found.frequent:
        tokens = int(found.counts.sum())
        share = tuple((one.piece, f"{one.count:,}", f"{one.count / max(1, tokens):.2%}") for one in found.frequent)
        note = f"of {found.vocab_size:,} entries the training text never has {found.never:,}, and {found.rare:,} fewer than ten times"
        sections.append(Section("frequent pieces", ("piece", "times", "of all tokens"), share, notes=(note,)))
    print_sections(console, sections)
    for number, sample in enumerate(found.samples):
        console.print(f"[bold cyan]sequence {number}[/] ({len(sample)} tokens, {sum(bool(piece.target) for piece in sample)} to predict)")
        console.print(_written(sample))
        console.print()


def _written(sample: tuple[Piece, ...]) -> Text:
    """Write a sequence: targets in red as [shown→target], documents that do not see each other with and without a line below."""
    from rich.text import Text

    text = Text()
    for piece in sample:
        line = "underline " if piece.segment % 2 == 0 and piece.segment else ""
        if piece.target:
            text.append(f"[{piece.shown}→{piece.target}]", f"{line}bold red")
        else:
            text.append(piece.shown, f"{line}dim" if piece.shown.startswith(("[", "<")) else line.strip() or None)
        text.append(" ")
    return text
