from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from pldcli.runs import checkpoint
from pldcli.runs.run_directory import RunDirectory
from tests.conftest import Outcome

LINE = ("pretrain", "--preset", "bert-tiny-pld", "model.hidden_size=16", "model.num_hidden_layers=2", "model.intermediate_size=32")
LINE += ("data.seq_len=32", "train.global_batch_size=4", "train.total_steps=8", "checkpoint.every_steps=1", "checkpoint.keep=3")


@pytest.fixture(scope="module")
def trained(prepared: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    from pldcli.cli import run

    place = tmp_path_factory.mktemp("runs") / "run"
    assert run([*LINE, "checkpoint.keep_every_steps=4", "--data", str(prepared), "--out", str(place)]) == 0
    return place


@pytest.fixture
def copy(trained: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(trained, tmp_path / "run"))


def names(run: Path) -> list[str]:
    return sorted(path.name for path in (run / "checkpoints").iterdir())


def test_list(pld: Callable[..., Outcome], trained: Path) -> None:
    assert names(trained) == [f"step-{step:08d}" for step in (4, 6, 7, 8)]
    done = pld("checkpoint", "list", trained)
    assert done.code == 0
    lines = done.out.splitlines()
    assert lines[0].split() == ["checkpoint", "step", "tokens", "MB", "saved"]
    assert [line.split()[:2] for line in lines[1:]] == [
        [str(trained / "checkpoints" / f"step-{step:08d}"), str(step)] for step in (4, 6, 7, 8)
    ]


def test_list_marks_what_is_damaged(pld: Callable[..., Outcome], copy: Path) -> None:
    """One byte of the weights, a state that says nothing, one that is gone; the sound one is listed as ever."""
    four, six, seven, eight = sorted((copy / "checkpoints").iterdir())
    content = bytearray((six / "model.safetensors").read_bytes())
    content[-1] ^= 1
    (six / "model.safetensors").write_bytes(content)
    (seven / "state.json").write_text("{}")
    (eight / "state.json").unlink()
    done = pld("checkpoint", "list", copy)
    assert done.code == 0
    lines = done.out.splitlines()
    assert [line.split()[:2] for line in lines[1:5]] == [[str(path), path.name[-1]] for path in (four, six, seven, eight)]
    assert [line.endswith(", damaged") for line in lines[1:5]] == [False, True, True, True]
    assert lines[5] == f"{six}: damaged ({six / 'model.safetensors'}: is damaged: it differs from its checksum)"
    assert lines[6].startswith(f"{seven}: damaged (") and lines[7].startswith(f"{eight}: damaged (") and len(lines) == 8


def test_verify_names_each(pld: Callable[..., Outcome], copy: Path) -> None:
    done = pld("checkpoint", "verify", copy)
    assert done.code == 0 and done.out.count(": sound\n") == 4
    weights = copy / "checkpoints" / "step-00000007" / "model.safetensors"
    content = bytearray(weights.read_bytes())
    content[len(content) // 2] ^= 1
    weights.write_bytes(content)
    done = pld("checkpoint", "verify", copy)
    assert done.code == 4 and done.out.count(": sound\n") == 3
    assert f"{weights.parent}: damaged ({weights}: is damaged: it differs from its checksum)" in done.out
    assert "1 of 4 checkpoints damaged" in done.err
    assert pld("checkpoint", "verify", weights.parent).code == 4
    assert pld("checkpoint", "verify", copy / "checkpoints" / "step-00000008").code == 0


def test_what_a_run_removes_meanwhile_is_not_damaged(pld: Callable[..., Outcome], copy: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It goes while its weights are read, and before its size is taken."""
    four, _, _, eight = sorted((copy / "checkpoints").iterdir())
    verify = checkpoint.verify

    def slow(path: Path) -> None:
        if path == four:
            shutil.rmtree(four)
        verify(path)
        shutil.rmtree(eight, ignore_errors=True)

    monkeypatch.setattr(checkpoint, "verify", slow)
    done = pld("checkpoint", "list", copy)
    assert done.code == 0 and "damaged" not in done.out and [line.split()[1] for line in done.out.splitlines()[1:]] == ["6", "7"]
    four.mkdir()
    monkeypatch.setattr(checkpoint, "list_checkpoints", lambda folder: sorted(folder.iterdir()))
    done = pld("checkpoint", "verify", copy)
    assert done.code == 0 and done.out.count(": sound\n") == 2 and "damaged" not in done.out


def test_prune(pld: Callable[..., Outcome], copy: Path) -> None:
    (copy / "checkpoints" / "step-00000008" / "state.json").write_text("{}")
    done = pld("checkpoint", "prune", copy, "--keep-every", "4")
    assert done.code == 0 and names(copy) == ["step-00000004", "step-00000007"]
    assert f"removed {copy / 'checkpoints' / 'step-00000006'}" in done.out and "2 of 4 checkpoints stay" in done.out
    assert pld("checkpoint", "prune", copy).code == 0 and names(copy) == ["step-00000007"]


def test_refusals(pld: Callable[..., Outcome], copy: Path, tmp_path: Path) -> None:
    for word in ("list", "verify", "prune"):
        done = pld("checkpoint", word, tmp_path / "nowhere")
        assert done.code == 4 and "nowhere: no checkpoints here" in done.err
        assert not (tmp_path / "nowhere").exists()
    with RunDirectory(copy).lock():
        done = pld("checkpoint", "prune", copy)
    assert done.code == 7 and "another process is training here" in done.err and len(names(copy)) == 4
    done = pld("config", "validate", "bert-tiny-pld", "checkpoint.every_steps=4", "checkpoint.keep_every_steps=6")
    assert done.code == 2 and "checkpoint.keep_every_steps: 6 is no multiple of checkpoint.every_steps 4" in done.err
