"""A tokenizer as a step of its own: train one on a corpus, and measure how one fits a text."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pldcli.choices import ModelType
from pldcli.console.progress import Progress
from pldcli.corpus.reader import Corpus, Reader, count_words
from pldcli.corpus.sampling import SAMPLE_BYTES, Sampler, first_threshold
from pldcli.corpus.sources import Source, find_sources
from pldcli.system import atomic
from pldcli.system.output_place import check_new
from pldcli.tokenization.tokenizer import Tokenizer, train_tokenizer

__all__ = ["Fit", "fit_to", "notes_on_training", "train"]

_CHECKED_LINES = 2000


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
    *,
    model_type: ModelType = "bpe",
    cased: bool = False,
    vocab_size: int = 30528,
    reading: Mapping[str, Any] | None = None,
    overwrite: bool = False,
    quiet: bool = False,
) -> tuple[Tokenizer, list[str]]:
    """Train a tokenizer as `prepare` does, and write it.

    Args:
        inputs: Files and directories.
        out: The directory to make.
        model_type: What to train.
        cased: Keep upper and lower case apart.
        vocab_size: Entries wanted.
        reading: Arguments of `Reader`.
        overwrite: Replace `out`.
        quiet: Show no progress.

    Returns:
        The tokenizer, and what the user should read about it.

    Raises:
        DataError: The corpus cannot be used.
        OutputError: `out` exists, or cannot be written.
    """
    check_new(out, overwrite=overwrite)
    sources, _ = find_sources(inputs, exclude=out)
    corpus = Corpus(sources, reading or {}, quiet)
    sampler = Sampler(SAMPLE_BYTES, first_threshold(corpus.num_bytes, SAMPLE_BYTES))
    for text, last in corpus.pieces("Reading", done=lambda source, reader: None):
        sampler.add(text, last=last)
    sample = sampler.sample()
    with Progress(f"Training the tokenizer ({model_type})", total=None, quiet=quiet):
        tokenizer = train_tokenizer(sample, vocab_size=vocab_size, model_type=model_type, cased=cased)
    with atomic.directory(out, overwrite=overwrite) as directory:
        tokenizer.save(directory)
    return tokenizer, notes_on_training(tokenizer, sample, vocab_size)


def fit_to(tokenizer: Tokenizer, inputs: Sequence[Path], *, reading: Mapping[str, Any] | None = None, quiet: bool = False) -> list[Fit]:
    """Tokenize text, and count what comes of each file.

    Raises:
        DataError: A file cannot be used.
    """
    sources, _ = find_sources(inputs)
    fits: list[Fit] = []
    totals, continued = [0] * 5, False

    def done(source: Source, reader: Reader) -> None:
        fits.append(Fit(str(source.path), *totals))
        totals[:] = [0] * 5

    for text, last in Corpus(sources, reading or {}, quiet).pieces("Reading", done=done):
        ids = tokenizer.encode_document_lines(text.split("\n"), continued=continued)
        continued = not last
        counted = len(text.encode()), len(text), count_words(text), len(ids), ids.count(tokenizer.special.unk_id)
        totals[:] = [before + more for before, more in zip(totals, counted, strict=True)]
    return fits


def notes_on_training(tokenizer: Tokenizer, sample: Sequence[str], vocab_size: int) -> list[str]:
    """Compare a trained tokenizer with what was asked for, and its two files with each other."""
    notes = []
    if tokenizer.vocab_size < vocab_size:
        notes.append(f"The corpus supports a vocabulary of {tokenizer.vocab_size:,} only; {vocab_size:,} were asked for.")
    lines = sample[:: len(sample) // _CHECKED_LINES + 1]
    if different := tokenizer.count_conversion_differences(lines):
        notes.append(f"tokenizer.json and sentencepiece.model differ on {different} of {len(lines):,} pieces of text.")
    return notes
