from __future__ import annotations

from typing import Any, Literal

import pytest

from pldcli.errors import UsageError
from pldcli.settings import convert, nearest, parse, parse_value, split


def test_split() -> None:
    assert split("a.b=1") == ("a.b", "1")
    assert split(" a =x=y") == ("a", "x=y"), "the first equals sign counts"
    assert split("a=") == ("a", "")
    for text in ("a", "", "=1", "  =1"):
        with pytest.raises(UsageError) as caught:
            split(text)
        assert str(caught.value) == f"{text!r} is not KEY=VALUE; for example train.total_steps=1000".replace("  ", " ")


def test_parse_reads_yaml_and_keeps_the_last() -> None:
    assert parse(["a=1", "b=x", "a=2.5", "c=null", "d=[1, 2]", "e=on"]) == {"a": 2.5, "b": "x", "c": None, "d": [1, 2], "e": True}


def test_parse_value() -> None:
    assert parse_value("1e-4", "k") == "1e-4", "YAML takes it for a text; convert makes a number of it"
    with pytest.raises(UsageError, match=r"^k: '\{' is not a value$"):
        parse_value("{", "k")


@pytest.mark.parametrize(
    ("annotation", "value", "result"),
    [
        (int, 3, 3),
        (int, 3.0, 3),
        (int, "1e3", 1000),
        (float, 3, 3.0),
        (float, "1e-4", 1e-4),
        (bool, True, True),
        (str, "x", "x"),
        (str | None, None, None),
        (float | None, "2", 2.0),
        (Literal["on", "off"], True, "on"),
        (Literal["on", "off"], False, "off"),
        (Literal["a", "b"], "b", "b"),
        (int | Literal["auto"], "auto", "auto"),
        (int | Literal["off"], False, "off"),
        (float | Literal["auto"], "0.5", 0.5),
    ],
)
def test_convert(annotation: Any, value: Any, result: Any) -> None:
    found = convert(annotation, value, "k")
    assert found == result
    assert type(found) is type(result)


@pytest.mark.parametrize(
    ("annotation", "value", "expected"),
    [
        (int, 2.5, "a whole number"),
        (int, True, "a whole number"),
        (int, "x", "a whole number"),
        (int, None, "a whole number"),
        (int, "inf", "a whole number"),
        (float, "nan", "a number"),
        (float, float("inf"), "a number"),
        (float, False, "a number"),
        (bool, 1, "true or false"),
        (str, 1, "a text"),
        (str | None, 1, "a text"),
        (Literal["a", "b"], "c", "a or b"),
        (int | Literal["auto"], 2.5, "a whole number or auto"),
        (int, [1], "a whole number"),
    ],
)
def test_convert_refuses(annotation: Any, value: Any, expected: str) -> None:
    with pytest.raises(UsageError) as caught:
        convert(annotation, value, "some.key")
    assert str(caught.value) == f"some.key: must be {expected}, not {value!r}"


KEYS = ("train.total_steps", "train.seed", "model.dropout", "eval.every_steps", "checkpoint.every_steps")


@pytest.mark.parametrize(
    ("key", "hint"),
    [
        ("train.totl_steps", "did you mean train.total_steps?"),
        ("total_steps", "did you mean train.total_steps?"),
        ("optim.dropout", "did you mean model.dropout?"),
        ("checkpoint.every_step", "did you mean checkpoint.every_steps?"),
        ("eval.every_step", "did you mean eval.every_steps?"),
        ("train.zzz", "the keys of train are total_steps, seed"),
        ("zzz.zzz", ""),
    ],
)
def test_nearest(key: str, hint: str) -> None:
    assert nearest(key, KEYS) == hint
    assert nearest(key, iter(KEYS)) == hint
