from __future__ import annotations

import json
import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from pldcli.engine.precision import Precision
from pldcli.engine.runtime import Runtime, launch
from pldcli.evaluation import prediction as module
from pldcli.evaluation.prediction import as_json_lines, outputs_of, score_split
from pldcli.model import StBert, TaskHead
from pldcli.tasks.task import Examples, Features, Label, Task

CPU = Runtime(torch.device("cpu"))
EXACT = Precision("fp32", torch.device("cpu"))
TASK = Task("mine", "classification", ("text",), "label", ("no", "yes", "perhaps"), written=(0, 1, 2), metrics=("accuracy",))
PAD = 0


def make_model(kind: Any = "sequence", **changes: Any) -> StBert:
    given = {"initializer_range": 0.3, "dropout": 0.2, "task_head": TaskHead(kind, 3, 0.5)} | changes
    return StBert(
        num_hidden_layers=3, hidden_size=16, num_attention_heads=2, intermediate_size=24, vocab_size=40, max_position_embeddings=32,
        masked_lm=False, **given,
    )  # fmt: skip


def make_features(lengths: list[int], seed: int = 0) -> Features:
    draw = random.Random(seed)
    ids = np.array([draw.randint(5, 39) for _ in range(sum(lengths))], np.int32)
    types = np.array([draw.randint(0, 1) for _ in range(sum(lengths))], np.int8)
    return Features(ids, types, np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64), None, np.arange(len(lengths)))


_draw = random.Random(1)
LENGTHS = [_draw.randint(3, 32) for _ in range(40)]


def plainly(model: StBert, features: Features) -> Iterator[np.ndarray]:
    """Row by row, without padding."""
    model.eval()
    for start, stop in zip(features.offsets[:-1], features.offsets[1:], strict=True):
        ids, types = (torch.from_numpy(array[start:stop].astype(np.int64))[None] for array in (features.input_ids, features.token_type_ids))
        with torch.no_grad():
            assert model.task_head is not None
            yield model.task_head(model(ids, token_type_ids_BT=types))[0].numpy()


@pytest.mark.parametrize("tokens", [1, 70, 4096])
@pytest.mark.parametrize("kind", ["sequence", "token"])
@pytest.mark.parametrize("norm", ["pre", "post"])
def test_outputs_are_those_of_each_row_alone(kind: Any, norm: Any, tokens: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """However rows are batched and padded, and in their own order."""
    monkeypatch.setattr(module, "_TOKENS_PER_FORWARD", {"cpu": tokens})
    model, features = make_model(kind, norm=norm), make_features(LENGTHS)
    found = outputs_of(model, features, EXACT, CPU, pad_id=PAD)
    assert [len(one) for one in found] == ([3] * 40 if kind == "sequence" else LENGTHS)
    for ours, alone in zip(found, plainly(model, features), strict=True):
        assert ours.dtype == np.float32
        np.testing.assert_allclose(ours, alone, rtol=0, atol=2e-5)


@pytest.mark.parametrize("kind", ["sequence", "token"])
def test_the_order_of_rows_does_not_matter(kind: Any) -> None:
    model, features = make_model(kind), make_features(LENGTHS)
    order = list(range(40))
    random.Random(2).shuffle(order)
    parts = [slice(int(features.offsets[row]), int(features.offsets[row + 1])) for row in order]
    other = Features(
        np.concatenate([features.input_ids[part] for part in parts]),
        np.concatenate([features.token_type_ids[part] for part in parts]),
        np.concatenate([[0], np.cumsum([part.stop - part.start for part in parts])]).astype(np.int64),
        None,
        np.arange(40),
    )
    first, second = (outputs_of(model, rows, EXACT, CPU, pad_id=PAD) for rows in (features, other))
    for place, row in enumerate(order):
        np.testing.assert_allclose(second[place], first[row], rtol=0, atol=2e-5)


@pytest.mark.parametrize("kind", ["sequence", "token"])
def test_what_stands_in_the_padding_does_not_matter(kind: Any) -> None:
    model, features = make_model(kind), make_features(LENGTHS)
    first, second = (outputs_of(model, features, EXACT, CPU, pad_id=pad) for pad in (0, 7))
    for one, other in zip(first, second, strict=True):
        np.testing.assert_allclose(one, other, rtol=0, atol=1e-6)


def test_no_rows() -> None:
    assert outputs_of(make_model(), make_features([]), EXACT, CPU, pad_id=PAD) == []
    assert [len(one) for one in outputs_of(make_model("token"), make_features([5]), EXACT, CPU, pad_id=PAD)] == [5]


def test_the_model_is_left_as_it_was() -> None:
    model = make_model()
    for training in (True, False):
        model.train(training)
        found = outputs_of(model, make_features(LENGTHS), EXACT, CPU, pad_id=PAD)
        again = outputs_of(model, make_features(LENGTHS), EXACT, CPU, pad_id=PAD)
        assert model.training is training and model.blocks[0].training is training
        assert all((one == other).all() for one, other in zip(found, again, strict=True)), "no dropout"
        assert all(parameter.grad is None and parameter.requires_grad for parameter in model.parameters())


def test_gates_and_precision_reach_the_model() -> None:
    model, features = make_model(), make_features(LENGTHS)
    whole = np.stack(outputs_of(model, features, EXACT, CPU, pad_id=PAD))
    fewer = np.stack(outputs_of(model, features, EXACT, CPU, pad_id=PAD, gates=(True, False, True)))
    del model.blocks[1]
    np.testing.assert_allclose(np.stack(outputs_of(model, features, EXACT, CPU, pad_id=PAD)), fewer, rtol=0, atol=1e-6)
    assert np.abs(fewer - whole).max() > 1e-2
    rough = np.stack(outputs_of(model, features, Precision("bf16", torch.device("cpu")), CPU, pad_id=PAD))
    assert 0 < np.abs(rough - fewer).max() < 0.2


def test_progress_counts_every_row() -> None:
    seen: list[int] = []
    outputs_of(make_model(), make_features(LENGTHS), EXACT, CPU, pad_id=PAD, progress=seen.append)
    assert sum(seen) == 40


def examples(labels: list[int] | None, indices: list[Label] | None = None) -> Examples:
    return Examples("test", "here", (["t"] * 40,), labels, indices or list(range(40)))


def test_a_split_is_predicted_and_scored() -> None:
    model, features = make_model(), make_features(LENGTHS)
    best = [int(output.argmax()) for output in plainly(model, features)]
    assert len(set(best)) > 1
    wrong = [(label + (row % 4 == 0)) % 3 for row, label in enumerate(best)]
    found = score_split(model, examples(wrong), features, TASK, EXACT, CPU, pad_id=PAD)
    assert [one.label for one in found.predictions] == best
    assert found.scores == {"accuracy": 0.75}
    assert found.num_tokens == sum(LENGTHS) and found.seconds > 0
    assert score_split(model, examples(None), features, TASK, EXACT, CPU, pad_id=PAD).scores == {}


def test_lines_of_json_have_the_names_of_the_examples() -> None:
    found = score_split(make_model(), examples(None), make_features(LENGTHS), TASK, EXACT, CPU, pad_id=PAD)
    names: list[Label] = [f"example {row}" for row in range(40)]
    lines = as_json_lines(found.predictions, examples(None, names))
    assert [line["index"] for line in lines] == names
    assert all(line.keys() == {"index", "label", "scores"} and list(line["scores"]) == ["no", "yes", "perhaps"] for line in lines)
    assert [line["label"] for line in json.loads(json.dumps(lines))] == [one.label_id for one in found.predictions]


# Several processes


def one_of_two(place: str) -> None:
    """What each of two processes does for `test_two_processes_give_all_of_it`."""
    with launch("cpu") as runtime:
        found: dict[str, list[Any]] = {}
        for kind in ("sequence", "token"):
            for name, lengths in (("many", LENGTHS), ("one", [9]), ("none", [])):
                outputs = outputs_of(make_model(kind), make_features(lengths), EXACT, runtime, pad_id=PAD)
                found[f"{kind} {name}"] = [output.tolist() for output in outputs]
        Path(place, f"{runtime.rank}.json").write_text(json.dumps(found))


def test_two_processes_give_all_of_it(processes: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    code = f"import tests.evaluation.test_prediction as t; t.module._TOKENS_PER_FORWARD = {{'cpu': 200}}; t.one_of_two({str(tmp_path)!r})"
    processes.together(code)
    monkeypatch.setattr(module, "_TOKENS_PER_FORWARD", {"cpu": 200})
    first, second = (json.loads((tmp_path / f"{rank}.json").read_text()) for rank in range(2))
    assert first == second
    for kind in ("sequence", "token"):
        for name, lengths in (("many", LENGTHS), ("one", [9]), ("none", [])):
            alone = outputs_of(make_model(kind), make_features(lengths), EXACT, CPU, pad_id=PAD)
            assert first[f"{kind} {name}"] == [output.tolist() for output in alone], "to the last bit: each row is computed once"
