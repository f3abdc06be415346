"""Which documents of a corpus are worth training on: length, script, and overlap with text that a model will be scored on."""

from __future__ import annotations

import hashlib
import re
import unicodedata
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from pldcli.corpus.addresses import Address
from pldcli.corpus.reader import count_words
from pldcli.corpus.sources import find_sources
from pldcli.errors import DataError, UsageError
from pldcli.system.json_text import from_json

__all__ = ["Filters", "Judge", "check_filters"]

_WORD = re.compile(r"\w+")
_MULTIPLIER = np.uint64(0x9E3779B97F4A7C15)
_KNOWN_WORDS = 1 << 18
_SCRIPT_SHARE = 0.5
_LAST_CODE_POINT = 0x110000


@dataclass(frozen=True, kw_only=True)
class Filters:
    """What makes a document unwanted."""

    min_words: int = 0
    """A shorter one is left out."""
    max_words: int | None = None
    """A longer one is left out."""
    scripts: tuple[str, ...] = ()
    """At least half of the letters belong to one of these, as the Unicode names of characters begin: LATIN, CYRILLIC, CJK."""
    against: tuple[Path, ...] = ()
    """Files and directories whose text must not occur."""
    overlap_words: int = 13
    """So many words in a row that occur there make a document unwanted. Source: Brown et al. 2020, appendix C."""

    def __bool__(self) -> bool:
        """Return whether anything is left out."""
        return bool(self.min_words or self.max_words is not None or self.scripts or self.against)


def check_filters(filters: Filters) -> None:
    """Refuse what leaves out everything.

    Raises:
        UsageError: No character is of a script, or lengths exclude each other.
        DataError: A file to compare with cannot be read.
    """
    if filters.max_words is not None and filters.max_words < max(1, filters.min_words):
        raise UsageError("leaves no document", where=f"--max-words {filters.max_words}", hint="choose a larger number, or leave it out")
    if filters.overlap_words < 1:
        raise UsageError("must be at least 1", where="--overlap-words")
    for script in filters.scripts:
        if not any(unicodedata.name(chr(code), "").startswith(f"{script} ") for code in range(_LAST_CODE_POINT)):
            hint = "for example LATIN, CYRILLIC, GREEK, ARABIC, HEBREW, DEVANAGARI, CJK, HIRAGANA, HANGUL or THAI"
            raise UsageError("no character has a name that begins with it", where=f"--script {script}", hint=hint)
    if filters.against:
        list(_evaluation_files(filters.against))


class Judge:
    """Judges documents, one after the other.

    Args:
        filters: What makes one unwanted.

    Raises:
        DataError: A file to compare with cannot be read.
    """

    def __init__(self, filters: Filters) -> None:
        self._filters = filters
        self._overlap = _Overlap(filters.against, filters.overlap_words) if filters.against else None
        self._words = 0
        self._letters = Counter[str]()

    def add(self, text: str, *, last: bool) -> str:
        """Read the next piece of a document.

        Args:
            text: The piece.
            last: It ends the document.

        Returns:
            Of a last piece, why the document is unwanted; else nothing.
        """
        filters = self._filters
        if filters.min_words or filters.max_words is not None:
            self._words += count_words(text)
        if filters.scripts:
            for character, count in Counter(text).items():
                if script := _script(character):
                    self._letters[script] += count
        found = self._overlap.add(text, last=last) if self._overlap else ""
        if not last:
            return ""
        words, letters = self._words, self._letters
        self._words, self._letters = 0, Counter[str]()
        if words < filters.min_words:
            return f"document under {filters.min_words:,} words"
        if filters.max_words is not None and words > filters.max_words:
            return f"document over {filters.max_words:,} words"
        if filters.scripts and sum(letters[script] for script in filters.scripts) <= _SCRIPT_SHARE * letters.total():
            return f"document that is mostly not {' or '.join(filters.scripts)}"
        return f"document that has {filters.overlap_words} words in a row of {found}" if found else ""


class _Overlap:
    """Finds runs of words that other files have; what stands between words, and case, do not count."""

    def __init__(self, places: Sequence[Path], num_words: int) -> None:
        self._num_words = num_words
        self._known: dict[str, int] = {}
        self._before: list[int] = []
        self._found = -1
        self._names: list[str] = []
        runs, owners = [], []
        for number, path in enumerate(_evaluation_files(places)):
            self._names.append(path.name)
            for text in _texts(path):
                runs.append(self._runs(self._words(text)))
                owners.append(np.full(len(runs[-1]), number))
        runs_R = np.concatenate([np.zeros(0, np.uint64), *runs])
        self._runs_R, first = np.unique(runs_R, return_index=True)
        self._owners_R = np.concatenate([np.zeros(0, np.int64), *owners])[first]

    def add(self, text: str, *, last: bool) -> str:
        """Read the next piece of a document; at its end, name a file that has a run of words of it, if any."""
        if self._found < 0:
            words = self._before + self._words(text)
            runs_R = self._runs(words)
            places = np.searchsorted(self._runs_R, runs_R)
            inside = places < len(self._runs_R)
            hits = np.flatnonzero(self._runs_R[places[inside]] == runs_R[inside])
            if len(hits):
                self._found = int(self._owners_R[places[inside][hits[0]]])
            self._before = words[-(self._num_words - 1) :] if self._num_words > 1 else []
        if not last:
            return ""
        found, self._found, self._before = self._found, -1, []
        return self._names[found] if found >= 0 else ""

    def _words(self, text: str) -> list[int]:
        """Hash each word."""
        known = self._known
        if len(known) > _KNOWN_WORDS:
            known.clear()
        hashes = []
        for word in _WORD.findall(text.casefold()):
            if (found := known.get(word)) is None:
                found = known[word] = int.from_bytes(hashlib.blake2b(word.encode(), digest_size=8).digest(), "big")
            hashes.append(found)
        return hashes

    def _runs(self, words: Sequence[int]) -> npt.NDArray[np.uint64]:
        """Hash each run of words."""
        words_W = np.array(words, np.uint64)
        count = max(0, len(words_W) - self._num_words + 1)
        runs_R = np.zeros(count, np.uint64)
        for offset in range(self._num_words if count else 0):
            runs_R = runs_R * _MULTIPLIER + words_W[offset : offset + count]
        return runs_R


def _evaluation_files(places: Sequence[Path]) -> Iterator[Path]:
    """List the files.

    Raises:
        DataError: One is compressed, missing or empty.
    """
    for source in find_sources(places)[0]:
        if isinstance(source.path, Address) or source.compression or source.format in ("parquet", "arrow"):
            raise DataError("cannot be compared with", where=str(source.path), hint="name plain text, TSV, CSV or JSON files, here")
        yield source.path


def _texts(path: Path) -> Iterator[str]:
    """Yield the texts of a file: cells of tables, all that are strings in JSON, lines of anything else."""
    if path.suffix == ".json":
        try:
            yield from _strings(from_json(path.read_text(encoding="utf-8", errors="replace")))
            return
        except ValueError:
            pass  # JSON lines, or none
    with path.open(encoding="utf-8", errors="replace") as file:
        for line in file:
            if path.suffix in (".json", ".jsonl", ".ndjson"):
                try:
                    yield from _strings(from_json(line))
                    continue
                except ValueError:
                    pass
            yield from line.split("\t")


def _strings(value: Any) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict | list):
        for one in value.values() if isinstance(value, dict) else value:
            yield from _strings(one)


@lru_cache(maxsize=1 << 16)
def _script(character: str) -> str:
    """Name the script of a letter; nothing for other characters."""
    return unicodedata.name(character, "").partition(" ")[0] if character.isalpha() else ""
