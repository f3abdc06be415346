import dataclasses
import random
from pathlib import Path

import numpy as np
import pytest
import tokenizers

from pldcli.errors import UsageError
from pldcli.tasks import spans
from pldcli.tasks.spans import Spans
from pldcli.tasks.task import Examples, Features, Task
from pldcli.tokenization.tokenizer import Tokenizer, load_tokenizer
from pldcli.tokenization.training import train_tokenizer

TASK = Task("squad", "spans", ("question", "context"), "answers", metrics=("exact_match", "squad_f1"))
REFUSING = dataclasses.replace(TASK, unanswerable=True)
SPECIAL = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
WORDS = ["the", "old", "cafe", "in", "fine", "town", "sold", "12", "cups", "of", "tea", "and", "bread", "to", "naive", "men", "who", "was"]
CONTEXT = "The old Café in  ﬁne town\tsold 12 cups of te\u0301a, and bread.\nThe naïve men sold tea!"


@pytest.fixture(scope="module")
def wordpiece(tmp_path_factory) -> Tokenizer:
    path = tmp_path_factory.mktemp("wordpiece") / "vocab.txt"
    pieces = [
        *SPECIAL,
        *WORDS,
        *"abcdefghijklmnopqrstuvwxyz0123456789.,!?",
        *(f"##{c}" for c in "abcdefghijklmnopqrstuvwxyz0123456789"),
        "ﬁ",
    ]
    path.write_text("\n".join(pieces) + "\n", encoding="utf-8")
    return load_tokenizer(path)


@pytest.fixture(scope="module")
def own() -> dict[str, Tokenizer]:
    draw = random.Random(0)
    texts = [" ".join(draw.choices([*WORDS, "x.", "(y)", "Tea,", "é", "qz"], k=12)) for _ in range(400)] + [CONTEXT] * 20
    return {kind: train_tokenizer(texts, vocab_size=110, model_type=kind, seed_sentencepiece_size=1000) for kind in ("bpe", "unigram")}


@pytest.fixture(params=["wordpiece", "bpe", "unigram"])
def tokenizer(request, wordpiece, own) -> Tokenizer:
    return wordpiece if request.param == "wordpiece" else own[request.param]


def examples_of(*triples: tuple[str, str, list[tuple[int, str]]], labels: bool = True) -> Examples:
    questions, contexts, right = map(list, zip(*triples, strict=True))
    return Examples("train", "a.json", (questions, contexts), right if labels else None, list(range(len(triples))))


def placed(text: str, context: str = CONTEXT, start: int = 0) -> list[tuple[int, str]]:
    return [(context.index(text, start), text)]


def sure(features: Features, height: float = 10.0) -> list[np.ndarray]:
    """Make outputs that are sure of the labels, with some noise."""
    draw = np.random.default_rng(0)
    outputs = []
    for length, (first, last) in zip(features.lengths, features.labels, strict=True):
        output = draw.normal(size=(length, 2)).astype(np.float32)
        output[first, 0] += height
        output[last, 1] += height
        outputs.append(output)
    return outputs


def rows(features: Features) -> list[list[int]]:
    return [features.input_ids[a:b].tolist() for a, b in zip(features.offsets[:-1], features.offsets[1:], strict=True)]


def encode(examples: Examples, tokenizer: Tokenizer, task: Task = TASK, max_seq_len: int = 64, stride: int = 8) -> Features:
    return Spans().encode(examples, task, tokenizer, max_seq_len=max_seq_len, stride=stride)


ANSWERS = [
    "The old",
    "old Café",
    "Café in  ﬁne town",
    "12 cups",
    "te\u0301a",
    "town\tsold 12 cups of te\u0301a",
    "bread",
    "naïve men",
    "tea",
]


@pytest.mark.parametrize("max_seq_len", [200, 48])
def test_answers_come_back_as_they_stand_in_the_text(tokenizer, max_seq_len):
    examples = examples_of(*[("who?", CONTEXT, placed(answer)) for answer in ANSWERS])
    features = encode(examples, tokenizer, max_seq_len=max_seq_len, stride=20)
    assert set(features.example_of_row[features.labels[:, 1] > 0].tolist()) == set(range(len(ANSWERS))), "each is whole in some window"
    outputs = sure(features)
    for output, label in zip(outputs, features.labels, strict=True):
        output[1:] -= 30.0 * (label[1] == 0)
    predictions = Spans().predict(outputs, features, examples, TASK)
    assert [one.label for one in predictions] == ANSWERS
    assert Spans().score(predictions, examples, TASK) == {"exact_match": 1.0, "squad_f1": 1.0}


def test_rows_are_those_of_the_tokenizers_library(tokenizer):
    fast = tokenizers.Tokenizer.from_str(tokenizer.json_text)
    for max_seq_len, stride in ((34, 7), (40, 0), (200, 16)):
        fast.enable_truncation(max_seq_len, stride=stride, strategy="only_second")
        features = encode(examples_of(("who sold?", CONTEXT, [])), tokenizer, max_seq_len=max_seq_len, stride=stride)
        encoding = fast.encode("who sold?", CONTEXT)
        expected = [encoding, *encoding.overflowing]
        assert rows(features) == [one.ids for one in expected]
        assert features.token_type_ids.tolist() == [value for one in expected for value in one.type_ids]
        assert features.example_of_row.tolist() == [0] * len(expected)
    assert len(expected) == 1


def test_labels_are_the_tokens_of_the_first_right_answer(wordpiece):
    right = [*placed("town\tsold"), *placed("tea")]
    features = encode(examples_of(("who?", CONTEXT, right)), wordpiece)
    ((first, last),) = features.labels.tolist()
    assert [wordpiece.fast.id_to_token(i) for i in features.input_ids[first : last + 1]] == ["town", "sold"]


def test_a_part_of_a_word_takes_the_whole_word(wordpiece):
    features = encode(examples_of(("who?", CONTEXT, placed("reed"[1:2], start=45))), wordpiece)
    ((first, last),) = features.labels.tolist()
    assert first == last and wordpiece.fast.id_to_token(int(features.input_ids[first])) == "bread"


@pytest.mark.parametrize(("answer", "piece"), [(",", ","), ("bread", "bread"), (".", ".")])
def test_neighbours_that_touch_an_answer_are_not_part_of_it(wordpiece, answer, piece):
    features = encode(examples_of(("who?", CONTEXT, placed(answer))), wordpiece)
    ((first, last),) = features.labels.tolist()
    assert first == last and wordpiece.fast.id_to_token(int(features.input_ids[first])) == piece


def test_windows_that_do_not_hold_the_whole_answer_learn_none(wordpiece):
    context = " ".join(["tea"] * 10 + ["old", "men"] + ["bread"] * 8)
    features = encode(examples_of(("who?", context, placed("old men", context))), wordpiece, max_seq_len=5 + 11, stride=2)
    first, second = rows(features)
    assert wordpiece.fast.token_to_id("old") in first and wordpiece.fast.token_to_id("men") not in first
    assert features.labels.tolist() == [
        [0, 0],
        [second.index(wordpiece.fast.token_to_id("old")), second.index(wordpiece.fast.token_to_id("men"))],
    ]
    without = encode(examples_of(("who?", context, [])), wordpiece)
    assert without.labels.tolist() == [[0, 0]]
    assert encode(examples_of(("who?", context, []), labels=False), wordpiece).labels is None


def test_long_questions_lose_their_end_and_are_counted(wordpiece):
    long = " ".join(f"{i}" for i in [1, 2, 3] * 40)
    examples = examples_of((long, "tea", placed("tea", "tea")), ("who", "tea", placed("tea", "tea")))
    features = encode(examples, wordpiece, max_seq_len=384)
    assert features.num_truncated == 1
    assert features.lengths.tolist() == [64 + 3 + 1, 1 + 3 + 1]
    assert rows(features)[0][1:65] == wordpiece.fast.encode(long, add_special_tokens=False).ids[:64]
    short = encode(examples_of((long, CONTEXT, placed("tea"))), wordpiece, max_seq_len=13, stride=128)
    assert short.num_truncated == 1 and short.lengths.max() == 13
    assert rows(short)[0][:7] == [2, *wordpiece.fast.encode(long, add_special_tokens=False).ids[:5], 3]


def test_rows_too_short_for_anything(wordpiece):
    with pytest.raises(UsageError, match="max_seq_len: 4 tokens leave no room for text; 5 is the least"):
        encode(examples_of(("who?", CONTEXT, [])), wordpiece, max_seq_len=4)
    features = encode(examples_of(("who?", CONTEXT, placed("tea"))), wordpiece, max_seq_len=5, stride=4)
    assert set(features.lengths.tolist()) == {5}


def test_special_tokens_in_text_are_these_tokens(tokenizer):
    features = encode(examples_of(("[SEP]?", "the [CLS] tea [MASK]", [])), tokenizer)
    special = tokenizer.special
    framing = set(special.ids) - {special.unk_id}
    expected = [special.cls_id, special.sep_id, special.sep_id, special.cls_id, special.mask_id, special.sep_id]
    assert [i for i in features.input_ids.tolist() if i in framing] == expected


def test_characters_of_tokens_lose_white_space_on_both_sides():
    begins, ends = spans.without_white_space(" a  bc ", np.array([0, 0, 2, 4, 2]), np.array([7, 4, 6, 7, 4]))
    assert begins.tolist()[:4] == [1, 1, 4, 4] and ends.tolist()[:4] == [6, 2, 6, 6]
    assert ends[4] <= begins[4], "nothing is left of white space"


def outputs_for(features: Features, *heights: dict[int, tuple[float, float]]) -> list[np.ndarray]:
    outputs = []
    for length, height in zip(features.lengths, heights, strict=True):
        output = np.full((length, 2), -9.0, np.float32)
        for token, values in height.items():
            output[token] = values
        outputs.append(output)
    return outputs


def test_the_best_span_has_order_length_and_place(wordpiece):
    context = " ".join("abcdefghij" * 4)
    examples = examples_of(("who", context, placed("a", context)))
    features = encode(examples, wordpiece)
    begin = 3

    def answer(heights: dict[int, tuple[float, float]]) -> str:
        return Spans().predict(outputs_for(features, heights), features, examples, TASK)[0].label

    assert answer({begin: (5, -9), begin + 2: (-9, 5)}) == "a b c"
    assert answer({begin: (-9, 5), begin + 2: (5, -9), begin + 3: (-9, 1)}) == "c d", "the end is not before the start"
    assert answer({begin: (5, -9), begin + 29: (-9, 5)}) == " ".join(("abcdefghij" * 4)[:30]), "30 tokens are allowed"
    assert answer({begin: (5, -9), begin + 30: (-9, 5), begin + 1: (-9, 0)}) == "a b", "31 are not"
    assert answer({0: (50, 50), 1: (50, 50), 2: (50, 50), begin: (1, 1), features.lengths[0] - 1: (50, 50)}) == "a", (
        "the question is no answer"
    )


def test_the_best_window_counts_and_the_least_sure_refusal(wordpiece):
    context = " ".join("abcdefghij")
    examples = examples_of(("who", context, [(0, "a")]), ("who", "tea", [(0, "tea")]))
    features = encode(examples, wordpiece, max_seq_len=4 + 6, stride=2)
    assert features.example_of_row.tolist() == [0, 0, 1]
    heights = [{0: (1, 1), 3: (2, 2)}, {0: (2.5, 2), 4: (3, 1.5)}, {0: (0.5, 0.25), 3: (0.25, 0.5)}]
    for task, expected in ((TASK, ["f", "tea"]), (REFUSING, ["f", "tea"])):
        features = encode(examples, wordpiece, task, max_seq_len=4 + 6, stride=2)
        predictions = Spans().predict(outputs_for(features, *heights), features, examples, task)
        assert [one.label for one in predictions] == expected
        assert [one.scores for one in predictions] == [{"answer": 4.5, "no_answer": 2.0}, {"answer": 0.75, "no_answer": 0.75}]
    heights[0][0] = (3, 3)
    features = encode(examples, wordpiece, REFUSING, max_seq_len=4 + 6, stride=2)
    assert Spans().predict(outputs_for(features, *heights), features, examples, REFUSING)[0].label == "f"
    heights[1][0] = (2.5, 2.5)
    refused = Spans().predict(outputs_for(features, *heights), features, examples, REFUSING)[0]
    assert refused.label == "" and refused.scores == {"answer": 4.5, "no_answer": 5.0}
    features = encode(examples, wordpiece, TASK, max_seq_len=4 + 6, stride=2)
    assert Spans().predict(outputs_for(features, *heights), features, examples, TASK)[0].label == "f"


@pytest.mark.parametrize(
    ("task", "right", "refuses"),
    [
        (TASK, [(0, "tea")], False),
        (TASK, [], True),
        (REFUSING, [(0, "tea")], True),
    ],
)
def test_which_tasks_may_refuse(wordpiece, task, right, refuses):
    examples = examples_of(("who", "tea", right))
    features = encode(examples, wordpiece, task)
    (prediction,) = Spans().predict(outputs_for(features, {0: (9, 9)}), features, examples, task)
    assert prediction.label == ("" if refuses else "tea")


def test_contexts_that_hold_nothing(tokenizer):
    examples = examples_of(("who", "\u200b\x01", []), ("", "tea", placed("tea", "tea")))
    features = encode(examples, tokenizer)
    predictions = Spans().predict([np.zeros((length, 2), np.float32) for length in features.lengths], features, examples, TASK)
    assert predictions[0].label == "" and predictions[0].scores == {"answer": None, "no_answer": 0.0}


def test_a_mark_in_front_of_a_word_is_no_answer(own):
    tokenizer = own["bpe"]
    context = "zqx tea"
    examples = examples_of(("who", context, placed("tea", context)))
    features = encode(examples, tokenizer)
    tokens = [tokenizer.fast.id_to_token(i) for i in features.input_ids.tolist()]
    mark = tokens.index("▁", tokens.index("[SEP]"))
    outputs = outputs_for(features, {mark: (9, 9), mark + 1: (1, 1)})
    assert Spans().predict(outputs, features, examples, TASK)[0].label not in ("", "▁", " ")
    assert Spans().predict(outputs, features, examples, TASK)[0].scores["answer"] == 2.0


def test_a_combining_mark_belongs_to_the_answer(own):
    context = "sold te\u0301 to"
    examples = examples_of(("who", context, placed("te\u0301", context)))
    features = encode(examples, own["bpe"])
    assert Spans().predict(sure(features), features, examples, TASK)[0].label == "te\u0301"


def test_an_empty_split(wordpiece):
    examples = Examples("train", "a", ([], []), [], [])
    features = encode(examples, wordpiece)
    assert features.num_rows == 0 and features.labels.shape == (0, 2)
    assert Spans().predict([], features, examples, TASK) == []


def test_the_head():
    assert Spans().head == "token" and Spans().num_outputs(TASK) == 2


def test_the_published_development_set(real_data: Path, own):
    from pldcli.task_files.squad import read_squad

    examples = read_squad(real_data / "squad" / "dev-v1.1.json", split="validation")
    examples = Examples(
        examples.split, examples.source, tuple(column[::9] for column in examples.inputs), examples.labels[::9], examples.indices[::9]
    )
    bert = load_tokenizer(real_data / "vocab" / "bert-base-uncased-vocab.txt")
    features = encode(examples, bert, max_seq_len=128, stride=48)
    assert features.lengths.max() == 128 and features.num_rows > len(examples)
    outputs = sure(features)
    for output, label in zip(outputs, features.labels, strict=True):
        output[1:] -= 30.0 * (label[1] == 0)
    scores = Spans().score(Spans().predict(outputs, features, examples, TASK), examples, TASK)
    assert scores["exact_match"] > 0.99
