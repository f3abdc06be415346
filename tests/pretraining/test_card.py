import json

import pytest

from pldcli.pretraining import card as model_card
from pldcli.runs.checkpoint import Position
from pldcli.runs.run_directory import RunDirectory
from tests.conftest import MadeUpData, tiny_config

TRAINING = {
    "train/loss": 3.5, "pld/kept_blocks": 2.0, "speed/tokens_per_second": 1e4, "optim/learning_rate": 1e-3,
}  # fmt: skip


class Data(MadeUpData):
    manifest = {  # noqa: RUF012
        "sources": [{"name": f"/home/somebody/text-{n}.txt"} for n in range(10)],
        "counts": {"train": {"documents": 1234, "tokens": 56789, "unknown": 111}},
    }


def card(tmp_path, rows, *changes, starts=(), position=None, data=Data):
    run = RunDirectory(tmp_path / "run")
    run.path.mkdir(exist_ok=True)
    run.metrics.write_text("".join(json.dumps(row) + "\n" for row in rows))
    if starts:
        run.environment.write_text(json.dumps({"starts": list(starts)}))
    model_card.write(run, tiny_config(*changes), data(), position or Position(12, 96, 3072, 61.0, 3700.0, 1.25e15), "pld as given")
    assert {path.name for path in run.plots.iterdir()} == {"loss.png", "kept_blocks.png", "tokens_per_second.png", "learning_rate.png"}
    return run.card.read_text()


def test_what_it_says(tmp_path):
    rows = [
        {"step": 1, **TRAINING},
        {"step": 12, **TRAINING, "train/loss": 3.25},
        {"step": 12, "eval/mlm_loss": 3.125, "eval/perplexity": 22.75, "eval/mlm_accuracy": 0.375, "eval/frequency_loss": 4.625},
    ]
    starts = [
        {"command": "pld first", "hardware": "A Processor, 8 cores", "threads": 3, "precision": "bf16", "processes": 2},
        {"command": "pld second"},
    ]
    text = card(tmp_path, rows, "train.seed=7", starts=starts)
    for part in (
        "    pld first\n", "text-0.txt, text-1.txt, text-2.txt and 7 more files: ",
        "1,234 documents, 56,789 tokens", "3,072 tokens in 96 sequences of 32, 12 steps", "1.25 PFLOP",
        "1 min 01 s (1 h 01 min with validation and saving)", "A Processor, 8 cores, bf16, 2 process(es), 3 thread(s)", "| seed | 7 |",
        "last step | 3.2500 |", "3.1250", "4.6250", "22.7500", "0.3750",
        "exponential to theta_bar 0.5, depth rule paper, draw bernoulli: 2.0",
    ):  # fmt: skip
        assert part in text, part
    assert "pld second" not in text and "/home/" not in text


@pytest.mark.parametrize("rows", [[], [{"step": 12, **TRAINING, "train/loss": None}]])
def test_without_measurements(tmp_path, rows):
    text = card(tmp_path, rows, "pld.theta_bar=1")
    assert text.count("not measured") == 5
    assert "nothing dropped. All blocks run" in text and "    pld as given\n" in text and "unknown" in text


def test_it_tells_how_much_of_the_text_is_unknown(tmp_path):
    class Counted(Data):
        manifest = {  # noqa: RUF012
            "sources": Data.manifest["sources"],
            "counts": {
                "train": {"documents": 10, "tokens": 1010, "unknown": 125},
                "validation": {"documents": 1, "tokens": 101, "unknown": 0},
            },
        }

    assert "| vocabulary | 64 entries, 0.20% of the train tokens unknown |" in card(tmp_path, [])
    line = "| vocabulary | 64 entries, 12.50% of the train tokens unknown, 0.00% of the validation tokens unknown |"
    assert line in card(tmp_path, [], data=Counted)


def test_it_names_the_type_that_transformers_loads(tmp_path):
    assert "A Pre-LN (`roberta-prelayernorm`) encoder with 3 blocks of width" in card(tmp_path, [{"step": 12, **TRAINING}])
    assert "A Post-LN (`bert`) encoder" in card(tmp_path, [{"step": 12, **TRAINING}], "model.norm=post")
    rotary = ("model.position_embedding=rotary", "model.feed_forward=geglu", "model.first_attention_norm=false", "model.type_vocab_size=0")
    text = card(tmp_path, [{"step": 12, **TRAINING}], *rotary, "model.global_layers=2", "model.local_attention=8")
    assert "A Pre-LN (`modernbert`) encoder with 3 blocks" in text
    assert "2 of the blocks attend to all tokens, the others to windows of 8." in text


def test_names_are_text(tmp_path):
    class Named(Data):
        manifest = Data.manifest | {"sources": [{"name": "a|b<img src=x>.txt"}]}

    place = tmp_path / '[x](javascript:1) "<script>"'
    place.mkdir()
    run = RunDirectory(place / "a<b>|[c]")
    run.path.mkdir()
    run.metrics.write_text("")
    run.environment.write_text(json.dumps({"starts": [{"command": "pld 'a\n<b>'", "hardware": "<i>\n|"}]}))
    model_card.write(run, tiny_config(), Named(), Position(12, 96, 3072, 61.0, 3700.0, 1.25e15), "pld")
    text = run.card.read_text()
    assert "# a&lt;b>\\|\\[c\\]\n" in text and "| data | a\\|b&lt;img src=x>.txt: 1,234" in text and "| hardware | &lt;i> \\|, " in text
    assert "    pld 'a\n    <b>'\n" in text, "a code block has no line that stands outside"
    assert f"from_pretrained({json.dumps(str(run.model))})" in text
