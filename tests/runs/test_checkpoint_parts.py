"""A checkpoint that several processes write is complete, with the parts of one moment, or not there at all."""

from __future__ import annotations

import threading
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from pldcli.errors import CheckpointError
from pldcli.runs import checkpoint, checkpoint_parts
from pldcli.runs.checkpoint import Held, Position
from pldcli.runs.checkpoint_parts import Part, load_whole, place_of
from tests.conftest import tiny_config


def held(number: int, *, count: int = 3, token: int = 5, step: int = 4) -> Held:
    """Two rows of a matrix on each process; on the first, what is not split, too."""
    matrix = torch.arange(2.0 * 3 * count).view(2 * count, 3)
    whole = {"bias": torch.ones(3)} if number == 1 else {}
    state = {"step/weight": torch.tensor(4.0)} if number == 1 else {}
    rows = matrix[2 * number - 2 : 2 * number]
    return Held(
        position=Position(step=step),
        config=tiny_config(),
        tensors={"model": {"weight": rows, **whole}, "optimizer": {"exp_avg/weight": 2 * rows, **state}},
        scaler={},
        data_fingerprint="data",
        tokenizer_fingerprint="tokenizer",
        part=Part(number, count, token),
    )


def write(directory: Path, one: Held) -> Path:
    return checkpoint.write(directory, one, keep=2)


@pytest.fixture
def written(tmp_path: Path) -> Path:
    for number in (3, 2, 1):
        path = write(tmp_path, held(number))
    return path


def test_the_parts_make_one_checkpoint(written: Path) -> None:
    assert [entry.name for entry in written.parent.iterdir()] == ["step-00000004"]
    names = [f"{name}-0000{number}-of-00003.safetensors" for name in ("model", "optimizer") for number in (1, 2, 3)]
    assert sorted(entry.name for entry in written.iterdir()) == sorted([*names, "state.json", "config.yaml", "SHA256SUMS"])
    read = checkpoint.read(written)
    assert torch.equal(read.weights["weight"], torch.arange(18.0).view(6, 3)) and torch.equal(read.weights["bias"], torch.ones(3))
    assert torch.equal(read.optimizer["exp_avg/weight"], 2 * torch.arange(18.0).view(6, 3)) and read.optimizer["step/weight"] == 4
    assert checkpoint.newest_valid(written.parent) == (written, [])


def test_the_first_process_waits_for_the_others(tmp_path: Path) -> None:
    main = threading.Thread(target=write, args=(tmp_path, held(1)))
    main.start()
    write(tmp_path, held(2))
    main.join(0.3)
    assert main.is_alive() and not checkpoint.list_checkpoints(tmp_path)
    write(tmp_path, held(3))
    main.join(30)
    assert not main.is_alive() and checkpoint.newest_valid(tmp_path)[0] == tmp_path / "step-00000004"


def test_a_part_that_does_not_come_leaves_nothing(tmp_path: Path) -> None:
    write(tmp_path, held(2))
    cancelled = threading.Event()
    cancelled.set()
    with pytest.raises(CheckpointError, match=r"part 3 of 3 was not written: its process ended$"):
        checkpoint.write(tmp_path, held(1), keep=2, cancelled=cancelled)
    assert list(tmp_path.iterdir()) == []


def test_patience_ends(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(checkpoint_parts, "_PATIENCE_SECONDS", 0.1)
    with pytest.raises(CheckpointError, match=r"part 2 of 3 did not come in 0\.1 s; .*, raise runtime\.timeout_seconds$"):
        write(tmp_path, held(1))


@pytest.mark.parametrize("stale", [{"token": 4}, {"step": 2}, {"token": 4, "count": 4}])
def test_a_part_of_another_checkpoint_is_not_taken(tmp_path: Path, stale: dict[str, int]) -> None:
    """A process that was killed left it."""
    other = held(2, **stale)
    write(tmp_path, replace(other, tensors={"model": {"weight": torch.zeros(2, 3)}, "optimizer": {}}))
    assert place_of(tmp_path / f"step-{other.position.step:08d}", other.part).is_dir()
    for number in (2, 3, 1):
        path = write(tmp_path, held(number))
    assert torch.equal(load_whole(path, "model")["weight"], torch.arange(18.0).view(6, 3))
    if "token" in stale:
        assert [entry.name for entry in tmp_path.iterdir()] == [path.name]


@pytest.mark.parametrize("name", ["model-00001-of-00003", "model-00003-of-00003", "optimizer-00002-of-00003"])
def test_a_missing_or_damaged_part_is_named(written: Path, name: str) -> None:
    file = written / f"{name}.safetensors"
    content = bytearray(file.read_bytes())
    content[-1] ^= 1
    file.write_bytes(content)
    with pytest.raises(CheckpointError, match=name):
        checkpoint.verify(written)
    file.unlink()
    with pytest.raises(CheckpointError, match=name):
        checkpoint.verify(written)


def test_all_parts_must_be_sealed(written: Path) -> None:
    """Also where a part is gone together with its checksum."""
    (written / "model-00003-of-00003.safetensors").unlink()
    sums = written / "SHA256SUMS"
    sums.write_text("".join(line for line in sums.read_text().splitlines(keepends=True) if "model-00003" not in line))
    with pytest.raises(CheckpointError, match=r"does not name model-00003-of-00003\.safetensors"):
        checkpoint.verify(written)


def test_parts_that_do_not_fit_each_other(tmp_path: Path) -> None:
    write(tmp_path, replace(held(2, count=2), tensors={"model": {"weight": torch.zeros(2, 4)}, "optimizer": {}}))
    path = write(tmp_path, held(1, count=2))
    with pytest.raises(CheckpointError, match="cannot be read"):
        checkpoint.read(path)
