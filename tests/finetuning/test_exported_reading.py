"""What is exported reads text as training did: equal ids and predictions in transformers, for each kind of tokenizer and of task."""

from __future__ import annotations

import json
import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from tokenizers import Tokenizer as Fast
from tokenizers import models, normalizers, pre_tokenizers, processors, trainers

from pldcli.engine.runtime import Runtime
from pldcli.evaluation.task import TaskSource, evaluate_task
from pldcli.finetuning.cell import run_cell
from pldcli.finetuning.config import FinetuneConfig
from pldcli.finetuning.experiment import Experiment
from pldcli.finetuning.inputs import RunInputs
from pldcli.system.signals import StopRequest
from pldcli.tokenization.tokenizer import Tokenizer, load_tokenizer
from pldcli.tokenization.training import train_tokenizer
from tests.finetuning.conftest import save_tiny, write_rows

transformers = pytest.importorskip("transformers")

WORDS = [
    "ton",
    "la",
    "re",
    "pli",
    "do",
    "ba",
    "su",
    "na",
    "gra",
    "al",
    "or",
    "mi",
    "Anna",
    "York",
    "éclair",
    "naïve",
    "don't",
    "1984",
    "x-ray",
]
ODD = ["ße", "☃", "🙂🙂", "東京", "qqq", "'s", "New York", "a  b", "\u200b", "\u0301", "(b)", "Ǆ"]
BERT = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
ROBERTA = ["<s>", "<pad>", "</s>", "<unk>", "<mask>"]


def text_of(draw: random.Random, special: list[str]) -> str:
    words = [draw.choice([*WORDS, *WORDS, *WORDS, *ODD, *special]) for _ in range(draw.randint(1, 12))]
    return draw.choice(["", "", " "]) + draw.choice([" ", " ", "  ", "\t"]).join(words)


def lines_of(seed: int, number: int) -> list[str]:
    draw = random.Random(seed)
    return [" ".join(draw.choices(WORDS, k=draw.randint(4, 12))) for _ in range(number)]


def byte_level(*, add_prefix_space: bool = False, split: bool = False) -> Fast:
    fast = Fast(models.BPE(unk_token="<unk>"))
    if split:
        regex = pre_tokenizers.Split(pattern=r" ", behavior="merged_with_next")
        fast.pre_tokenizer = pre_tokenizers.Sequence([regex, pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)])
    else:
        fast.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=add_prefix_space)
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=420, special_tokens=ROBERTA, initial_alphabet=alphabet, show_progress=False)
    fast.train_from_iterator(lines_of(0, 300), trainer)
    fast.post_processor = processors.RobertaProcessing(("</s>", 2), ("<s>", 0), add_prefix_space=add_prefix_space)
    return fast


def metaspace(scheme: str) -> Fast:
    fast = Fast(models.BPE(unk_token="[UNK]", fuse_unk=True))
    fast.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme=scheme)
    fast.train_from_iterator(lines_of(0, 300), trainers.BpeTrainer(vocab_size=200, special_tokens=BERT, show_progress=False))
    return fast


def word_level() -> Fast:
    fast = Fast(models.WordLevel(unk_token="[UNK]"))
    fast.normalizer, fast.pre_tokenizer = normalizers.Lowercase(), pre_tokenizers.Whitespace()
    fast.train_from_iterator(lines_of(0, 300), trainers.WordLevelTrainer(special_tokens=BERT, show_progress=False))
    return fast


def word_piece(place: Path, *, cased: bool) -> Tokenizer:
    letters = [*"abcdefghijklmnopqrstuvwxyzAYéï0123456789'-()"]
    vocabulary = [*BERT, *letters, *(f"##{letter}" for letter in letters), "ton", "gra", "##ra", "Anna", "anna", "york", "東"]
    place.mkdir(parents=True)
    (place / "vocab.txt").write_text("\n".join(vocabulary) + "\n", encoding="utf-8")
    return load_tokenizer(place / "vocab.txt", cased=cased)


def saved(fast: Fast, place: Path) -> Tokenizer:
    place.mkdir(parents=True)
    fast.save(str(place / "tokenizer.json"))
    return load_tokenizer(place)


TOKENIZERS: dict[str, Callable[[Path], Tokenizer]] = {
    "SentencePiece BPE": lambda _: train_tokenizer(lines_of(0, 300), vocab_size=90),
    "SentencePiece unigram": lambda _: train_tokenizer(
        lines_of(0, 300), vocab_size=90, model_type="unigram", cased=True, seed_sentencepiece_size=1000
    ),
    "WordPiece cased": lambda place: word_piece(place, cased=True),
    "WordPiece uncased": lambda place: word_piece(place, cased=False),
    "byte-level": lambda place: saved(byte_level(), place),
    "byte-level with a space before": lambda place: saved(byte_level(add_prefix_space=True), place),
    "byte-level behind a split": lambda place: saved(byte_level(split=True), place),
    "Metaspace always": lambda place: saved(metaspace("always"), place),
    "Metaspace first": lambda place: saved(metaspace("first"), place),
    "Metaspace never": lambda place: saved(metaspace("never"), place),
    "WordLevel": lambda place: saved(word_level(), place),
}


@dataclass(frozen=True)
class Start:
    """A model of random weights with a tokenizer, and what spells its special tokens."""

    model: Path
    special: list[str]


@pytest.fixture(scope="module", params=list(TOKENIZERS))
def start(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Start:
    place = tmp_path_factory.mktemp("start")
    tokenizer = TOKENIZERS[request.param](place / "tokenizer")
    is_roberta = "byte" in request.param
    norm: Any = "pre" if is_roberta else "post"
    model = save_tiny(place / "model", tokenizer, norm=norm, initializer_range=0.3, max_position_embeddings=192)
    return Start(model, ["</s>", "<mask>"] if is_roberta else ["[SEP]", "[MASK]", "[UNK]"])


def trained(start: Start, rows: list[dict[str, Any]], place: Path, **experiment: Any) -> tuple[RunInputs, list[dict[str, Any]], Any]:
    """Fine-tune for a step; give the inputs, the predictions of the same rows, and their ids."""
    train = write_rows(place / "train.jsonl", rows)
    inputs = RunInputs(Experiment(str(train), str(start.model), files={"validation": str(train)}, **experiment))
    settings = FinetuneConfig(epochs=0.01, batch_size=8, max_seq_len=160, precision="fp32", dropout=0.0)
    run_cell(inputs, settings, place / "cell", Runtime(torch.device("cpu")), report=lambda *_: None, stop=StopRequest())
    predictions = [json.loads(line) for line in (place / "cell" / "predictions-validation.jsonl").read_text(encoding="utf-8").splitlines()]
    again = evaluate_task(place / "cell" / "model", TaskSource(str(train)), device="cpu")
    assert [one.label for one in again.splits["train"][1].predictions] == [line["label"] for line in predictions]
    return inputs, predictions, inputs.rows(settings).of("validation")[1]


def check_rows(features: Any, encoded: Any) -> None:
    ours = [features.input_ids[a:b].tolist() for a, b in zip(features.offsets[:-1], features.offsets[1:], strict=True)]
    assert ours == encoded["input_ids"]
    if "token_type_ids" in encoded:
        types = [features.token_type_ids[a:b].tolist() for a, b in zip(features.offsets[:-1], features.offsets[1:], strict=True)]
        assert types == encoded["token_type_ids"]


def outputs_of(directory: Path, encoded: Any, class_name: str) -> Iterator[Any]:
    """Run transformers' model on each row alone."""
    model = getattr(transformers, class_name).from_pretrained(directory).eval()
    names = [name for name in ("input_ids", "token_type_ids", "attention_mask") if name in encoded]
    for row in range(len(encoded["input_ids"])):
        with torch.no_grad():
            yield model(**{name: torch.tensor([encoded[name][row]]) for name in names})


def theirs(place: Path) -> Any:
    return transformers.AutoTokenizer.from_pretrained(place / "cell" / "model")


def test_masked_lm(start: Start) -> None:
    tokenizer, ours = transformers.AutoTokenizer.from_pretrained(start.model), load_tokenizer(start.model)
    for line in [*lines_of(1, 20), *(word for word in ODD if word.isprintable())]:
        assert tokenizer(line, add_special_tokens=False)["input_ids"] == ours.encode_document_lines([line]), line


@pytest.mark.parametrize("pairs", [False, True], ids=["one text", "pairs"])
def test_classification(start: Start, tmp_path: Path, pairs: bool) -> None:
    draw = random.Random(2)
    columns = ("a", "b") if pairs else ("a",)
    rows = [{name: f"{text_of(draw, start.special)} ton" for name in columns} | {"label": "xyz"[i % 3]} for i in range(24)]
    _, predictions, features = trained(start, rows, tmp_path, text_columns=columns, label_column="label")
    encoded = theirs(tmp_path)(*([row[name] for row in rows] for name in columns), truncation=True, max_length=160)
    check_rows(features, encoded)
    for output, ours in zip(
        outputs_of(tmp_path / "cell" / "model", encoded, "AutoModelForSequenceClassification"), predictions, strict=True
    ):
        assert output.logits.softmax(-1)[0].tolist() == pytest.approx(list(ours["scores"].values()), abs=1e-5)
    assert len({line["scores"]["x"] for line in predictions}) > 6


def test_regression(start: Start, tmp_path: Path) -> None:
    draw = random.Random(3)
    rows = [{"text": f"{text_of(draw, start.special)} ton", "price": 1000.5 + i} for i in range(16)]
    _, predictions, features = trained(start, rows, tmp_path, text_columns=("text",), label_column="price", kind="regression")
    encoded = theirs(tmp_path)([row["text"] for row in rows])
    check_rows(features, encoded)
    outputs = outputs_of(tmp_path / "cell" / "model", encoded, "AutoModelForSequenceClassification")
    assert [float(output.logits[0, 0]) for output in outputs] == pytest.approx([line["label"] for line in predictions], rel=1e-5)


def test_tags(start: Start, tmp_path: Path) -> None:
    """Text that is split into words; some come to no token, some to several, some are special tokens."""
    draw = random.Random(4)
    sentences = [[draw.choice([*WORDS, *WORDS, *ODD, *start.special]) for _ in range(draw.randint(1, 10))] + ["ton"] for _ in range(24)]
    rows = [{"tokens": words, "ner_tags": [draw.choice(["O", "B-PER", "I-PER"]) for _ in words]} for words in sentences]
    inputs, predictions, features = trained(start, rows, tmp_path)
    tokenizer = theirs(tmp_path)
    encoded = tokenizer(sentences, is_split_into_words=True)
    check_rows(features, encoded)
    for i, output in enumerate(outputs_of(tmp_path / "cell" / "model", encoded, "AutoModelForTokenClassification")):
        word_ids = encoded.word_ids(i)
        for word, label in enumerate(predictions[i]["label"]):
            if word in word_ids:
                scores = output.logits[0, word_ids.index(word)].softmax(-1)
                assert (inputs.data.task.labels[int(scores.argmax())], float(scores.max())) == (
                    label,
                    pytest.approx(predictions[i]["scores"][word], abs=1e-5),
                )
            else:
                assert label == "O"
    running = " ".join(WORDS[:6])
    from_text, from_words = (tokenizer(one, is_split_into_words=split)["input_ids"] for one, split in ((running, False), (WORDS[:6], True)))
    assert from_text == from_words, "words are read as in running text"


def test_spans(start: Start, tmp_path: Path) -> None:
    draw = random.Random(5)
    rows = []
    for i in range(12):
        context = f"{text_of(draw, start.special)} pli do {text_of(draw, start.special)}"
        question = f"ton {text_of(draw, start.special)}"
        answers = {"text": ["pli do"], "answer_start": [context.index("pli do")]}
        rows.append({"id": str(i), "question": question, "context": context, "answers": answers})
    _, predictions, features = trained(start, rows, tmp_path, kind="spans")
    encoded = theirs(tmp_path)([row["question"] for row in rows], [row["context"] for row in rows], return_offsets_mapping=True)
    check_rows(features, encoded)
    for i, output in enumerate(outputs_of(tmp_path / "cell" / "model", encoded, "AutoModelForQuestionAnswering")):
        context = rows[i]["context"]
        spelled = [
            context[a:b].strip() if of == 1 else ""
            for of, (a, b) in zip(encoded.sequence_ids(i), encoded["offset_mapping"][i], strict=True)
        ]
        places = [place for place, characters in enumerate(spelled) if characters]
        sums = {(a, b): float(output.start_logits[0, a] + output.end_logits[0, b]) for a in places for b in places if a <= b < a + 30}
        assert predictions[i]["scores"]["answer"] == pytest.approx(max(sums.values()), abs=1e-4)
