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
from pldcli.corpus.sources import Source, find_sources
from pldcli.system import atomic
from pldcli.system.output_place import check_new
from pldcli.tokenization.distinctions import lost_distinctions
from pldcli.tokenization.tokenizer import Tokenizer
from pldcli.tokenization.training import TokenizerTraining

__all__ = ["Fit", "fit_to", "train"]


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
) -> tuple[Tokenizer, list[str]]:
    """Train a tokenizer as `prepare` does, and write it.

    Args:
        inputs: Files and directories.
        out: The directory to make.
        training: What to train.
        reading: Arguments of `Reader`.
        overwrite: Replace `out`.
        quiet: Show no progress.

    Returns:
        The tokenizer, and what the user should read about it.

    Raises:
        UsageError: Settings do not go together.
        DataError: The corpus cannot be used.
        OutputError: `out` exists, or cannot be written.
    """
    training.check()
    check_new(out, overwrite=overwrite)
    sources, _ = find_sources(inputs, exclude=out)
    corpus = Corpus(sources, reading or {}, quiet)
    sampler = Sampler(SAMPLE_BYTES, first_threshold(corpus.num_bytes, SAMPLE_BYTES))
    for text, last in corpus.pieces("Reading", done=lambda source, reader: None):
        sampler.add(text, last=last)
    sample = sampler.sample()
    with Progress(f"Training the tokenizer ({training.model_type})", total=None, quiet=quiet):
        tokenizer = training.run(sample)
    with atomic.directory(out, overwrite=overwrite) as directory:
        tokenizer.save(directory)
    return tokenizer, training.notes(tokenizer, sample)


def fit_to(
    tokenizer: Tokenizer, inputs: Sequence[Path], *, reading: Mapping[str, Any] | None = None, quiet: bool = False
) -> tuple[list[Fit], list[str]]:
    """Tokenize text, and count what comes of each file.

    Returns:
        The counts, and what the user should read about them.

    Raises:
        DataError: A file cannot be used.
    """
    sources, _ = find_sources(inputs)
    fits: list[Fit] = []
    totals, continued, seen = [0] * 5, False, Counter[str]()

    def done(source: Source, reader: Reader) -> None:
        fits.append(Fit(str(source.path), *totals))
        totals[:] = [0] * 5

    for text, last in Corpus(sources, reading or {}, quiet).pieces("Reading", done=done):
        ids = tokenizer.encode_document_lines(text.split("\n"), continued=continued)
        continued = not last
        seen.update(text)
        counted = len(text.encode()), len(text), count_words(text), len(ids), ids.count(tokenizer.special.unk_id)
        totals[:] = [before + more for before, more in zip(totals, counted, strict=True)]
    return fits, lost_distinctions(seen, tokenizer.normalize)
