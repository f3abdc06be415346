import torch

from pldcli.system import hardware
from pldcli.system.hardware import device_memory_bytes, hardware_name, peak_flops_per_second

CPU, GPU = torch.device("cpu"), torch.device("cuda", 0)


def test_peaks_of_known_gpus(monkeypatch):
    names = {
        "NVIDIA H100 80GB HBM3": 989e12, "NVIDIA H200": 989e12, "NVIDIA A100-SXM4-80GB": 312e12, "NVIDIA A10": 125e12,
        "NVIDIA A10G": 70e12, "NVIDIA H100 PCIe": 756e12, "NVIDIA L40": None, "NVIDIA RTX A1000": None,
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


def test_this_machine_has_memory():
    assert 10**8 < device_memory_bytes(CPU) < 10**14


def test_the_memory_of_a_container_is_shared_by_the_processes_of_a_job(tmp_path, monkeypatch):
    monkeypatch.setattr(hardware, "MEMORY_LIMIT", tmp_path / "memory.max")
    whole = device_memory_bytes(CPU)
    for text, memory in (("max\n", whole), (f"{10**16}\n", whole), ("4096000\n", 4096000)):
        (tmp_path / "memory.max").write_text(text)
        assert device_memory_bytes(CPU) == memory
    assert device_memory_bytes(CPU, sharing=4) == 1024000
