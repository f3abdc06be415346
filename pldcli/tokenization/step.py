"""A tokenizer as a step of its own: train one on a corpus, and measure how one fits a text."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pldcli.console.progress import Progress
from pldcli.corpus.reader import Corpus, Reader, count_words
from pldcli.corpus.sampling import SAMPLE_BYTES, Sampler, first_threshold
from pldcli.corpus.sources import Source, find_sources, notes_on_skipped
from pldcli.errors import OutputError
from pldcli.system import atomic
from pldcli.system.output_place import check_place
from pldcli.tokenization.distinctions import lost_distinctions
from pldcli.tokenization.files import JSON, SENTENCEPIECE
from pldcli.tokenization.tokenizer import Tokenizer
from pldcli.tokenization.training import TokenizerTraining

__all__ = ["Fit", "fit_to", "train"]

_MEASURED_PIECES = 500
"""Of the sample, to see how the tokenizer fits it."""


@dataclass(frozen=True)
class Fit:
    """How a tokenizer fits a file."""

    name: str
    num_bytes: int
    """Of text."""
    characters: int
    words: int
    tokens: int
    unknown: int
    """Tokens for what it cannot express."""

    @property
    def tokens_per_word(self) -> float:
        """Return its fertility."""
        return self.tokens / max(1, self.words)

    @property
    def characters_per_token(self) -> float:
        """Return what a token stands for."""
        return self.characters / max(1, self.tokens)

    @property
    def unknown_share(self) -> float:
        """Return the share of tokens that are unknown."""
        return self.unknown / max(1, self.tokens)


def train(
    inputs: Sequence[Path],
    out: Path,
    training: TokenizerTraining,
    *,
    reading: Mapping[str, Any] | None = None,
    overwrite: bool = False,
    quiet: bool = False,
) -> tuple[Tokenizer, Fit, list[str]]:
    """Train a tokenizer as `prepare` does, and write it.

    Args:
        inputs: Files and directories.
        out: The directory to make.
        training: What to train.
        reading: Arguments of `Reader`.
        overwrite: Replace `out`.
        quiet: Show no progress.

    Returns:
        The tokenizer, how it fits a sample of the text, and what the user should read about it.

    Raises:
        UsageError: Settings do not go together.
        DataError: The corpus cannot be used.
        OutputError: `out` exists, holds something else, or cannot be written.
    """
    training.check()
    check_place(out, "a tokenizer", mark=JSON, inputs=inputs, overwrite=overwrite)
    if more := sorted(entry.name for entry in out.glob("*") if entry.name not in (JSON, SENTENCEPIECE)):
        raise OutputError(f"holds more than a tokenizer ({more[0]})", where=str(out), hint="choose another place with --out")
    sources, left_out = find_sources(inputs, exclude=out)
    corpus = Corpus(sources, reading or {}, quiet)
    sampler = Sampler(SAMPLE_BYTES, first_threshold(corpus.num_bytes, SAMPLE_BYTES))
    replaced_bytes = 0

    def done(source: Source, reader: Reader) -> None:
        nonlocal replaced_bytes
        replaced_bytes += reader.replaced_bytes
        left_out.update(reader.skipped)

    for text, last in corpus.pieces("Reading", done=done):
        sampler.add(text, last=last)
    sample = sampler.sample()
    with Progress(f"Training the tokenizer ({training.model_type})", total=None, quiet=quiet):
        tokenizer = training.run(sample)
    with atomic.directory(out, overwrite=overwrite) as directory:
        tokenizer.save(directory)
    notes = training.notes(tokenizer, sample)
    notes += [*_notes_on_replaced(replaced_bytes), *notes_on_skipped(left_out)]
    counts = [_count(tokenizer, text) for text in sample[:: len(sample) // _MEASURED_PIECES + 1]]
    return tokenizer, Fit("sample", *map(sum, zip(*counts, strict=True))), notes


def fit_to(
    tokenizer: Tokenizer, inputs: Sequence[Path], *, reading: Mapping[str, Any] | None = None, quiet: bool = False
) -> tuple[list[Fit], list[str]]:
    """Tokenize text, and count what comes of each file.

    Returns:
        The counts, and what the user should read about them.

    Raises:
        DataError: A file cannot be used.
    """
    sources, left_out = find_sources(inputs)
    fits: list[Fit] = []
    totals, continued, seen, replaced_bytes = [0] * 5, False, Counter[str](), 0

    def done(source: Source, reader: Reader) -> None:
        nonlocal replaced_bytes
        replaced_bytes += reader.replaced_bytes
        fits.append(Fit(str(source.path), *totals))
        left_out.update(reader.skipped)
        totals[:] = [0] * 5

    for text, last in Corpus(sources, reading or {}, quiet).pieces("Reading", done=done):
        counted = _count(tokenizer, text, continued=continued)
        continued = not last
        seen.update(text)
        totals[:] = [before + more for before, more in zip(totals, counted, strict=True)]
    return fits, [*lost_distinctions(seen, tokenizer.normalize), *_notes_on_replaced(replaced_bytes), *notes_on_skipped(left_out)]


def _notes_on_replaced(num_bytes: int) -> list[str]:
    return [f"{num_bytes:,} bytes that are not of the encoding were replaced."] if num_bytes else []


def _count(tokenizer: Tokenizer, text: str, *, continued: bool = False) -> tuple[int, int, int, int, int]:
    """Count the bytes, characters, words, tokens and unknown tokens of a text."""
    ids = tokenizer.encode_document_lines(text.split("\n"), continued=continued)
    return len(text.encode()), len(text), count_words(text), len(ids), ids.count(tokenizer.special.unk_id)
