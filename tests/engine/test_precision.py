from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.nn import functional

from pldcli.engine import precision as module
from pldcli.engine.precision import Precision, resolve_precision
from tests.conftest import tiny_trainer

CPU, CUDA = torch.device("cpu"), torch.device("cuda")


@pytest.mark.parametrize(
    ("device", "in_hardware", "name"), [(CPU, True, "bf16"), (CPU, False, "fp32"), (CUDA, True, "bf16"), (CUDA, False, "fp16")]
)
def test_auto(monkeypatch: pytest.MonkeyPatch, device: torch.device, in_hardware: bool, name: str) -> None:
    monkeypatch.setattr(module, "bf16_is_fast", lambda _: in_hardware)
    assert resolve_precision("auto", device) == Precision(name, device)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("capability", "name"), [((7, 0), "fp16"), ((7, 5), "fp16"), ((8, 0), "bf16"), ((8, 9), "bf16"), ((10, 0), "bf16")]
)
def test_auto_on_a_gpu_goes_by_its_capability(monkeypatch: pytest.MonkeyPatch, capability: tuple[int, int], name: str) -> None:
    """Not by `torch.cuda.is_bf16_supported`, which holds wherever bf16 is emulated."""
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: capability)
    assert resolve_precision("auto", CUDA).name == name


def test_what_is_asked_for_is_what_one_gets(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "bf16_is_fast", lambda _: pytest.fail("nobody asked"))
    for name in ("bf16", "fp16", "fp32"):
        assert resolve_precision(name, CPU).name == name  # type: ignore[arg-type]


def test_auto_runs_on_this_machine() -> None:
    assert resolve_precision("auto", CPU).name in ("bf16", "fp32")
    assert isinstance(module.bf16_is_fast(CPU), bool)


@pytest.mark.parametrize(
    ("amx", "vendor", "flags", "fast"),
    [
        (True, "GenuineIntel", "avx2 avx512_bf16 amx_bf16", True),
        (False, "GenuineIntel", "avx2 avx512_bf16", False),
        (False, "AuthenticAMD", "avx2 avx512_bf16", True),
        (False, "AuthenticAMD", "avx2", False),
        (False, None, "", False),
    ],
)
def test_bf16_on_a_cpu_is_fast_with_amx_or_on_amd(
    monkeypatch: pytest.MonkeyPatch, amx: bool, vendor: str | None, flags: str, fast: bool
) -> None:
    monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: amx)
    monkeypatch.setattr(module, "processor_fields", lambda: {"vendor_id": vendor} if vendor else {})
    monkeypatch.setattr(module, "processor_flags", lambda: set(flags.split()))
    assert module.bf16_is_fast(CPU) is fast


@pytest.mark.parametrize(("name", "dtype"), [("fp32", torch.float32), ("bf16", torch.bfloat16), ("fp16", torch.float16)])
def test_matrix_products_run_in_the_format_and_weights_stay_float32(name: str, dtype: torch.dtype) -> None:
    layer = nn.Linear(4, 4)
    with Precision(name, CPU).autocast():  # type: ignore[arg-type]
        assert torch.is_autocast_enabled("cpu") == (name != "fp32")
        product = layer(torch.randn(2, 4))
    assert product.dtype == dtype
    product.float().sum().backward()
    assert layer.weight.dtype == torch.float32
    assert layer.weight.grad is not None
    assert layer.weight.grad.dtype == torch.float32
    assert not torch.is_autocast_enabled("cpu")


def attend(precision: Precision, *, masked: bool) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    q, k, v = (torch.randn(2, 4, 16, 8, generator=generator, requires_grad=True) for _ in range(3))
    mask = torch.arange(16).expand(2, 1, 1, 16) < 11 if masked else None
    with precision.autocast():
        # Products as in the model come in the autocast format; attention itself is not on autocast's list.
        mixed = functional.scaled_dot_product_attention(*(x @ torch.eye(8) for x in (q, k, v)), mask)
    mixed.float().square().sum().backward()
    assert q.grad is not None
    return mixed.detach().float(), q.grad


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("name", ["bf16", "fp16"])
def test_attention_in_half_precision_is_close_to_float32(name: str, masked: bool) -> None:
    exact, exact_gradient = attend(Precision("fp32", CPU), masked=masked)
    rough, gradient = attend(Precision(name, CPU), masked=masked)  # type: ignore[arg-type]
    assert not torch.equal(rough, exact)
    assert float((rough - exact).abs().max()) < 0.03
    assert float((gradient - exact_gradient).abs().max()) < 0.03 * float(exact_gradient.abs().max())


def flags() -> tuple[bool, ...]:
    cuda = torch.backends.cuda
    return (
        cuda.fp16_bf16_reduction_math_sdp_allowed(),
        cuda.flash_sdp_enabled(),
        cuda.mem_efficient_sdp_enabled(),
        cuda.math_sdp_enabled(),
        cuda.cudnn_sdp_enabled(),
        torch.is_autocast_enabled("cpu"),
        torch.is_autocast_cache_enabled(),
    )


@pytest.mark.parametrize("before", [False, True])
@pytest.mark.parametrize("name", ["fp32", "bf16", "fp16"])
def test_global_flags_are_as_before(name: str, before: bool) -> None:
    original = torch.backends.cuda.fp16_bf16_reduction_math_sdp_allowed()
    torch.backends.cuda.allow_fp16_bf16_reduction_math_sdp(before)
    try:
        expected = flags()
        with Precision(name, CPU).autocast():  # type: ignore[arg-type]
            inside = flags()
        assert flags() == expected
        with pytest.raises(KeyError), Precision(name, CPU).autocast():  # type: ignore[arg-type]
            raise KeyError
        assert flags() == expected
        assert inside[:5] == expected[:5], "the choice of kernels is left alone"
    finally:
        torch.backends.cuda.allow_fp16_bf16_reduction_math_sdp(original)


@pytest.mark.parametrize("name", ["fp32", "bf16"])
def test_outside_fp16_losses_are_not_scaled(name: str) -> None:
    scaler = Precision(name, CPU).scaler()  # type: ignore[arg-type]
    assert not scaler.is_enabled()
    loss = torch.tensor(3.0)
    assert scaler.scale(loss) is loss


def test_loss_scaling_takes_a_step_and_gives_up_one_that_overflows() -> None:
    precision = Precision("fp16", CPU)
    scaler = precision.scaler()
    assert scaler.is_enabled()
    layer = nn.Linear(8, 8)
    optimizer = torch.optim.SGD(layer.parameters(), lr=1.0)
    x = torch.randn(4, 8, generator=torch.Generator().manual_seed(0))
    expected = torch.autograd.grad(layer(x).square().mean(), layer.weight)[0]
    before = layer.weight.detach().clone()

    with precision.autocast():
        loss = layer(x).float().square().mean()
    scaler.scale(loss).backward()
    assert layer.weight.grad is not None
    assert float(layer.weight.grad.abs().max()) > 1000 * float(expected.abs().max()), "scaled, so that fp16 gradients do not vanish"
    scaler.unscale_(optimizer)
    assert torch.allclose(layer.weight.grad, expected, atol=2e-3)
    scaler.step(optimizer)
    scaler.update()
    assert torch.allclose(layer.weight, before - expected, atol=2e-3)

    after, scale = layer.weight.detach().clone(), scaler.get_scale()
    layer.weight.grad = torch.full((8, 8), torch.inf)
    scaler.unscale_(optimizer)
    scaler.step(optimizer)
    scaler.update()
    assert torch.equal(layer.weight, after)
    assert scaler.get_scale() == scale / 2


@pytest.mark.parametrize(("name", "fast", "dtype"), [("bf16", True, torch.bfloat16), ("bf16", False, None), ("fp32", True, None)])
def test_muon_multiplies_in_bf16_only_where_that_is_fast(
    monkeypatch: pytest.MonkeyPatch, name: str, fast: bool, dtype: torch.dtype
) -> None:
    monkeypatch.setattr(module, "bf16_is_fast", lambda _: fast)
    assert Precision(name, CPU).matrix_dtype is dtype  # type: ignore[arg-type]
    built = tiny_trainer("optim.name=muon", f"runtime.precision={name}").optimizer
    assert built._dtype is dtype
