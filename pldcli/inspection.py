"""What prepared data hold, and what a model sees of them: counts, lengths, frequent pieces, and sequences with their masks.

Shapes: B batch, T tokens.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
from rich.text import Text

from pldcli.config import Config
from pldcli.console.screen import print_sections, screen
from pldcli.console.section import Section
from pldcli.data.loader import NO_TARGET, Batch, to_batch
from pldcli.data.prepared import PreparedData
from pldcli.data.stream import TokenStream
from pldcli.plots.canvas import picture
from pldcli.pretraining.assembly import choose_masking, cut_rows, next_token_steps
from pldcli.tokenization.tokenizer import load_prepared_tokenizer

__all__ = ["Frequency", "Inspection", "Piece", "Split", "draw", "inspect", "show"]

SPLITS: tuple[Literal["train", "validation"], ...] = ("train", "validation")
_QUANTILES = (0.0, 0.1, 0.5, 0.9, 1.0)
_CHUNK = 1 << 22
"""Tokens counted at a time."""


@dataclass(frozen=True)
class Split:
    """One of the two parts of the data."""

    documents: int
    """Each once, whatever its weight; so are the others."""
    tokens: int
    """With the separator behind each document."""
    words: int
    num_bytes: int
    """Of text."""
    unknown: int
    """Tokens for text that the tokenizer cannot express."""
    lengths: tuple[int, ...]
    """Tokens of the shortest document, of those at 10, 50 and 90 %, and of the longest."""


@dataclass(frozen=True)
class Frequency:
    """An entry of the vocabulary, and how often it occurs in the training text."""

    piece: str
    count: int


@dataclass(frozen=True)
class Piece:
    """A token of a sequence as a model sees it."""

    shown: str
    """What stands there."""
    target: str = ""
    """What is to be predicted there, if anything; of a causal model nothing, as it is what stands behind."""
    segment: int = 0
    """Documents of a packed sequence count from 1; tokens of others see each other only where this is equal."""
    predicts: bool = False
    """Whether a target belongs to it."""


@dataclass(frozen=True)
class Inspection:
    """All that there is to say about prepared data."""

    path: str
    vocab_size: int
    sources: tuple[str, ...]
    splits: dict[str, Split]
    skipped: dict[str, int]
    """What was left out, by cause."""
    replaced_bytes: int
    repeated_lines: tuple[tuple[str, int], ...]
    """Lines that stand in many documents, and in how many."""
    frequent: tuple[Frequency, ...]
    never: int
    """Entries of the vocabulary that the training text never has."""
    rare: int
    """Entries that it has fewer than ten times."""
    samples: tuple[tuple[Piece, ...], ...]
    counts: npt.NDArray[np.int64]
    """Of each entry in the training text, [V]."""
    document_lengths: npt.NDArray[np.int64]
    """Tokens of each training document, as often as it counts."""

    def to_json(self) -> dict[str, Any]:
        """Return everything but the arrays."""
        return {key: value for key, value in asdict(self).items() if key not in ("counts", "document_lengths")}


def inspect(prepared: PreparedData, config: Config, *, num_samples: int, num_pieces: int) -> Inspection:
    """Read prepared data through.

    Args:
        prepared: The data.
        config: How sequences are cut and masked.
        num_samples: Sequences to show, the first of the run.
        num_pieces: Entries of the vocabulary to show, the most frequent first.

    Raises:
        DataError: The data are damaged, or too little for one sequence.
    """
    tokenizer = load_prepared_tokenizer(prepared.path)
    splits: dict[str, Split] = {}
    streams = {name: prepared.stream(name) for name in SPLITS}
    lengths = {name: np.diff(stream.document_ends, prepend=0) for name, stream in streams.items()}
    for name in SPLITS:
        counts = prepared.manifest["counts"].get(name, {})
        splits[name] = Split(
            documents=counts.get("documents", len(lengths[name])),
            tokens=counts.get("tokens", streams[name].num_tokens),
            words=counts.get("words", 0),
            num_bytes=counts.get("bytes", 0),
            unknown=counts.get("unknown", 0),
            lengths=tuple(int(value) for value in np.quantile(lengths[name], _QUANTILES, method="nearest")) if len(lengths[name]) else (),
        )
    counts_V = _count(streams["train"], prepared.vocab_size)
    ordinary_V = np.delete(np.arange(prepared.vocab_size), list(prepared.special.ids))
    most = ordinary_V[np.argsort(-counts_V[ordinary_V], kind="stable")][:num_pieces]

    def written(token: int) -> str:
        return str(tokenizer.fast.id_to_token(token) or f"<{token}>")

    return Inspection(
        path=str(prepared.path),
        vocab_size=prepared.vocab_size,
        sources=tuple(_named(source) for source in prepared.manifest.get("sources", [])),
        splits=splits,
        skipped=dict(prepared.manifest.get("skipped", {})),
        replaced_bytes=int(prepared.manifest.get("replaced_bytes", 0)),
        repeated_lines=tuple((one["line"], one["documents"]) for one in prepared.manifest.get("repeated_lines", [])),
        frequent=tuple(Frequency(written(token), int(counts_V[token])) for token in most.tolist()),
        never=int((counts_V[ordinary_V] == 0).sum()),
        rare=int(((counts_V[ordinary_V] > 0) & (counts_V[ordinary_V] < 10)).sum()),
        samples=_samples(prepared, streams["train"], config, num_samples, written) if num_samples else (),
        counts=counts_V,
        document_lengths=lengths["train"],
    )


def show(found: Inspection) -> None:
    """Print everything."""
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
        console.print(f"[bold cyan]sequence {number}[/] ({len(sample)} tokens, {sum(piece.predicts for piece in sample)} to predict)")
        console.print(_written(sample))
        console.print()


def _written(sample: tuple[Piece, ...]) -> Text:
    """Write a sequence: targets in red as [shown→target], documents that do not see each other with and without a line below."""
    text = Text()
    for piece in sample:
        line = "underline " if piece.segment % 2 == 0 and piece.segment else ""
        if piece.target:
            text.append(f"[{piece.shown}→{piece.target}]", f"{line}bold red")
        else:
            text.append(piece.shown, f"{line}dim" if piece.shown.startswith(("[", "<")) else line.strip() or None)
        text.append(" ")
    return text


def draw(inspection: Inspection, path: Path) -> None:
    """Draw the lengths of documents, and how often each entry of the vocabulary occurs, most frequent first."""
    with picture(path, width=9.0, height=3.6) as figure:
        left, right = figure.subplots(1, 2)
        lengths = np.maximum(inspection.document_lengths, 1)
        edges = np.unique(np.geomspace(1, lengths.max() + 1, 40).astype(np.int64)) if len(lengths) else np.array([1, 2])
        left.hist(lengths, bins=edges.tolist(), color="#1f6fb4")
        left.set(xscale="log", xlabel="tokens of a document", ylabel="documents", title="Documents")
        counts = np.sort(inspection.counts[inspection.counts > 0])[::-1]
        right.plot(np.arange(1, len(counts) + 1), counts, color="#d1602a")
        right.set(xscale="log", yscale="log", xlabel="rank in the vocabulary", ylabel="times in the training text", title="Tokens")


def _named(source: dict[str, Any]) -> str:
    return f"{source['name']} (x {source['weight']:g})" if "weight" in source else str(source["name"])


def _count(stream: TokenStream, vocab_size: int) -> npt.NDArray[np.int64]:
    """Count each token of a text, [V]."""
    counts_V = np.zeros(vocab_size, np.int64)
    for start in range(0, stream.num_tokens, _CHUNK):
        counts_V += np.bincount(stream.slice(start, start + _CHUNK), minlength=vocab_size)[:vocab_size]
    return counts_V


def _samples(
    prepared: PreparedData, stream: TokenStream, config: Config, number: int, written: Callable[[int], str]
) -> tuple[tuple[Piece, ...], ...]:
    """Build the first sequences of a run, which are shorter than its later ones where it has stages of length."""
    rows = cut_rows(config, stream, prepared.special)[config.curriculum.at(0).seq_len].rows(np.arange(number))
    next_tokens = next_token_steps(config, prepared.special)
    masking = choose_masking(config, prepared.special, prepared.vocab_size, data=prepared.path)
    batch = to_batch(rows, (next_tokens and next_tokens.at(0)) or masking, step=0, fixed_targets=False)
    return tuple(tuple(_pieces(batch, row, written)) for row in range(number))


def _pieces(batch: Batch, row: int, written: Callable[[int], str]) -> Sequence[Piece]:
    width = batch.input_ids.shape[1]
    positions, target_ids = batch.positions.tolist(), batch.target_ids.tolist()
    targets = {place: target for place, target in zip(positions, target_ids, strict=True) if target != NO_TARGET}
    segments_T = (batch.segments if batch.segments is not None else batch.input_ids * 0)[row].tolist()
    kept_T = batch.attention_mask[row].tolist() if batch.attention_mask is not None else [True] * width
    found = []
    for place, (token, segment, kept) in enumerate(zip(batch.input_ids[row].tolist(), segments_T, kept_T, strict=True)):
        target = targets.get(row * width + place)
        if kept:
            found.append(Piece(written(token), "" if batch.causal or target is None else written(target), segment, target is not None))
    return found
