"""What a language model knows without fine-tuning: pseudo-perplexity of texts, and choices between minimal pairs."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any, TypeVar

from pldcli.console.progress import Progress
from pldcli.data.stream import TokenStream
from pldcli.errors import DataError
from pldcli.evaluation.pseudo_likelihood import pseudo_log_likelihoods
from pldcli.evaluation.subject import Subject
from pldcli.system.input_files import ending
from pldcli.task_files import columnar
from pldcli.task_files.table import ENDINGS, Table, read_table
from pldcli.tokenization.tokenizer import Tokenizer

__all__ = ["GroupScore", "MinimalPairs", "Pair", "PairScore", "PseudoPerplexity", "TextScore", "judge_pairs", "read_pairs", "score_texts"]

GOOD, BAD = "sentence_good", "sentence_bad"

_GROUPING = ("field", "category", "phenomenon", "linguistics_term", "UID")
"""Columns that name a kind of pair in the published sets, whatever they hold."""

_MAX_GROUPS = 200
"""A column with more different values says no kind, but something of each pair."""

_IN_DIRECTORIES = tuple(sorted(set(ENDINGS) - {".txt", ".json"}))
"""What is read of a directory; text and JSON there is often no table but says what the tables are."""

_TEXTS_AT_A_TIME = 256

_Item = TypeVar("_Item")


@dataclass(frozen=True)
class TextScore:
    """One text."""

    num_tokens: int
    pseudo_log_likelihood: float
    """In nats."""


@dataclass(frozen=True)
class PseudoPerplexity:
    """How well a model predicts each token of texts from all others."""

    texts: tuple[TextScore, ...]
    """In the order of the files, empty lines left out."""

    @property
    def num_tokens(self) -> int:
        """Count the tokens scored."""
        return sum(text.num_tokens for text in self.texts)

    @property
    def pseudo_log_likelihood(self) -> float:
        """Sum over all texts, in nats."""
        return math.fsum(text.pseudo_log_likelihood for text in self.texts)

    @property
    def pseudo_perplexity(self) -> float:
        """Exponentiate the mean loss per token of all texts together.

        Source: Salazar et al. 2020, equation 4.
        """
        return math.exp(min(-self.pseudo_log_likelihood / self.num_tokens, 700.0))

    @property
    def values(self) -> dict[str, float]:
        """Name what says how good the model is, the headline first."""
        return {"pseudo_perplexity": self.pseudo_perplexity, "pseudo_log_likelihood": self.pseudo_log_likelihood}


@dataclass(frozen=True)
class Pair:
    """Two sentences of which one is right, as token ids."""

    good: tuple[int, ...]
    bad: tuple[int, ...]
    fields: Mapping[str, str]
    """What else the file says of the pair in words."""
    file: str = ""
    """Where it stands: a file's name, or its path within the directory that was named."""


@dataclass(frozen=True)
class PairScore:
    """What a model finds of a pair, in nats."""

    good: float
    bad: float

    @property
    def is_right(self) -> bool:
        """Return whether the good sentence is the more likely one; a tie is no choice, and wrong."""
        return self.good > self.bad


@dataclass(frozen=True)
class GroupScore:
    """A share of right choices."""

    accuracy: float
    num_pairs: int


@dataclass(frozen=True)
class MinimalPairs:
    """How often a model prefers the good sentence."""

    scores: tuple[PairScore, ...]
    groups: Mapping[str, Mapping[str, GroupScore]]
    """Per column that names kinds of pairs, per kind."""
    files: Mapping[str, GroupScore]
    """Per file."""

    @property
    def mean_accuracy(self) -> float:
        """Average over files, each of which counts as much, as published sets of many files are reported."""
        return math.fsum(score.accuracy for score in self.files.values()) / len(self.files)

    @property
    def accuracy(self) -> float:
        """Share of pairs with the right choice."""
        return _accuracy(self.scores)

    @property
    def num_ties(self) -> int:
        """Count the pairs of equal likelihood, which count as wrong."""
        return sum(score.good == score.bad for score in self.scores)

    @property
    def values(self) -> dict[str, float]:
        """Name what says how good the model is."""
        return {"accuracy": self.accuracy, "mean_accuracy": self.mean_accuracy}


def score_texts(subject: Subject, stream: TokenStream, *, gates: Sequence[bool] | None = None, quiet: bool = False) -> PseudoPerplexity:
    """Compute the pseudo-log-likelihood of every document of a stream; `gates` says which blocks run, None for all."""
    found: list[TextScore] = []
    total = stream.num_tokens - len(stream.document_ends)
    with Progress("Masking each token in turn", total=total, unit="tokens", quiet=quiet) as progress:
        for texts in _groups(tuple(ids.tolist()) for ids in stream.documents()):
            scores = _scored(subject, texts, gates, progress)
            found += [TextScore(len(ids), score) for ids, score in zip(texts, scores, strict=True)]
    return PseudoPerplexity(tuple(found))


def judge_pairs(subject: Subject, pairs: Sequence[Pair], *, gates: Sequence[bool] | None = None, quiet: bool = False) -> MinimalPairs:
    """Compare the pseudo-log-likelihoods of the two sentences of each pair, at least one; `gates` says which blocks run, None for all.

    Source: Warstadt et al. 2020, "BLiMP", with the scoring of Salazar et al. 2020, section 4.4.
    """
    scores: list[PairScore] = []
    total = sum(len(pair.good) + len(pair.bad) for pair in pairs)
    with Progress("Comparing sentences", total=total, unit="tokens", quiet=quiet) as progress:
        for group in _groups(pairs):
            found = _scored(subject, [ids for pair in group for ids in (pair.good, pair.bad)], gates, progress)
            scores += [PairScore(good, bad) for good, bad in zip(found[::2], found[1::2], strict=True)]
    by_file: dict[str, list[PairScore]] = {}
    for pair, score in zip(pairs, scores, strict=True):
        by_file.setdefault(pair.file, []).append(score)
    return MinimalPairs(tuple(scores), _by_group(pairs, scores), _score_each(by_file))


def read_pairs(inputs: Sequence[Path], tokenizer: Tokenizer) -> list[Pair]:
    """Read and encode minimal pairs.

    Args:
        inputs: Files with the columns `sentence_good` and `sentence_bad`, JSON lines or any other table, or directories with such files
            at any depth.
        tokenizer: The model's.

    Raises:
        DataError: A file is missing or damaged, lacks a column, or has a sentence that is empty or no text.
    """
    pairs: list[Pair] = []
    for path, name in _files(inputs):
        table = read_table(path)
        good, bad = table.column(GOOD), table.column(BAD)
        others = [name for name in table.columns if name not in (GOOD, BAD)]
        for row in range(len(table)):
            words = {name: value for name in others if isinstance(value := table.columns[name][row], str)}
            right, wrong = (_ids(column[row], which, table, row, tokenizer) for column, which in ((good, GOOD), (bad, BAD)))
            pairs.append(Pair(right, wrong, words, name))
    return pairs


def _files(inputs: Sequence[Path]) -> list[tuple[Path, str]]:
    """List the files, each with its name in reports: within the directory that was named, or as typed where two names are equal."""
    found: list[tuple[Path, str]] = []
    for path in inputs:
        if not path.is_dir() or columnar.is_saved_dataset(path):
            found.append((path, path.name))
            continue
        inside = sorted(file for file in path.rglob("*") if ending(file) in _IN_DIRECTORIES and file.is_file())
        if not inside:
            raise DataError(f"holds no {', '.join(_IN_DIRECTORIES)} files", where=str(path), hint="name the files")
        found += [(file, str(file.relative_to(path))) for file in inside]
    once: dict[Path, tuple[Path, str]] = {}
    for file, name in found:
        once.setdefault(file.resolve(), (file, name))
    found = list(once.values())
    times = Counter(name for _, name in found)
    return [(file, name if times[name] == 1 else str(file)) for file, name in found]


def _ids(value: Any, column: str, table: Table, row: int, tokenizer: Tokenizer) -> tuple[int, ...]:
    if not isinstance(value, str):
        what = f"has no {column!r}" if value is None else f"{column!r} is not a string"
        raise DataError(what, where=table.where(row), hint="each line needs the two sentences as strings")
    ids = tokenizer.encode_document_lines(value.split("\n"))
    if not ids:
        raise DataError(f"{column!r} is empty", where=table.where(row), hint="each line needs the two sentences as strings")
    return tuple(ids)


def _scored(subject: Subject, texts: Sequence[tuple[int, ...]], gates: Sequence[bool] | None, progress: Progress) -> list[float]:
    """Score texts; the progress of those that occur twice comes at the end."""
    before = progress.completed
    scores = pseudo_log_likelihoods(subject, texts, gates=gates, advance=progress.advance)
    progress.update(before + sum(map(len, texts)))
    return scores


def _by_group(pairs: Sequence[Pair], scores: Sequence[PairScore]) -> dict[str, dict[str, GroupScore]]:
    members: dict[str, dict[str, list[PairScore]]] = {}
    values = Counter((pair.file, name, value) for pair in pairs for name, value in pair.fields.items())
    repeated = {name for (_, name, _), times in values.items() if times > 1}  # others number the pairs of a file
    for pair, score in zip(pairs, scores, strict=True):
        for name, value in pair.fields.items():
            members.setdefault(name, {}).setdefault(value, []).append(score)
    return {
        name: _score_each(dict(sorted(kinds.items())))
        for name, kinds in members.items()
        if name in _GROUPING or (name in repeated and len(kinds) <= _MAX_GROUPS and 2 * len(kinds) <= sum(map(len, kinds.values())))
    }


def _score_each(members: Mapping[str, Sequence[PairScore]]) -> dict[str, GroupScore]:
    return {name: GroupScore(_accuracy(found), len(found)) for name, found in members.items()}


def _accuracy(scores: Sequence[PairScore]) -> float:
    return sum(score.is_right for score in scores) / len(scores)


def _groups(items: Iterable[_Item]) -> Iterator[list[_Item]]:
    iterator = iter(items)
    while group := list(islice(iterator, _TEXTS_AT_A_TIME)):
        yield group
