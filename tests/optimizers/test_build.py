from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from pldcli.config import OptimConfig
from pldcli.optimizers.adam import Adam
from pldcli.optimizers.build import build_optimizer, clip_gradients, learning_rate, set_learning_rate
from pldcli.runs import checkpoint
from tests.conftest import tiny_trainer

PEAK = 1e-3


def rate(step: int, total_steps: int, schedule: str, warmup_fraction: float = 0.02, **changes: Any) -> float:
    """Give a learning rate as a fraction of its peak."""
    optim = OptimConfig(learning_rate=PEAK, schedule=schedule, **changes)  # type: ignore[arg-type]
    return learning_rate(step, total_steps, optim, warmup_steps=round(warmup_fraction * total_steps)) / PEAK


@pytest.mark.parametrize("schedule", ["linear", "cosine", "wsd", "paper-exponential", "constant"])
def test_warm_up_is_linear_and_never_zero(schedule: str) -> None:
    steps = [rate(step, 1000, schedule) for step in range(20)]
    assert steps == pytest.approx([0.05 * (step + 1) for step in range(20)])
    assert rate(20, 1000, schedule) == pytest.approx(1.0)
    assert max(rate(step, 1000, schedule) for step in range(1000)) == pytest.approx(1.0)
    assert min(rate(step, 1000, schedule) for step in range(1000)) > 0


@pytest.mark.parametrize("schedule", ["linear", "cosine", "wsd", "paper-exponential", "constant"])
@pytest.mark.parametrize("total_steps", [1, 2, 3, 49])
@pytest.mark.parametrize("warmup_fraction", [0.0, 0.02, 0.5, 0.99])
def test_short_runs_have_rates_too(schedule: str, total_steps: int, warmup_fraction: float) -> None:
    rates = [rate(step, total_steps, schedule, warmup_fraction=warmup_fraction) for step in range(total_steps)]
    assert all(0 < each <= 1 + 1e-12 for each in rates)


@pytest.mark.parametrize(
    ("schedule", "step", "expected"),
    [
        ("linear", 510, 0.5),
        ("linear", 755, 0.25),
        ("linear", 999, 1 / 980),
        ("cosine", 265, 0.8535534),
        ("cosine", 510, 0.5),
        ("cosine", 755, 0.1464466),
        ("cosine", 999, 2.569e-6),
        ("wsd", 799, 1.0),
        ("wsd", 800, 1.0),
        ("wsd", 900, 0.5),
        ("wsd", 999, 0.005),
        ("constant", 999, 1.0),
    ],
)
def test_learning_rates(schedule: str, step: int, expected: float) -> None:
    """Of 1000 steps with 20 of warm-up."""
    assert rate(step, 1000, schedule) == pytest.approx(expected, rel=1e-3)


@pytest.mark.parametrize(("step", "expected"), [(3999, 1.0), (4000, 1.0), (5000, 0.99), (104_000, 0.366032), (199_999, 0.139477)])
def test_the_papers_decay_ends_at_13_9_percent(step: int, expected: float) -> None:
    assert rate(step, 200_000, "paper-exponential") == pytest.approx(expected, abs=2e-6)


@pytest.mark.parametrize("total_steps", [1000, 20_000])
def test_the_papers_decay_is_tied_to_the_runs_length(total_steps: int) -> None:
    assert rate(total_steps - 1, total_steps, "paper-exponential") == pytest.approx(0.1395, rel=0.003)
    assert rate(total_steps // 50 + total_steps // 200, total_steps, "paper-exponential") == pytest.approx(0.99)


def test_wsd_falls_over_its_decay_fraction() -> None:
    assert rate(499, 1000, "wsd", decay_fraction=0.5) == 1.0
    assert rate(750, 1000, "wsd", decay_fraction=0.5) == pytest.approx(0.5)
    assert rate(999, 1000, "wsd", decay_fraction=0.0) == 1.0


@pytest.mark.parametrize(("step", "expected"), [(799, 1.0), (800, 1.0), (802, 0.9), (850, 0.5), (872, 0.4), (962, 0.1), (999, 0.0025032)])
def test_a_decay_of_1_minus_the_root_falls_steeply_at_first(step: int, expected: float) -> None:
    """Of the 200 last of 1000 steps: 2 of them cost a tenth of the peak, half of it is gone after a quarter."""
    assert rate(step, 1000, "wsd", decay_shape="1-sqrt") == pytest.approx(expected, rel=1e-4)


def test_a_decay_of_1_minus_the_root_of_one_step_or_none() -> None:
    assert rate(999, 1000, "wsd", decay_shape="1-sqrt", decay_fraction=0.0) == 1.0
    assert rate(0, 1, "wsd", decay_shape="1-sqrt") == 1.0


def test_warm_up_of_given_steps() -> None:
    optim = OptimConfig(learning_rate=PEAK, warmup_fraction=0.9)
    assert [learning_rate(step, 10, optim, warmup_steps=2) / PEAK for step in (0, 1, 2, 6)] == pytest.approx([0.5, 1.0, 1.0, 0.5])
    assert learning_rate(0, 10, optim, warmup_steps=0) == PEAK


def test_set_learning_rate_reaches_every_group() -> None:
    optimizer = build_optimizer(nn.Linear(2, 2), OptimConfig())
    set_learning_rate(optimizer, 0.125)
    assert [group["lr"] for group in optimizer.param_groups] == [0.125, 0.125]


# Reference loops, one number at a time in float64


def reference(
    values: Sequence[float],
    gradients: Sequence[Sequence[float] | None],
    *,
    lr: float,
    weight_decay: float,
    bias_correction: bool,
    trust_ratio: bool = False,
    clipped: bool = False,
    beta1: float = 0.9,
    beta2: float = 0.999,
    eps: float = 1e-6,
) -> list[float]:
    """Follow one parameter through its updates; None is a step without a gradient."""
    x, m, v, count = list(values), [0.0] * len(values), [0.0] * len(values), 0
    for gradient in gradients:
        if gradient is None:
            continue
        count += 1
        update = []
        for i, g in enumerate(gradient):
            m[i] = beta1 * m[i] + (1 - beta1) * g
            v[i] = beta2 * v[i] + (1 - beta2) * g * g
            m_hat = m[i] / (1 - beta1**count) if bias_correction else m[i]
            v_hat = v[i] / (1 - beta2**count) if bias_correction else v[i]
            update.append(m_hat / (math.sqrt(v_hat) + eps) + weight_decay * x[i])
        ratio = 1.0
        if trust_ratio:
            weight_norm, update_norm = math.hypot(*x), math.hypot(*update)
            ratio = weight_norm / update_norm if weight_norm > 0 and update_norm > 0 else 1.0
        if clipped:
            second = [v[i] / (1 - beta2**count) if bias_correction else v[i] for i in range(len(v))]
            mean_square = sum(g * g / max(second[i], eps * eps) for i, g in enumerate(gradient)) / len(gradient)
            ratio = 1 / max(1.0, math.sqrt(mean_square))
        x = [x[i] - lr * ratio * update[i] for i in range(len(x))]
    return x


class Tiny(nn.Module):
    """A matrix, a second one, a bias and a scalar."""

    def __init__(self) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(0)
        self.first = nn.Parameter(torch.randn(3, 4, dtype=torch.float64, generator=generator))
        self.second = nn.Parameter(torch.randn(2, 2, dtype=torch.float64, generator=generator))
        self.bias = nn.Parameter(torch.randn(5, dtype=torch.float64, generator=generator))
        self.scalar = nn.Parameter(torch.randn((), dtype=torch.float64, generator=generator))


def gradients_of(model: nn.Module, steps: int) -> list[dict[str, Tensor | None]]:
    """Draw gradients; `second` has none at every third step, nor at the first."""
    generator = torch.Generator().manual_seed(1)
    return [
        {
            name: None
            if name == "second" and (step % 3 == 2 or step == 0)
            else torch.randn(value.shape, dtype=value.dtype, generator=generator)
            for name, value in model.named_parameters()
        }
        for step in range(steps)
    ]


@pytest.mark.parametrize(
    ("name", "bias_correction"),
    [("adamw", True), ("adamw", False), ("lamb", True), ("lamb", False), ("stable-adamw", True), ("stable-adamw", False)],
)
def test_updates_equal_a_plain_loop(name: str, bias_correction: bool) -> None:
    model = Tiny()
    settings = OptimConfig(name=name, bias_correction=bias_correction, weight_decay=0.1, learning_rate=0.01)  # type: ignore[arg-type]
    optimizer = build_optimizer(model, settings)
    before = {key: value.detach().flatten().tolist() for key, value in model.named_parameters()}
    gradients = gradients_of(model, 12)
    for each in gradients:
        for key, parameter in model.named_parameters():
            gradient = each[key]
            parameter.grad = None if gradient is None else gradient.clone()
        optimizer.step()
    for key, parameter in model.named_parameters():
        matrix = key in ("first", "second")
        expected = reference(
            before[key],
            [None if (gradient := each[key]) is None else gradient.flatten().tolist() for each in gradients],
            lr=0.01,
            weight_decay=0.1 if matrix else 0.0,
            bias_correction=bias_correction,
            trust_ratio=name == "lamb" and matrix,
            clipped=name == "stable-adamw",
        )
        assert parameter.detach().flatten().tolist() == pytest.approx(expected, rel=1e-9, abs=1e-12), key


def test_a_gradient_far_above_its_moments_moves_a_tensor_no_further_than_a_usual_one() -> None:
    """After 200 gradients of 1, one of 1000: AdamW's step is some 3.2 learning rates; the RMS of what it expects is exceeded 30 times."""
    moved = {}
    for name in ("adamw", "stable-adamw"):
        model = nn.Linear(4, 4, bias=False)
        optimizer = build_optimizer(model, OptimConfig(name=name, weight_decay=0.0, learning_rate=1e-3))  # type: ignore[arg-type]
        for size in (*[1.0] * 200, 1000.0):
            before = model.weight.detach().clone()
            model.weight.grad = torch.full((4, 4), size)
            optimizer.step()
        moved[name] = float((before - model.weight.detach()).mean())
    second = (0.999 * (1 - 0.999**200) + 0.001 * 1e6) / (1 - 0.999**201)
    adamw = 1e-3 * (0.9 * (1 - 0.9**200) + 100) / (1 - 0.9**201) / math.sqrt(second)
    assert moved["adamw"] == pytest.approx(adamw, rel=1e-3)
    assert moved["stable-adamw"] == pytest.approx(adamw / (1000 / math.sqrt(second)), rel=1e-3)
    assert moved["stable-adamw"] < 2e-4 < 1e-3 < moved["adamw"]


def test_bias_correction_changes_the_first_step_by_the_known_factor() -> None:
    """Uncorrected, the first step is 0.1 g / sqrt(0.001 g^2): 3.16 times the corrected one."""
    moved = []
    for bias_correction in (True, False):
        model = nn.Linear(3, 3)
        before = model.weight.detach().clone()
        model.weight.grad = torch.full((3, 3), 7.0)
        build_optimizer(model, OptimConfig(bias_correction=bias_correction, weight_decay=0.0, learning_rate=0.01)).step()
        moved.append(float((before - model.weight.detach()).mean()))
    assert moved[0] == pytest.approx(0.01, rel=1e-4)
    assert moved[1] == pytest.approx(0.0316228, rel=1e-4)


def test_lambs_first_step_is_the_learning_rate_times_the_weights_norm() -> None:
    model = nn.Linear(4, 6)
    before = model.weight.detach().clone(), model.bias.detach().clone()
    model.weight.grad, model.bias.grad = torch.randn(6, 4), torch.full((6,), -3.0)
    build_optimizer(model, OptimConfig(name="lamb", learning_rate=0.01, weight_decay=0.0)).step()
    assert float((model.weight.detach() - before[0]).norm()) == pytest.approx(0.01 * float(before[0].norm()), rel=1e-5)
    assert (model.bias.detach() - before[1]).tolist() == pytest.approx([0.01] * 6, rel=1e-4), "a vector has trust ratio 1"


@pytest.mark.filterwarnings("error")
def test_lamb_survives_zeros() -> None:
    """Weights of zero move (ratio 1); a zero update moves nothing; nothing becomes NaN."""
    zeros, still = nn.Parameter(torch.zeros(2, 2)), nn.Parameter(torch.ones(2, 2))
    zeros.grad, still.grad = torch.ones(2, 2), torch.zeros(2, 2)
    optimizer = Adam([{"params": [zeros, still]}], lr=0.01, scaling="trust-ratio")
    for _ in range(2):
        optimizer.step()
    assert zeros.detach().flatten().tolist() == pytest.approx([-0.01 - 0.01 * 0.01] * 4, rel=1e-3)
    assert torch.equal(still, torch.ones(2, 2))


@pytest.mark.filterwarnings("error")
def test_stable_adamw_survives_zeros() -> None:
    zeros, still = nn.Parameter(torch.zeros(2, 2)), nn.Parameter(torch.ones(2, 2))
    zeros.grad, still.grad = torch.ones(2, 2), torch.zeros(2, 2)
    optimizer = Adam([{"params": [zeros, still]}], lr=0.01, scaling="clipped")
    for _ in range(2):
        optimizer.step()
    assert zeros.detach().flatten().tolist() == pytest.approx([-0.02] * 4, rel=1e-3)
    assert torch.equal(still, torch.ones(2, 2))


@pytest.mark.parametrize(("name", "bias_correction"), [("adamw", True), ("adamw", False), ("lamb", True), ("stable-adamw", True)])
def test_without_a_gradient_nothing_of_a_parameter_moves(name: str, bias_correction: bool) -> None:
    model = nn.ModuleList([nn.Linear(3, 3), nn.Linear(3, 3)])
    optimizer = build_optimizer(model, OptimConfig(name=name, bias_correction=bias_correction, weight_decay=0.5))  # type: ignore[arg-type]

    def take_a_step(*modules: nn.Module) -> None:
        optimizer.zero_grad(set_to_none=True)
        for module in modules:
            for parameter in module.parameters():
                parameter.grad = torch.ones_like(parameter)
        clip_gradients(model.parameters(), 1.0)
        optimizer.step()

    take_a_step(model[0])
    assert not [parameter for parameter in model[1].parameters() if optimizer.state.get(parameter)], "no moments before the first gradient"
    take_a_step(model[0], model[1])
    dropped = list(model[1].parameters())
    values = [parameter.detach().clone() for parameter in dropped]
    state = [{key: value.clone() for key, value in optimizer.state[parameter].items()} for parameter in dropped]
    assert {int(each["step"]) for each in state} == {1}
    for _ in range(3):
        take_a_step(model[0])
    for parameter, value, before in zip(dropped, values, state, strict=True):
        assert torch.equal(parameter, value)
        assert all(torch.equal(optimizer.state[parameter][key], before[key]) for key in before)
    assert {int(optimizer.state[parameter]["step"]) for parameter in model[0].parameters()} == {5}
    take_a_step(model[1])
    assert {int(optimizer.state[parameter]["step"]) for parameter in dropped} == {2}
    assert not torch.equal(dropped[0], values[0])


def test_a_step_in_which_nothing_has_a_gradient() -> None:
    for name in ("adamw", "lamb", "stable-adamw"):
        model = nn.Linear(2, 2)
        before = model.weight.detach().clone()
        build_optimizer(model, OptimConfig(name=name)).step()  # type: ignore[arg-type]
        assert torch.equal(model.weight, before)


@pytest.mark.parametrize(
    ("name", "bias_correction"), [("adamw", True), ("adamw", False), ("lamb", True), ("lamb", False), ("stable-adamw", True)]
)
def test_the_state_survives_saving(name: str, bias_correction: bool) -> None:
    """Two steps, saved, two more: the same bits as four."""
    settings = OptimConfig(name=name, bias_correction=bias_correction, learning_rate=0.1)  # type: ignore[arg-type]
    results = []
    for saved in (False, True):
        model = Tiny()
        optimizer = build_optimizer(model, settings)
        for step, each in enumerate(gradients_of(model, 4)):
            if saved and step == 2:
                state = optimizer.state_dict()
                optimizer = build_optimizer(model, settings)
                optimizer.load_state_dict(state)
            for key, parameter in model.named_parameters():
                parameter.grad = each[key]
            optimizer.step()
        results.append([parameter.detach() for parameter in model.parameters()])
    assert all(torch.equal(one, other) for one, other in zip(*results, strict=True))


def test_groups() -> None:
    model = nn.Sequential(nn.Embedding(4, 3), nn.LayerNorm(3), nn.Linear(3, 2))
    optimizer = build_optimizer(model, OptimConfig(name="lamb", weight_decay=0.02, beta1=0.8, beta2=0.95, eps=1e-4))
    matrices, vectors = optimizer.param_groups
    assert {id(parameter) for parameter in matrices["params"]} == {id(model[0].weight), id(model[2].weight)}
    assert {id(parameter) for parameter in vectors["params"]} == {id(model[1].weight), id(model[1].bias), id(model[2].bias)}
    assert (matrices["weight_decay"], vectors["weight_decay"]) == (0.02, 0.0)
    assert (matrices["scaling"], vectors["scaling"]) == ("trust-ratio", "none")
    assert (matrices["betas"], matrices["eps"]) == ((0.8, 0.95), 1e-4)
    plain = build_optimizer(model, OptimConfig())
    assert isinstance(plain, torch.optim.AdamW)
    assert plain.param_groups[0]["fused"]
    assert [group["scaling"] for group in build_optimizer(model, OptimConfig(bias_correction=False)).param_groups] == ["none"] * 2
    assert [group["scaling"] for group in build_optimizer(model, OptimConfig(name="stable-adamw")).param_groups] == ["clipped"] * 2


# Clipping


def with_gradients() -> list[nn.Parameter]:
    parameters = [nn.Parameter(torch.zeros(2)), nn.Parameter(torch.zeros(1)), nn.Parameter(torch.zeros(3))]
    parameters[0].grad, parameters[1].grad = torch.tensor([2.0, 3.0]), torch.tensor([6.0])
    return parameters


def test_clipping_to_a_norm() -> None:
    parameters = with_gradients()
    assert float(clip_gradients(parameters, 1.0)) == pytest.approx(7.0)
    assert parameters[0].grad is not None
    assert parameters[1].grad is not None
    assert parameters[0].grad.tolist() == pytest.approx([2 / 7, 3 / 7], rel=1e-5)
    assert parameters[1].grad.tolist() == pytest.approx([6 / 7], rel=1e-5)
    assert parameters[2].grad is None


@pytest.mark.parametrize("max_norm", [0.0, 7.1, 100.0])
def test_small_gradients_are_left_alone(max_norm: float) -> None:
    parameters = with_gradients()
    norm = clip_gradients((parameter for parameter in parameters), max_norm)
    assert norm.shape == ()
    assert float(norm) == pytest.approx(7.0)
    assert parameters[0].grad is not None
    assert parameters[0].grad.tolist() == [2.0, 3.0]


@pytest.mark.parametrize("max_norm", [0.0, 1.0])
def test_a_gradient_that_is_not_finite_shows_in_the_norm(max_norm: float) -> None:
    parameters = with_gradients()
    parameters[1].grad = torch.tensor([math.inf])
    assert not math.isfinite(float(clip_gradients(parameters, max_norm)))


def test_no_gradients_at_all_have_norm_zero() -> None:
    assert float(clip_gradients([nn.Parameter(torch.zeros(2))], 1.0)) == 0.0


def leave_out(model: Any, optimizer: Any) -> None:
    for parameter in model.parameters():
        parameter.grad = torch.full_like(parameter, torch.nan)
    optimizer.found_inf = torch.ones(())
    optimizer.step()


@pytest.mark.parametrize("first_is_left_out", [False, True])
@pytest.mark.parametrize("name", ["muon", "lamb", "stable-adamw", "adamw"])
def test_a_step_that_is_left_out_changes_nothing_and_needs_no_look_by_the_host(name: str, first_is_left_out: bool) -> None:
    """`found_inf` as torch's fused optimizers have it; where it is 0, the update is what it is without."""
    models = [tiny_trainer(f"optim.name={name}", "optim.weight_decay=0.1") for _ in range(2)]
    for flagged, trainer in enumerate(models):
        model, optimizer = trainer.model, trainer.optimizer
        if flagged and first_is_left_out:
            leave_out(model, optimizer)
        for step in range(3):
            for number, parameter in enumerate(model.parameters()):
                parameter.grad = torch.randn(parameter.shape, generator=torch.Generator().manual_seed(100 * step + number))
            if flagged:
                optimizer.found_inf = torch.zeros(())
            optimizer.step()
        if flagged:
            before = [tensor.clone() for tensor in (*model.parameters(), *checkpoint.optimizer_tensors(model, optimizer).values())]
            leave_out(model, optimizer)
            after = (*model.parameters(), *checkpoint.optimizer_tensors(model, optimizer).values())
            assert all(torch.equal(one, other) for one, other in zip(before, after, strict=True))
    for one, other in zip(models[0].model.parameters(), models[1].model.parameters(), strict=True):
        torch.testing.assert_close(one, other, rtol=2e-6, atol=1e-7)
