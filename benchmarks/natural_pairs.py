"""Make minimal pairs of held-out English: each sentence as it was written, and once more with one thing in it wrong.

    python benchmarks/natural_pairs.py held-out/wikipedia.jsonl held-out/books.jsonl --pairs 500 --out pairs

A kind exchanges two forms of which one fits the rest of the sentence: `was` and `were`, `himself` and `themselves`, or two neighbouring
words. Either form stands in half of the sentences, so that how frequent they are decides nothing. The pairs are natural: a few of the
changed sentences are right too, and no model reaches 100 %. The idea for verbs: Linzen et al. 2016, "Assessing the ability of LSTMs to
learn syntax-sensitive dependencies".
"""

from __future__ import annotations

import argparse
import json
import random
import re
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

from pldcli.system import atomic

KINDS: dict[str, tuple[tuple[str, str], ...]] = {
    "verbs": (("was", "were"), ("is", "are"), ("has", "have"), ("does", "do")),
    "demonstratives": (("this", "these"),),
    "reflexives": (("himself", "themselves"), ("herself", "itself")),
    "pronouns": (("he", "him"), ("they", "them"), ("we", "us")),
    "prepositions": (("of", "in"), ("by", "for")),
}
"""Forms that take each other's place."""

NEIGHBOURS = "neighbours"
"""The kind that exchanges two neighbouring words."""

_SENTENCE = re.compile(r"(?<=[.!?] )[A-Z][A-Za-z',;: -]{30,160}\.(?= |$)")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("texts", nargs="+", type=Path, help="JSON lines with a `text` each, which no model was trained on")
    parser.add_argument("--pairs", type=int, default=500, help="of each kind, at most")
    parser.add_argument("--out", type=Path, required=True, help="a directory: a file of pairs for each kind")
    arguments = parser.parse_args()
    found = sorted(set(sentences(arguments.texts)))
    random.Random(0).shuffle(found)
    arguments.out.mkdir(parents=True, exist_ok=True)
    for kind in (*KINDS, NEIGHBOURS):
        pairs = list(exchanged(found, kind, arguments.pairs))
        atomic.write_text(arguments.out / f"{kind}.jsonl", "".join(json.dumps(pair) + "\n" for pair in pairs))
        print(f"{kind}: {len(pairs):,} pairs")


def sentences(files: Iterable[Path]) -> Iterator[str]:
    """Find sentences of plain words, 6 to 25 of them."""
    for file in files:
        for line in file.read_text(encoding="utf-8").splitlines():
            for paragraph in json.loads(line)["text"].split("\n"):
                yield from (text for text in _SENTENCE.findall(paragraph) if 6 <= len(text.split()) <= 25)


def exchanged(found: Iterable[str], kind: str, count: int) -> Iterator[dict[str, str]]:
    """Choose sentences in which exactly one form of a kind stands, and exchange it; of two forms for each other, as many of either."""
    if kind == NEIGHBOURS:
        yield from neighbours(found, count)
        return
    forms = {old: new for pair in KINDS[kind] for old, new in (pair, pair[::-1])}
    pattern = re.compile(rf"\b({'|'.join(forms)})\b")
    having: dict[str, list[dict[str, str]]] = {form: [] for form in forms}
    for text in found:
        places = list(pattern.finditer(text))
        if len(places) == 1:
            (place,) = places
            bad = f"{text[: place.start()]}{forms[place[0]]}{text[place.end() :]}"
            having[place[0]].append({"sentence_good": text, "sentence_bad": bad, "form": place[0]})
    for one, other in KINDS[kind]:
        enough = min(len(having[one]), len(having[other]), count // len(forms))
        yield from having[one][:enough] + having[other][:enough]


def neighbours(found: Iterable[str], count: int) -> Iterator[dict[str, str]]:
    """Exchange two neighbouring words within a sentence, neither the first nor the last."""
    draw = random.Random(1)
    for text in list(found)[:count]:
        words = text.split()
        place = draw.randrange(1, len(words) - 2)
        if words[place] != words[place + 1]:
            yield {"sentence_good": text, "sentence_bad": " ".join(with_neighbours_exchanged(words, place))}


def with_neighbours_exchanged(words: Sequence[str], place: int) -> list[str]:
    return [*words[:place], words[place + 1], words[place], *words[place + 2 :]]


if __name__ == "__main__":
    main()
