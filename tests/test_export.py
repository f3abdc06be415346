import json

import pytest
import torch

from pldcli.errors import CheckpointError, OutputError, UsageError
from pldcli.evaluation.depth import choose_depths
from pldcli.export import export
from pldcli.huggingface import read_back
from pldcli.huggingface.load import load_pretrained
from pldcli.huggingface.save import save_pretrained
from pldcli.model import StBert, TaskHead
from pldcli.presets import dump
from pldcli.runs.model_source import open_model
from pldcli.tasks.task import Task
from pldcli.tokenization.tokenizer import load_prepared_tokenizer
from tests.conftest import tiny_config
from tests.test_huggingface import shaken

transformers = pytest.importorskip("transformers")

TASKS = {
    "classification": (
        Task("mine", "classification", ("text",), "label", labels=("bad", "good", "so so"), written=(0, 1, 2), metrics=("accuracy",)),
        TaskHead("sequence", 3),
        "SequenceClassification",
    ),
    "regression": (Task("sim", "regression", ("a", "b"), "score", metrics=("pearson",)), TaskHead("sequence", 1), "SequenceClassification"),
    "tags": (
        Task("ner", "tags", ("words",), "tags", labels=("O", "B-X"), metrics=("entity_f1",)),
        TaskHead("token", 2),
        "TokenClassification",
    ),
    "spans": (Task("qa", "spans", ("question", "context"), "answers", metrics=("f1",)), TaskHead("token", 2), "QuestionAnswering"),
}


KINDS = {
    "pre": ("model.norm=pre",),
    "post": ("model.norm=post",),
    "rotary": (
        "model.position_embedding=rotary",
        "model.feed_forward=geglu",
        "model.first_attention_norm=false",
        "model.type_vocab_size=0",
        "model.global_layers=3",
        "model.local_attention=8",
    ),
}


def test_what_was_compiled_is_read_back_without_a_compiler(prepared, tmp_path):
    tokenizer = load_prepared_tokenizer(prepared)
    settings = tiny_config("model.norm=pre", f"model.vocab_size={tokenizer.vocab_size}").model
    model = StBert(**dict(settings))
    (tmp_path / "model").mkdir()
    save_pretrained(tmp_path / "model", model, settings, tokenizer=tokenizer, seq_len=32)

    def compiler(*_):
        raise RuntimeError("no C++ compiler here")

    for part in (model.embeddings, *model.blocks):
        part.compile(backend=compiler)
    checked = read_back.read_back(tmp_path / "model", model, tokenizer)
    assert checked.failure is None and checked.difference < 1e-4


def test_the_check_on_the_spot_reads_text(save, prepared):
    place, model = save("pre")
    tokenizer = load_prepared_tokenizer(prepared)
    assert read_back.read_back(place, model, tokenizer).failure is None
    content = json.loads((place / "tokenizer.json").read_text())
    content["normalizer"] = {
        "type": "Sequence",
        "normalizers": [{"type": "Lowercase"}, {"type": "Strip", "strip_left": True, "strip_right": True}],
    }
    (place / "tokenizer.json").write_text(json.dumps(content))
    assert 'makes other tokens of "The old river' in read_back.read_back(place, model, tokenizer).failure


@pytest.fixture
def save(prepared, tmp_path):
    """Write a model of 5 shaken blocks, for masked words or for a task."""

    def call(norm, task=None):
        tokenizer = load_prepared_tokenizer(prepared)
        changes = (*KINDS[norm], f"model.vocab_size={tokenizer.vocab_size}", "model.num_hidden_layers=5")
        settings = tiny_config(*changes).model
        shape = TASKS[task][1] if task else None
        model = shaken(StBert(**vars(settings), masked_lm=task is None, task_head=shape))
        place = tmp_path / f"{norm}-{task}"
        place.mkdir()
        save_pretrained(place, model, settings, tokenizer=tokenizer, seq_len=24, task=TASKS[task][0] if task else None)
        return place, model

    return call


@torch.no_grad()
@pytest.mark.parametrize("norm", KINDS)
@pytest.mark.parametrize("how", ["first", "even", "keep-prob"])
def test_the_smaller_model_is_the_large_one_with_gates(save, tmp_path, norm, how):
    source, model = save(norm)
    done = export(source, tmp_path / "out" / "small", keep_blocks=3, blocks=how)
    gates = (True, False, True, False, True) if how == "even" else (True, True, True, False, False)
    assert done.gates == gates and done.read_back.difference < 1e-4 and done.left_out == ()
    ids = torch.arange(5, 45).view(2, 20)
    wanted = model.mlm_logits(model(ids, gates=gates))
    theirs = transformers.AutoModelForMaskedLM.from_pretrained(done.path).eval()
    torch.testing.assert_close(theirs(input_ids=ids).logits, wanted, rtol=0, atol=1e-4)
    again, before = load_pretrained(done.path), load_pretrained(source).settings
    assert again.settings == before.replace(num_hidden_layers=3) and again.seq_len == 24
    torch.testing.assert_close(again.masked_lm().eval()(ids), model(ids, gates=gates), rtol=0, atol=1e-5)
    assert (wanted - model.mlm_logits(model(ids))).abs().max() > 0.1


@torch.no_grad()
@pytest.mark.parametrize("norm", KINDS)
@pytest.mark.parametrize("kind", TASKS)
def test_a_fine_tuned_model_keeps_its_head_and_its_task(save, tmp_path, norm, kind):
    source, model = save(norm, kind)
    done = export(source, tmp_path / "small", keep_blocks=2, blocks="even")
    assert done.gates == (True, False, False, False, True) and done.read_back.difference < 1e-4
    before, after = (json.loads((place / "config.json").read_text()) for place in (source, done.path))
    cut = {"layer_types": ["full_attention", "sliding_attention"], "global_attn_every_n_layers": 2} if norm == "rotary" else {}
    assert after == before | {"num_hidden_layers": 2} | cut
    theirs = getattr(transformers, f"AutoModelFor{TASKS[kind][2]}").from_pretrained(done.path).eval()
    ids = torch.arange(5, 45).view(2, 20)
    outputs = theirs(input_ids=ids)
    logits = torch.stack([outputs.start_logits, outputs.end_logits], -1) if kind == "spans" else outputs.logits
    torch.testing.assert_close(logits, model.task_head(model(ids, gates=done.gates)), rtol=0, atol=1e-4)


@torch.no_grad()
def test_the_first_block_stays_where_its_successor_would_lose_a_norm(save, tmp_path):
    """The run kept its last blocks always, and the first one least often."""
    rare_first = tiny_config("model.num_hidden_layers=5", "pld.keep_last=2", "pld.theta_bar=0.5", "pld.depth_rule=uniform")
    source, model = save("rotary")
    (source / "config.yaml").write_text(dump(rare_first))
    for number, gates in ((1, (1, 0, 0, 0, 0)), (2, (1, 0, 0, 1, 0)), (3, (1, 0, 0, 1, 1))):
        done = export(source, tmp_path / f"{number}", keep_blocks=number)
        assert done.gates == tuple(map(bool, gates)) and done.read_back.difference < 1e-4
        assert done.reason.startswith("the first block, without which the next would lose its norm, and the blocks kept most often: keep")
        assert choose_depths(source, (number,), "keep-prob", load_pretrained(source).settings).gates == (done.gates,), "as evaluated"
        theirs = transformers.AutoModelForMaskedLM.from_pretrained(done.path).eval()
        ids = torch.arange(5, 45).view(2, 20)
        torch.testing.assert_close(theirs(input_ids=ids).logits, model.mlm_logits(model(ids, gates=done.gates)), rtol=0, atol=1e-4)
    assert load_pretrained(tmp_path / "3").settings.global_layers == (0, 1), "blocks 0 and 3 of the large one"
    source, _ = save("pre")
    (source / "config.yaml").write_text(dump(rare_first))
    assert export(source, tmp_path / "plain", keep_blocks=2).gates == (False, False, False, True, True)


def test_without_a_number_the_whole_model_is_written(save, tmp_path):
    source, _ = save("pre")
    done = export(source, tmp_path / "whole")
    assert done.gates == (True,) * 5 and done.reason == ""
    assert (done.path / "model.safetensors").read_bytes() == (source / "model.safetensors").read_bytes()
    assert json.loads((done.path / "config.json").read_text()) == json.loads((source / "config.json").read_text())


def test_what_cannot_be_exported(save, tmp_path):
    source, _ = save("pre")
    for number in (0, 6):
        with pytest.raises(UsageError) as raised:
            export(source, tmp_path / "out", keep_blocks=number)
        assert str(raised.value) == f"--keep-blocks: {number} is not between 1 and the 5 blocks of this model"
    with pytest.raises(CheckpointError, match="no such run or model directory"):
        export(tmp_path / "nowhere", tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_models_without_a_head_or_a_record(save, tmp_path):
    source, _ = save("post", "classification")
    config = json.loads((source / "config.json").read_text())
    record = config.pop("pld_task")
    for change, message in (
        ({}, "has the head of a task that `pld finetune` did not write down; give the pre-trained model"),
        ({"architectures": ["BertModel"]}, "has no masked-LM head; give a model that was saved with its pre-training head"),
        ({"pld_task": {"kind": "tags"}}, "pld_task in config.json is damaged"),
        ({"pld_task": record | {"kind": "poetry"}}, "pld_task in config.json is damaged"),
    ):
        (source / "config.json").write_text(json.dumps(config | change))
        with pytest.raises(CheckpointError) as raised:
            export(source, tmp_path / "out", keep_blocks=2)
        assert str(raised.value).startswith(f"{source}: {message}") and not (tmp_path / "out").exists()


def test_nothing_is_replaced_by_accident(save, tmp_path):
    source, _ = save("pre")
    export(source, tmp_path / "out")
    with pytest.raises(OutputError, match="is already there; add --overwrite"):
        export(source, tmp_path / "out", keep_blocks=2)
    assert open_model(tmp_path / "out").settings.num_hidden_layers == 5
    export(source, tmp_path / "out", keep_blocks=2, overwrite=True)
    assert open_model(tmp_path / "out").settings.num_hidden_layers == 2
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "config.yaml").write_text("")
    export(source, tmp_path / "run" / "model")
    for place in (tmp_path / "run" / "model", tmp_path / "out"):
        with pytest.raises(OutputError, match="is the model of a run, or the one that is read; choose another place"):
            export(tmp_path / "out", place, keep_blocks=1, overwrite=True)
    with pytest.raises(OutputError, match="is not a model directory, and is left alone; choose another place"):
        export(source, tmp_path / "run", overwrite=True)


def test_a_model_is_written_whatever_transformers_makes_of_it(save, tmp_path, monkeypatch):
    monkeypatch.setattr(read_back, "largest_difference", lambda *_: float("nan"))
    source, _ = save("pre")
    done = export(source, tmp_path / "out", keep_blocks=2)
    assert done.read_back.difference is None and "differs by nan" in done.read_back.failure
    assert load_pretrained(tmp_path / "out").settings.num_hidden_layers == 2


def test_a_broken_transformers_is_a_warning(save, tmp_path, monkeypatch):
    def broken(*_, **__):
        raise RuntimeError("Failed to import transformers.models")

    source, _ = save("post")
    monkeypatch.setattr(transformers.BertForMaskedLM, "from_pretrained", broken)
    done = export(source, tmp_path / "out")
    assert done.read_back.failure == "transformers cannot read it back: RuntimeError: Failed to import transformers.models"
    monkeypatch.undo()
    assert transformers.BertForMaskedLM.from_pretrained(tmp_path / "out").num_parameters() > 0
