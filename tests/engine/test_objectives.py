from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional

from pldcli.choices import TaskKind
from pldcli.config import ModelConfig
from pldcli.data.loader import NO_TARGET, Batch
from pldcli.engine import objectives
from pldcli.engine.objectives import MaskedLm, TaskLoss, encode, masked_logits
from pldcli.engine.precision import Precision
from pldcli.engine.runtime import Runtime
from pldcli.engine.trainer import Trainer
from pldcli.errors import UsageError
from pldcli.heads import draw_entries
from pldcli.huggingface.save import save_pretrained
from pldcli.model import StBert, TaskHead
from pldcli.pld import Dropping
from pldcli.runs.checkpoint import Position
from pldcli.system.signals import StopRequest
from pldcli.tasks.batches import TaskBatch
from pldcli.tasks.task import Task
from pldcli.tokenization.training import train_tokenizer
from tests.conftest import tiny_config

V = 40


def make_model(**changes: Any) -> StBert:
    """Weights large enough that what a token is, and where, matters."""
    sizes = {
        "num_hidden_layers": 2,
        "hidden_size": 16,
        "num_attention_heads": 2,
        "intermediate_size": 24,
        "vocab_size": V,
        "max_position_embeddings": 10,
        "initializer_range": 0.3,
        "dropout": 0.0,
    }
    return StBert(**(sizes | changes))


def make_batch(*, pairs: bool = False, positions: tuple[int, ...] = (2, 7, 8, 17, 29)) -> Batch:
    generator = torch.Generator().manual_seed(0)
    input_ids = torch.randint(5, V, (3, 10), generator=generator)
    mask = torch.arange(10) < torch.tensor([[10], [8], [10]])
    return Batch(
        input_ids=input_ids,
        token_type_ids=(torch.arange(10) > 4).long().expand(3, -1) if pairs else None,
        attention_mask=mask if pairs else None,
        positions=torch.tensor(positions, dtype=torch.int64),
        target_ids=torch.randint(5, V, (len(positions),), generator=generator),
        next_sentence_labels=torch.tensor([0, 1, 1]) if pairs else None,
    )


def part(batch: Batch, rows: slice) -> Batch:
    """Cut rows out of a batch."""
    start, stop, _ = rows.indices(len(batch.input_ids))
    inside = (batch.positions >= start * 10) & (batch.positions < stop * 10)
    fields = {
        name: value[rows] if isinstance(value, Tensor) else value
        for name, value in vars(batch).items()
        if name not in ("positions", "target_ids")
    }
    return Batch(positions=batch.positions[inside] - start * 10, target_ids=batch.target_ids[inside], **fields)


def test_mlm_is_the_sum_over_the_targets() -> None:
    model, batch = make_model(), make_batch()
    objective = MaskedLm()
    assert objective.names == ("mlm",)
    assert objective.num_targets(batch) == [5]
    sums = objective.loss_sums(model, batch, None, None)
    logits_BTV = model.mlm_logits(model(batch.input_ids))
    log_probs = logits_BTV.detach().log_softmax(-1)
    places = [(0, 2), (0, 7), (0, 8), (1, 7), (2, 9)]
    expected = -sum(float(log_probs[row, column, target]) for (row, column), target in zip(places, batch.target_ids.tolist(), strict=True))
    assert sums.shape == (1,)
    assert sums.dtype == torch.float32
    assert float(sums[0].detach()) == pytest.approx(expected, rel=1e-5)
    assert torch.allclose(
        masked_logits(model, encode(model, batch), batch), torch.stack([logits_BTV[place] for place in places]), atol=1e-5
    )


@pytest.mark.parametrize("spread", [0.0, 3.0])
def test_a_sampled_softmax_is_the_whole_one_on_average(spread: float) -> None:
    targets = torch.tensor([7, 9, NO_TARGET, 7, 30])
    scores_V = torch.randn(V, generator=torch.Generator().manual_seed(0))
    frequencies_V = spread * torch.randn(V, generator=torch.Generator().manual_seed(1)) - 10
    sums, drawn = [], torch.zeros(V)
    for seed in range(2000):
        torch.manual_seed(seed)
        entries, stand_for, places = draw_entries(targets, frequencies_V, 12)
        assert len(set(entries.tolist())) == 12
        drawn[entries] += stand_for / 2000
        assert torch.equal(torch.where(places == NO_TARGET, NO_TARGET, entries[places.clamp(min=0)]), targets)
        assert (stand_for[places[targets != NO_TARGET]] == 1).all()
        sums.append(float((stand_for * scores_V[entries].exp()).sum()))
    assert sum(sums) / len(sums) == pytest.approx(float(scores_V.exp().sum()), rel=0.02)
    assert len(set(sums)) > 1000
    assert float(drawn.sum()) == pytest.approx(V, rel=0.02)


def test_frequent_entries_are_drawn_more_often() -> None:
    frequencies_V = torch.linspace(0.0, -6.0, V)
    counts = torch.zeros(V)
    for _ in range(500):
        counts[draw_entries(torch.tensor([V - 1]), frequencies_V, 12)[0]] += 1
    assert counts[V - 1] == 500 and counts[:3].min() > 300
    assert counts[: V // 2].sum() > 3 * counts[V // 2 : -1].sum()


@pytest.mark.parametrize("transform", [True, False])
def test_a_sampled_softmax_over_nearly_all_has_nearly_the_same_loss_and_gradient(transform: bool) -> None:
    model, batch = make_model(lm_head="transform" if transform else "plain"), make_batch()
    found = []
    for sampled in (None, V, V - 1, 8):
        torch.manual_seed(0)
        sums = MaskedLm(sampled_softmax=sampled).loss_sums(model, batch, None, None)
        found.append((sums.detach(), torch.autograd.grad(sums.sum(), model.embeddings.word.weight)[0]))
    (loss, gradient), same, near, far = found
    assert torch.equal(loss, same[0]) and torch.equal(gradient, same[1])
    assert not torch.equal(loss, near[0]) and torch.allclose(loss, near[0], rtol=0.05)
    assert torch.nn.functional.cosine_similarity(gradient.flatten(), near[1].flatten(), dim=0) > 0.95
    assert not torch.allclose(loss, far[0], rtol=0.01)


def test_more_targets_than_a_sampled_softmax_has_entries() -> None:
    with pytest.raises(UsageError, match=r"must exceed the 5 targets of a micro-batch, not 5; raise it, or lower"):
        MaskedLm(sampled_softmax=5).loss_sums(make_model(), make_batch(), None, None)


def test_next_sentence_is_a_second_sum() -> None:
    model, batch = make_model(next_sentence=True), make_batch(pairs=True)
    objective = MaskedLm(next_sentence=True)
    assert objective.names == ("mlm", "nsp")
    assert objective.num_targets(batch) == [5, 3]
    sums = objective.loss_sums(model, batch, None, None)
    hidden = model(batch.input_ids, token_type_ids_BT=batch.token_type_ids, attention_mask_BT=batch.attention_mask)
    assert model.nsp_head is not None
    log_probs = model.nsp_head(hidden).detach().log_softmax(-1)
    assert float(sums[1].detach()) == pytest.approx(-float(log_probs[0, 0] + log_probs[1, 1] + log_probs[2, 1]), rel=1e-5)
    assert torch.equal(sums[0], MaskedLm().loss_sums(model, batch, None, None)[0])


def test_types_and_padding_reach_the_model() -> None:
    model, batch = make_model(), make_batch(pairs=True)
    right = encode(model, batch)
    assert torch.equal(right, model(batch.input_ids, token_type_ids_BT=batch.token_type_ids, attention_mask_BT=batch.attention_mask))
    assert not torch.allclose(right, model(batch.input_ids, attention_mask_BT=batch.attention_mask), atol=1e-3)
    assert not torch.allclose(right, model(batch.input_ids, token_type_ids_BT=batch.token_type_ids), atol=1e-3)


def test_gates_and_scales_reach_the_model() -> None:
    model, batch = make_model(), make_batch()
    scales = torch.tensor([1.0, 2.0])
    sums = MaskedLm().loss_sums(model, batch, (False, True), scales)
    hidden = model(batch.input_ids, gates=(False, True), residual_scales_L=scales)
    logits = model.mlm_logits(hidden.flatten(0, 1)[batch.positions])
    assert torch.allclose(sums[0], functional.cross_entropy(logits, batch.target_ids, reduction="sum"))
    sums.sum().backward()
    assert all(parameter.grad is None for parameter in model.blocks[0].parameters())
    assert all(parameter.grad is not None for parameter in model.blocks[1].parameters())


@pytest.mark.parametrize("norm", ["pre", "post"])
def test_an_exit_has_the_loss_of_a_model_that_ends_there(norm: str) -> None:
    model, batch = make_model(num_hidden_layers=4, norm=norm), make_batch()
    objective = MaskedLm(exits=(1, 3), exit_weight=0.5)
    assert objective.names == ("mlm", "mlm_after_1", "mlm_after_3") and objective.num_targets(batch) == [5, 5, 5]
    sums = objective.loss_sums(model, batch, None, None)
    cut = [tuple(block < depth for block in range(4)) for depth in (4, 1, 3)]
    alone = [float(MaskedLm().loss_sums(model, batch, gates, None)[0].detach()) for gates in cut]
    assert sums.tolist() == pytest.approx([alone[0], alone[1] / 2, alone[2] / 2], rel=1e-6)
    sums[1].backward()
    assert [any(bool(parameter.grad.any()) for parameter in block.parameters()) for block in model.blocks] == [True, False, False, False]


def test_exits_of_steps_of_two_kinds_with_dropped_blocks_and_other_heads() -> None:
    """The loss of an exit is of the kind of the batch, after the blocks before it that run, recomputed or not; other heads see the end."""
    model, batch = make_model(num_hidden_layers=4, next_sentence=True), make_batch(pairs=True)
    objective = MaskedLm(next_sentence=True, token_losses=("mlm", "clm"), exits=(2,))
    assert objective.names == ("mlm", "clm", "nsp", "mlm_after_2", "clm_after_2") and objective.num_targets(batch) == [5, 0, 3, 5, 0]
    gates, scales = (False, True, True, False), torch.tensor([1.0, 2.0, 3.0, 4.0])
    sums = objective.loss_sums(model, batch, gates, scales)
    plain = MaskedLm(next_sentence=True)
    whole, cut = (plain.loss_sums(model, batch, some, scales) for some in (gates, (False, True, False, False)))
    assert torch.allclose(sums, torch.stack([whole[0], torch.tensor(0.0), whole[1], cut[0], torch.tensor(0.0)]))
    gradients = torch.autograd.grad(sums.sum(), list(model.blocks[1].parameters()))
    model.checkpoint_activations = True
    again = torch.autograd.grad(objective.loss_sums(model, batch, gates, scales).sum(), list(model.blocks[1].parameters()))
    assert all(torch.equal(one, other) for one, other in zip(gradients, again, strict=True))


def test_targets_that_fill_up_and_scores_beyond_the_vocabulary_teach_nothing() -> None:
    model, batch = make_model().double(), make_batch()
    filled = replace(
        batch,
        positions=torch.cat([batch.positions, torch.zeros(5, dtype=torch.int64)]),
        target_ids=torch.cat([batch.target_ids, torch.full((5,), NO_TARGET)]),
    )
    plain, padded = MaskedLm(), MaskedLm(vocab_multiple=64)
    assert plain.num_targets(filled) == plain.num_targets(batch) == [len(batch.target_ids)]
    results = []
    for objective, given in ((plain, batch), (plain, filled), (padded, filled)):
        model.zero_grad()
        total = objective.loss_sums(model, given, None, None).sum()
        total.backward()
        results.append([total.detach(), *(parameter.grad for parameter in model.parameters() if parameter.grad is not None)])
    for other in results[1:]:
        for ours, theirs in zip(results[0], other, strict=True):
            torch.testing.assert_close(ours, theirs, rtol=1e-6, atol=1e-9)


@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor:UserWarning")  # torch looks at it while tracing
def test_head_and_loss_compile_into_one_graph(monkeypatch: pytest.MonkeyPatch) -> None:
    """Once: neither other targets nor another step compile anything."""
    from torch._dynamo.utils import counters

    compiled = torch.compile(objectives.masked_loss_sum, backend="aot_eager", fullgraph=True)
    monkeypatch.setattr(objectives, "compiled_once", lambda loss_sum: compiled)
    torch._dynamo.reset()
    counters.clear()
    model, batch = make_model(), make_batch()
    for step in range(3):
        given = replace(batch, target_ids=(batch.target_ids + step) % 20 + 5)
        losses = [MaskedLm(compiled=compiled).loss_sums(model, given, None, None) for compiled in (False, True)]
        torch.testing.assert_close(*losses)
        losses[1].sum().backward()
        assert counters["stats"]["unique_graphs"] == 1
    torch._dynamo.reset()


@pytest.mark.parametrize("pairs", [False, True])
def test_sums_and_gradients_do_not_depend_on_the_split_into_micro_batches(pairs: bool) -> None:
    model, batch = make_model(next_sentence=pairs).double(), make_batch(pairs=pairs)
    objective = MaskedLm(next_sentence=pairs)

    def run(batches: list[Batch]) -> tuple[Tensor, list[float], list[Tensor]]:
        model.zero_grad()
        sums = [objective.loss_sums(model, each, None, None) for each in batches]
        sum(each.sum() for each in sums).backward()  # type: ignore[union-attr]
        counts = [float(sum(column)) for column in zip(*map(objective.num_targets, batches), strict=True)]
        return sum(sums).detach(), counts, [parameter.grad for parameter in model.parameters() if parameter.grad is not None]  # type: ignore[union-attr]

    whole_sums, whole_counts, whole = run([batch])
    part_sums, part_counts, parts = run([part(batch, slice(0, 1)), part(batch, slice(1, 3))])
    assert whole_counts == part_counts
    assert torch.allclose(whole_sums, part_sums, rtol=1e-6)
    assert len(whole) == len(parts)
    for one, other in zip(whole, parts, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-6)


def test_a_batch_without_targets_adds_zero_and_has_a_backward() -> None:
    model, batch = make_model(), make_batch(positions=())
    sums = MaskedLm().loss_sums(model, batch, None, None)
    assert MaskedLm().num_targets(batch) == [0]
    assert sums.tolist() == [0.0]
    sums.sum().backward()
    assert all(bool((parameter.grad == 0).all()) for parameter in model.parameters() if parameter.grad is not None)


def test_losses_are_summed_in_float32_under_autocast() -> None:
    model, batch = make_model(next_sentence=True), make_batch(pairs=True)
    with torch.autocast("cpu", torch.bfloat16):
        sums = MaskedLm(next_sentence=True).loss_sums(model, batch, None, None)
    assert sums.dtype == torch.float32
    exact = MaskedLm(next_sentence=True).loss_sums(model, batch, None, None)
    assert torch.allclose(sums, exact, rtol=0.03)
    assert not torch.equal(sums, exact)


# Span boundaries


def span_batch() -> Batch:
    """Spans of one token, of three, and of two; then targets that pad to a fixed number."""
    batch = make_batch(positions=(3, 11, 12, 13, 27, 28, 0, 0))
    return replace(batch, target_ids=torch.cat([batch.target_ids[:6], torch.full((2,), NO_TARGET)]))


def test_span_boundaries_are_another_sum() -> None:
    """Of each masked token, as the tokens on both sides of its span and its place in it predict it."""
    model, batch = make_model(span_boundary=True, next_sentence=True), span_batch()
    objective = MaskedLm(span_boundary=True)
    assert objective.names == ("mlm", "sbo")
    assert objective.num_targets(batch) == [6, 6]
    sums = objective.loss_sums(model, batch, None, None)
    hidden = model(batch.input_ids).flatten(0, 1)
    head = model.sbo_head
    assert head is not None and head.output.dense is not None and head.output.norm is not None
    expected = 0.0
    spans = [(3, 3), (11, 13), (27, 28)]
    targets = iter(batch.target_ids.tolist())
    for first, last in spans:
        for place in range(last - first + 1):
            mixed = torch.cat([hidden[first - 1], hidden[last + 1], head.place.weight[place]])
            mixed = head.boundary_norm(functional.gelu(head.boundary.weight @ mixed + head.boundary.bias))
            mixed = head.output.norm(functional.gelu(head.output.dense.weight @ mixed + head.output.dense.bias))
            logits = model.embeddings.word.weight @ mixed + head.output.bias
            expected -= float(logits.detach().log_softmax(0)[next(targets)])
    assert float(sums[1].detach()) == pytest.approx(expected, rel=1e-5)
    plain, pairs = make_batch(), replace(span_batch(), next_sentence_labels=torch.tensor([0, 1, 1]))
    assert torch.equal(sums[0], MaskedLm().loss_sums(model, batch, None, None)[0])
    both = MaskedLm(next_sentence=True, span_boundary=True)
    assert both.names == ("mlm", "nsp", "sbo")
    assert both.num_targets(pairs) == [6, 3, 6]
    assert torch.equal(both.loss_sums(model, pairs, None, None)[2], sums[1])
    assert len(MaskedLm().loss_sums(model, plain, None, None)) == 1


def test_span_boundaries_do_not_depend_on_the_split_into_micro_batches() -> None:
    model, batch = make_model(span_boundary=True).double(), span_batch()
    whole = MaskedLm(span_boundary=True).loss_sums(model, batch, None, None)
    real = replace(batch, positions=batch.positions[:6], target_ids=batch.target_ids[:6])
    parts = [MaskedLm(span_boundary=True).loss_sums(model, part(real, rows), None, None) for rows in (slice(0, 1), slice(1, 3))]
    torch.testing.assert_close(whole, parts[0] + parts[1], rtol=1e-6, atol=1e-9)


def test_a_place_far_into_a_span_and_a_batch_without_targets_have_a_loss() -> None:
    model = make_model(span_boundary=True, max_position_embeddings=100)
    long = Batch(input_ids=torch.full((1, 100), 7), positions=torch.arange(1, 99), target_ids=torch.full((98,), 9))
    for batch, count in ((long, 98), (make_batch(positions=()), 0)):
        sums = MaskedLm(span_boundary=True).loss_sums(model, batch, None, None)
        assert MaskedLm(span_boundary=True).num_targets(batch) == [count, count]
        assert bool(sums.isfinite().all()) and bool((sums > 0).all()) == (count > 0)
        sums.sum().backward()


@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor:UserWarning")  # torch looks at it while tracing
def test_another_number_of_targets_compiles_head_and_loss_once_more(monkeypatch: pytest.MonkeyPatch) -> None:
    """A share of targets that moves: after the second number any number runs what is there."""
    from torch._dynamo.utils import counters

    functions = objectives.masked_loss_sum, objectives.boundary_loss_sum
    compiled = {function: torch.compile(function, backend="eager", fullgraph=True) for function in functions}
    monkeypatch.setattr(objectives, "compiled_once", compiled.__getitem__)
    torch._dynamo.reset()
    counters.clear()
    model = make_model(span_boundary=True)
    for count, graphs in ((7, 2), (6, 4), (5, 4), (8, 4), (4, 4)):
        batch = make_batch(positions=tuple(range(11, 11 + count)))
        losses = [MaskedLm(compiled=compiled, span_boundary=True).loss_sums(model, batch, None, None) for compiled in (False, True)]
        torch.testing.assert_close(*losses)
        assert counters["stats"]["unique_graphs"] == graphs, count
    torch._dynamo.reset()


# Fine-tuning


KINDS: dict[TaskKind, tuple[TaskHead, str]] = {
    "classification": (TaskHead("sequence", 3), "SequenceClassification"),
    "multi-label": (TaskHead("sequence", 3), "SequenceClassification"),
    "regression": (TaskHead("sequence", 1), "SequenceClassification"),
    "tags": (TaskHead("token", 4), "TokenClassification"),
    "spans": (TaskHead("token", 2), "QuestionAnswering"),
}
LENGTHS = (10, 6, 3)
LABELS: dict[TaskKind, Tensor] = {
    "classification": torch.tensor([2, 0, 1]),
    "multi-label": torch.tensor([[1.0, 0.0, 1.0], [0.0, 0.0, 0.0], [0.0, 1.0, 0.0]]),
    "regression": torch.tensor([0.5, -2.0, 3.25]),
    "tags": torch.tensor([[-100, 0, 3, -100, 2, 1, 1, 0, 0, -100], [-100, 2, 2, 0, 1, -100, *[-100] * 4], [-100, 3, -100, *[-100] * 7]]),
    "spans": torch.tensor([[2, 4], [5, 5], [0, 0]]),
}


def task_batch(kind: TaskKind, rows: slice = slice(0, 3), width: int = 10) -> TaskBatch:
    mask = torch.arange(10) < torch.tensor(LENGTHS)[:, None]
    ids = make_batch().input_ids.masked_fill(~mask, 0)[rows, :width]
    types = ((torch.arange(10) > 3) & mask).long()[rows, :width]
    labels = LABELS[kind][rows]
    return TaskBatch(ids, types, mask[rows, :width], labels[:, :width] if kind == "tags" else labels)


def with_head(kind: TaskKind) -> StBert:
    return make_model(masked_lm=False, task_head=KINDS[kind][0], norm="post", type_vocab_size=2)


@pytest.fixture
def theirs(tmp_path: Path) -> Callable[[TaskKind, StBert], Any]:
    """The same model as transformers has it."""
    transformers = pytest.importorskip("transformers")
    tokenizer = train_tokenizer([f"a b c d e f g h i j {number}" for number in range(30)], vocab_size=V)

    def load(kind: TaskKind, model: StBert) -> Any:
        settings = ModelConfig(
            num_hidden_layers=2, hidden_size=16, num_attention_heads=2, intermediate_size=24, vocab_size=V, max_position_embeddings=10,
            norm="post", dropout=0.0,
        )  # fmt: skip
        has_names = kind in ("classification", "multi-label", "tags")
        labels = tuple(f"B-{number}" for number in range(KINDS[kind][0].num_outputs)) if has_names else ()
        task = Task("mine", kind, ("text",), "label", labels)
        save_pretrained(tmp_path, model, settings, tokenizer=tokenizer, seq_len=10, task=task, max_seq_len=10)
        return getattr(transformers, f"AutoModelFor{KINDS[kind][1]}").from_pretrained(tmp_path).eval()

    return load


@pytest.mark.parametrize("kind", KINDS)
def test_a_tasks_loss_is_that_of_transformers(kind: TaskKind, theirs: Callable[[TaskKind, StBert], Any]) -> None:
    model, objective = with_head(kind), TaskLoss(kind)
    other = theirs(kind, model)
    total, count = 0.0, 0
    for row, length in enumerate(LENGTHS):  # row by row: their loss over spans counts padding as places where an answer may be
        batch = task_batch(kind, slice(row, row + 1), length)
        labels = (
            {"labels": batch.labels} if kind != "spans" else {"start_positions": batch.labels[:, 0], "end_positions": batch.labels[:, 1]}
        )
        inputs = {"input_ids": batch.input_ids, "token_type_ids": batch.token_type_ids, "attention_mask": batch.attention_mask.long()}
        [targets] = objective.num_targets(batch)
        total += float(other(**inputs, **labels).loss.detach()) * targets
        count += targets
    padded = task_batch(kind)
    assert objective.names == (kind,)
    assert objective.num_targets(padded) == [count] == [{"tags": 12, "multi-label": 9}.get(kind, 3)]
    assert float(objective.loss_sums(model, padded, None, None).detach()) == pytest.approx(total, rel=1e-5)
    if kind != "spans":
        inputs = {"input_ids": padded.input_ids, "token_type_ids": padded.token_type_ids, "attention_mask": padded.attention_mask.long()}
        together = float(other(**inputs, labels=padded.labels).loss.detach())
        assert float(objective.loss_sums(model, padded, None, None).detach()) / count == pytest.approx(together, rel=1e-5)


@pytest.mark.parametrize("kind", KINDS)
def test_a_tasks_sums_and_gradients_do_not_depend_on_the_split(kind: TaskKind) -> None:
    model, objective = with_head(kind).double(), TaskLoss(kind)

    def run(batches: list[TaskBatch]) -> tuple[float, int, list[Tensor]]:
        model.zero_grad()
        sums = [objective.loss_sums(model, each, None, None) for each in batches]
        sum(each.sum() for each in sums).backward()  # type: ignore[union-attr]
        gradients = [parameter.grad.clone() for parameter in model.parameters() if parameter.grad is not None]
        return float(sum(sums).detach()), sum(objective.num_targets(each)[0] for each in batches), gradients  # type: ignore[union-attr]

    whole = run([task_batch(kind)])
    parts = run([task_batch(kind, slice(0, 1)), task_batch(kind, slice(1, 3), 6)])
    assert whole[:2] == (pytest.approx(parts[0], rel=1e-5), parts[1])
    assert len(whole[2]) == len(parts[2]) == len(list(model.parameters()))
    for one, other in zip(whole[2], parts[2], strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("kind", KINDS)
def test_a_tasks_loss_is_summed_in_float32_under_autocast(kind: TaskKind) -> None:
    model, batch = with_head(kind), task_batch(kind)
    with torch.autocast("cpu", torch.bfloat16):
        rough = TaskLoss(kind).loss_sums(model, batch, None, None)
    exact = TaskLoss(kind).loss_sums(model, batch, None, None)
    assert rough.dtype == torch.float32
    torch.testing.assert_close(rough, exact, rtol=0.1, atol=0.1)


def test_gates_reach_a_tasks_model() -> None:
    model, batch = with_head("classification"), task_batch("classification")
    TaskLoss("classification").loss_sums(model, batch, (False, True), None).sum().backward()
    assert all(parameter.grad is None for parameter in model.blocks[0].parameters())
    assert all(parameter.grad is not None for parameter in model.blocks[1].parameters())


@pytest.mark.parametrize("precision", ["fp32", "fp16"])
@pytest.mark.parametrize("kind", KINDS)
def test_a_step_of_fine_tuning_without_labels_has_no_loss_and_no_gradient(kind: TaskKind, precision: Any) -> None:
    labelled = task_batch(kind)
    assert labelled.labels is not None
    none: Any = torch.full_like(labelled.labels, torch.nan if labelled.labels.is_floating_point() else NO_TARGET)
    batch = replace(labelled, labels=none)

    class Unlabelled:
        def step(self, step: int) -> list[list[TaskBatch]]:
            return [[batch, batch]]

        def from_step(self, first: int, stop: int) -> Iterator[list[list[TaskBatch]]]:
            return (self.step(step) for step in range(first, stop))

        def num_sequences(self, step: int) -> int:
            return 2 * len(batch.input_ids)

    model = with_head(kind)
    trainer = Trainer(
        model,
        objective=TaskLoss(kind),
        schedule=Dropping(num_blocks=2, total_steps=3, theta_bar=1.0),
        optimizer=torch.optim.AdamW(model.parameters(), weight_decay=0.0),
        batches=Unlabelled(),
        learning_rate=lambda step: 1e-2,
        max_grad_norm=1.0,
        precision=Precision(precision, torch.device("cpu")),
        runtime=Runtime(torch.device("cpu")),
        flops=tiny_config().flops,
        seed=0,
    )
    before = {name: value.clone() for name, value in model.state_dict().items()}
    seen = list(trainer.steps(Position(), observe=lambda step: True, stop=StopRequest()))
    assert [(each.losses["loss"], each.losses[kind], each.grad_norm) for each in seen] == [(0.0, 0.0, 0.0)] * 3
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
