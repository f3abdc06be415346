from __future__ import annotations

import pytest

from pldcli.config import Config
from pldcli.flops import Flops
from pldcli.presets import names, resolve


def bert(size: str, seq_len: int) -> Flops:
    blocks, hidden, ffn = {"base": (12, 768, 3072), "large": (24, 1024, 4096)}[size]
    return Flops.of_encoder(
        num_blocks=blocks, hidden_size=hidden, intermediate_size=ffn, vocab_size=30_528, seq_len=seq_len, mask_rate=0.15
    )


@pytest.mark.parametrize(
    ("size", "seq_len", "gigaflop"), [("base", 128, 0.545), ("base", 512, 0.588), ("large", 128, 1.879), ("large", 512, 1.992)]
)
def test_dense_cost_per_token_is_that_of_the_table(size: str, seq_len: int, gigaflop: float) -> None:
    assert bert(size, seq_len).dense / 1e9 == pytest.approx(gigaflop, abs=0.0005)


def test_head_runs_at_masked_positions_only() -> None:
    assert bert("base", 128).head == pytest.approx(21.63e6, rel=1e-3)


def test_saving_counts_blocks_only() -> None:
    flops = bert("base", 128)
    assert flops.total_saved(1.0) == 0.0
    assert flops.total_saved(0.0) == pytest.approx(0.9603, abs=1e-4)
    assert flops.total_saved(8.75 / 12) == pytest.approx(0.2601, abs=1e-4)
    assert flops.executed(12) == flops.dense


def test_attention_costs_what_a_token_attends_to() -> None:
    """Packed documents of 128 in rows of 512: per token the attention of rows of 128, and all else as it was."""
    packed, rows = bert("base", 512).attending_to(128), bert("base", 512)
    assert packed == bert("base", 128)
    assert rows.executed(12) / packed.executed(12) == pytest.approx(1.078, abs=5e-4)
    assert rows.per_block - packed.per_block == 12 * 768 * (512 - 128)


def test_heads_are_counted_at_the_masked_tokens() -> None:
    """Of a share that moves, at its mean; a span-boundary head has one more product of 3 D x D; an exit has the head once more."""
    base, size = resolve("bert-base-pld").config, 768
    head = base.flops.head / 0.15
    moving = base.replace(objective={"mask_probability": 0.3, "final_mask_probability": 0.2})
    assert moving.flops.head == pytest.approx(0.25 * head)
    spans = base.replace(objective={"masking": "span", "span_boundary": True})
    assert spans.flops.head == pytest.approx(0.15 * (2 * head + 6 * 3 * size**2))
    assert base.replace(objective={"exits": (4, 8)}).flops.head == pytest.approx(3 * 0.15 * head)
    sampled = base.replace(objective={"sampled_softmax": 2048})
    assert sampled.flops.head == pytest.approx(0.15 * 6 * (size**2 + 2048 * size))


def test_parameters_of_the_published_models() -> None:
    """`bert-base-uncased` with its masked-LM head has 109,514,298 parameters at 30,522 entries and Post-LN."""
    config = resolve("bert-base-postln", ["model.vocab_size=30522"]).config
    assert config.num_parameters == 109_514_298


@pytest.mark.parametrize("preset", ["bert-tiny-pld", "bert-tiny-postln", "modern-tiny-pld"])
@pytest.mark.parametrize("heads", [False, True])
def test_parameters_are_those_of_the_model(preset: str, heads: bool) -> None:
    from pldcli.model import StBert

    pairs = ["objective.next_sentence=true", "data.layout=nsp-pairs", "objective.span_boundary=true", "objective.masking=span"]
    config: Config = resolve(preset, pairs if heads else []).config
    settings = dict(config.model)
    model = StBert(**settings, next_sentence=heads, span_boundary=heads)
    assert config.num_parameters == sum(parameter.numel() for parameter in model.parameters())


SAVED = {"growing": (0.08, 0.13), "expansion": (0.35, 0.75)}
"""Less than a quarter: growing ends at full depth. More: expansion trains two blocks for most of the run. ModernBERT's vocabulary and 30 %
of masked positions cost more in the head."""


def test_every_preset_saves_a_quarter_or_nothing_or_what_its_system_says() -> None:
    for name in names():
        config = resolve(name).config
        saved = config.flops.total_saved(config.pld_schedule.mean_kept_fraction)
        least = {"modern": 0.22, "gpt": 0.19}.get(name.partition("-")[0], 0.25)  # the head of a causal model sees every token
        low, high = next((bounds for ending, bounds in SAVED.items() if name.endswith(ending)), (least, 0.28))
        if config.pld_schedule.is_dense:
            assert saved == 0.0, name
        else:
            assert low < saved < high, (name, saved)
    assert {name for name in names() if resolve(name).config.pld_schedule.is_dense} == {
        name for name in names() if name.endswith(("-preln", "-postln", "-preln-low-lr", "-shallow", "-lamb", "-exits"))
    }


@pytest.mark.parametrize(
    ("changes", "window"),
    [
        ([], 129),
        (["objective.kind=causal"], 64),
        (["objective.causal_share=0.5"], 96.5),
        (["objective.kind=prefix", "data.packing=stream"], (129 + 64 + 95.5) / 3),
    ],
)
def test_windows_of_causal_steps_are_half(changes: list[str], window: float) -> None:
    import torch

    from pldcli.attention import Rows, attention_of

    flops = resolve("modern-base-preln", ["data.seq_len=1024", *changes]).config.flops
    local, matrices = flops.num_local / flops.num_blocks, flops.matrices
    assert flops.per_block == pytest.approx(matrices + 12 * 768 * ((1 - local) * 1024 + local * window))
    for causal, tokens in ((False, 129), (True, 64)):
        how = attention_of(Rows(num_tokens=200, causal=causal), 64, kernel=False, device=torch.device("cpu"), batch_size=1)
        assert how.mask is not None
        assert int(how.mask[0, 0, 100].sum()) == tokens, "as a token in the middle looks"


def test_gated_layers_windows_and_a_plain_decoder_are_counted() -> None:
    """Per token and block 6 (4 D^2 + 3 D F) + 12 D x (tokens attended to): T in global blocks, the window in local ones."""
    config = resolve("modern-base-preln", ["data.seq_len=1024"]).config
    matrices = 6 * (4 * 768**2 + 3 * 768 * 1152)
    assert config.flops.executed(22) - config.flops.head == 22 * matrices + 12 * 768 * (8 * 1024 + 14 * 129)
    assert config.flops.attending_to(100).per_block == matrices + 12 * 768 * 100  # documents shorter than the window
    assert config.flops.head == pytest.approx(6 * (768**2 + 50368 * 768) * 0.3)
    assert resolve("gpt-small-preln").config.flops.head == pytest.approx(6 * 50304 * 768)
    some = resolve("bert-tiny-preln", ["objective.causal_share=0.06"]).config
    assert some.flops.head == pytest.approx(6 * (128**2 + 2048 * 128) * (0.94 * 0.15 + 0.06))
