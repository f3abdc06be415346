from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from types import SimpleNamespace
from typing import Any, Literal

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from pldcli import attention as attention_module
from pldcli.attention import Attention, scaled_dot_product
from pldcli.model import Block, StBert

Norm = Literal["pre", "post"]
NORMS: list[Norm] = ["pre", "post"]
D, F, V = 16, 40, 50


def make_model(norm: Norm = "pre", **changes: Any) -> StBert:
    settings: dict[str, Any] = {
        "num_hidden_layers": 3,
        "hidden_size": D,
        "num_attention_heads": 4,
        "intermediate_size": F,
        "vocab_size": V,
        "max_position_embeddings": 12,
        "norm": norm,
        "dropout": 0.0,
    }
    return StBert(**(settings | changes))


def shaken(model: StBert) -> StBert:
    """Move every parameter away from its initial value, so that no bias is 0 and no norm is 1."""
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 0.3 * torch.randn(parameter.shape, generator=generator)
    return model


def random_input(batch: int = 2, tokens: int = 9, seed: int = 0) -> Tensor:
    return torch.randint(5, V, (batch, tokens), generator=torch.Generator().manual_seed(seed))


# torch.nn.TransformerEncoderLayer as the reference


def reference_layer(block: Block, norm: Norm) -> nn.TransformerEncoderLayer:
    layer = nn.TransformerEncoderLayer(D, 4, F, 0.0, "gelu", layer_norm_eps=1e-12, batch_first=True, norm_first=norm == "pre").double()
    pairs = [
        (layer.self_attn.in_proj_weight, block.qkv.weight),
        (layer.self_attn.in_proj_bias, block.qkv.bias),
        (layer.self_attn.out_proj, block.attention_output),
        (layer.linear1, block.ffn_input),
        (layer.linear2, block.ffn_output),
        (layer.norm1, block.attention_norm),
        (layer.norm2, block.ffn_norm),
    ]
    with torch.no_grad():
        for theirs, ours in pairs:
            if isinstance(theirs, nn.Parameter):
                theirs.copy_(ours)
            else:
                theirs.load_state_dict(ours.state_dict())
    return layer


@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("padded", [False, True])
@pytest.mark.parametrize("training", [False, True])
def test_full_depth_equals_torch_to_1e_12(norm: Norm, padded: bool, training: bool) -> None:
    model = shaken(make_model(norm)).double().train(training)
    layers = [reference_layer(block, norm).train() for block in model.blocks]  # eval would take another, fused path
    input_ids = random_input(3)
    real = torch.ones(3, 9, dtype=torch.bool)
    if padded:
        real[0, 7:] = real[2, 2:] = False

    # Start both at the embeddings, so that the gradient there can be compared too.
    x_BTD = model.embeddings(input_ids).detach()
    ours, theirs = x_BTD.clone().requires_grad_(), x_BTD.clone().requires_grad_()
    model.embeddings.forward = lambda *_: ours  # type: ignore[method-assign,assignment]
    hidden = model(input_ids, attention_mask_BT=real if padded else None)
    expected = theirs
    for layer in layers:
        expected = layer(expected, src_key_padding_mask=~real if padded else None)
    if norm == "pre":
        expected = functional.layer_norm(expected, (D,), model.final_norm.weight, model.final_norm.bias, 1e-12)

    torch.testing.assert_close(hidden[real], expected[real], rtol=0, atol=1e-12)
    weights = torch.randn(hidden.shape, dtype=torch.float64, generator=torch.Generator().manual_seed(2)) * real[..., None]
    (hidden * weights).sum().backward()
    (expected * weights).sum().backward()
    assert ours.grad is not None
    assert theirs.grad is not None
    assert ours.grad.abs().max() > 0.1
    torch.testing.assert_close(ours.grad, theirs.grad, rtol=1e-12, atol=1e-12)
    for block, layer in zip(model.blocks, layers, strict=True):
        torch.testing.assert_close(block.qkv.weight.grad, layer.self_attn.in_proj_weight.grad, rtol=1e-11, atol=1e-11)
        torch.testing.assert_close(block.ffn_output.bias.grad, layer.linear2.bias.grad, rtol=1e-11, atol=1e-11)


@pytest.mark.parametrize("norm", NORMS)
def test_padding_and_what_stands_there_change_nothing(norm: Norm) -> None:
    model = shaken(make_model(norm)).double().eval()
    input_ids = random_input(2, 9)
    alone = model(input_ids[:, :6])
    mask = torch.arange(9).expand(2, 9) < 6
    assert torch.allclose(model(input_ids, attention_mask_BT=mask)[:, :6], alone, rtol=0, atol=1e-12)
    assert torch.equal(model(input_ids, attention_mask_BT=mask), model(input_ids, attention_mask_BT=mask.long()))
    assert not torch.allclose(model(input_ids)[:, :6], alone, atol=1e-3), "without the mask it must matter"


# Several texts in a row


LENGTHS = [[4, 5, 3], [12], [6, 2, 1]]
"""Of the texts in rows of 12; the last row has padding."""


def packed() -> dict[str, Tensor]:
    """Rows of texts side by side, with segments, positions and boundaries."""
    segments, positions = torch.zeros(3, 12, dtype=torch.int64), torch.zeros(3, 12, dtype=torch.int64)
    boundaries = []
    for row, lengths in enumerate(LENGTHS):
        at = 0
        for number, length in enumerate(lengths):
            segments[row, at : at + length], positions[row, at : at + length] = number + 1, torch.arange(length)
            boundaries.append(12 * row + at)
            at += length
        boundaries += [12 * row + at] * (at < 12)
    boundaries += [36] * 4
    return {"segments_BT": segments, "position_ids_BT": positions, "boundaries_N": torch.tensor(boundaries, dtype=torch.int32)}


def attend_text_by_text(
    q: Tensor, k: Tensor, v: Tensor, cu_q: Tensor, cu_k: Tensor, max_q: int, max_k: int, *, window_size: tuple[int, int] = (-1, -1)
) -> Tensor:
    """Do what torch's kernel for texts of unequal length does, with a loop."""
    assert torch.equal(cu_q, cu_k) and max_q == max_k
    back, ahead = (max_q if size < 0 else size for size in window_size)
    parts = []
    for start, stop in zip(cu_q.tolist(), cu_q[1:].tolist(), strict=False):
        if stop > start:
            places = torch.arange(stop - start)
            distances = places - places[:, None]
            one = [tensor[start:stop].transpose(0, 1)[None] for tensor in (q, k, v)]
            mixed = functional.scaled_dot_product_attention(*one, (distances >= -back) & (distances <= ahead))
            parts.append(mixed[0].transpose(0, 1))
    return torch.cat(parts)


@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("kernel", [False, True])
def test_texts_in_a_row_do_not_see_each_other(norm: Norm, kernel: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Under a mask, or by a kernel for texts of unequal length: hidden states and gradients are those of each text alone."""
    if kernel:
        monkeypatch.setattr(attention_module, "varlen_attn", attend_text_by_text)
        monkeypatch.setattr(StBert, "has_varlen_kernel", lambda *_: True)
    model, input_ids, documents = shaken(make_model(norm)).double(), random_input(3, 12), packed()
    hidden = model(input_ids, **documents)
    weights = torch.randn(hidden.shape, dtype=torch.float64, generator=torch.Generator().manual_seed(2))
    weights *= (documents["segments_BT"] > 0)[..., None]
    gradients = torch.autograd.grad((hidden * weights).sum(), list(model.parameters()), allow_unused=True)
    total = torch.zeros((), dtype=torch.float64)
    for row, lengths in enumerate(LENGTHS):
        at = 0
        for length in lengths:
            alone = model(input_ids[row : row + 1, at : at + length])
            torch.testing.assert_close(hidden[row, at : at + length], alone[0], rtol=0, atol=1e-12)
            total = total + (alone[0] * weights[row, at : at + length]).sum()
            at += length
    for ours, theirs in zip(gradients, torch.autograd.grad(total, list(model.parameters()), allow_unused=True), strict=True):
        assert (ours is None) == (theirs is None)
        if ours is not None and theirs is not None:
            torch.testing.assert_close(ours, theirs, rtol=1e-10, atol=1e-10)
    assert not torch.allclose(model(input_ids), hidden, atol=1e-2), "as one text it must be another"


def on_cuda() -> Any:
    """What the choice of a kernel looks at of a tensor on a GPU."""
    return SimpleNamespace(is_cuda=True, device=torch.device("cuda", 0))


def test_the_kernel_is_for_cuda_in_16_bits_without_dropout(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (8, 0))
    model, cpu, cuda = make_model(dropout=0.1, num_attention_heads=2), torch.zeros(1), on_cuda()
    assert not model.has_varlen_kernel(cpu)
    assert not model.has_varlen_kernel(cuda)
    with torch.autocast("cuda", torch.bfloat16, enabled=True) if torch.cuda.is_available() else autocast_on():
        assert not model.train().has_varlen_kernel(cuda)
        assert model.eval().has_varlen_kernel(cuda)
        assert make_model(num_attention_heads=2).train().has_varlen_kernel(cuda)
        assert not model.has_varlen_kernel(cpu)


@pytest.mark.parametrize(
    ("capability", "has"), [((7, 0), False), ((7, 5), False), ((8, 0), True), ((8, 9), True), ((9, 0), True), ((12, 0), True)]
)
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_gpus_before_ampere_attend_under_a_mask(
    capability: tuple[int, int], has: bool, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    """V100 and T4 have no FlashAttention kernel in any format; the tensors are on the CPU here, the choice is a GPU's."""
    calls = []
    choose, attend = StBert.has_varlen_kernel, attend_text_by_text
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: capability)
    monkeypatch.setattr(torch, "is_autocast_enabled", lambda kind: kind == "cuda")
    monkeypatch.setattr(torch, "get_autocast_dtype", lambda kind: dtype)
    monkeypatch.setattr(StBert, "has_varlen_kernel", lambda model, x_BTD: choose(model, on_cuda()))
    monkeypatch.setattr(attention_module, "varlen_attn", lambda *inputs, **more: calls.append("kernel") or attend(*inputs, **more))
    inner = scaled_dot_product
    monkeypatch.setattr(attention_module, "scaled_dot_product", lambda *inputs: calls.append("mask") or inner(*inputs))
    model = make_model(num_attention_heads=2)
    hidden = model(random_input(3, 12), **packed())
    assert calls == ["kernel" if has else "mask"] * 3
    monkeypatch.undo()
    assert torch.allclose(hidden, model(random_input(3, 12), **packed()), atol=1e-5)


@pytest.mark.parametrize(("hidden_size", "heads", "has"), [(64, 2, True), (512, 2, True), (48, 4, False), (528, 2, False)])
def test_the_kernel_wants_heads_of_a_multiple_of_8_up_to_256(
    hidden_size: int, heads: int, has: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (9, 0))
    monkeypatch.setattr(torch, "is_autocast_enabled", lambda kind: True)
    model = make_model(num_hidden_layers=1, hidden_size=hidden_size, num_attention_heads=heads)
    assert model.has_varlen_kernel(on_cuda()) is has


@contextmanager
def autocast_on() -> Iterator[None]:
    """Turn autocast for CUDA on where there is none."""
    torch.set_autocast_enabled("cuda", True)
    try:
        yield
    finally:
        torch.set_autocast_enabled("cuda", False)


# Gates and scales


def run_with_gates(model: StBert, gates: Sequence[bool] | None, scales: Tensor | None = None) -> tuple[Tensor, list[int]]:
    """Count how often each block is called."""
    calls = [0] * len(model.blocks)

    def count(index: int) -> Any:
        def hook(*_: object) -> None:
            calls[index] += 1

        return hook

    handles = [block.register_forward_hook(count(index)) for index, block in enumerate(model.blocks)]
    hidden = model(random_input(), gates=gates, residual_scales_L=scales)
    for handle in handles:
        handle.remove()
    return hidden, calls


@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("gates", [(True, False, True), (False, True, False), (False, False, True), (False, False, False)])
def test_a_dropped_block_does_not_run_and_gets_no_gradient(norm: Norm, gates: tuple[bool, ...]) -> None:
    model = shaken(make_model(norm))
    hidden, calls = run_with_gates(model, gates)
    assert calls == [int(gate) for gate in gates]
    model.mlm_logits(hidden.flatten(0, 1)).sum().backward()
    for gate, block in zip(gates, model.blocks, strict=True):
        gradients = [parameter.grad for parameter in block.parameters()]
        assert all((gradient is not None) == gate for gradient in gradients)
    for module in (model.embeddings, model.final_norm, model.mlm_head):
        assert all(parameter.grad is not None for parameter in module.parameters())

    # Nor does it matter what is in it, or whether it is there.
    for gate, block in zip(gates, model.blocks, strict=True):
        if not gate:
            for parameter in block.parameters():
                parameter.data.fill_(torch.nan)
    assert torch.equal(run_with_gates(model, gates)[0], hidden)
    model.blocks = nn.ModuleList([block for gate, block in zip(gates, model.blocks, strict=True) if gate])
    assert torch.equal(run_with_gates(model, None)[0], hidden)


def test_a_dropped_block_takes_nothing_from_the_random_stream() -> None:
    model = make_model(dropout=0.3).train()
    torch.manual_seed(0)
    dropped, _ = run_with_gates(model, (True, False, True))
    model.blocks = nn.ModuleList([model.blocks[0], model.blocks[2]])
    torch.manual_seed(0)
    assert torch.equal(run_with_gates(model, None)[0], dropped)


@pytest.mark.parametrize("norm", NORMS)
def test_all_dropped_is_embeddings_and_final_norm(norm: Norm) -> None:
    """Post-LN: x goes through unchanged, no LayerNorm either."""
    model = shaken(make_model(norm))
    x_BTD = model.embeddings(random_input())
    if norm == "pre":
        x_BTD = functional.layer_norm(x_BTD, (D,), model.final_norm.weight, model.final_norm.bias, 1e-12)
    assert torch.equal(model(random_input(), gates=(False,) * 3), x_BTD)


@pytest.mark.parametrize("norm", NORMS)
def test_gates_all_open_and_scales_of_one_change_nothing(norm: Norm) -> None:
    model = shaken(make_model(norm))
    dense = model(random_input())
    assert torch.equal(model(random_input(), gates=(True,) * 3, residual_scales_L=torch.ones(3)), dense)


@pytest.mark.parametrize("norm", NORMS)
def test_scale_multiplies_each_sublayers_output_before_the_residual_add(norm: Norm) -> None:
    """Equations 4 and 5, written out by hand."""
    block = shaken(make_model(norm)).double().blocks[0]
    x = torch.randn(2, 5, D, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    p = 0.625

    def attention(x: Tensor) -> Tensor:
        q, k, v = (part.reshape(2, 5, 4, 4).transpose(1, 2) for part in functional.linear(x, block.qkv.weight, block.qkv.bias).chunk(3, -1))
        mixed = torch.softmax(q @ k.transpose(-1, -2) / 4**0.5, dim=-1) @ v
        return functional.linear(mixed.transpose(1, 2).reshape(2, 5, D), block.attention_output.weight, block.attention_output.bias)

    def ffn(x: Tensor) -> Tensor:
        inner = functional.linear(x, block.ffn_input.weight, block.ffn_input.bias)
        inner = inner * 0.5 * (1 + torch.erf(inner / 2**0.5))
        return functional.linear(inner, block.ffn_output.weight, block.ffn_output.bias)

    def norm_of(layer: nn.LayerNorm, x: Tensor) -> Tensor:
        centred = x - x.mean(-1, keepdim=True)
        return centred / (centred.square().mean(-1, keepdim=True) + 1e-12).sqrt() * layer.weight + layer.bias

    if norm == "pre":
        h = x + attention(norm_of(block.attention_norm, x)) / p
        expected = h + ffn(norm_of(block.ffn_norm, h)) / p
    else:
        h = norm_of(block.attention_norm, x + attention(x) / p)
        expected = norm_of(block.ffn_norm, h + ffn(h) / p)
    torch.testing.assert_close(block(x, None, torch.tensor(1 / p, dtype=torch.float64)), expected, rtol=0, atol=1e-12)


@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("p", [0.5, 0.75])
def test_the_mean_over_gates_is_the_block_itself_only_where_its_whole_update_is_scaled(norm: Norm, p: float) -> None:
    """E[train] - eval over both gates of one block, as a share of the block's own update: none, or the bias of the paper's form."""
    model = make_model(norm).double()
    block, x = model.blocks[0], torch.randn(2, 9, D, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    for parameter in block.parameters():
        if parameter.ndim == 2:
            torch.nn.init.normal_(parameter, 0.0, parameter.shape[1] ** -0.5, generator=torch.Generator().manual_seed(1))
    biases = {}
    with torch.no_grad():
        for whole in (True, False):
            kept = block(x, None, torch.tensor(1 / p, dtype=torch.float64), whole=whole)
            biases[whole] = float((p * kept + (1 - p) * x - block(x)).norm() / (block(x) - x).norm())
    assert biases[True] < 1e-14
    assert biases[False] > 0.03


@pytest.mark.parametrize("recomputed", [False, True])
def test_scales_of_whole_updates_reach_every_block(recomputed: bool) -> None:
    model, scales = shaken(make_model()), torch.tensor([1.0, 4.0, 2.0])
    model.scales_whole_blocks, model.checkpoint_activations = True, recomputed
    x_BTD = model.embeddings(random_input())
    for index in (0, 2):
        x_BTD = x_BTD + scales[index] * (model.blocks[index](x_BTD) - x_BTD)
    got = model(random_input(), gates=(True, False, True), residual_scales_L=scales)
    torch.testing.assert_close(got, model.final_norm(x_BTD))


@pytest.mark.parametrize("norm", NORMS)
def test_each_block_gets_its_own_scale(norm: Norm) -> None:
    model = shaken(make_model(norm))
    scales = torch.tensor([1.0, 4.0, 2.0])
    x_BTD = model.embeddings(random_input())
    for index in (0, 2):
        x_BTD = model.blocks[index](x_BTD, None, scales[index])
    got = model(random_input(), gates=(True, False, True), residual_scales_L=scales)
    assert torch.equal(got, model.final_norm(x_BTD))
    other = model(random_input(), gates=(True, False, True), residual_scales_L=torch.tensor([1.0, 99.0, 2.0]))
    assert torch.equal(got, other), "the scale of a dropped block is not used"


@pytest.mark.parametrize("norm", NORMS)
def test_evaluation_runs_every_block_unscaled_and_without_dropout(norm: Norm) -> None:
    still, noisy = make_model(norm).eval(), make_model(norm, dropout=0.5).eval()
    hidden, calls = run_with_gates(noisy, None)
    assert calls == [1, 1, 1]
    assert torch.equal(hidden, run_with_gates(still, None)[0])
    assert torch.equal(hidden, run_with_gates(noisy, None)[0])
    noisy.train()
    assert not torch.allclose(run_with_gates(noisy, None)[0], hidden)


def test_dropout_acts_on_embeddings_attention_and_both_sublayers() -> None:
    model = shaken(make_model(dropout=0.5)).train()
    embedded = model.embeddings(random_input(4, 12))
    assert 0.4 < float((embedded == 0).float().mean()) < 0.6
    block = model.blocks[0]
    for sublayer in (lambda x: block._attention(x, Attention()), block._ffn):
        assert 0.35 < float((sublayer(torch.randn(4, 12, D)) == 0).float().mean()) < 0.65
    block.dropout.eval()  # leaves attention's own
    block.attention_output = nn.Identity()
    first, second = (block._attention(torch.ones(4, 12, D), Attention()) for _ in range(2))
    assert not torch.equal(first, second)


# Embeddings and heads


@pytest.mark.parametrize("norm", NORMS)
def test_positions_and_token_types_are_used(norm: Norm) -> None:
    model = shaken(make_model(norm)).eval()
    same = torch.full((1, 6), 20)
    hidden = model(same)
    assert not torch.allclose(hidden[0, 0], hidden[0, 1], atol=1e-3)
    types = torch.tensor([[0, 0, 0, 1, 1, 1]])
    assert torch.allclose(model(same, token_type_ids_BT=torch.zeros_like(same)), hidden, atol=1e-6)
    assert not torch.allclose(model(same, token_type_ids_BT=types), hidden, atol=1e-3)
    summed = model.embeddings.word.weight[20] + model.embeddings.position.weight[4] + model.embeddings.token_type.weight[1]
    norm_ = model.embeddings.norm
    expected = functional.layer_norm(summed, (D,), norm_.weight, norm_.bias, 1e-12)
    assert torch.allclose(model.embeddings(same, types)[0, 4], expected, atol=1e-6)


def test_whole_head_and_masked_head_agree() -> None:
    model = shaken(make_model()).double()
    input_ids, labels = random_input(), torch.full((2, 9), -100)
    labels[0, 3], labels[0, 8], labels[1, 0], labels[1, 1] = 11, 12, 13, 14
    hidden_BTD = model(input_ids)
    whole = functional.cross_entropy(model.mlm_logits(hidden_BTD).flatten(0, 1), labels.flatten(), ignore_index=-100)
    positions = (labels.flatten() != -100).nonzero().squeeze(1)
    masked = functional.cross_entropy(model.mlm_logits(hidden_BTD.flatten(0, 1)[positions]), labels.flatten()[positions])
    assert float(whole.detach()) == pytest.approx(float(masked.detach()), abs=1e-12)
    whole_gradients = torch.autograd.grad(whole, list(model.parameters()), retain_graph=True, allow_unused=True)
    masked_gradients = torch.autograd.grad(masked, list(model.parameters()), allow_unused=True)
    for one, other in zip(whole_gradients, masked_gradients, strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=1e-12)


def test_scores_beyond_the_vocabulary_change_no_loss_and_no_gradient() -> None:
    """50 entries scored as 64, as tensor cores want them: the same loss, the same gradients, nothing from the added ones."""
    model = shaken(make_model()).double()
    hidden, targets = torch.randn(6, D, dtype=torch.float64), torch.tensor([7, 49, 8, 9, -100, 11])
    losses, gradients = [], []
    for multiple in (1, 64):
        scores = model.mlm_head(hidden, model.embeddings.word.weight, multiple)
        assert scores.shape == (6, 50 if multiple == 1 else 64)
        losses.append(functional.cross_entropy(scores, targets, reduction="sum"))
        gradients.append(torch.autograd.grad(losses[-1], [model.embeddings.word.weight, *model.mlm_head.parameters()]))
    torch.testing.assert_close(*losses, rtol=1e-12, atol=0)
    for one, other in zip(*gradients, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-10, atol=1e-12)
        assert other.isfinite().all()


@pytest.mark.parametrize("norm", NORMS)
def test_blocks_that_run_again_for_their_backward_give_the_same_gradients(norm: Norm) -> None:
    """Under gates, scales and dropout."""
    model, results = shaken(make_model(norm, dropout=0.3)).train(), []
    calls = [0] * 3
    for index, block in enumerate(model.blocks):
        block.register_forward_pre_hook(lambda *_, index=index: calls.__setitem__(index, calls[index] + 1))
    for again in (False, True):
        model.checkpoint_activations = again
        model.zero_grad(set_to_none=True)
        torch.manual_seed(3)
        hidden = model(random_input(), gates=(True, False, True), residual_scales_L=torch.tensor([1.5, 1.0, 2.0]))
        hidden.square().sum().backward()
        results.append([hidden.detach(), *(parameter.grad for parameter in model.parameters())])
        assert calls == ([1, 0, 1] if not again else [3, 0, 3]), "once, and then twice"
    for one, other in zip(*results, strict=True):
        assert (one is None and other is None) or torch.equal(one, other)
    assert results[0][0].abs().max() > 0
    model.eval()
    model(random_input())
    assert calls == [4, 1, 4], "not in evaluation"


def test_the_mlm_head_is_tied_and_stored_once() -> None:
    model = make_model()
    assert not [name for name in model.state_dict() if "decoder" in name]
    assert sum(tuple(parameter.shape) == (V, D) for parameter in model.parameters()) == 1
    hidden = torch.randn(2, D)
    before = model.mlm_logits(hidden)
    assert before.shape == (2, V)
    with torch.no_grad():
        model.embeddings.word.weight[7] += 1.0
        model.mlm_head.bias[8] += 2.0
    changed = (model.mlm_logits(hidden) - before).abs().max(0).values
    assert set(changed.nonzero().flatten().tolist()) == {7, 8}
    assert torch.allclose(changed[8], torch.tensor(2.0))


def test_the_next_sentence_head_reads_the_first_token() -> None:
    model = make_model(next_sentence=True)
    assert model.nsp_head is not None
    hidden = torch.randn(3, 5, D, requires_grad=True)
    scores = model.nsp_head(hidden)
    assert scores.shape == (3, 2)
    scores.sum().backward()
    assert hidden.grad is not None
    assert hidden.grad[:, 0].abs().min() > 0
    assert not hidden.grad[:, 1:].any()
    assert make_model().nsp_head is None


# Initial weights


@pytest.mark.parametrize("norm", NORMS)
def test_initial_weights(norm: Norm) -> None:
    model = StBert(
        num_hidden_layers=2,
        hidden_size=64,
        num_attention_heads=2,
        intermediate_size=256,
        vocab_size=500,
        max_position_embeddings=128,
        norm=norm,
        initializer_range=0.05,
        next_sentence=True,
    )
    counted = {"zero": 0, "one": 0, "normal": 0}
    for name, parameter in model.state_dict().items():
        if parameter.ndim == 2:
            counted["normal"] += 1
            error = 5 / parameter.numel() ** 0.5
            assert abs(float(parameter.mean())) < 0.05 * error, name
            assert float(parameter.std()) == pytest.approx(0.05, rel=error), name
        elif name.endswith("bias"):
            counted["zero"] += 1
            assert not parameter.any(), name
        else:
            counted["one"] += 1
            assert bool((parameter == 1).all()), name
    norms = 2 * 2 + 2 + (norm == "pre")
    assert counted == {"normal": 3 + 2 * 4 + 1 + 2, "zero": 2 * 4 + 2 + 2 + norms, "one": norms}
    weights = [parameter.flatten()[:64] for parameter in model.parameters() if parameter.ndim == 2]
    assert all(not torch.equal(one, other) for index, one in enumerate(weights) for other in weights[:index])


@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize(("hidden_size", "heads"), [(128, 4), (130, 5), (192, 2)])
def test_local_attention_begins_at_nearby_tokens_and_leaves_the_rest_alone(norm: Norm, hidden_size: int, heads: int) -> None:
    shape = {"vocab_size": 300, "max_position_embeddings": 96, "num_hidden_layers": 2, "seed": 5}
    sizes = {"hidden_size": hidden_size, "num_attention_heads": heads, "intermediate_size": 64}
    normal, local = (make_model(norm, attention_init=kind, **shape, **sizes) for kind in ("normal", "local"))
    words = torch.randint(5, 300, (8, 96), generator=torch.Generator().manual_seed(0))
    size = hidden_size // heads
    for number, block in enumerate(local.blocks):
        x_BTD = local.embeddings(words)
        q, k, _ = (
            block.qkv(block.attention_norm(x_BTD) if norm == "pre" else x_BTD).view(8, 96, 3, heads, size).permute(2, 0, 3, 1, 4).unbind(0)
        )
        weights = (q @ k.transpose(-1, -2) / size**0.5).softmax(-1).detach().mean(0)
        for head, expected in zip(range(heads), (-1, 1, -2, 2, -3), strict=False):
            by_distance = {d: float(weights[head].diagonal(d)[20:-20].mean()) for d in range(-10, 11)}
            assert max(by_distance, key=by_distance.__getitem__) == expected, (number, head)
            assert by_distance[expected] > 0.3
            assert sum(by_distance.values()) > 0.9
    changed = {name for name, one in normal.state_dict().items() if not torch.equal(one, local.state_dict()[name])}
    assert changed == {"embeddings.position.weight", "blocks.0.qkv.weight", "blocks.1.qkv.weight"}
    for one, other in zip(normal.blocks, local.blocks, strict=True):
        assert torch.equal(one.qkv.weight[2 * hidden_size :], other.qkv.weight[2 * hidden_size :])  # what is read from a token
    places, rest = local.embeddings.position.weight.detach().split([hidden_size // 4 * 4, hidden_size % 4], 1)
    assert float(places.square().mean().sqrt()) == pytest.approx(0.04, rel=0.05)
    assert torch.equal(rest, normal.embeddings.position.weight[:, places.shape[1] :])


def test_the_seed_decides_the_weights_and_nothing_else_does() -> None:
    first = make_model(seed=3)
    torch.manual_seed(99)
    again, other, with_nsp = make_model(seed=3), make_model(seed=4), make_model(seed=3, next_sentence=True)
    for name, weight in first.state_dict().items():
        assert torch.equal(weight, again.state_dict()[name])
        assert torch.equal(weight, with_nsp.state_dict()[name]), "a next-sentence head must not move the other weights"
    assert not torch.equal(first.embeddings.word.weight, other.embeddings.word.weight)
    torch.manual_seed(99)
    expected = torch.rand(3)
    torch.manual_seed(99)
    first.initialize(0.02, seed=3)
    assert torch.equal(torch.rand(3), expected), "the global generator stays where it was"


def test_pre_and_post_differ_in_the_final_norm_only() -> None:
    pre, post = make_model("pre").state_dict(), make_model("post").state_dict()
    assert pre.keys() - post.keys() == {"final_norm.weight", "final_norm.bias"}
    assert post.keys() <= pre.keys()


# Compilation


@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor:UserWarning")  # torch looks at it while tracing
@pytest.mark.parametrize("norm", NORMS)
def test_blocks_compile_once_for_every_gate_and_scale(norm: Norm) -> None:
    from torch._dynamo.utils import counters

    torch._dynamo.reset()
    counters.clear()
    model, eager = (shaken(make_model(norm, num_hidden_layers=2)).train() for _ in range(2))
    names = list(model.state_dict())
    for part in (model.embeddings, *model.blocks):
        part.compile(backend="aot_eager", fullgraph=True)
    assert list(model.state_dict()) == names
    graphs = 0
    draws = [((True, True), (1.0, 1.0)), ((True, False), (1.25, 2.0)), ((False, True), (1.5, 3.0)), ((False, False), (2.0, 2.0))]
    for gates, scales in draws:
        results = []
        for each in (model, eager):
            each.zero_grad(set_to_none=True)
            hidden = each(random_input(), gates=gates, residual_scales_L=torch.tensor(scales))
            hidden.square().sum().backward()
            results.append((hidden.detach(), [parameter.grad for parameter in each.parameters()]))
        torch.testing.assert_close(results[0][0], results[1][0], rtol=1e-4, atol=1e-5)
        for ours, theirs in zip(results[0][1], results[1][1], strict=True):
            assert (ours is None) == (theirs is None)
            if ours is not None and theirs is not None:
                torch.testing.assert_close(ours, theirs, rtol=1e-3, atol=1e-4)
        assert counters["stats"]["unique_graphs"] <= 3, "embeddings, and blocks first with a gradient before them and then without"
        graphs = graphs or counters["stats"]["unique_graphs"]
        assert counters["stats"]["unique_graphs"] == graphs, "another gate or scale must not compile anything"
    assert not counters["graph_break"]
    torch._dynamo.reset()


@pytest.mark.parametrize("masked", [False, True])
def test_attention_in_bf16_on_a_cpu_keeps_its_scores_exact(masked: bool) -> None:
    """Half the error of torch's kernel that rounds them, forward and backward, also under autocast; dropout is right on average."""
    from torch.nn.attention import SDPBackend, sdpa_kernel

    generator = torch.Generator().manual_seed(0)
    exact = [2 * torch.randn(4, 2, 48, 16, generator=generator, dtype=torch.float64) for _ in range(3)]
    exact = [tensor.bfloat16().double().requires_grad_() for tensor in exact]
    mask = (torch.arange(48) < torch.tensor([[48], [30], [7], [1]]))[:, None, None, :] if masked else None
    rough = [tensor.detach().bfloat16().requires_grad_() for tensor in exact]
    rounded = [tensor.detach().clone().requires_grad_() for tensor in rough]
    weights = torch.randn(4, 2, 48, 16, generator=generator)
    expected = functional.scaled_dot_product_attention(*exact, mask)
    with torch.autocast("cpu", torch.bfloat16):
        ours = scaled_dot_product(*rough, mask, 0.0)
    before = torch.backends.cuda.fp16_bf16_reduction_math_sdp_allowed()
    torch.backends.cuda.allow_fp16_bf16_reduction_math_sdp(True)
    try:
        with sdpa_kernel(SDPBackend.MATH):
            theirs = functional.scaled_dot_product_attention(*rounded, mask)
    finally:
        torch.backends.cuda.allow_fp16_bf16_reduction_math_sdp(before)
    for result in (ours, theirs):
        (result.float() * weights).sum().backward()
    (expected * weights).sum().backward()
    assert ours.dtype == torch.bfloat16
    ours, theirs, expected = ours.detach(), theirs.detach(), expected.detach()
    assert float((ours - expected).abs().mean()) < 0.5 * float((theirs - expected).abs().mean())
    for one, other, reference in zip(rough, rounded, exact, strict=True):
        assert float((one.grad - reference.grad).abs().mean()) < 0.6 * float((other.grad - reference.grad).abs().mean())
    torch.manual_seed(0)
    dropped = torch.stack([scaled_dot_product(*rough, mask, 0.5).detach().float() for _ in range(300)])
    assert not torch.equal(dropped[0], dropped[1])
    assert float((dropped.mean(0) - expected).abs().mean()) < 0.1


def test_a_table_of_one_token_type_ignores_types() -> None:
    """As RoBERTa's, which a tokenizer may still give types for."""
    model = make_model(type_vocab_size=1).eval()
    input_ids = torch.randint(0, 16, (2, 8), generator=torch.Generator().manual_seed(0))
    types = torch.arange(8).expand(2, -1) // 4
    with torch.no_grad():
        assert torch.equal(model(input_ids, token_type_ids_BT=types), model(input_ids))
