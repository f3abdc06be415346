"""Lines that stand in many documents: counted by documents, in bounded memory, the same however the corpus was cut."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Sequence

import pytest

from pldcli.filtering import repeats
from pldcli.filtering.repeats import RepeatedLines, most_repeated

Document = Sequence[str]


def counted(documents: Sequence[Document]) -> dict[str, int]:
    lines = RepeatedLines()
    for document in documents:
        lines.add(document, last=True)
    return lines.most


def pages(count: int) -> list[Document]:
    """Documents with a foot that all have, a line that a third has, and lines of their own."""
    draw = random.Random(1)
    own = [[f"Line {draw.random()}." for _ in range(3)] for _ in range(count)]
    return [[*lines, *(["Sign up for news."] if number % 3 == 0 else []), "All rights reserved."] for number, lines in enumerate(own)]


def test_a_line_counts_once_per_document_whatever_surrounds_it() -> None:
    lines = RepeatedLines()
    lines.add(["Menu", "", "  text  "], last=False)
    lines.add(["\tMenu ", "Menu"], last=True)
    lines.add(["Menu", "   "], last=True)
    assert lines.most == {"Menu": 2, "text": 1}


def test_of_a_long_line_its_beginning_counts() -> None:
    assert counted([["a" * 500], ["a" * 300]]) == {"a" * 200: 2}


@pytest.mark.parametrize("num_parts", [1, 2, 7])
def test_parts_of_a_corpus_say_what_all_of_it_says(num_parts: int) -> None:
    documents = pages(90)
    size = -(-len(documents) // num_parts)
    parts = [counted(documents[start : start + size]) for start in range(0, len(documents), size)]
    expected = [{"line": "All rights reserved.", "documents": 90}, {"line": "Sign up for news.", "documents": 30}]
    assert most_repeated(parts, 90) == expected


def test_what_stands_in_few_documents_is_not_reported() -> None:
    documents = [["one"], ["one"], ["two"], ["two"], ["two"]]
    assert most_repeated([counted(documents)], 5) == [{"line": "two", "documents": 3}]
    assert most_repeated([counted(documents)], 4000) == []


def test_memory_is_bounded_and_frequent_lines_survive(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(repeats, "_MOST_HELD", 100)
    monkeypatch.setattr(repeats, "_MOST_KEPT", 10)
    documents = pages(300)
    exact = Counter(line for document in documents for line in set(document))
    lines, most_held = RepeatedLines(), 0
    for document in documents:
        lines.add(document, last=True)
        most_held = max(most_held, len(lines._counts))
    assert most_held <= 100
    found = lines.most
    assert len(found) == 10
    assert list(found.items())[:2] == [("All rights reserved.", 300), ("Sign up for news.", 100)]
    assert all(count <= exact[line] for line, count in found.items())


@pytest.mark.parametrize("size", [1, 30, 2000])
def test_memory_is_bounded_within_a_document_and_changes_nothing(monkeypatch: pytest.MonkeyPatch, size: int) -> None:
    documents = [*pages(60), [f"line {number}" for number in range(2000)] + ["All rights reserved."], *pages(20)]
    monkeypatch.setattr(repeats, "_MOST_HELD", 100)
    expected = counted(documents)
    lines, most_held = RepeatedLines(), 0
    for document in documents:
        for start in range(0, len(document), size):
            lines.add(document[start : start + size], last=start + size >= len(document))
            most_held = max(most_held, len(lines._of_document))
    assert most_held <= 400
    assert lines.most == expected and expected["All rights reserved."] == 81


def test_equal_counts_leave_the_same_lines_in_every_part(monkeypatch: pytest.MonkeyPatch) -> None:
    """A line that stands once in each part is found, as long as its hash is low: it is not dropped in one part and kept in another."""
    monkeypatch.setattr(repeats, "_MOST_KEPT", 10)
    common = [f"common {number}" for number in range(40)]
    parts = [counted([[*common, *(f"own {part} {number}" for number in range(40))]]) for part in range(5)]
    found = most_repeated(parts, 5)
    assert found
    assert {one["documents"] for one in found} <= {3, 4, 5}
    assert all(str(one["line"]).startswith("common") for one in found)
