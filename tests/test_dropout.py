from __future__ import annotations

import pytest
import torch
from torch.utils.checkpoint import checkpoint

from pldcli.dropout import Dropout, dropout

DTYPES = [torch.bfloat16, torch.float16, torch.float32, torch.float64]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("p", [0.1, 0.5, 0.9])
def test_values_are_dropped_with_probability_p_and_the_others_scaled(dtype: torch.dtype, p: float) -> None:
    torch.manual_seed(0)
    x = torch.randn(300, 1001).to(dtype)
    kept = dropout(x, p)
    assert kept.dtype == dtype
    dropped = (kept == 0) & (x != 0)
    spread = (p * (1 - p) / x.numel()) ** 0.5
    assert float(dropped.double().mean()) == pytest.approx(p, abs=5 * spread)
    torch.testing.assert_close(kept[~dropped], (x / (1 - p))[~dropped])


def test_neighbours_rows_and_calls_are_independent() -> None:
    """Four values share a random word: none of them may know of another."""
    torch.manual_seed(1)
    first, second = (dropout(torch.ones(1000, 1000), 0.1) == 0 for _ in range(2))
    for distance in (1, 2, 3, 4, 5, 8, 1000, 4000):
        flat = first.flatten()
        both = float((flat[distance:] & flat[:-distance]).double().mean())
        assert both == pytest.approx(0.01, abs=5e-4), distance
    assert float((first & second).double().mean()) == pytest.approx(0.01, abs=5e-4)
    assert float(first.double().mean(0).std()) == pytest.approx((0.09 / 1000) ** 0.5, rel=0.15)


@pytest.mark.parametrize("dtype", DTYPES)
def test_the_gradient_goes_where_the_value_went(dtype: torch.dtype) -> None:
    x = torch.randn(50, 70).to(dtype).requires_grad_()
    kept = dropout(x, 0.3)
    kept.backward(torch.ones_like(kept))
    assert x.grad is not None
    assert torch.equal(x.grad == 0, kept == 0)
    assert float(x.grad.max().detach()) == pytest.approx(1 / 0.7, rel=1e-2)


def test_the_mask_is_a_function_of_torchs_generator() -> None:
    x = torch.ones(40, 33)
    torch.manual_seed(5)
    first, second = dropout(x, 0.5), dropout(x, 0.5)
    assert not torch.equal(first, second)
    torch.manual_seed(5)
    assert torch.equal(dropout(x, 0.5), first)
    state = torch.get_rng_state()
    dropout(x, 0.0)
    Dropout(0.5).eval()(x)
    assert torch.equal(torch.get_rng_state(), state), "nothing drawn where nothing is dropped"
    assert torch.equal(dropout(x, 0.5), second)


def test_a_checkpointed_forward_drops_the_same_again() -> None:
    layer = Dropout(0.5)
    x = torch.randn(30, 30, requires_grad=True)
    kept = checkpoint(lambda t: layer(t * 2.0).square(), x, use_reentrant=False)
    kept.sum().backward()
    assert x.grad is not None
    assert torch.equal(x.grad == 0, kept == 0)


def test_nothing_is_dropped_in_evaluation_or_at_zero() -> None:
    x = torch.randn(9, 9)
    assert Dropout(0.5).eval()(x) is x
    assert dropout(x, 0.0) is x
    assert not torch.equal(Dropout(0.5).train()(x), x)


def test_shapes_that_are_no_multiple_of_a_word_or_not_contiguous() -> None:
    for shape in [(), (1,), (3,), (2, 3), (0, 4), (5, 1, 7)]:
        assert dropout(torch.ones(shape), 0.5).shape == shape
    x = torch.randn(6, 10).T
    kept = dropout(x, 0.5)
    assert torch.equal(kept[kept != 0], (2 * x)[kept != 0])


def test_it_traces_into_one_graph() -> None:
    layer = Dropout(0.5)
    torch._dynamo.reset()
    compiled = torch.compile(layer, backend="aot_eager", fullgraph=True)
    kept = compiled(torch.ones(100, 100))
    assert 0.45 < float((kept == 0).float().mean()) < 0.55
    torch._dynamo.reset()
