import json
from pathlib import Path

import torch

from pldcli.engine.hardware import hardware_name, peak_flops_per_second, record_start
from pldcli.engine.run_directory import read_starts
from tests.conftest import MadeUpData, tiny_trainer

CPU, GPU = torch.device("cpu"), torch.device("cuda", 0)


def test_peaks_of_known_gpus(monkeypatch):
    names = {
        "NVIDIA H100 80GB HBM3": 989e12, "NVIDIA H200": 989e12, "NVIDIA A100-SXM4-80GB": 312e12, "NVIDIA A10": 125e12,
        "NVIDIA A10G": 125e12, "NVIDIA H100 PCIe": 756e12, "NVIDIA L40": None, "NVIDIA RTX A1000": None,
        "NVIDIA L4": 121e12, "NVIDIA L40S": 362e12, "Tesla V100-SXM2-16GB": 125e12, "Tesla T4": 65e12, "Voodoo 2": None,
    }  # fmt: skip
    for name, peak in names.items():
        monkeypatch.setattr(torch.cuda, "get_device_name", lambda device, name=name: name)
        assert peak_flops_per_second(GPU, "bf16") == peak, name
        assert hardware_name(GPU) == name
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "NVIDIA H200")
    assert peak_flops_per_second(GPU, "fp32") is None
    assert peak_flops_per_second(CPU, "bf16") is None


def test_the_processor_has_a_name():
    assert hardware_name(CPU).endswith(" cores") and len(hardware_name(CPU)) > 10


def test_every_start_is_recorded(tmp_path):
    path = tmp_path / "environment.json"
    for command in ("first", "second"):
        record_start(path, command, tiny_trainer("train.micro_batch_size=2"), MadeUpData())
    starts = read_starts(path)
    assert [start["command"] for start in starts] == ["first", "second"]
    assert {"torch", "numpy", "tokenizers"} <= starts[0]["packages"].keys()
    assert (starts[0]["micro_batch_size"], starts[0]["micro_steps_per_group"], starts[0]["data_fingerprint"]) == (2, 4, "data")


def test_a_start_says_what_a_token_of_its_rows_attends_to(tmp_path):
    trainer = tiny_trainer("data.packing=documents")
    record_start(tmp_path / "environment.json", "command", trainer, MadeUpData())
    [start] = read_starts(tmp_path / "environment.json")
    assert start["attended_tokens"] == trainer.batches.samples.attended_tokens < 32


def test_the_data_is_recorded_for_readers_in_any_directory(tmp_path, monkeypatch):
    (tmp_path / "here" / "runs" / "a").mkdir(parents=True)
    monkeypatch.chdir(tmp_path / "here")
    record_start(Path("runs/a/environment.json"), "now", tiny_trainer(), MadeUpData())
    [start] = read_starts(tmp_path / "here" / "runs" / "a" / "environment.json")
    assert (start["data"], start["data_from_run"]) == (str(tmp_path / "here" / "made-up"), "../../made-up")


def test_an_unreadable_record_starts_anew(tmp_path):
    path = tmp_path / "environment.json"
    for content in (b"{", b"[]", b'{"starts": 3}', b"\xff"):
        path.write_bytes(content)
        assert read_starts(path) == []
    assert read_starts(tmp_path / "none.json") == []
    record_start(path, "now", tiny_trainer(), MadeUpData())
    assert len(json.loads(path.read_text())["starts"]) == 1
