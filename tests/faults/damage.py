"""Faults of the disk: flipped bits, cut, zeroed, missing and extra files, and a disk that fills up."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

from pldcli.data.prepared import verify_prepared
from pldcli.errors import PldError
from pldcli.runs.checkpoint import list_checkpoints, verify
from tests.faults.ground import Ground, Tally, disk_of_its_own

__all__ = ["cut", "disk_full", "extra", "flip", "flipped", "missing", "zeroed"]

_PAGE = 4096


def flipped(ground: Ground, trials: int) -> Tally:
    """One bit of a checkpoint or of prepared data, their tokenizers, sums and manifests included."""

    return _noticed(ground, trials, lambda path, content: flip(ground, path, content))


def flip(ground: Ground, path: Path, content: bytes) -> bool:
    """Flip one bit of a file; return that something changed."""
    changed = bytearray(content)
    bit = ground.draw.randrange(8 * len(content))
    changed[bit // 8] ^= 1 << bit % 8
    path.write_bytes(changed)
    return True


def cut(ground: Ground, trials: int) -> Tally:
    """A file that ends too soon."""

    def shorten(path: Path, content: bytes) -> bool:
        path.write_bytes(content[: ground.draw.randrange(len(content))])
        return True

    return _noticed(ground, trials, shorten)


def zeroed(ground: Ground, trials: int) -> Tally:
    """A page of zeros, as after a crash of the machine."""

    def zero(path: Path, content: bytes) -> bool:
        start = ground.draw.randrange(len(content)) // _PAGE * _PAGE
        changed = content[:start] + bytes(len(content[start : start + _PAGE])) + content[start + _PAGE :]
        path.write_bytes(changed)
        return changed != content

    return _noticed(ground, trials, zero)


def missing(ground: Ground, trials: int) -> Tally:
    """A file that is gone."""

    def remove(path: Path, content: bytes) -> bool:
        path.unlink()
        return True

    return _noticed(ground, trials, remove)


def extra(ground: Ground, trials: int) -> Tally:
    """A file that nobody wrote: it does no harm."""
    tally = Tally()
    for check, root in _places(ground):
        for number in range(trials // 2):
            path = root / f"{ground.draw.choice(['.nfs', 'model', 'train-', 'core.', ''])}{number:04d}.extra"
            path.write_bytes(ground.draw.randbytes(100))
            try:
                check(root)
                tally.count()
            except PldError as error:
                tally.count(f"{path.name}: {error}")
            finally:
                path.unlink()
    return tally


def disk_full(ground: Ground, trials: int) -> Tally:
    """A disk that fills up at a random place of the run; with more room the same command goes on."""
    tally = Tally()
    size = sum(path.stat().st_size for path in ground.whole.rglob("*") if path.is_file())
    for _ in range(trials):
        room = ground.draw.randrange(_PAGE * 10, 2 * size)
        with disk_of_its_own(ground, "-o", f"size={room}") as disk:
            if disk is None:
                tally.note = "no file system of its own could be mounted here"
                break
            process = ground.start(disk / "run")
            code = process.wait()
            failure = ground.damaged(disk / "run")
            if code not in (0, 7) or "Traceback" in process.err:
                failure = f"{room} bytes: ended with {code}: {process.err.strip()[-300:]}"
            subprocess.run(["mount", "-o", f"remount,size={20 * size}", str(disk)], check=True)
            tally.count(failure or ground.finish(disk / "run"))
    return tally


def _places(ground: Ground) -> list[tuple[Callable[[Path], object], Path]]:
    """Copies of a checkpoint and of prepared data, each with what reads every byte of it."""
    copies = ground.directory / "copies"
    if not copies.exists():
        shutil.copytree(list_checkpoints(ground.whole / "checkpoints")[-1], copies / "checkpoint")
        shutil.copytree(ground.data, copies / "data")
    return [(verify, copies / "checkpoint"), (verify_prepared, copies / "data")]


def _noticed(ground: Ground, trials: int, damage: Callable[[Path, bytes], bool]) -> Tally:
    """Damage a random file, expect that it is noticed by name, and mend it; `damage` returns whether anything changed."""
    tally = Tally()
    places = _places(ground)
    files = [(check, root, path) for check, root in places for path in sorted(root.rglob("*")) if path.is_file()]
    while tally.trials < trials:
        check, root, path = ground.draw.choice(files)
        content = path.read_bytes()
        if not content:
            continue
        try:
            if damage(path, content):
                try:
                    check(root)
                    tally.count(f"{path.name}: not noticed")
                except PldError as error:
                    tally.count("" if str(root) in str(error) else f"{path.name}: said without its place: {error}")
        finally:
            path.write_bytes(content)
    return tally
