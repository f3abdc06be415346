"""Which documents of a corpus are worth training on: length, script, and overlap with text that a model will be scored on."""

from __future__ import annotations

import csv
import hashlib
import io
import re
import unicodedata
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from pldcli.corpus.addresses import Address
from pldcli.corpus.decoding import EncodingError, Utf8Decoder, encoding_of_mark
from pldcli.corpus.delimited import delimiter_of, large_cells
from pldcli.corpus.reader import UNSPACED, WORD
from pldcli.corpus.sources import find_sources
from pldcli.corpus.tables import columnar_rows
from pldcli.errors import DataError, UsageError
from pldcli.system.input_files import COLUMNAR, Format, input_errors, open_content
from pldcli.system.json_text import from_json
from pldcli.system.seal import file_sha256
from pldcli.system.short_names import shortest_names

__all__ = ["Filters", "Judge", "check_filters", "fingerprint_of_files"]

_LETTER = re.compile(UNSPACED)
_WRAPPED_CHARACTERS = 100
"""Lines of a paragraph that are all at most so long go on in the next one."""
_PARAGRAPH_END = re.compile(r"\n\s*\n")
_MULTIPLIER = np.uint64(0x9E3779B97F4A7C15)
_KNOWN_WORDS = 1 << 18
_SCRIPT_SHARE = 0.5
_LAST_CODE_POINT = 0x110000


@dataclass(frozen=True, kw_only=True)
class Filters:
    """What makes a document unwanted."""

    min_words: int = 0
    """A shorter one is left out; of scripts that have no spaces, each letter is a word."""
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
        self._letters = Counter[bool]()

    @property
    def without_a_run(self) -> list[str]:
        """The files that no document can be found to overlap with: they hold no run of so many words."""
        return self._overlap.without_a_run if self._overlap else []

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
            self._words += len(_LETTER.sub(" x ", text).split())
        if filters.scripts:
            for character, count in Counter(text).items():
                if character.isalpha():
                    self._letters[_is_of(character, filters.scripts)] += count
        found = self._overlap.add(text, last=last) if self._overlap else ""
        if not last:
            return ""
        words, letters = self._words, self._letters
        self._words, self._letters = 0, Counter[bool]()
        if words < filters.min_words:
            return f"document under {filters.min_words:,} words"
        if filters.max_words is not None and words > filters.max_words:
            return f"document over {filters.max_words:,} words"
        if filters.scripts and (not letters[True] or letters[True] < _SCRIPT_SHARE * letters.total()):
            return f"document that is mostly not {' or '.join(filters.scripts)}"
        return f"document that has {filters.overlap_words} words in a row of {found}" if found else ""


class _Overlap:
    """Finds runs of words that other files have; what stands between words, and case, do not count."""

    def __init__(self, places: Sequence[Path], num_words: int) -> None:
        self._num_words = num_words
        self._known: dict[str, int] = {}
        self._before: list[int] = []
        self._found = -1
        files = list(_evaluation_files(places))
        self._names = shortest_names([path for path, _ in files])
        runs, owners = [], []
        for number, (path, kind) in enumerate(files):
            for text in _texts(path, kind):
                runs.append(self._runs(self._words(text)))
                owners.append(np.full(len(runs[-1]), number))
        runs_R = np.concatenate([np.zeros(0, np.uint64), *runs])
        self._runs_R, first = np.unique(runs_R, return_index=True)
        owners_R = np.concatenate([np.zeros(0, np.int64), *owners])
        self._owners_R = owners_R[first]
        found = set(owners_R.tolist())
        self.without_a_run = [str(path) for number, (path, _) in enumerate(files) if number not in found]

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
        for word in WORD.findall(text.casefold()):
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


def _evaluation_files(places: Sequence[Path]) -> Iterator[tuple[Path, Format]]:
    """List the files, each with its format.

    Raises:
        DataError: One is an address, missing or empty.
    """
    for source in find_sources(places)[0]:
        if isinstance(source.path, Address):
            raise DataError("cannot be compared with", where=str(source.path), hint="fetch it, and name the file")
        yield source.path, source.format


def fingerprint_of_files(filters: Filters) -> list[list[str]]:
    """Return the name and the checksum of each file that documents are compared with: what they hold decides what is left out."""
    files = _evaluation_files(filters.against) if filters.against else ()
    return [[str(path), _checksum(path)] for path, _ in files]


def _checksum(path: Path) -> str:
    with input_errors(path):
        return file_sha256(path)


def _decoded(path: Path) -> str:
    """Read a file of any encoding that its first bytes tell.

    Raises:
        DataError: It cannot be read, or is clearly not UTF-8.
    """
    with input_errors(path), open_content(path) as file:
        raw = file.read()
    if name := encoding_of_mark(raw[:4]):
        return raw.decode(name, "replace")
    decoder = Utf8Decoder(path, strict=False, lenient=False)
    text = decoder.decode(raw, final=True)
    try:
        decoder.judge()
    except EncodingError as error:
        raise DataError(error.what, where=str(path), hint="convert it to UTF-8, so that text can be compared with it") from error
    return text


def _texts(path: Path, kind: Format) -> Iterator[str]:
    """Yield the texts of a file: cells of tables, all that are strings in JSON; of anything else lines, or paragraphs that are wrapped."""
    if kind in COLUMNAR:
        for cells in columnar_rows(path, is_parquet=kind == "parquet"):
            yield from _strings(cells)
        return
    text = _decoded(path)
    if kind == "json":
        try:
            yield from _strings(from_json(text))
        except ValueError:  # JSON lines, or none
            for line in text.split("\n"):
                value: Any = line
                with suppress(ValueError):
                    value = from_json(line)
                yield from _strings(value)
    elif kind == "csv":
        with large_cells():  # never across a yield: a corpus that is being read has its own limit
            rows = list(csv.reader(io.StringIO(text, newline=""), delimiter=delimiter_of(text.partition("\n")[0], ".csv")))
        for row in rows:
            yield from row
    elif kind == "tsv":
        for line in text.split("\n"):
            yield from line.split("\t")
    else:
        for paragraph in _PARAGRAPH_END.split(text):
            lines = paragraph.split("\n")
            yield from [paragraph] if max(map(len, lines)) <= _WRAPPED_CHARACTERS else lines


def _strings(value: Any) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict | list):
        for one in value.values() if isinstance(value, dict) else value:
            yield from _strings(one)


@lru_cache(maxsize=1 << 16)
def _is_of(letter: str, scripts: tuple[str, ...]) -> bool:
    return unicodedata.name(letter, "").startswith(tuple(f"{script} " for script in scripts))
