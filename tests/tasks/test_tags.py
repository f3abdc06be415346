import dataclasses
import random

import numpy as np
import pytest
import tokenizers

from pldcli.errors import UsageError
from pldcli.tasks.tags import Tags, default_metrics, entities, notes_on_labels
from pldcli.tasks.task import Examples, Features, Prediction, Task
from pldcli.tasks.windows import word_windows
from pldcli.tokenization.tokenizer import Tokenizer, load_tokenizer
from pldcli.tokenization.training import train_tokenizer

LABELS = ("O", "B-PER", "I-PER", "B-LOC", "I-LOC")
TASK = Task("ner", "tags", ("words",), "labels", labels=LABELS, metrics=("entity_f1",))
SPECIAL = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
LETTERS = "abcdefghijklmnopqrstuvwxyz0123456789"
WORDS = ["anna", "lives", "in", "new", "york", "and", "eats", "bread"]


@pytest.fixture(scope="module")
def wordpiece(tmp_path_factory) -> Tokenizer:
    path = tmp_path_factory.mktemp("wordpiece") / "vocab.txt"
    path.write_text("\n".join([*SPECIAL, *WORDS, *LETTERS, *".,'-[]", *(f"##{c}" for c in LETTERS), "##read"]) + "\n", encoding="utf-8")
    return load_tokenizer(path)


@pytest.fixture(scope="module")
def own() -> dict[str, Tokenizer]:
    draw = random.Random(0)
    texts = [" ".join(draw.choices([*WORDS, "York.", "x", "qu"], k=12)) for _ in range(400)]
    return {kind: train_tokenizer(texts, vocab_size=60, model_type=kind, seed_sentencepiece_size=1000) for kind in ("bpe", "unigram")}


@pytest.fixture(params=["wordpiece", "bpe", "unigram"])
def tokenizer(request, wordpiece, own) -> Tokenizer:
    return wordpiece if request.param == "wordpiece" else own[request.param]


def examples_of(*sentences: str | list[str], labels: list[list[int]] | None = None, labelled: bool = True) -> Examples:
    words = [one.split() if isinstance(one, str) else one for one in sentences]
    draw = random.Random(1)
    made_up = [[draw.randrange(len(LABELS)) for _ in one] for one in words]
    return Examples("train", "a.txt", (words,), (labels or made_up) if labelled else None, list(range(len(words))))


def encode(examples: Examples, tokenizer: Tokenizer, max_seq_len: int = 64, stride: int = 8) -> Features:
    return Tags().encode(examples, TASK, tokenizer, max_seq_len=max_seq_len, stride=stride)


def rows(features: Features, values: np.ndarray | None = None) -> list[list[int]]:
    values = features.input_ids if values is None else values
    return [values[a:b].tolist() for a, b in zip(features.offsets[:-1], features.offsets[1:], strict=True)]


def sure(features: Features, num_labels: int = len(LABELS)) -> list[np.ndarray]:
    """Make outputs that give each labelled token its label, and any other token a wrong one."""
    outputs = []
    for labels in rows(features, features.labels):
        output = np.zeros((len(labels), num_labels), np.float32)
        output[range(len(labels)), [label if label >= 0 else (i % num_labels) for i, label in enumerate(labels)]] = 3.0
        outputs.append(output)
    return outputs


def test_rows_and_labels_are_those_of_transformers(wordpiece):
    from transformers import PreTrainedTokenizerFast

    theirs = PreTrainedTokenizerFast(tokenizer_object=wordpiece.fast, cls_token="[CLS]", sep_token="[SEP]", unk_token="[UNK]")
    examples = examples_of("Anna lives in New-York .", "Żanna's xbread é eats ☃ 42", [], "new")
    features = encode(examples, wordpiece)
    for i, (words, row, labels) in enumerate(zip(examples.inputs[0], rows(features), rows(features, features.labels), strict=True)):
        encoding = theirs(words, is_split_into_words=True)
        assert row == encoding["input_ids"]
        word_ids = encoding.word_ids()
        first = [word is not None and word != before for word, before in zip(word_ids, [None, *word_ids], strict=False)]
        assert labels == [examples.labels[i][word] if begins else -100 for word, begins in zip(word_ids, first, strict=True)]


def test_words_are_encoded_as_in_running_text(tokenizer):
    words = ["Anna", "eats", "xqubread", "in", "york"]
    (row,) = rows(encode(examples_of(words), tokenizer))
    assert row == tokenizer.fast.encode(" ".join(words)).ids


def test_bytes_level_words_have_the_space_before_them(tmp_path):
    from tokenizers import models, pre_tokenizers, processors

    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {piece: i for i, piece in enumerate(["<s>", "<pad>", "</s>", "<unk>", "<mask>", *alphabet, "Ġa"])}
    fast = tokenizers.Tokenizer(models.BPE(vocab=vocabulary, merges=[("Ġ", "a")], unk_token="<unk>"))
    fast.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    fast.post_processor = processors.RobertaProcessing(("</s>", 2), ("<s>", 0))
    fast.save(str(tmp_path / "tokenizer.json"))
    features = encode(examples_of("a b", labels=[[1, 2]]), load_tokenizer(tmp_path))
    assert rows(features) == [[0, vocabulary["Ġa"], vocabulary["Ġ"], vocabulary["b"], 2]]
    assert features.labels.tolist() == [-100, 1, 2, -100, -100]


def test_words_that_come_to_nothing_or_spell_special_tokens(wordpiece):
    """As transformers: a word may have no token at all, and then nobody can label it; a special token is one."""
    words = ["\x01", "new", "\u200b", "", "[SEP]", "york", "[MASK]", "\x01"]
    examples = examples_of(words, labels=[[3, 1, 2, 3, 4, 1, 2, 3]])
    features = encode(examples, wordpiece)
    (row,) = rows(features)
    assert [wordpiece.fast.id_to_token(i) for i in row] == ["[CLS]", "new", "[SEP]", "york", "[MASK]", "[SEP]"]
    assert features.labels.tolist() == [-100, 1, 4, 1, 2, -100]
    (prediction,) = Tags().predict(sure(features), features, examples, TASK)
    assert prediction.label_id == [0, 1, 0, 0, 4, 1, 2, 0]
    assert [score > 0 for score in prediction.scores] == [False, True, False, False, True, True, True, False]


@pytest.mark.parametrize("max_seq_len", [3, 5, 64])
def test_sentences_of_words_without_tokens(wordpiece, max_seq_len):
    sentences = [["\x01"] * 9, ["\x01", "a", "\x01", "b", "\x01", "\x01", "new", "york", "\x01"] * 3]
    examples = examples_of(*sentences, labels=[[1] * 9, [2] * 27])
    features = encode(examples, wordpiece, max_seq_len=max_seq_len)
    assert (features.labels >= 0).sum() == 12
    none, some = Tags().predict(sure(features), features, examples, TASK)
    assert none.label_id == [0] * 9 and some.label_id == [0, 2, 0, 2, 0, 0, 2, 2, 0] * 3


@pytest.mark.parametrize("max_seq_len", [64, 12, 5, 3])
@pytest.mark.parametrize("stride", [0, 4, 100])
def test_every_word_is_predicted_once_whatever_the_window(tokenizer, max_seq_len, stride):
    draw = random.Random(2)
    sentences = [[draw.choice([*WORDS, "x" * draw.randrange(1, 9), "qu-qu"]) for _ in range(size)] for size in (0, 1, 5, 30, 80, 0)]
    examples = examples_of(*sentences)
    features = encode(examples, tokenizer, max_seq_len=max_seq_len, stride=stride)
    assert features.lengths.max() <= max_seq_len
    assert sorted(set(features.example_of_row.tolist())) == list(range(6))
    assert (features.labels >= 0).sum() == sum(map(len, sentences))
    predictions = Tags().predict(sure(features), features, examples, TASK)
    assert [one.label_id for one in predictions] == examples.labels
    assert [one.label for one in predictions] == [[LABELS[i] for i in one] for one in examples.labels]
    assert Tags().score(predictions, examples, TASK)["accuracy"] == 1.0


def test_windows_share_words_and_part_their_labels_in_the_middle(wordpiece):
    examples = examples_of("a b c d e f g h i j", labels=[[1] * 10])
    features = encode(examples, wordpiece, max_seq_len=2 + 6, stride=3)
    letters = [[wordpiece.fast.id_to_token(i) for i in row[1:-1]] for row in rows(features)]
    assert ["".join(one) for one in letters] == ["abcdef", "defghi", "ghij"]
    labels = [row[1:-1] for row in rows(features, features.labels)]
    marked = [{letter for letter, label in zip(*pair, strict=True) if label == 1} for pair in zip(letters, labels, strict=True)]
    assert marked == [set("abcde"), set("fgh"), set("ij")]
    assert encode(examples, wordpiece, max_seq_len=2 + 6, stride=0).num_rows == 2
    assert encode(examples, wordpiece, max_seq_len=2 + 10).num_rows == 1


@pytest.mark.parametrize("seed", range(40))
def test_windows_of_words_of_any_width(seed):
    draw = np.random.default_rng(seed)
    room, stride = int(draw.integers(1, 14)), int(draw.integers(0, 20))
    starts = np.cumsum([0, *draw.integers(1, room + 1, int(draw.integers(0, 40)))])
    windows = word_windows(starts, room, stride)
    labelled = [word for window in windows for word in range(window.labels_from, window.labels_to)]
    assert labelled == list(range(len(starts) - 1))
    for before, window in zip([None, *windows], windows, strict=False):
        assert window.first <= window.labels_from <= window.labels_to <= window.end
        assert starts[window.end] - starts[window.first] <= room
        if before is not None:
            assert before.end < window.end
            assert starts[before.end] - starts[window.first] <= min(stride, room // 2)


def test_words_longer_than_a_row_lose_their_end_and_are_counted(wordpiece):
    examples = examples_of("a xxxxxxxxx b", "a b", labels=[[1, 2, 3], [4, 0]])
    features = encode(examples, wordpiece, max_seq_len=2 + 4, stride=2)
    assert features.num_truncated == 1
    assert [one.label_id for one in Tags().predict(sure(features), features, examples, TASK)] == examples.labels
    assert [2, *wordpiece.fast.encode("xxxx", add_special_tokens=False).ids, 3] in rows(features)


def test_a_row_without_room(wordpiece):
    with pytest.raises(UsageError, match="max_seq_len: 2 tokens leave no room for text; 3 is the least"):
        encode(examples_of("a"), wordpiece, max_seq_len=2)


def test_predictions_have_spelled_labels_and_probabilities(wordpiece):
    task = dataclasses.replace(TASK, labels=("zero", "one"), written=(0, 1))
    examples = examples_of("anna bread", labels=[[0, 1]])
    features = encode(examples, wordpiece)
    outputs = [np.array([[9, 9], [0, np.log(3)], [1000, 0], [9, 9]], np.float32)]
    (prediction,) = Tags().predict(outputs, features, examples, task)
    assert prediction.label == [1, 0] and prediction.label_id == [1, 0]
    assert prediction.scores == pytest.approx([0.75, 1.0])
    assert Tags().score([prediction], examples, task) == {"accuracy": 0.0}


def test_sentences_without_labels(wordpiece):
    examples = examples_of("anna eats", [], labelled=False)
    features = encode(examples, wordpiece)
    assert features.labels is None
    outputs = [np.eye(5, dtype=np.float32)[[0, 1, 2, 0]], np.zeros((2, 5), np.float32)]
    assert [one.label for one in Tags().predict(outputs, features, examples, TASK)] == [["B-PER", "I-PER"], []]


def test_an_empty_split(wordpiece):
    examples = Examples("train", "a", ([],), [], [])
    features = encode(examples, wordpiece)
    assert features.num_rows == 0 and features.labels.shape == features.input_ids.shape == (0,)
    assert Tags().predict([], features, examples, TASK) == []


def test_the_head():
    assert Tags().head == "token" and Tags().num_outputs(TASK) == 5


@pytest.mark.parametrize(
    ("labels", "expected"),
    [
        ("O B-PER I-PER O B-LOC", {("PER", 1, 3), ("LOC", 4, 5)}),
        ("B-PER B-PER I-PER", {("PER", 0, 1), ("PER", 1, 3)}),
        ("I-PER I-PER B-PER O I-LOC", {("PER", 0, 2), ("PER", 2, 3), ("LOC", 4, 5)}),
        ("B-PER I-LOC I-LOC", {("PER", 0, 1), ("LOC", 1, 3)}),
        ("O I-PER", {("PER", 1, 2)}),
        ("S-PER B-LOC I-LOC E-LOC S-PER", {("PER", 0, 1), ("LOC", 1, 4), ("PER", 4, 5)}),
        ("U-PER B-LOC I-LOC L-LOC U-PER", {("PER", 0, 1), ("LOC", 1, 4), ("PER", 4, 5)}),
        ("B-PER M-PER M-PER E-PER S-LOC", {("PER", 0, 4), ("LOC", 4, 5)}),
        ("B-LOC L-LOC I-LOC L-LOC", {("LOC", 0, 2), ("LOC", 2, 4)}),
        ("E-PER I-PER E-PER", {("PER", 0, 1), ("PER", 1, 3)}),
        ("E-PER E-PER S-PER I-PER", {("PER", 0, 1), ("PER", 1, 2), ("PER", 2, 3), ("PER", 3, 4)}),
        ("B-PER E-LOC", {("PER", 0, 1), ("LOC", 1, 2)}),
        ("B-PER B-PER E-PER", {("PER", 0, 1), ("PER", 1, 3)}),
        ("B-A-B I-A-B I-A", {("A-B", 0, 2), ("A", 2, 3)}),
        ("B I O I B", {("", 0, 2), ("", 3, 4), ("", 4, 5)}),
        ("PER PER O B-PER", {("PER", 0, 2), ("PER", 3, 4)}),
        ("O O", set()),
        ("", set()),
    ],
)
def test_entities(labels, expected):
    assert entities(labels.split()) == expected


@pytest.mark.parametrize(
    ("labels", "metrics"),
    [
        (("O", "B-PER", "I-PER"), ("entity_f1",)),
        (("O", "I-PER"), ("entity_f1",)),
        (("O", "S-PER"), ("entity_f1",)),
        (("B", "I", "O"), ("entity_f1",)),
        (("NN", "VB", "-LRB-", "PRP$"), ("accuracy",)),
        (("O", "PER"), ("accuracy",)),
        (("B", "S", "E"), ("accuracy",)),
        (("o", "b-per", "i-per"), ("entity_f1",)),
        (("O", "B_PER", "I_PER"), ("entity_f1",)),
        (("o", "b-per", "dt"), ("accuracy",)),
        (("b-per", "i-per"), ("accuracy",)),
        (("O",), ("accuracy",)),
        ((), ("accuracy",)),
    ],
)
def test_what_labels_are_scored_by(labels, metrics):
    assert default_metrics(labels) == metrics


@pytest.mark.parametrize(
    ("sentences", "scheme"),
    [
        ("B-A I-A O B-B|O O", "IOB2"),
        ("B-A B-A I-A|B-B", "IOB2"),
        ("I-A I-A O I-B|O", "IOB1"),
        ("I-A B-A I-A O I-B", "IOB1"),
        ("I-A O B-B I-B", "a mixture of IOB1 and IOB2 (1 begin with I, 1 with B); they are counted as conlleval does"),
        ("B-A E-A O S-B", "IOBES"),
        ("B-A M-A E-A O S-B", "BMES"),
        ("B-A L-A O U-B", "BILOU"),
        ("B-A L-A O S-B", "a mixture of IOBES and BILOU"),
        ("O O", "nothing but O"),
    ],
)
def test_the_scheme_of_labels_is_said(sentences, scheme):
    sentences = [sentence.split() for sentence in sentences.split("|")]
    names = sorted({label for sentence in sentences for label in sentence} | {"O", "B-A"})
    examples = examples_of(*sentences, labels=[[names.index(label) for label in sentence] for sentence in sentences])
    task = dataclasses.replace(TASK, labels=tuple(names))
    assert notes_on_labels([examples], task) == [f"a.txt: entities are labelled by {scheme}"]
    assert notes_on_labels([examples], dataclasses.replace(TASK, labels=("NN", "VB"))) == []


def predicted(examples: Examples, *labels: str) -> dict[str, float]:
    ids = [[LABELS.index(label) for label in one.split()] for one in labels]
    return Tags().score([Prediction([LABELS[i] for i in one], [1.0] * len(one), one) for one in ids], examples, TASK)


def test_scores_by_hand():
    examples = examples_of("a b c d", "a b", labels=[[1, 2, 0, 3], [1, 2]])
    assert predicted(examples, "B-PER I-PER O B-LOC", "B-PER I-PER") == {
        "accuracy": 1.0,
        "entity_precision": 1.0,
        "entity_recall": 1.0,
        "entity_f1": 1.0,
    }
    scores = predicted(examples, "B-PER O B-LOC B-LOC", "I-PER I-PER")
    assert scores == {
        "accuracy": pytest.approx(3 / 6),
        "entity_precision": pytest.approx(2 / 4),
        "entity_recall": pytest.approx(2 / 3),
        "entity_f1": pytest.approx(2 * (2 / 4) * (2 / 3) / (2 / 4 + 2 / 3)),
    }
    assert predicted(examples, "O O O O", "O O") == {"accuracy": 1 / 6, "entity_precision": 0.0, "entity_recall": 0.0, "entity_f1": 0.0}


@pytest.mark.parametrize("spell", [str.lower, lambda label: label.replace("-", "_")])
def test_other_spellings_are_scored_alike(spell):
    examples = examples_of("a b c d", labels=[[1, 2, 0, 3]])
    task = dataclasses.replace(TASK, labels=tuple(map(spell, LABELS)))
    ids = [1, 2, 3, 3]
    found = Tags().score([Prediction([task.labels[i] for i in ids], [1.0] * 4, ids)], examples, task)
    assert found == predicted(examples, " ".join(LABELS[i] for i in ids)) and found["entity_f1"] == 0.8
    assert notes_on_labels([examples], task) == ["a.txt: entities are labelled by IOB2"]


def test_entities_end_with_their_sentence():
    examples = examples_of("a", "a", labels=[[1], [2]])
    assert predicted(examples, "B-PER", "B-PER")["entity_f1"] == 1.0
    assert predicted(examples, "B-PER", "O")["entity_recall"] == 0.5


def test_conll2000(real_data):
    from pldcli.task_files.conll import read_conll

    words, labels = read_conll(real_data / "downstream" / "conll2000" / "test.txt")
    names = tuple(sorted({label for one in labels for label in one}))
    task = TASK.with_labels(names)
    examples = Examples("test", "test.txt", (words,), [[names.index(label) for label in one] for one in labels], list(range(len(words))))
    bert = load_tokenizer(real_data / "vocab" / "bert-base-uncased-vocab.txt")
    features = Tags().encode(examples, task, bert, max_seq_len=48, stride=16)
    assert features.num_rows > len(examples) and features.lengths.max() == 48
    assert (features.labels >= 0).sum() == 47_377
    predictions = Tags().predict(sure(features, len(names)), features, examples, task)
    assert Tags().score(predictions, examples, task) == {"accuracy": 1.0, "entity_precision": 1.0, "entity_recall": 1.0, "entity_f1": 1.0}
    assert sum(len(entities(one)) for one in labels) == 23_852, "as the shared task counts them"


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("letters", ["BI", "BIES"])
def test_entities_against_seqeval(letters):
    """Labels at random: most sequences are ill-formed."""
    metrics = pytest.importorskip("seqeval.metrics", reason="seqeval is not installed")
    draw = random.Random(letters)
    names = ["O", *(f"{letter}-{kind}" for letter in letters for kind in ("PER", "LOC", "MISC"))]
    for _ in range(1000):
        sizes = [draw.randint(1, 9) for _ in range(draw.randint(1, 4))]
        truth, guessed = ([draw.choices(names, k=size) for size in sizes] for _ in range(2))
        guessed = [
            [one if draw.random() < 0.4 else other for one, other in zip(*pair, strict=True)] for pair in zip(guessed, truth, strict=True)
        ]
        task, ids = dataclasses.replace(TASK, labels=tuple(names)), [[names.index(label) for label in sentence] for sentence in guessed]
        examples = examples_of(*("a " * size for size in sizes), labels=[[names.index(label) for label in sentence] for sentence in truth])
        found = Tags().score(
            [Prediction(labels, [1.0] * len(labels), one) for labels, one in zip(guessed, ids, strict=True)], examples, task
        )
        for name in ("precision", "recall", "f1"):
            expected = getattr(metrics, f"{name}_score")(truth, guessed, zero_division=0)
            assert found[f"entity_{name}"] == pytest.approx(expected, abs=1e-12), (truth, guessed)
