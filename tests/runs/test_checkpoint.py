import errno
import gc
import hashlib
import json
import os
import shutil
from pathlib import Path

import pytest
import torch
from safetensors import SafetensorError

from pldcli import presets
from pldcli.errors import CheckpointError, OutputError
from pldcli.runs import checkpoint
from pldcli.runs.checkpoint import (
    Position,
    check_same_run,
    list_checkpoints,
    newest_valid,
    optimizer_tensors,
    read,
    restore_optimizer,
    verify,
)
from pldcli.system import atomic
from pldcli.system.signals import StopRequest
from tests.conftest import tiny_config, tiny_trainer

FILES = {"SHA256SUMS", "config.yaml", "model.safetensors", "optimizer.safetensors", "state.json"}


@pytest.fixture(scope="module")
def trainer():
    """A trainer of which one block has no optimizer state yet."""
    trainer = tiny_trainer("pld.schedule=constant", "pld.theta_bar=0.1", "pld.depth_rule=uniform", "runtime.precision=fp16")
    for seen in trainer.steps(Position(), observe=lambda step: True, stop=StopRequest()):
        if seen.position.step == 1:
            break
    assert any(not trainer.optimizer.state.get(p) for block in trainer.model.blocks for p in block.parameters()), "choose another seed"
    return trainer


def save(directory, trainer, step=2, *, keep=2, keep_every=None):
    return checkpoint.write(directory, hold(trainer, step), keep=keep, keep_every=keep_every)


def hold(trainer, step=2, **named):
    return checkpoint.hold(
        Position(step, 16, 512, 1.5, 2.5, 1e9 + 0.1),
        tiny_config(),
        trainer.model,
        trainer.optimizer,
        scaler=trainer.scaler.state_dict(),
        guard=trainer.guard.state(),
        data_fingerprint="data",
        tokenizer_fingerprint="tokenizer",
        **named,
    )


def names(directory):
    return sorted(entry.name for entry in directory.iterdir())


def steps(directory):
    return [int(path.name.removeprefix("step-")) for path in list_checkpoints(directory)]


def test_round_trip(tmp_path, trainer):
    path = save(tmp_path, trainer)
    assert path == tmp_path / "step-00000002" and set(names(path)) == FILES
    snapshot = read(path)
    assert snapshot.position == Position(2, 16, 512, 1.5, 2.5, 1e9 + 0.1)
    assert (snapshot.config, snapshot.data_fingerprint, snapshot.tokenizer_fingerprint) == (tiny_config(), "data", "tokenizer")
    assert snapshot.scaler == trainer.scaler.state_dict() and snapshot.scaler["scale"] > 1

    other = tiny_trainer("runtime.precision=fp16", "train.seed=5")
    other.model.load_state_dict(snapshot.weights, strict=True)
    restore_optimizer(snapshot.optimizer, other.model, other.optimizer)
    pairs = list(zip(trainer.model.parameters(), other.model.parameters(), strict=True))
    assert all(torch.equal(ours, theirs) for ours, theirs in pairs)
    for ours, theirs in pairs:
        before, after = trainer.optimizer.state.get(ours, {}), other.optimizer.state.get(theirs, {})
        assert before.keys() == after.keys()
        assert all(torch.equal(before[entry], after[entry]) and before[entry].dtype == after[entry].dtype for entry in before)


def test_sums_are_those_of_sha256sum(tmp_path, trainer):
    path = save(tmp_path, trainer)
    lines = dict(reversed(line.split("  ")) for line in (path / "SHA256SUMS").read_text().splitlines())
    assert lines == {name: hashlib.sha256((path / name).read_bytes()).hexdigest() for name in FILES - {"SHA256SUMS"}}


def test_nothing_can_run_code(tmp_path, trainer):
    path = save(tmp_path, trainer)
    for name in ("model", "optimizer"):
        content = (path / f"{name}.safetensors").read_bytes()
        assert json.loads(content[8 : 8 + int.from_bytes(content[:8], "little")])
    assert json.loads((path / "state.json").read_text())["position"]["step"] == 2
    assert presets.load(path / "config.yaml") == tiny_config()


@pytest.mark.parametrize("name", sorted(FILES - {"SHA256SUMS"}))
@pytest.mark.parametrize("damage", ["first bit", "a middle bit", "last bit", "missing", "cut", "empty", "longer"])
def test_any_damage_is_noticed(tmp_path, trainer, name, damage):
    path = save(tmp_path, trainer)
    file = path / name
    content = bytearray(file.read_bytes())
    if damage.endswith("bit"):
        place = {"first bit": 0, "a middle bit": len(content) // 2, "last bit": len(content) - 1}[damage]
        content[place] ^= 1 << (7 if damage == "last bit" else 0)
        file.write_bytes(content)
    elif damage == "missing":
        file.unlink()
    else:
        file.write_bytes({"cut": content[:-1], "empty": b"", "longer": content + b"\0"}[damage])
    for reader in (verify, read):
        with pytest.raises(CheckpointError, match="step-00000002") as caught:
            reader(path)
        assert caught.value.exit_code == 4


def test_any_flipped_bit_of_the_sums_is_noticed(tmp_path):
    for name in FILES - {"SHA256SUMS"}:
        (tmp_path / name).write_text(name)
    sums = "".join(f"{hashlib.sha256(name.encode()).hexdigest()}  {name}\n" for name in sorted(FILES - {"SHA256SUMS"})).encode()
    (tmp_path / "SHA256SUMS").write_bytes(sums)
    verify(tmp_path)
    line_ends = [place for place, byte in enumerate(sums) if byte == 10]
    for bit in {*range(0, 8 * len(sums), 7), *(8 * place + bit for place in line_ends for bit in range(8))}:
        flipped = bytearray(sums)
        flipped[bit // 8] ^= 1 << bit % 8
        (tmp_path / "SHA256SUMS").write_bytes(flipped)
        with pytest.raises(CheckpointError):
            verify(tmp_path)
            pytest.fail(f"bit {bit} of {sums[bit // 8 : bit // 8 + 1]!r}")


@pytest.mark.parametrize("cut", ["", "0" * 64, None])
def test_missing_or_cut_sums(tmp_path, trainer, cut):
    path = save(tmp_path, trainer)
    if cut is None:
        (path / "SHA256SUMS").unlink()
    else:
        (path / "SHA256SUMS").write_text(cut)
    with pytest.raises(CheckpointError):
        verify(path)


def test_another_version(tmp_path, trainer):
    path = save(tmp_path, trainer)
    state = json.loads((path / "state.json").read_text()) | {"version": 99}
    (path / "state.json").write_text(json.dumps(state))
    sums = [f"{hashlib.sha256((path / name).read_bytes()).hexdigest()}  {name}\n" for name in FILES - {"SHA256SUMS"}]
    (path / "SHA256SUMS").write_text("".join(sums))
    with pytest.raises(CheckpointError, match="has version 99, this program reads 1"):
        read(path)


def test_the_newest_that_verifies(tmp_path, trainer):
    assert newest_valid(tmp_path) == (None, [])
    for step in (9, 10, 100):
        save(tmp_path, trainer, step, keep=3)
    assert steps(tmp_path) == [9, 10, 100]
    assert newest_valid(tmp_path) == (tmp_path / "step-00000100", [])
    (tmp_path / "step-00000100" / "state.json").write_text("{}")
    path, complaints = newest_valid(tmp_path)
    assert path == tmp_path / "step-00000010"
    assert len(complaints) == 1 and "step-00000100/state.json: is damaged" in complaints[0]
    for step in (9, 10):
        (tmp_path / f"step-{step:08d}" / "model.safetensors").unlink()
    path, complaints = newest_valid(tmp_path)
    assert path is None and [Path(complaint.split(":")[0]).parent.name for complaint in complaints] == [
        f"step-{step:08d}" for step in (100, 10, 9)
    ]


def test_only_the_newest_stay(tmp_path, trainer):
    for step in (1, 2, 3, 4):
        save(tmp_path, trainer, step, keep=2)
    assert names(tmp_path) == ["step-00000003", "step-00000004"]
    save(tmp_path, trainer, 5, keep=1)
    assert steps(tmp_path) == [5]
    save(tmp_path, trainer, 5, keep=1)
    assert steps(tmp_path) == [5]


def test_what_is_held_as_a_copy_does_not_move_with_the_run(tmp_path, trainer):
    held, moving = hold(trainer, copy=True), hold(trainer)
    first = next(iter(trainer.model.state_dict()))
    before = trainer.model.state_dict()[first].clone()
    with torch.no_grad():
        trainer.model.state_dict()[first].add_(1.0)
    assert torch.equal(read(checkpoint.write(tmp_path / "a", held, keep=1)).weights[first], before)
    assert torch.equal(read(checkpoint.write(tmp_path / "b", moving, keep=1)).weights[first], before + 1.0)
    with torch.no_grad():
        trainer.model.state_dict()[first].copy_(before)


def test_a_checkpoint_leaves_nothing_to_collect(tmp_path, trainer):
    gc.collect()
    gc.disable()
    try:
        save(tmp_path, trainer)
        assert gc.collect() < 10
    finally:
        gc.enable()


def test_every_so_many_stay_for_good(tmp_path, trainer):
    for step in (2, 4, 6, 8, 10, 12):
        save(tmp_path, trainer, step, keep=1, keep_every=4)
    assert steps(tmp_path) == [4, 8, 12]
    save(tmp_path, trainer, 6, keep=1, keep_every=4)  # set back: what comes later was of another course
    assert steps(tmp_path) == [4, 6]


def test_pruning_counts_sound_ones_only(tmp_path, trainer):
    for step in (2, 3, 4, 6, 8):
        save(tmp_path, trainer, step, keep=9)
    (tmp_path / "step-00000008" / "model.safetensors").write_bytes(b"half")
    (tmp_path / "step-00000002" / "state.json").unlink()
    removed = checkpoint.prune(tmp_path, keep=1, keep_every=3)
    assert [path.name[-1] for path in removed] == ["2", "4", "8"] and steps(tmp_path) == [3, 6]
    (tmp_path / "step-00000003" / "state.json").unlink()
    (tmp_path / "step-00000006" / "config.yaml").write_text("")
    with pytest.raises(CheckpointError, match="none of the checkpoints verifies, and none is removed"):
        checkpoint.prune(tmp_path, keep=1)
    assert steps(tmp_path) == [3, 6]
    assert checkpoint.prune(tmp_path / "nowhere", keep=1) == []


def test_the_position_is_read_without_the_rest(tmp_path, trainer):
    path = save(tmp_path, trainer, 7)
    assert checkpoint.position(path).step == 7
    (path / "state.json").write_text("{}")
    with pytest.raises(CheckpointError, match="cannot be read"):
        checkpoint.position(path)


@pytest.mark.parametrize("change", [{"step": "2"}, {"step": -5}, {"step": True}, {"tokens": 1.5}, {"train_seconds": float("inf")}])
def test_a_position_that_no_run_comes_to(tmp_path, trainer, change):
    path = save(tmp_path, trainer, 2)
    state = json.loads((path / "state.json").read_text())
    (path / "state.json").write_text(json.dumps(state | {"position": state["position"] | change}))
    with pytest.raises(CheckpointError):
        checkpoint.position(path)


def test_older_ones_go_only_when_the_new_one_is_there(tmp_path, trainer, monkeypatch):
    save(tmp_path, trainer, 1)
    removed = []
    monkeypatch.setattr(checkpoint.atomic, "remove", lambda path: removed.append((path.name, steps(tmp_path))))
    save(tmp_path, trainer, 2, keep=1)
    assert removed == [("step-00000001", [1, 2])]


@pytest.mark.parametrize("keep", [1, 2])
def test_a_damaged_newer_one_never_costs_the_new_one(tmp_path, trainer, keep):
    """A run that fell back to an older checkpoint saves below the damaged one."""
    save(tmp_path, trainer, 10)
    (save(tmp_path, trainer, 12) / "state.json").write_text("{}")
    save(tmp_path, trainer, 11, keep=keep)
    assert steps(tmp_path) == [10, 11][-keep:]
    assert newest_valid(tmp_path)[0] == tmp_path / "step-00000011"


@pytest.mark.parametrize(
    "error",
    [OSError(errno.ENOSPC, "No space left on device"), SafetensorError("Error: I/O error: No space left on device (os error 28)")],
)
@pytest.mark.parametrize("failing_call", [1, 2])
def test_a_full_disk_costs_nothing(tmp_path, trainer, monkeypatch, error, failing_call):
    save(tmp_path, trainer, 1)
    calls, save_file = [], checkpoint.save_file

    def full(tensors, path):
        calls.append(path)
        if len(calls) == failing_call:
            path.write_bytes(b"half")
            raise error
        save_file(tensors, path)

    monkeypatch.setattr(checkpoint, "save_file", full)
    with pytest.raises(OutputError, match=r"step-00000002: the disk is full; free some space") as caught:
        save(tmp_path, trainer, 2, keep=1)
    assert caught.value.exit_code == 7
    assert names(tmp_path) == ["step-00000001"]
    verify(tmp_path / "step-00000001")


def test_a_safetensors_error_without_a_number(tmp_path, trainer, monkeypatch):
    def broken(tensors, path):
        raise SafetensorError("who knows")

    monkeypatch.setattr(checkpoint, "save_file", broken)
    with pytest.raises(OutputError, match="cannot be written"):
        save(tmp_path, trainer)
    assert names(tmp_path) == []


def test_what_killed_processes_left_is_ignored_and_removed(tmp_path, trainer):
    """Also that of other steps, and of a process whose number lives again, as in a container that was started anew."""
    with atomic.directory(tmp_path / "step") as place:
        machine = place.name.split("-")[1]
    for step, process in ((3, 2**22 + 1), (7, os.getpid()), (8, os.getpid()), (8, f"old-{machine}-{os.getpid()}")):
        owner = process if isinstance(process, str) else f"{machine}-{process}"
        leftover = tmp_path / f".step-{step:08d}.tmp-{owner}"
        leftover.mkdir()
        (leftover / "model.safetensors").write_bytes(b"half")
    shutil.rmtree(tmp_path / "step")
    assert newest_valid(tmp_path) == (None, [])
    save(tmp_path, trainer, 8)
    assert names(tmp_path) == ["step-00000008"]


def test_what_another_machine_writes_stays(tmp_path, trainer):
    """Where a shared file system does not share locks, its process may live."""
    (tmp_path / ".step-00000003.tmp-00000000-1").mkdir()
    save(tmp_path, trainer, 8)
    assert names(tmp_path) == [".step-00000003.tmp-00000000-1", "step-00000008"]


def test_a_file_in_the_way(tmp_path, trainer):
    (tmp_path / "checkpoints").write_text("")
    with pytest.raises(OutputError, match="cannot be written"):
        save(tmp_path / "checkpoints", trainer)


def test_the_same_run(tmp_path):
    def check(*changes, data="data", stored="data"):
        check_same_run(tiny_config(), tiny_config(*changes), stored_data=stored, data=data, where=tmp_path)

    check()
    control = ["train.log_every_steps=3", "checkpoint.every_steps=5", "checkpoint.keep=9", "eval.every_steps=2"]
    check(*control, "runtime.compile=off", "train.micro_batch_size=2", "runtime.precision=bf16", "runtime.checkpoint_activations=true")
    with pytest.raises(CheckpointError, match=r"train.total_steps 12 -> 24.*--out.*--resume never") as caught:
        check("train.total_steps=24")
    assert caught.value.exit_code == 4 and caught.value.where == str(tmp_path)
    refused = ("train.seed=1", "pld.theta_bar=0.6", "optim.learning_rate=0.5", "model.dropout=0.1", "pld.draws_per_step=2")
    for change in (*refused, "eval.max_sequences=4"):
        with pytest.raises(CheckpointError, match=change.partition("=")[0]):
            check(change)
    with pytest.raises(CheckpointError, match=r"other prepared data; point --data"):
        check(data="other")
    check(data="other", stored=None)


def test_restored_state_takes_the_place_of_all_that_was_learned_since() -> None:
    """A block that had none when it was saved begins without."""
    trainer = tiny_trainer()
    *_, _ = trainer.steps(Position(), observe=lambda step: True, stop=StopRequest())
    saved = {key: tensor.clone() for key, tensor in optimizer_tensors(trainer.model, trainer.optimizer).items()}
    names = {key.partition("/")[2] for key in saved}
    gone = next(name for name in names if name.startswith("blocks."))
    restore_optimizer({key: value for key, value in saved.items() if not key.endswith(f"/{gone}")}, trainer.model, trainer.optimizer)
    left = {key.partition("/")[2] for key in optimizer_tensors(trainer.model, trainer.optimizer)}
    assert left == names - {gone}


def test_a_copy_beside_the_checkpoints_is_none_of_them(tmp_path, trainer):
    for step in (2, 4):
        save(tmp_path, trainer, step)
    for name in ("step-best", "step-00000002-best", "step-00000009 (copy)"):
        shutil.copytree(tmp_path / "step-00000002", tmp_path / name)
    assert newest_valid(tmp_path)[0] == tmp_path / "step-00000004"
    save(tmp_path, trainer, 6, keep=1, keep_every=3)
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "step-00000002-best",
        "step-00000006",
        "step-00000009 (copy)",
        "step-best",
    ]
