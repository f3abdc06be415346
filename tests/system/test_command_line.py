from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest

from pldcli.system import command_line as module
from pldcli.system.command_line import command_line

SEVERAL = ["--nnodes", "2", "--nproc-per-node", "8", "--rdzv-id", "one", "--rdzv-endpoint", "host:29500"]
OWN = ["pretrain", "--data", "my data"]


@pytest.mark.parametrize(
    ("agent", "line"),
    [
        (["/usr/bin/python", "-u", "/bin/torchrun", *SEVERAL, "-m", "pldcli", *OWN], f"torchrun {' '.join(SEVERAL)} -m pldcli"),
        (["/usr/bin/python", "-m", "torch.distributed.run", *SEVERAL, "-m", "pldcli", *OWN],
         f"python -m torch.distributed.run {' '.join(SEVERAL)} -m pldcli"),
        (["/usr/bin/python", "/bin/torchrun", *SEVERAL, "my_script.py"], "torchrun --nnodes 2 --nproc-per-node 8 -m pldcli"),
        (["/usr/bin/python", "my_launcher.py", *OWN], "torchrun --nnodes 2 --nproc-per-node 8 -m pldcli"),
        (None, "torchrun --nnodes 2 --nproc-per-node 8 -m pldcli"),
    ],
    ids=["command", "module", "other arguments", "other launcher", "not to be seen"],
)  # fmt: skip
def test_the_line_of_torchrun_is_what_it_was_started_with(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, agent: list[str] | None, line: str
) -> None:
    monkeypatch.setattr(module, "PROCESSES", tmp_path)
    monkeypatch.setattr(sys, "argv", ["/somewhere/pldcli/__main__.py", *OWN])
    for name, value in {"LOCAL_WORLD_SIZE": "8", "GROUP_WORLD_SIZE": "2"}.items():
        monkeypatch.setenv(name, value)
    if agent is not None:
        (tmp_path / str(os.getppid())).mkdir()
        (tmp_path / str(os.getppid()) / "cmdline").write_text("".join(f"{word}\0" for word in agent))
    assert command_line() == f"{line} pretrain --data 'my data'"


def test_one_process_of_torchrun_was_typed_with_torchrun_as_well(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(module, "PROCESSES", tmp_path)
    monkeypatch.setattr(sys, "argv", ["/somewhere/pldcli/__main__.py", "pretrain"])
    assert command_line() == "pld pretrain"
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "one")
    assert command_line() == "torchrun --nproc-per-node 1 -m pldcli pretrain"
