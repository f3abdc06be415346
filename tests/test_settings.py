from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal

import pytest
from pydantic import Field, Strict

from pldcli.errors import UsageError
from pldcli.settings import (
    Count,
    Layer,
    Off,
    Positive,
    Settings,
    Share,
    Switch,
    convert,
    merge,
    nearest,
    parse,
    parse_value,
    read_yaml,
    split,
    validate,
)


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
    assert parse_value("1e-4", "k") == "1e-4", "YAML takes it for a text"
    with pytest.raises(UsageError, match=r"^k: '\{' is not a value$"):
        parse_value("{", "k")


def test_numbers_are_decimal(tmp_path: Path) -> None:
    path = tmp_path / "numbers.yaml"
    path.write_text("steps: 0100\nrate: 010.5\nname: '010'\nsize: 0x10\n")
    values, _ = read_yaml(path)
    read = validate(Part, values)
    assert (read.steps, read.rate, read.name, read.size) == (100, 10.5, "010", 16)
    assert [parse_value(text, "k") for text in ("-5", "1_000", "0", "0b11", "1.5", ".inf")] == [-5, 1000, 0, 3, 1.5, float("inf")]
    assert validate(Part, parse(["steps=-010", "steps=010"])).steps == 10
    for key, value in (("steps", "1:30"), ("rate", "1:30.5")):
        with pytest.raises(UsageError, match=f"^{key}: must be a valid .*, not '{value}'"):
            validate(Part, parse([f"{key}={value}"]))


class Part(Settings):
    """Of a whole."""

    steps: Count = 1
    rate: Positive = 0.5
    flag: bool = True
    name: str | None = None
    kind: Literal["a", "b"] = "a"
    size: Count | Literal["auto"] = "auto"
    patience: Count | Off = "off"
    compile: Switch = "auto"
    share: Share | Literal["auto"] = 0.0


class Whole(Settings):
    """Of parts."""

    part: Part = Part()
    more: dict[str, Part] = Field(default={})
    several: Annotated[tuple[Part, ...], Strict(False)] = ()


@pytest.mark.parametrize(
    ("key", "value", "result"),
    [
        ("steps", 3, 3),
        ("steps", 3.0, 3),
        ("steps", "1e3", 1000),
        ("rate", 3, 3.0),
        ("rate", "1e-4", 1e-4),
        ("flag", False, False),
        ("name", "x", "x"),
        ("name", None, None),
        ("kind", "b", "b"),
        ("size", "auto", "auto"),
        ("size", "2", 2),
        ("patience", False, "off"),
        ("compile", True, "on"),
        ("compile", False, "off"),
        ("share", "0.5", 0.5),
    ],
)
def test_what_yaml_reads_otherwise_is_what_was_meant(key: str, value: Any, result: Any) -> None:
    found = getattr(validate(Part, {key: value}), key)
    assert (found, type(found)) == (result, type(result))


@pytest.mark.parametrize(
    ("key", "value", "expected"),
    [
        ("steps", 2.5, "a valid integer, not 2.5"),
        ("steps", True, "a valid integer, not True"),
        ("steps", "x", "a valid integer, not 'x'"),
        ("steps", None, "a valid integer, not None"),
        ("steps", "inf", "a valid integer, not inf"),
        ("steps", [1], "a valid integer, not [1]"),
        ("steps", 0, "at least 1, not 0"),
        ("rate", "nan", "a finite number, not nan"),
        ("rate", float("inf"), "a finite number, not inf"),
        ("rate", False, "a valid number, not False"),
        ("rate", 0, "greater than 0, not 0"),
        ("flag", 1, "true or false, not 1"),
        ("name", 1, "a valid string, not 1"),
        ("kind", "c", "'a' or 'b', not 'c'"),
        ("size", 2.5, "a valid integer or 'auto', not 2.5"),
        ("size", [1], "a valid integer or 'auto', not [1]"),
        ("size", {"a": 1}, "a valid integer or 'auto', not {'a': 1}"),
        ("size", False, "a valid integer or 'auto', not False"),
        ("share", 1, "less than 1 or 'auto', not 1"),
        ("patience", 0, "at least 1 or 'off', not 0"),
    ],
)
def test_a_value_that_does_not_fit_is_refused_with_what_is_allowed(key: str, value: Any, expected: str) -> None:
    with pytest.raises(UsageError) as caught:
        validate(Whole, {"part": {key: value}})
    assert str(caught.value) == f"part.{key}: must be {expected}"


def test_convert() -> None:
    assert (convert(int, "1e3", "k"), convert(float, 1, "k"), convert(str, "x", "k")) == (1000, 1.0, "x")
    with pytest.raises(UsageError, match=r"^some\.key: must be true or false, not 'yes'$"):
        convert(bool, "yes", "some.key")


FILE = """part:
  steps: 2
more:
  x:
    steps: 3
  y: {flag: no, rate: 1}
several:
  - steps: 1
  - {steps: 4,
     rate: 2}
"""


@pytest.mark.parametrize(
    ("old", "new", "line"),
    [
        ("steps: 2", "steps: 0", ":2: part.steps: must be at least 1, not 0"),
        ("steps: 2", "step: 2", ":2: part.step: unknown key; did you mean steps?"),
        ("more:", "moer:", ":3: moer: unknown key; did you mean more?"),
        ("steps: 3", "stepps: 3", ":5: more.x.stepps: unknown key; did you mean steps?"),
        (
            "rate: 1",
            "zzz: 1",
            ":6: more.y.zzz: unknown key; the keys are steps, rate, flag, name, kind, size, patience, compile, share",
        ),
        ("rate: 2", "rate: fast", ":10: several[1].rate: must be a valid number, not 'fast'"),
        ("- steps: 1", "- 5", ":8: several[0]: must hold keys with values"),
        ("  steps: 2", "  - steps", ":1: part: must hold keys with values"),
        ("rate: 1", "flag: yes", ":6: more.y.flag stands there twice; rename one"),
        ("  steps: 2", "  {", ""),
    ],
)
def test_an_error_in_a_file_names_line_and_key(old: str, new: str, line: str, tmp_path: Path) -> None:
    path = tmp_path / "own.yaml"
    path.write_text(FILE)
    assert validate(Whole, *read_yaml(path)).several == (Part(), Part(steps=4, rate=2))
    path.write_text(FILE.replace(old, new, 1))
    with pytest.raises(UsageError) as caught:
        validate(Whole, *read_yaml(path))
    assert str(caught.value) == f"{path}{line}" if line else "cannot be read as YAML" in str(caught.value)


def test_later_layers_win_and_errors_name_the_line_of_the_one_that_counts() -> None:
    low = Layer("low", {"part.steps": 0, "part.rate": 2}, {"part.steps": "low.yaml:1", "part.rate": "low.yaml:2"})
    high = Layer("high", {"part.steps": 7})
    found, origins = merge(Whole, [low, high])
    assert found == Whole(part=Part(steps=7, rate=2.0))
    assert {key: origins[key] for key in ("part.steps", "part.rate", "part.flag")} == {
        "part.steps": "high", "part.rate": "low", "part.flag": "default",
    }  # fmt: skip
    with pytest.raises(UsageError, match=r"^low\.yaml:1: part\.steps: must be at least 1, not 0$"):
        merge(Whole, [high, low])


def test_a_copy_with_other_values_is_checked_again() -> None:
    whole = Whole(part=Part(steps=2))
    assert whole.replace(part={"rate": 2.0}) == Whole(part=Part(steps=2, rate=2.0))
    assert whole.replace(part=Part()) == Whole() and whole.part.replace(steps=3).steps == 3
    for wrong in ({"part": {"steps": 0}}, {"part": {"stepps": 1}}, {"zzz": 1}):
        with pytest.raises(UsageError):
            whole.replace(**wrong)


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
        ("zzz.zzz", "the sections are train, model, eval, checkpoint"),
    ],
)
def test_nearest(key: str, hint: str) -> None:
    assert nearest(key, KEYS) == hint
    assert nearest(key, iter(KEYS)) == hint
