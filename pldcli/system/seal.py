"""Checksums of what is written once: taken last, compared before it is used, so that any flipped bit is noticed."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

from pldcli.errors import PldError

__all__ = [
    "check_file",
    "check_sealed_directory",
    "file_sha256",
    "files_at",
    "is_sealed",
    "paths_sha256",
    "read_sums",
    "seal_directory",
    "sealed",
]

_SUMS = "SHA256SUMS"
_CHECKSUM = "sha256"


def file_sha256(path: Path) -> str:
    """Hash a file."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def files_at(place: Path) -> list[Path]:
    """List a file, or all files in a directory at any depth; none where there is nothing."""
    return [place] if place.is_file() else sorted(file for file in place.rglob("*") if file.is_file())


def paths_sha256(places: Iterable[Path]) -> str:
    """Hash the content of files, and of all in directories, in this order."""
    return hashlib.sha256(" ".join(file_sha256(file) for place in places for file in files_at(place)).encode()).hexdigest()


def check_file(
    path: Path, sha256: str, *, error: type[PldError], hint: str, what: str = "is damaged: it differs from its checksum"
) -> None:
    """Compare a file with its checksum.

    Args:
        path: The file.
        sha256: Its checksum.
        error: What to raise.
        hint: Its hint.
        what: What is wrong where they differ.

    Raises:
        PldError: It is missing or differs; of the type given.
    """
    try:
        found = file_sha256(path)
    except OSError as reason:
        unreadable = "is missing" if isinstance(reason, FileNotFoundError) else f"cannot be read ({reason.strerror})"
        raise error(unreadable, where=str(path), hint=hint) from reason
    if found != sha256:
        raise error(what, where=str(path), hint=hint)


def seal_directory(directory: Path, *, known: Mapping[str, str] = MappingProxyType({})) -> None:
    """Write the checksums of all files in a directory into SHA256SUMS, in the format of `sha256sum --check`.

    Args:
        directory: It holds no other directory.
        known: Checksums that need not be computed, by the name of their file.
    """
    sums = "".join(f"{known.get(file.name) or file_sha256(file)}  {file.name}\n" for file in sorted(directory.iterdir()))
    (directory / _SUMS).write_text(sums, encoding="utf-8")


def read_sums(directory: Path) -> dict[str, str]:
    """Read what `seal_directory` wrote: the checksum of each file, by its name.

    Raises:
        OSError, UnicodeDecodeError: It cannot be read.
    """
    lines = (directory / _SUMS).read_text(encoding="utf-8").removesuffix("\n").split("\n")
    return {name: digest for digest, _, name in (line.partition("  ") for line in lines)}


def check_sealed_directory(directory: Path, *, needed: Iterable[str], error: type[PldError], hint: str) -> None:
    """Compare all files of a directory with SHA256SUMS.

    Args:
        directory: What `seal_directory` sealed.
        needed: Names of files that must be there.
        error: What to raise.
        hint: Its hint.

    Raises:
        PldError: A file is missing or differs; of the type given.
    """
    try:
        sums = read_sums(directory)
    except (OSError, UnicodeDecodeError) as reason:
        raise error(f"is incomplete or damaged ({_SUMS}: {reason})", where=str(directory), hint=hint) from reason
    if missing := sorted(set(needed) - sums.keys()):
        raise error(f"is incomplete or damaged ({_SUMS} does not name {', '.join(missing)})", where=str(directory), hint=hint)
    for name, digest in sums.items():
        check_file(directory / name, digest, error=error, hint=hint)


def sealed(fields: dict[str, Any]) -> dict[str, Any]:
    """Add a checksum over all other fields to what becomes a JSON file."""
    others = {key: value for key, value in fields.items() if key != _CHECKSUM}
    content = json.dumps(others, sort_keys=True, ensure_ascii=True, separators=(",", ":"))
    return others | {_CHECKSUM: hashlib.sha256(content.encode()).hexdigest()}


def is_sealed(fields: dict[str, Any]) -> bool:
    """Return whether the fields of a JSON file have their checksum."""
    return fields == sealed(fields)
