"""One block, many architectures: every setting with every feature of the engine, and a published reference."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from itertools import product
from typing import Any

import pytest
import torch
from torch import Tensor
from torch._dynamo.testing import CompileCounter

from pldcli import attention as attention_module
from pldcli.attention import Attention, Rows, attention_of, rope_frequencies, rotate, rotation
from pldcli.config import ModelConfig
from pldcli.errors import UsageError
from pldcli.model import StBert
from tests.test_model import attend_text_by_text, run_with_gates, shaken

V, D, T = 50, 16, 24

MODERN: dict[str, Any] = {
    "position_embedding": "rotary",
    "feed_forward": "geglu",
    "attention_bias": False,
    "mlp_bias": False,
    "norm_bias": False,
    "first_attention_norm": False,
    "global_layers": 3,
    "local_attention": 8,
    "type_vocab_size": 0,
}
ARCHITECTURES: dict[str, dict[str, Any]] = {
    "bert": {},
    "post-ln": {"norm": "post"},
    "modern": MODERN,
    "modern, all local": MODERN | {"global_layers": ()},
    "learned and local": {"global_layers": 2, "local_attention": 8},
    "rotary post-ln swiglu": {"norm": "post", "position_embedding": "rotary", "feed_forward": "swiglu", "global_layers": (1,)},
    "gpt": {"embedding_norm": False, "lm_head": "plain", "type_vocab_size": 0},
    "nearby": MODERN | {"attention_bias": True, "attention_init": "local"},
}


def make(**changes: Any) -> StBert:
    shape = {"num_hidden_layers": 4, "hidden_size": D, "num_attention_heads": 2, "intermediate_size": 24, "vocab_size": V}
    settings = ModelConfig(**{**shape, "max_position_embeddings": 64, "local_attention": 8, "dropout": 0.0, **changes})
    return shaken(StBert(**dict(settings))).double()


def ids(batch: int = 2, tokens: int = T) -> Tensor:
    return torch.randint(5, V, (batch, tokens), generator=torch.Generator().manual_seed(0))


def gradients(model: StBert, hidden: Tensor, real: Tensor | None = None) -> dict[str, Tensor]:
    weights = torch.randn(hidden.shape, dtype=torch.float64, generator=torch.Generator().manual_seed(2))
    if real is not None:
        weights = weights * real[..., None]
    model.zero_grad(set_to_none=True)
    (hidden * weights).sum().backward()
    return {name: parameter.grad.clone() for name, parameter in model.named_parameters() if parameter.grad is not None}


# A published model as the reference


MODERNBERT_NAMES = (
    ("embeddings.word", "embeddings.tok_embeddings"),
    ("blocks.", "layers."),
    ("attention_norm", "attn_norm"),
    ("qkv", "attn.Wqkv"),
    ("attention_output", "attn.Wo"),
    ("ffn_norm", "mlp_norm"),
    ("ffn_input", "mlp.Wi"),
    ("ffn_output", "mlp.Wo"),
)


def modernbert_name(ours: str) -> str:
    for one, other in MODERNBERT_NAMES:
        ours = ours.replace(one, other)
    return ours


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize(("tokens", "padded"), [(7, False), (24, False), (24, True), (60, False), (60, True)])
def test_with_modernberts_settings_it_is_modernbert(bias: bool, tokens: int, padded: bool) -> None:
    """Hidden states and gradients to 1e-5 in float32: rows shorter and longer than the window, with and without padding."""
    transformers = pytest.importorskip("transformers", reason="transformers is not installed")
    torch.manual_seed(tokens)  # of their weights
    biases = {"attention_bias": bias, "mlp_bias": bias, "norm_bias": bias}
    config = transformers.ModernBertConfig(
        vocab_size=V,
        hidden_size=D,
        intermediate_size=24,
        num_hidden_layers=4,
        num_attention_heads=2,
        local_attention=8,
        max_position_embeddings=64,
        pad_token_id=0,
        global_attn_every_n_layers=3,
        **{"bos_token_id": 1, "cls_token_id": 1, "eos_token_id": 2, "sep_token_id": 2, **biases},
    )
    theirs = shaken(transformers.ModernBertModel._from_config(config, attn_implementation="sdpa")).train()
    ours = make(**MODERN | biases | {"global_rope_theta": 160_000.0, "layer_norm_eps": 1e-5}).float()
    state = theirs.state_dict()
    encoder = {name: state[modernbert_name(name)] for name in ours.state_dict() if not name.startswith("mlm_head.")}
    assert len(encoder) == len(state)
    ours.load_state_dict(encoder, strict=False)
    real = torch.ones(3, tokens, dtype=torch.bool)
    if padded:
        real[0, tokens // 2 :] = real[2, 3:] = False
    expected = theirs(ids(3, tokens), attention_mask=real.long()).last_hidden_state
    hidden = ours(ids(3, tokens), attention_mask_BT=real if padded else None)
    assert hidden.isfinite().all()
    torch.testing.assert_close(hidden[real], expected[real], rtol=0, atol=1e-5)
    wanted = gradients(theirs, expected, real)
    for name, gradient in gradients(ours, hidden, real).items():
        torch.testing.assert_close(gradient, wanted[modernbert_name(name)], rtol=1e-4, atol=1e-4)
        assert (gradient - wanted[modernbert_name(name)]).norm() <= 1e-5 * wanted[modernbert_name(name)].norm(), name


# Who looks at whom, recomputed pair by pair


@pytest.mark.parametrize("tokens", [5, 24, 29])
@pytest.mark.parametrize(("causal", "prefix"), [(False, False), (True, False), (True, True)])
@pytest.mark.parametrize("restriction", ["none", "padding", "documents"])
@pytest.mark.parametrize("reach", [None, 3, 6])
def test_masks_are_those_of_the_definition(tokens: int, causal: bool, prefix: bool, restriction: str, reach: int | None) -> None:
    real = torch.arange(tokens) < torch.tensor([[tokens], [tokens // 2]]) if restriction == "padding" else None
    segments = (torch.arange(tokens) // torch.tensor([[4], [7]])) + 1 if restriction == "documents" else None
    lengths = torch.tensor([2, 4]) if prefix else None
    rows = Rows(num_tokens=tokens, real=real, segments=segments, causal=causal, prefix_lengths=lengths)
    how = attention_of(rows, reach, kernel=False, device=torch.device("cpu"), batch_size=2)

    def may(row: int, query: int, key: int) -> bool:
        near = reach is None or abs(query - key) <= reach - causal
        same = segments is None or segments[row, query] == segments[row, key]
        earlier = not causal or key <= query or (lengths is not None and key < lengths[row])
        return bool((real is None or real[row, key]) and near and same and earlier)

    generator = torch.Generator().manual_seed(1)
    qkv = torch.randn(2, tokens, 3, 2, 4, generator=generator, dtype=torch.float64)
    ours = attention_module.attend(qkv, how, 0.0)
    q, k, v = (x.transpose(1, 2) for x in qkv.unbind(2))
    mask = torch.tensor([[[[may(row, query, key) for key in range(tokens)] for query in range(tokens)]] for row in range(2)])
    scores = (q @ k.transpose(-1, -2) / 2.0).masked_fill(~mask, -torch.inf)
    expected = (scores.softmax(-1) @ v).transpose(1, 2)
    compared = mask[:, 0].any(-1) if real is None else real  # what padding sees is nobody's concern, as long as it is finite
    torch.testing.assert_close(ours[compared], expected[compared], rtol=0, atol=1e-12)
    assert ours.isfinite().all()
    assert (how.chunk > 0) == (reach is not None and not prefix and tokens >= 4 * reach)


def test_memory_of_local_attention_grows_with_the_tokens_not_with_their_square() -> None:
    sizes = []
    for tokens in (512, 1024):
        how = attention_of(Rows(num_tokens=tokens), 16, kernel=False, device=torch.device("cpu"), batch_size=2)
        assert how.mask is not None
        sizes.append(how.mask.numel())
    assert sizes == [512 * 48, 1024 * 48]


def test_rotations_depend_on_distance_alone_and_turn_pairs_a_half_apart() -> None:
    frequencies = rope_frequencies(8, 100.0)
    assert frequencies.tolist() == pytest.approx([1.0, 100**-0.25, 0.1, 100**-0.75])
    x = torch.randn(1, 12, 1, 2, 8, generator=torch.Generator().manual_seed(0)).double()
    cosines, sines = (part.double() for part in rotation(torch.arange(12), frequencies))
    turned = rotate(x, cosines, sines)
    third = x[0, 3, 0, 0]
    expected = third[1] * cosines[0, 3, 0, 0, 1] - third[5] * sines[0, 3, 0, 0, 1]
    assert float(turned[0, 3, 0, 0, 1]) == pytest.approx(float(expected))
    query, key = rotate(x[:, :1].expand(-1, 12, -1, -1, -1), cosines, sines), rotate(x[:, 1:2].expand(-1, 12, -1, -1, -1), cosines, sines)
    scores = (query[0, :, 0, 0] @ key[0, :, 0, 0].T).double()
    for distance in range(-4, 5):
        assert float(scores.diagonal(distance).std()) < 1e-6


# Every architecture with every feature


def packed() -> dict[str, Tensor]:
    """Two rows: documents of 10 and 14 tokens, and of 20 with padding behind."""
    segments = torch.tensor([[1] * 10 + [2] * 14, [1] * 20 + [0] * 4])
    positions = torch.tensor([[*range(10), *range(14)], [*range(20), *[0] * 4]])
    boundaries = torch.tensor([0, 10, 24, 44, 48, 48], dtype=torch.int32)
    return {"segments_BT": segments, "position_ids_BT": positions, "boundaries_N": boundaries}


@contextmanager
def torch_kernel(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Take the way of torch's kernel, whose place a loop over documents takes."""
    with monkeypatch.context() as patch:
        patch.setattr(attention_module, "varlen_attn", attend_text_by_text)
        patch.setattr(StBert, "has_varlen_kernel", lambda *_: True)
        yield


ALL = pytest.mark.parametrize("name", ARCHITECTURES)


@ALL
@pytest.mark.parametrize("kernel", [False, True])
@pytest.mark.parametrize("causal", [False, True])
def test_packed_documents_are_what_they_are_alone(name: str, kernel: bool, causal: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    model, input_ids = make(**ARCHITECTURES[name]), ids()
    alone = [model(input_ids[row : row + 1, a:b], causal=causal)[0] for row, a, b in ((0, 0, 10), (0, 10, 24), (1, 0, 20))]
    expected = torch.cat(alone)
    real = packed()["segments_BT"] > 0
    if kernel:
        with torch_kernel(monkeypatch):
            hidden = model(input_ids, **packed(), causal=causal)
    else:
        hidden = model(input_ids, **packed(), causal=causal)
    torch.testing.assert_close(hidden[real], expected, rtol=0, atol=1e-11)
    assert not torch.allclose(model(input_ids, causal=causal)[real], expected, atol=1e-2), "as one text it must be another"


@ALL
def test_rows_of_one_text_take_the_kernel_for_windows_too(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    model = make(**ARCHITECTURES[name])
    with torch_kernel(monkeypatch):
        through_kernel = gradients(model, model(ids()))
    for key, gradient in gradients(model, model(ids())).items():
        torch.testing.assert_close(through_kernel[key], gradient, rtol=1e-9, atol=1e-9)


@ALL
def test_causal_attention_sees_nothing_later_and_a_prefix_sees_itself(name: str) -> None:
    model, input_ids = make(**ARCHITECTURES[name]).eval(), ids(1)
    changed = input_ids.clone()
    changed[0, 12:] = (changed[0, 12:] - 4) % 30 + 5
    assert torch.equal(model(input_ids, causal=True)[0, :12], model(changed, causal=True)[0, :12])
    assert not torch.allclose(model(input_ids)[0, :12], model(changed)[0, :12], atol=1e-3)
    prefix = torch.tensor([6])
    later = input_ids.clone()
    later[0, 5] = (later[0, 5] - 4) % 30 + 5
    before, after = (model(one, causal=True, prefix_lengths_B=prefix)[0] for one in (input_ids, later))
    assert not torch.allclose(before[3], after[3], atol=1e-3), "a token of the prefix sees later ones of it"
    assert torch.allclose(model(changed, causal=True, prefix_lengths_B=prefix)[0, :12], before[:12], rtol=0, atol=1e-12)


@ALL
def test_padding_changes_nothing_and_stays_finite(name: str) -> None:
    model, real = make(**ARCHITECTURES[name]), torch.arange(T).expand(2, T) < 9
    hidden = model(ids(), attention_mask_BT=real)
    torch.testing.assert_close(hidden[:, :9], model(ids()[:, :9]), rtol=0, atol=1e-11)
    assert all(gradient.isfinite().all() for gradient in gradients(model, hidden, real).values())


@ALL
@pytest.mark.parametrize("gates", [(True, False, False, True), (False, True, True, False), (False, False, False, False)])
def test_dropped_blocks_do_not_run_and_scales_are_heeded(name: str, gates: tuple[bool, ...]) -> None:
    model = make(**ARCHITECTURES[name])
    hidden, calls = run_with_gates(model, gates)
    assert calls == [int(gate) for gate in gates]
    grown = gradients(model, hidden)
    for index, gate in enumerate(gates):
        assert any(key.startswith(f"blocks.{index}.") for key in grown) == gate
    scaled, _ = run_with_gates(model, gates, torch.full((4,), 1.5).double())
    assert torch.allclose(scaled, hidden, atol=1e-3) == (not any(gates))


@ALL
@pytest.mark.parametrize("rows", ["plain", "packed"])
def test_recomputed_activations_give_the_same_gradients(name: str, rows: str) -> None:
    inputs: dict[str, Any] = packed() if rows == "packed" else {}
    model, gates = make(**ARCHITECTURES[name]).train(), (True, False, True, True)
    stored = gradients(model, model(ids(), gates=gates, **inputs))
    model.checkpoint_activations = True
    again = gradients(model, model(ids(), gates=gates, **inputs))
    assert stored.keys() == again.keys()
    for key, gradient in stored.items():
        assert torch.equal(gradient, again[key]), key


@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor:UserWarning")
@pytest.mark.parametrize("name", ["modern", "rotary post-ln swiglu", "gpt"])
def test_compiled_blocks_are_the_same_and_compile_once_a_kind(name: str) -> None:
    model = make(**ARCHITECTURES[name]).float().train()
    compiled = make(**ARCHITECTURES[name]).float().train()
    torch._dynamo.reset()
    counter = CompileCounter()
    for block in compiled.blocks:
        block.compile(backend=counter)
    for gates in product([True, False], repeat=2):
        scales = torch.linspace(1.0, 1.5, 4)
        expected = model(ids(), gates=(True, *gates, True), residual_scales_L=scales)
        torch.testing.assert_close(compiled(ids(), gates=(True, *gates, True), residual_scales_L=scales), expected, rtol=0, atol=1e-5)
    # One graph for each kind of block: global or local, with or without its first norm.
    kinds = {(block.is_global, type(block.attention_norm)) for block in compiled.blocks}
    assert counter.frame_count <= len(kinds)
    torch._dynamo.reset()


# Heads that begin nearby


@pytest.mark.parametrize(("theta", "local"), [(10_000.0, False), (10_000.0, True), (1_000.0, False)])
def test_rotary_heads_begin_at_nearby_tokens(theta: float, local: bool) -> None:
    shape = {"num_hidden_layers": 3, "hidden_size": 128, "num_attention_heads": 4, "intermediate_size": 64, "vocab_size": 300}
    nearby = {"attention_bias": True, "attention_init": "local", "global_rope_theta": theta, "local_rope_theta": theta, "dropout": 0.0}
    window = {"global_layers": 3 if local else 1, "local_attention": 64, "max_position_embeddings": 128}
    settings = ModelConfig(**shape | MODERN | nearby | window)
    model = StBert(**dict(settings))
    words = torch.randint(5, 300, (8, 96), generator=torch.Generator().manual_seed(0))
    turn = rotation(torch.arange(96), rope_frequencies(32, theta))
    for number, block in enumerate(model.blocks):
        qkv = block.qkv(block.attention_norm(model.embeddings(words))).view(8, 96, 3, 4, 32)
        q, k = (x.transpose(1, 2) for x in rotate(qkv[:, :, :2], *turn).unbind(2))
        weights = (q @ k.transpose(-1, -2) / 32**0.5).softmax(-1).detach().mean(0)
        for head, expected in enumerate((-1, 1, -2, 2)):
            by_distance = {d: float(weights[head].diagonal(d)[20:-20].mean()) for d in range(-10, 11)}
            assert max(by_distance, key=by_distance.__getitem__) == expected, (number, head)
            assert by_distance[expected] > 0.3
        long_periods = rope_frequencies(32, theta) < 2 * torch.pi / 256
        assert long_periods.any()
        assert not block.qkv.bias.view(3, 4, 2, 16)[:2][..., long_periods].any(), "pairs of long periods are left for what is learned"
    attention = model.blocks[0](torch.zeros(1, 5, 128), Attention(rotation=tuple(part[:, :5] for part in turn)))
    assert attention.shape == (1, 5, 128)


# Bad input


@pytest.mark.parametrize(
    ("changes", "line"),
    [
        ({"hidden_size": 20, "num_attention_heads": 4, "position_embedding": "rotary"}, "rotary positions need heads of even size, not 5"),
        ({"position_embedding": "rotary", "attention_init": "local", "attention_bias": False}, "local needs biases"),
        ({"norm": "post", "first_attention_norm": False}, "only Pre-LN blocks behind normalised embeddings"),
        ({"embedding_norm": False, "first_attention_norm": False}, "only Pre-LN blocks behind normalised embeddings"),
        ({"global_layers": (0, 12)}, "there is no block 12 of 12"),
        ({"global_layers": 3, "local_attention": 1024}, "a window of 1024 tokens is wider than"),
        ({"local_attention": 1}, "local_attention"),
        ({"global_layers": 0}, "global_layers"),
    ],
)
def test_what_makes_no_sense_is_refused(changes: dict[str, Any], line: str) -> None:
    from pldcli.settings import validate

    with pytest.raises(UsageError, match=line):
        validate(ModelConfig, changes)


def test_global_blocks_are_every_third_or_a_list() -> None:
    assert ModelConfig(global_layers=3).global_layer_numbers == (0, 3, 6, 9)
    assert ModelConfig(global_layers=(5, 2)).global_layer_numbers == (2, 5)
    assert ModelConfig().has_local_layers is False
    assert [block.is_global for block in make(global_layers=(1, 3)).blocks] == [False, True, False, True]
