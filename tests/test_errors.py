from __future__ import annotations

import inspect

import pytest

from pldcli import errors
from pldcli.errors import PldError, UsageError

CODES = {
    "PldError": 1,
    "UsageError": 2,
    "DataError": 3,
    "MissingDataError": 3,
    "CheckpointError": 4,
    "DeviceError": 5,
    "DivergedError": 6,
    "OutputError": 7,
    "PreemptedError": 75,
    "StoppedError": 130,
}


def test_exit_codes_are_the_documented_ones() -> None:
    classes = {name: cls for name, cls in vars(errors).items() if inspect.isclass(cls) and issubclass(cls, PldError)}
    assert {name: cls.exit_code for name, cls in classes.items()} == CODES
    assert CODES.keys() <= set(errors.__all__)
    for name, code in CODES.items():
        assert any(name in line and str(code) in line for line in (errors.__doc__ or "").splitlines())


@pytest.mark.parametrize(
    ("error", "line"),
    [
        (UsageError("unknown key"), "unknown key"),
        (UsageError("unknown key", where="pld.theta"), "pld.theta: unknown key"),
        (UsageError("is full", where="/a b", hint="free some"), "/a b: is full; free some"),
        (UsageError("two\nlines\t here", hint="or\n more"), "two lines here; or more"),
    ],
)
def test_an_error_is_one_line(error: PldError, line: str) -> None:
    assert str(error) == line
