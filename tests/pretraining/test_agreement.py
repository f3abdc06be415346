"""Processes that were told or hold different things are refused before they train."""

import json
import re
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from pldcli.cli import run
from pldcli.engine.precision import Precision
from pldcli.engine.runtime import launch
from pldcli.errors import PldError
from pldcli.pretraining import assembly
from pldcli.runs import checkpoint
from tests.conftest import TINY, MadeUpData, tiny_config
from tests.engine.test_runtime import seen_by_two

ELSEWHERE = {
    "setting": "process 1: optim.learning_rate is 0.01, on process 0 0.001; start all processes with one command, on equal files and m",
    "data": "process 1: the hash of the data is other, on process 0 data; start",
    "weights": r"process 1: the hash of the initial weights is \w{8}, on process 0 \w{8}; start",
    "precision": "process 1: runtime.precision is fp16, on process 0 fp32; start",
    "matrices": "process 1: the format of Muon's matrices is torch.bfloat16, on process 0 None; start",
    "versions": "process 1: train.new is 1, on process 0 None; start",
    "several": "process 1: .*; .*; .*, and 2 more; start",
}
"""What is another on process 1, and what all processes then say."""
CHANGES = {
    "setting": ["optim.learning_rate=0.01"],
    "several": ["optim.learning_rate=0.01", "optim.beta1=0.5", "optim.beta2=0.5", "optim.eps=0.1", "train.log_every_steps=5"],
    "matrices": ["optim.name=muon"],
}


def one_of_two(place: str) -> None:
    """Build a trainer with each of `ELSEWHERE` on the second process; then one whose machines' memories differ."""
    found = {}
    with launch("cpu") as runtime, pytest.MonkeyPatch.context() as patch:
        is_other = runtime.rank == 1
        for name in ELSEWHERE:
            own = CHANGES.get(name, []) if is_other or name == "matrices" else []
            with patch.context() as here:
                if is_other:
                    change(name, here)
                try:
                    assembly.build_trainer(tiny_config("optim.learning_rate=0.001", *own), MadeUpData(), runtime)
                    found[name] = "not noticed"
                except PldError as error:
                    found[name] = str(error)
        patch.setattr(assembly, "fitting_micro_batch", lambda *_, **__: 1 if is_other else 4)
        config = tiny_config("train.global_batch_size=16")
        found["micro-batch"] = assembly.build_trainer(config, MadeUpData(), runtime).batches.micro_batch_size
        Path(place, f"{runtime.rank}.json").write_text(json.dumps(found))


def change(name: str, patch: pytest.MonkeyPatch) -> None:
    """Make this process another, as the name says."""
    initial, flatten = assembly.initial_model, assembly.flatten

    def otherwise(*arguments):
        model = initial(*arguments)
        with torch.no_grad():
            next(model.parameters())[0] += 1e-3
        return model

    if name == "data":
        patch.setattr(MadeUpData, "data_fingerprint", "other")
    elif name == "weights":
        patch.setattr(assembly, "initial_model", otherwise)
    elif name == "precision":
        patch.setattr(assembly, "resolve_precision", lambda choice, device: Precision("fp16", device))
    elif name == "matrices":
        fast = SimpleNamespace(name="fp32", matrix_dtype=torch.bfloat16)
        patch.setattr(assembly, "resolve_precision", lambda choice, device: fast)
    elif name == "versions":
        patch.setattr(assembly, "flatten", lambda config: flatten(config) | {"train.new": 1})


@pytest.fixture(scope="module")
def found(processes, tmp_path_factory):
    return seen_by_two(processes, tmp_path_factory.mktemp("agreement"), __name__)


@pytest.mark.parametrize("name", ELSEWHERE)
def test_both_processes_name_what_differs(found, name):
    assert found[0][name] == found[1][name]
    assert re.match(ELSEWHERE[name], found[0][name]), found[0][name]


def test_the_smallest_memory_decides_for_all(found):
    assert [rank["micro-batch"] for rank in found] == [1, 1]


def resume(rank: int, arguments: list[str]) -> None:
    """Resume a run whose newest checkpoint the second process does not see."""
    there = checkpoint.list_checkpoints
    if rank == 1:
        checkpoint.list_checkpoints = lambda directory: there(directory)[:-1]
    assert run(arguments) == 2


def test_processes_resume_from_one_checkpoint(prepared, tmp_path, pld, processes):
    words = ["pretrain", "--preset", "bert-tiny-pld", "--data", prepared, "--out", tmp_path / "run", *TINY, "checkpoint.every_steps=4"]
    assert pld(*words).code == 0
    (tmp_path / "run" / "README.md").unlink()  # not finished, so that it is looked for what to resume from
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "run").rglob("*")}
    line = [str(word) for word in words]
    import_it = "import os; from tests.pretraining.test_agreement import resume"
    both = processes.together(f"{import_it}; resume(int(os.environ['RANK']), {line!r})")
    what = r"the checkpoint to resume from is step-00000008 \(\w{8}\), on process 0 step-00000012 \(\w{8}\); start all"
    for process in both:
        assert re.search(rf"error: process 1: {what}", process.err), process.err
    after = {path: path.stat().st_mtime_ns for path in (tmp_path / "run").rglob("*")}
    assert {path for path in after if after[path] != before.get(path)} <= {tmp_path / "run", tmp_path / "run" / ".lock"}
