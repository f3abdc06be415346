"""What becomes of each document."""

from __future__ import annotations

import numpy as np
import pytest

from pldcli.preparation.fates import BOTH, DUPLICATE, LEFT_OUT, TRAIN, VALIDATION, Fates, decide

LOW = 2**64 // 301 - 1


def fates(hashes: list[int], unwanted: list[int] | None = None, roles: list[int] | None = None, *, keep_duplicates: bool = False) -> Fates:
    given = np.array(unwanted or [0] * len(hashes), np.uint16)
    return decide(
        np.array(hashes, np.uint64),
        given,
        ("short", "long"),
        None if roles is None else np.array(roles, np.uint16),
        keep_duplicates=keep_duplicates,
    )


def test_the_first_of_equal_documents_stays() -> None:
    found = fates([2**60, LOW, 2**60, 2**61, LOW, 2**60])
    assert found.of_documents.tolist() == [TRAIN, VALIDATION, LEFT_OUT + 2, TRAIN, LEFT_OUT + 2, LEFT_OUT + 2]
    assert found.left_out == {DUPLICATE: 3}
    kept = fates([2**60, LOW, 2**60], keep_duplicates=True)
    assert kept.of_documents.tolist() == [TRAIN, VALIDATION, TRAIN] and not kept.left_out


def test_an_unwanted_document_is_no_earlier_one_and_does_not_decide_the_split() -> None:
    found = fates([1, 2**60, 1, 2**61], [1, 2, 0, 0])
    assert found.of_documents.tolist() == [LEFT_OUT, LEFT_OUT + 1, VALIDATION, TRAIN]
    assert found.left_out == {"short": 1, "long": 1}


def test_text_for_validation_alone_may_equal_training_text() -> None:
    found = fates([5, 6, 5, 5, 6], roles=[TRAIN, TRAIN, VALIDATION, VALIDATION, VALIDATION])
    assert found.of_documents.tolist() == [TRAIN, TRAIN, VALIDATION, LEFT_OUT + 2, VALIDATION]


@pytest.mark.parametrize(("keep", "expected"), [(True, [TRAIN, BOTH]), (False, [BOTH, LEFT_OUT + 2])])
def test_of_one_text_the_end_is_for_validation(keep: bool, expected: list[int]) -> None:
    assert fates([7, 7], keep_duplicates=keep).of_documents.tolist() == expected


def test_nothing_may_be_left() -> None:
    assert fates([1, 2], [1, 1]).of_documents.tolist() == [LEFT_OUT, LEFT_OUT]
