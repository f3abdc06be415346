"""Muon against float64: the iteration, its singular values, which matrices it takes for one, and what it leaves alone."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.optim._muon import _zeropower_via_newtonschulz

from pldcli.config import OptimConfig
from pldcli.model import StBert
from pldcli.optimizers.build import build_optimizer, set_learning_rate
from pldcli.optimizers.muon import Muon, orthogonalize
from pldcli.runs import checkpoint
from pldcli.runs.checkpoint import Position
from pldcli.system.signals import StopRequest
from tests.conftest import tiny_trainer

PUBLISHED = 3.4445, -4.7750, 2.0315
DROPPING = ("optim.name=muon", "pld.schedule=constant", "pld.theta_bar=0.3", "pld.depth_rule=uniform", "optim.weight_decay=0.1")


def by_singular_values(matrix: np.ndarray) -> np.ndarray:
    """Orthogonalise one matrix without any product of matrices: the published polynomial, five times, of each singular value."""
    left, values, right = np.linalg.svd(matrix, full_matrices=False)
    values = values / max(np.sqrt((values**2).sum()), 1e-7)
    for _ in range(5):
        values = PUBLISHED[0] * values + PUBLISHED[1] * values**3 + PUBLISHED[2] * values**5
    return (left * values) @ right


def random(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(dtype)


@pytest.mark.parametrize("shape", [(8, 8), (24, 8), (8, 24), (1, 5), (5, 1), (32, 128)])
@pytest.mark.parametrize(("dtype", "error"), [(torch.float64, 1e-9), (torch.float32, 2e-4)])
def test_the_iteration_is_the_published_polynomial_of_the_singular_values(shape: tuple[int, int], dtype: torch.dtype, error: float) -> None:
    matrices = random(3, *shape, dtype=dtype) * torch.tensor([1e-4, 1.0, 1e4])[:, None, None].to(dtype)
    for ours, matrix in zip(orthogonalize(matrices), matrices, strict=True):
        assert ours.double().numpy() == pytest.approx(by_singular_values(matrix.double().numpy()), abs=error)


@pytest.mark.parametrize("shape", [(64, 64), (256, 64), (64, 256)])
def test_singular_values_come_close_to_1_and_keep_their_vectors(shape: tuple[int, int]) -> None:
    """Of condition 100: torch's Muon gives the same to bf16's three digits."""
    left, _, right = torch.linalg.svd(random(*shape), full_matrices=False)
    matrix = left @ torch.diag(torch.logspace(0, -2, 64)) @ right
    update = orthogonalize(matrix[None])[0]
    values = torch.linalg.svdvals(update)
    assert 0.65 < float(values.min()) < float(values.max()) < 1.25
    turned = left.mT @ update @ right.mT
    assert float((turned - torch.diag(turned.diagonal())).abs().max()) < 1e-4
    theirs = _zeropower_via_newtonschulz(matrix, PUBLISHED, 5, 1e-7).float()
    assert 1e-4 < float((update - theirs).norm() / theirs.norm()) < 0.05


def test_in_bf16_an_update_is_nearly_the_same() -> None:
    updates = []
    for dtype in (None, torch.bfloat16):
        weight = nn.Parameter(torch.zeros(12, 8))
        weight.grad = random(12, 8)
        Muon([{"params": [weight], "pieces": 3, "lr": 1.0}], lr=1.0, dtype=dtype).step()
        updates.append(weight.detach())
    assert updates[0].dtype == updates[1].dtype == torch.float32
    assert 0 < float((updates[0] - updates[1]).norm() / updates[0].norm()) < 0.03


def test_a_matrix_of_zeros_stays_one_and_a_deficient_one_finite() -> None:
    assert torch.equal(orthogonalize(torch.zeros(1, 4, 6)), torch.zeros(1, 4, 6))
    update = orthogonalize(torch.ones(1, 4, 6))[0]
    assert torch.linalg.svdvals(update).tolist() == pytest.approx([float(torch.linalg.matrix_norm(update)), 0, 0, 0], abs=1e-4)


def model_of(**changes: Any) -> StBert:
    shape = {"num_hidden_layers": 2, "hidden_size": 8, "num_attention_heads": 2, "intermediate_size": 24, "vocab_size": 16}
    return StBert(**(shape | {"max_position_embeddings": 8} | changes)).double()


def build(model: StBert, **changes: Any) -> Muon:
    optimizer = build_optimizer(model, OptimConfig(name="muon", learning_rate=1e-3, **changes))
    assert isinstance(optimizer, Muon)
    return optimizer


def give_gradients(model: nn.Module, seed: int) -> dict[str, Tensor]:
    """Draw gradients; those of queries, keys and values have sizes that an orthogonalisation of all three together would keep apart."""
    found = {}
    for number, (name, parameter) in enumerate(model.named_parameters()):
        parameter.grad = random(*parameter.shape, seed=100 * seed + number, dtype=parameter.dtype)
        if name.endswith("qkv.weight"):
            parameter.grad *= torch.tensor([1.0, 30.0, 0.01]).repeat_interleave(len(parameter) // 3)[:, None]
        found[name] = parameter.grad.clone()
    return found


PIECES = {"qkv.weight": 3, "attention_output.weight": 1, "ffn_input.weight": 1, "ffn_output.weight": 1}


def pieces_of(name: str) -> int:
    """Count the matrices in a parameter that Muon updates; 0 for one of AdamW's."""
    return next((pieces for end, pieces in PIECES.items() if name.startswith("blocks.") and name.endswith(end)), 0)


def reference(weight: Tensor, gradients: list[Tensor], pieces: int, rates: list[float]) -> np.ndarray:
    """Follow a matrix of Muon's through its updates: momentum 0.9, Nesterov, weight decay 0.1.

    Source: Jordan et al. 2024, algorithm 2 and section on its scale; Liu et al. 2025, equation 3 for the decay.
    """
    x, momentum = weight.double().numpy().copy(), np.zeros(weight.shape)
    for gradient, rate in zip((each.double().numpy() for each in gradients), rates, strict=True):
        momentum = 0.9 * momentum + 0.1 * gradient
        parts = np.split(0.1 * gradient + 0.9 * momentum, pieces)
        scale = math.sqrt(max(1.0, parts[0].shape[0] / parts[0].shape[1]))
        x = (1 - rate * 0.1) * x - rate * scale * np.concatenate([by_singular_values(part) for part in parts])
    return x


def test_updates_equal_a_plain_loop_in_float64_and_torchs_adamw() -> None:
    model, other = model_of(), model_of()
    other.load_state_dict(model.state_dict())
    before = {name: value.detach().clone() for name, value in model.named_parameters()}
    optimizer = build(model, muon_learning_rate=0.05, muon_momentum=0.9, weight_decay=0.1)
    vectors = [parameter for parameter in other.parameters() if parameter.ndim == 1]
    matrices = [parameter for name, parameter in other.named_parameters() if parameter.ndim > 1 and not pieces_of(name)]
    adamw = torch.optim.AdamW(
        [{"params": matrices, "weight_decay": 0.1}, {"params": vectors, "weight_decay": 0.0}], eps=1e-6, lr=1e-3, fused=True
    )
    seen = []
    for step in range(5):
        seen.append(give_gradients(model, step))
        for name, parameter in other.named_parameters():
            parameter.grad = seen[-1][name].clone()
        for each in (optimizer, adamw):
            set_learning_rate(each, 1e-3 / (step + 1))
            each.step()
    for name, parameter in model.named_parameters():
        if pieces := pieces_of(name):
            rates = [0.05 / (step + 1) for step in range(5)]
            expected = reference(before[name], [gradients[name] for gradients in seen], pieces, rates)
            assert parameter.detach().numpy() == pytest.approx(expected, rel=1e-9, abs=1e-11), name
        else:
            assert torch.equal(parameter, dict(other.named_parameters())[name]), name
    assert sum(bool(pieces_of(name)) for name in before) == 8


def test_queries_keys_and_values_are_three_matrices() -> None:
    """Each third of the update is orthogonal by itself; a third whose gradient is far smaller moves as much as the others."""
    model = model_of()
    before = model.blocks[0].qkv.weight.detach().clone()
    give_gradients(model, 0)
    build(model, muon_learning_rate=1.0, weight_decay=0.0).step()
    for third in (before - model.blocks[0].qkv.weight.detach()).chunk(3):
        assert float(torch.linalg.svdvals(third).min()) > 0.3
        assert float(torch.linalg.svdvals(third).max()) < 1.25


def test_a_gated_feed_forward_is_two_matrices() -> None:
    model = model_of(feed_forward="geglu")
    before = model.blocks[1].ffn_input.weight.detach().clone()
    gradients = give_gradients(model, 0)
    assert before.shape == (48, 8)
    model.blocks[1].ffn_input.weight.grad[24:] *= 100
    build(model, muon_learning_rate=1.0, weight_decay=0.0).step()
    for half, gradient in zip(
        (before - model.blocks[1].ffn_input.weight.detach()).chunk(2), gradients["blocks.1.ffn_input.weight"].chunk(2), strict=True
    ):
        assert half.numpy() == pytest.approx(3**0.5 * by_singular_values(gradient.numpy()), abs=1e-9)


def test_only_matrices_of_blocks_are_muons() -> None:
    model = model_of(next_sentence=True)
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    groups = build(model, weight_decay=0.02).param_groups
    muons = {names[id(parameter)] for group in groups if group["pieces"] for parameter in group["params"]}
    assert muons == {f"blocks.{i}.{name}" for i in range(2) for name in PIECES}
    everyone = [id(parameter) for group in groups for parameter in group["params"]]
    assert sorted(everyone) == sorted(names)
    assert all(group["weight_decay"] == (0.02 if group["params"][0].ndim > 1 else 0.0) for group in groups)


def test_the_schedule_moves_both_rates_in_proportion() -> None:
    optimizer = build(model_of(), muon_learning_rate=0.02)
    assert [group["lr"] for group in optimizer.param_groups] == [0.02] * 4 + [1e-3] * 2
    set_learning_rate(optimizer, 5e-4)
    assert [group["lr"] for group in optimizer.param_groups] == pytest.approx([0.01] * 4 + [5e-4] * 2)


def test_it_is_one_optimizer_for_a_loss_scaler() -> None:
    """An overflow skips the update of all groups, and halves the scale."""
    model = model_of().float()
    optimizer, scaler = build(model), torch.amp.GradScaler("cpu", init_scale=8.0)
    scaler.scale(torch.ones(()))  # where the scale is made
    for gradient in (2.0, math.inf):
        before = [parameter.detach().clone() for parameter in model.parameters()]
        for parameter in model.parameters():
            parameter.grad = torch.full_like(parameter, gradient)
        scaler.unscale_(optimizer)
        scaler.step(optimizer)
        scaler.update()
        moved = [not torch.equal(parameter, old) for parameter, old in zip(model.parameters(), before, strict=True)]
        assert (all(moved), any(moved)) == ((True, True) if gradient == 2.0 else (False, False))
    assert scaler.get_scale() == 4.0


# In training


def train(trainer: Any, *, position: Position | None = None, until: int = 10**9) -> list[Any]:
    seen = []
    for observation in trainer.steps(position or Position(), observe=lambda step: True, stop=StopRequest()):
        seen.append(observation)
        if observation.position.step >= until:
            break
    return seen


def everything_of(trainer: Any) -> dict[str, Tensor]:
    state = {**trainer.model.state_dict(), **checkpoint.optimizer_tensors(trainer.model, trainer.optimizer)}
    return {name: tensor.clone() for name, tensor in state.items()}


def test_a_dropped_block_is_left_alone_by_momentum_and_decay() -> None:
    trainer = tiny_trainer(*DROPPING)
    before, idle = everything_of(trainer), 0
    for seen in trainer.steps(Position(), observe=lambda step: True, stop=StopRequest()):
        gates = trainer.schedule.plan(seen.position.step - 1, 0, seed=0).gates
        after = everything_of(trainer)
        for number, gate in enumerate(gates):
            ours = {name for name in after if f"blocks.{number}." in name}
            moved = {name for name in ours if name not in before or not torch.equal(before[name], after[name])}
            assert moved == (ours if gate else set())
            idle += not gate and f"momentum/blocks.{number}.qkv.weight" in before
        before = after
    assert idle > 3


@pytest.mark.parametrize(
    "changes",
    [DROPPING, (*DROPPING, "runtime.precision=fp16"), ("optim.name=stable-adamw", "pld.schedule=constant", "pld.theta_bar=0.3")],
)
def test_a_resumed_run_has_the_same_bits(changes: tuple[str, ...]) -> None:
    """Stopped when a block has never run and so has no state."""
    whole = tiny_trainer(*changes)
    train(whole)
    first = tiny_trainer(*changes)
    position = train(first, until=1)[-1].position
    state = checkpoint.optimizer_tensors(first.model, first.optimizer)
    resumed = tiny_trainer(*changes)
    resumed.restore(first.model.state_dict(), state, first.scaler.state_dict(), where="")
    train(resumed, position=position)
    ours, theirs = everything_of(resumed), everything_of(whole)
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)
    if changes == DROPPING:
        assert {name.partition("/")[0] for name in state} == {"momentum", "step", "exp_avg", "exp_avg_sq"}
        assert len(state) < len(checkpoint.optimizer_tensors(whole.model, whole.optimizer)), "choose another seed"
