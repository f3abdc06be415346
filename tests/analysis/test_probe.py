from __future__ import annotations

import copy
import math
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional

from pldcli.analysis.probe import probe, remove_blocks
from pldcli.attention import Attention
from pldcli.data.loader import Batch
from pldcli.engine.precision import Precision
from pldcli.engine.runtime import Runtime
from pldcli.engine.validation import score_lm
from pldcli.model import StBert
from pldcli.pld import Plan

V, T, D = 11, 6, 4
CPU = torch.device("cpu")
SCALED = Plan((True, False, True), (0.8, 0.5, 0.4), (1.25, 2.0, 2.5))


def make_model(**changes: Any) -> StBert:
    sizes = {
        "num_hidden_layers": 3,
        "hidden_size": D,
        "num_attention_heads": 2,
        "intermediate_size": 4,
        "vocab_size": V,
        "max_position_embeddings": T,
        "initializer_range": 0.5,
        "dropout": 0.5,
        "seed": 3,
    }
    return StBert(**(sizes | changes))


def make_batch(lengths: tuple[int, ...], *, seed: int = 0, padded: int = T) -> Batch:
    """Make rows of which every other token is a target."""
    ids = torch.randint(1, V, (len(lengths), padded), generator=torch.Generator().manual_seed(seed))
    mask = torch.arange(padded) < torch.tensor(lengths)[:, None]
    targets = mask & (torch.arange(padded) % 2 == 1)
    positions = targets.flatten().nonzero()[:, 0]
    optional_mask = None if mask.all() else mask
    return Batch(input_ids=ids * mask, attention_mask=optional_mask, positions=positions, target_ids=ids.flatten()[positions] % 7)


def rows_of(batch: Batch) -> list[Batch]:
    """Cut a batch into batches of one row, without padding."""
    found = []
    for row, ids in enumerate(batch.input_ids):
        length = T if batch.attention_mask is None else int(batch.attention_mask[row].sum())
        here = batch.positions // T == row
        found.append(Batch(input_ids=ids[None, :length], positions=batch.positions[here] % T, target_ids=batch.target_ids[here]))
    return found


def loss_by_hand(model: StBert, batch: Batch, plan: Plan | None, shifts: dict[int, Tensor]) -> float:
    """Run the blocks one by one, each on its input plus a shift, without the encoder's loop."""
    x = model.embeddings(batch.input_ids)
    mask = None if batch.attention_mask is None else batch.attention_mask[:, None, None, :]
    for number, block in enumerate(model.blocks):
        x = x + shifts.get(number, 0.0)
        if plan is None or plan.gates[number]:
            x = block(x, Attention(mask), None if plan is None else torch.tensor(plan.residual_scales[number]))
    logits = model.mlm_logits(model.final_norm(x).flatten(0, 1)[batch.positions])
    return float(functional.cross_entropy(logits, batch.target_ids))


def slope(values: Tensor, at: int, loss: Any, size: float = 1e-5) -> float:
    """Central difference of a loss by one number of a tensor."""
    flat, old = values.view(-1), float(values.view(-1)[at])
    found = []
    for change in (size, -size):
        flat[at] = old + change
        found.append(loss())
    flat[at] = old
    return (found[0] - found[1]) / (2 * size)


@pytest.mark.parametrize("norm", ["pre", "post"])
@pytest.mark.parametrize("plan", [None, SCALED], ids=["whole", "dropped"])
@torch.no_grad()
def test_gradients_are_the_slopes_of_the_loss(norm: str, plan: Plan | None) -> None:
    model = make_model(norm=norm).double()
    batch = make_batch((T, 4))
    with torch.enable_grad():
        found = probe(model, [batch], CPU, plan)
    model.eval()
    assert found.loss == pytest.approx(loss_by_hand(model, batch, plan, {}), rel=1e-12)
    for number, block in enumerate(model.blocks):
        shift = torch.zeros(2, T, D, dtype=torch.float64)
        slopes = [slope(shift, at, lambda s=shift, n=number: loss_by_hand(model, batch, plan, {n: s})) for at in range(shift.numel())]
        assert found.blocks[number].input_gradient_norm == pytest.approx(math.hypot(*slopes), rel=1e-6)
        if plan is not None and not plan.gates[number]:
            assert found.blocks[number].weight_gradient_norm is None
            continue
        slopes = [
            slope(weights, at, lambda: loss_by_hand(model, batch, plan, {}))
            for weights in block.parameters()
            for at in range(weights.numel())
        ]
        assert len(slopes) > 100
        assert found.blocks[number].weight_gradient_norm == pytest.approx(math.hypot(*slopes), rel=1e-6)


@pytest.mark.parametrize("norm", ["pre", "post"])
def test_batches_and_padding_change_nothing(norm: str) -> None:
    """The last row of a validation split is padded; its padding is neither a token nor has it a gradient."""
    model = make_model(norm=norm).double()
    batch = make_batch((T, T, 3))
    whole, cut = (probe(model, batches, CPU, SCALED) for batches in ([batch], rows_of(batch)))
    assert cut.loss == pytest.approx(whole.loss, rel=1e-10)
    for one, other in zip(whole.blocks, cut.blocks, strict=True):
        for name, value in vars(one).items():
            assert vars(other)[name] == (None if value is None else pytest.approx(value, rel=1e-10)), name


def constructed(norm: str, shifts: list[list[float]]) -> StBert:
    """Make a model whose tokens all begin as (1, 0, 0, 0), and whose blocks add, or with Post-LN put out, what is given."""
    model = make_model(norm=norm, num_hidden_layers=len(shifts))
    with torch.no_grad():
        model.embeddings.norm.weight.zero_()
        model.embeddings.norm.bias.copy_(torch.tensor([1.0, 0.0, 0.0, 0.0]))
        for block, shift in zip(model.blocks, shifts, strict=True):
            for layer in (block.attention_output, block.ffn_output):
                layer.weight.zero_()
                layer.bias.copy_(torch.tensor(shift) / 2)
            if norm == "post":
                block.ffn_norm.weight.zero_()
                block.ffn_norm.bias.copy_(torch.tensor(shift))
    return model


def changes(model: StBert, plan: Plan | None = None) -> list[tuple[float | None, ...]]:
    blocks = probe(model, [make_batch((T, 4))], CPU, plan).blocks
    return [(block.distance, block.relative_distance, block.angle_degrees) for block in blocks]


def test_distances_and_angles_of_a_model_that_was_made_for_it() -> None:
    pre = constructed("pre", [[0.0, 1.0, 0.0, 0.0], [-1.0, 1.0, 0.0, 0.0], [0.0, 0.0, 0.0, 0.0]])
    first, second, third = changes(pre)  # (1, 0) -> (1, 1) -> (0, 2) -> (0, 2)
    assert first == pytest.approx((1.0, 1.0, 45.0))
    assert second == pytest.approx((math.sqrt(2), 1.0, 45.0))
    assert third == (0.0, 0.0, 0.0)
    post = constructed("post", [[0.0, 3.0, 0.0, 0.0], [0.0, -1.0, 0.0, 0.0]])
    first, second = changes(post)
    assert first == pytest.approx((math.sqrt(10), math.sqrt(10), 90.0))
    assert second == pytest.approx((4.0, 4 / 3, 180.0))


def test_a_kept_block_is_scaled_and_a_dropped_one_does_nothing() -> None:
    model = constructed("pre", [[0.0, 1.0, 0.0, 0.0], [5.0, 5.0, 0.0, 0.0], [0.0, 0.0, 3.0, 0.0]])
    plan = Plan((True, False, True), (0.5, 0.5, 0.5), (2.0, 2.0, 2.0))
    first, second, third = changes(model, plan)  # (1, 0, 0) -> (1, 2, 0) -> (1, 2, 6)
    assert first == pytest.approx((2.0, 2.0, math.degrees(math.atan(2))))
    assert second == (None, None, None)
    assert third == pytest.approx((6.0, 6 / math.sqrt(5), math.degrees(math.atan(6 / math.sqrt(5)))))


@pytest.mark.parametrize("shift", [1e-3, 1e-6])
def test_small_angles_keep_their_digits(shift: float) -> None:
    [(_, _, angle)] = changes(constructed("pre", [[0.0, shift, 0.0, 0.0]]))
    assert angle == pytest.approx(math.degrees(math.atan(shift)), rel=1e-5)


@pytest.mark.parametrize("training", [False, True])
def test_dropout_is_off_and_the_model_stays_as_it_was(training: bool) -> None:
    model = make_model().train(training)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    found = []
    for seed in (1, 2):
        torch.manual_seed(seed)
        found.append(probe(model, [make_batch((T, T))], CPU, SCALED))
    assert found[0] == found[1]
    assert all(module.training == training for module in model.modules())
    assert all(parameter.grad is None for parameter in model.parameters())
    assert all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())
    assert not any(module._forward_pre_hooks for module in model.modules())


def test_nothing_running_is_measured_too() -> None:
    plan = Plan((False,) * 3, (0.5,) * 3, (2.0,) * 3)
    found = probe(make_model(), [make_batch((T,))], CPU, plan)
    norms = {block.input_gradient_norm for block in found.blocks}
    assert len(norms) == 1 and min(norms) > 0
    assert all(block.weight_gradient_norm is None and block.distance is None for block in found.blocks)


def test_a_diverged_model_gives_numbers_that_are_not_finite() -> None:
    model = make_model()
    with torch.no_grad():
        model.blocks[1].ffn_output.bias.fill_(math.inf)
    found = probe(model, [make_batch((T,))], CPU)
    assert math.isnan(found.loss) and math.isnan(found.blocks[0].input_gradient_norm)


@pytest.mark.parametrize("norm", ["pre", "post"])
def test_leaving_out_is_a_model_without_these_blocks(norm: str) -> None:
    model = make_model(norm=norm)
    batches = [make_batch((T, T)), make_batch((T, 3), seed=1)]
    passes = []
    found = remove_blocks(model, batches, Runtime(CPU), step=40, done=lambda: passes.append(1))

    def loss_of(*numbers: int) -> float:
        smaller = copy.deepcopy(model)
        smaller.blocks = torch.nn.ModuleList(smaller.blocks[number] for number in numbers)
        return score_lm(smaller, batches, Precision("fp32", CPU), Runtime(CPU)).loss

    assert (found.step, found.loss, len(passes)) == (40, loss_of(0, 1, 2), 7)
    assert found.alone == (loss_of(1, 2), loss_of(0, 2), loss_of(0, 1))
    assert found.from_here == (loss_of(), loss_of(0), loss_of(0, 1))
    assert len({found.loss, *found.alone, *found.from_here}) == 6


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device here")
@pytest.mark.parametrize("norm", ["pre", "post"])
def test_cuda_gives_the_same_numbers(norm: str) -> None:
    batches, device = [make_batch((T, 4)), make_batch((T,))], torch.device("cuda", 0)
    for plan in (None, SCALED):
        here, there = (probe(make_model(norm=norm).to(place), batches, place, plan) for place in (CPU, device))
        assert there.loss == pytest.approx(here.loss, rel=1e-4)
        for one, other in zip(here.blocks, there.blocks, strict=True):
            for name, value in vars(one).items():
                assert vars(other)[name] == (None if value is None else pytest.approx(value, rel=1e-3)), name
    here, there = (remove_blocks(make_model(norm=norm).to(place), batches, Runtime(place), step=1) for place in (CPU, device))
    assert there.alone == pytest.approx(here.alone, rel=1e-4)
