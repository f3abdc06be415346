import copy
import json
from pathlib import Path

import pytest

from pldcli.errors import DataError
from pldcli.task_files.squad import read_squad, squad_examples
from pldcli.tasks.metrics import exact_match, normalised, squad_f1, squad_scores

CONTEXT = "Denver beat Carolina 24–10 in Santa Clara, California."


def question(name: str = "q1", **changes) -> dict:
    found = {
        "id": name,
        "question": " Who lost? ",
        "answers": [
            {"answer_start": 12, "text": "Carolina"},
            {"answer_start": 30, "text": "Santa Clara"},
            {"answer_start": 12, "text": "Carolina"},
        ],
    }
    return {key: value for key, value in {**found, **changes}.items() if value is not ...}


def write(path: Path, *questions: dict, context: object = CONTEXT) -> Path:
    content = {"version": "1.1", "data": [{"title": "x", "paragraphs": [{"context": context, "qas": list(questions)}]}]}
    path.write_text(json.dumps(content), encoding="utf-8")
    return path


def rows(*changes: dict) -> list[dict]:
    row = {"question": "Who?", "context": CONTEXT, "answers": {"text": ["Denver"], "answer_start": [0]}}
    return [{key: value for key, value in {"id": f"q{i}", **row, **change}.items() if value is not ...} for i, change in enumerate(changes)]


def test_a_file_of_the_first_version(tmp_path):
    path = write(
        tmp_path / "dev.json", question(), question("q2", question="Where?", answers=[{"answer_start": 30, "text": "Santa Clara"}])
    )
    examples = read_squad(path, split="validation")
    assert examples.split == "validation" and examples.source == str(path)
    assert examples.inputs == (["Who lost?", "Where?"], [CONTEXT, CONTEXT])
    assert examples.labels == [[(12, "Carolina"), (30, "Santa Clara")], [(30, "Santa Clara")]]
    assert examples.indices == ["q1", "q2"] and examples.notes == ()


def test_questions_without_an_answer(tmp_path):
    plausible = [{"answer_start": 0, "text": "Denver"}]
    path = write(
        tmp_path / "a.json",
        question(is_impossible=False),
        question("q2", is_impossible=True, answers=[], plausible_answers=plausible),
        question("q3", is_impossible=True),
        question("q4", is_impossible=True, answers=...),
        question("q5", answers=[]),
    )
    assert read_squad(path, split="train").labels == [[(12, "Carolina"), (30, "Santa Clara")], [], [], [], []]
    only = write(tmp_path / "b.json", question(is_impossible=True, answers=[]))
    assert read_squad(only, split="train").labels == [[]]


@pytest.mark.parametrize("answers", [..., []])
def test_a_test_set_has_no_labels(tmp_path, answers):
    path = write(tmp_path / "test.json", question(answers=answers), question("q2", answers=answers))
    assert read_squad(path, split="test").labels is None


def test_rows_of_the_hub():
    answers = {"text": ["Carolina", "Carolina", "Santa Clara"], "answer_start": [12, 12, 30]}
    examples = squad_examples(rows({"answers": answers}, {"answers": {"text": [], "answer_start": []}}), split="train", source="hub")
    assert examples.labels == [[(12, "Carolina"), (30, "Santa Clara")], []]
    assert examples.inputs == (["Who?", "Who?"], [CONTEXT, CONTEXT])
    empty = {"answers": {"text": [], "answer_start": []}}
    assert squad_examples(rows(empty, empty), split="test", source="hub").labels is None
    assert squad_examples(rows({"answers": ...}, {"answers": None}), split="test", source="hub").labels is None


@pytest.mark.parametrize(
    ("start", "text", "expected"),
    [
        (11, "Carolina", (12, "Carolina")),
        (14, "Carolina", (12, "Carolina")),
        (10, "Carolina", (12, "Carolina")),
        (11, " Carolina", (12, "Carolina")),
        (10, " Carolina ", (12, "Carolina")),
    ],
)
def test_answers_beside_their_start_are_read_where_they_stand(start, text, expected):
    examples = squad_examples(rows({"answers": {"text": [text], "answer_start": [start]}}), split="train", source="hub")
    assert examples.labels == [[expected]]
    moved = start + len(text) - len(text.lstrip()) != 12
    assert examples.notes == (("hub: answers found a character or two beside their answer_start: 1",) if moved else ())


def test_the_nearest_place_counts():
    row = {"id": "1", "question": "?", "context": "aa aa", "answers": {"text": ["a"], "answer_start": [1]}}
    assert squad_examples([row], split="train", source="hub").labels == [[(1, "a")]]


def test_halves_of_characters_and_empty_questions(tmp_path):
    question = {"id": "q", "question": " \n", "answers": [{"text": "\ud83d Denver", "answer_start": 2}]}
    content = {"data": [{"paragraphs": [{"context": "x \ud83d Denver é", "qas": [question]}]}]}
    (tmp_path / "a.json").write_text(json.dumps(content))
    examples = read_squad(tmp_path / "a.json", split="train")
    assert examples.labels == [[(2, "\ufffd Denver")]] and examples.inputs == ([""], ["x \ufffd Denver é"])
    assert examples.notes == (f"{tmp_path / 'a.json'}: empty questions: 1",)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"id": 7.5}, r"a.json: question number 1: 'id' is a number, neither a string nor a whole number"),
        ({"id": True}, r"a.json: question number 1: 'id' is a boolean, neither a string nor a whole number"),
        ({"question": ...}, r"a.json: question q1: has no 'question'"),
        ({"question": ["x"]}, r"a.json: question q1: 'question' is a list, not a string"),
        ({"answers": [{"text": "Denver"}]}, r"a.json: question q1: has no 'answer_start'"),
        ({"answers": [{"answer_start": 0}]}, r"a.json: question q1: has no 'text'"),
        ({"answers": ["Denver"]}, r"a.json: question q1: is a string, not an object with 'text'"),
        ({"answers": "Denver"}, r"a.json: question q1: answers: is a string, not an object with 'text'"),
        (
            {"answers": [{"text": "Denver", "answer_start": "0"}]},
            r"question q1: an answer is a string at a string, not a string at a whole",
        ),
        ({"answers": [{"text": "e", "answer_start": True}]}, r"question q1: an answer is a string at a boolean"),
        ({"answers": [{"text": 5, "answer_start": 0}]}, r"question q1: an answer is a number at a number"),
        ({"answers": [{"text": "Denver", "answer_start": 3}]}, r"q1: the answer 'Denver' does not stand at character 3 of its context"),
        ({"answers": [{"text": "Denver", "answer_start": -3}]}, r"q1: the answer 'Denver' does not stand at character -3"),
        ({"answers": [{"text": "x" * 99, "answer_start": 3}]}, r"the answer 'x{37}\.\.\.' does not stand"),
        ({"answers": [{"text": " ", "answer_start": 6}]}, r"question q1: an answer is empty; leave it out"),
    ],
)
def test_questions_that_are_not_what_they_should_be(tmp_path, change, message):
    with pytest.raises(DataError, match=message) as caught:
        read_squad(write(tmp_path / "a.json", question(**change)), split="train")
    assert "\n" not in str(caught.value)


def test_ids_are_whole_numbers_or_made(tmp_path):
    examples = read_squad(write(tmp_path / "a.json", question(id=7), question(id=...), question("q3")), split="train")
    assert examples.indices == ["7", "2", "q3"]


def test_questions_that_cannot_be_used_may_be_left_out(tmp_path):
    good, bad = question("good"), question("q2", answers=[{"text": "Denver", "answer_start": 3}])
    path = write(tmp_path / "a.json", bad, good, question("good"), question("q4", answers=...), question("q5", answers=["x"]), 5)
    examples = read_squad(path, split="train", skip_bad=True)
    assert examples.indices == ["good"]
    assert examples.notes == (
        f"{path}: left out 5 questions that cannot be used; the first: {path}: question q2: the answer 'Denver' does not stand at "
        "character 3 of its context; correct answer_start",
    )
    with pytest.raises(DataError, match=r"a.json: all 1 questions are unusable; the first: the answer 'Denver' does not stand"):
        read_squad(write(tmp_path / "a.json", bad), split="train", skip_bad=True)


def test_a_negative_start_does_not_count_from_the_end():
    end = {"text": ["California."], "answer_start": [-11]}
    with pytest.raises(DataError, match="does not stand at character -11"):
        squad_examples(rows({"answers": end}), split="train", source="hub")


def test_some_questions_without_answers(tmp_path):
    with pytest.raises(DataError, match=r"a.json: question q2: has no 'answers', and other questions have; give an empty list"):
        read_squad(write(tmp_path / "a.json", question(), question("q2", answers=...)), split="train")


def test_an_id_twice(tmp_path):
    with pytest.raises(DataError, match=r"a.json: question q1: the id is there twice"):
        read_squad(write(tmp_path / "a.json", question(), question()), split="train")


def test_an_empty_context(tmp_path):
    with pytest.raises(DataError, match=r"a.json: question q1: the context is empty"):
        read_squad(write(tmp_path / "a.json", question(), context=" \n"), split="train")


def test_lists_of_different_lengths():
    with pytest.raises(DataError, match=r"hub: question q0: has 2 answer texts and 1 answer_start"):
        squad_examples(rows({"answers": {"text": ["a", "b"], "answer_start": [0]}}), split="train", source="hub")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda file: file.pop("data"), r"a.json: has no 'data'; the layout of SQuAD"),
        (lambda file: file.update(data={}), r"a.json: 'data' is an object, not a list"),
        (lambda file: file.update(data=[]), r"a.json: holds no questions"),
        (lambda file: file["data"].append([]), r"a.json: data\[1\]: is a list, not an object with 'paragraphs'"),
        (lambda file: file["data"][0].pop("paragraphs"), r"a.json: data\[0\]: has no 'paragraphs'"),
        (lambda file: file["data"][0]["paragraphs"][0].pop("qas"), r"data\[0\].paragraphs\[0\]: has no 'qas'"),
        (lambda file: file["data"][0]["paragraphs"][0].pop("context"), r"data\[0\].paragraphs\[0\]: has no 'context'"),
        (lambda file: file["data"][0]["paragraphs"][0].update(context=None), r"paragraphs\[0\]: 'context' is null, not a string"),
        (lambda file: file["data"][0]["paragraphs"][0].update(qas=[None]), r"paragraphs\[0\].qas\[0\]: is null, not an object"),
    ],
)
def test_files_of_another_layout(tmp_path, change, message):
    content = json.loads(write(tmp_path / "a.json", question()).read_text(encoding="utf-8"))
    damaged = copy.deepcopy(content)
    change(damaged)
    (tmp_path / "a.json").write_text(json.dumps(damaged), encoding="utf-8")
    with pytest.raises(DataError, match=message):
        read_squad(tmp_path / "a.json", split="train")


@pytest.mark.parametrize("content", [b'{"data": [{"par', b"", b"[" * 100_000, b"plain text"])
def test_damaged_files(tmp_path, content):
    (tmp_path / "a.json").write_bytes(content)
    with pytest.raises(DataError, match=r"a.json: is not JSON \(.*\); the file may be cut off; fetch it again") as caught:
        read_squad(tmp_path / "a.json", split="train")
    assert "\n" not in str(caught.value)


def test_a_file_that_is_not_there(tmp_path):
    with pytest.raises(DataError, match=r"none.json: no such file"):
        read_squad(tmp_path / "none.json", split="train")
    with pytest.raises(DataError, match=r"cannot be read \(is a directory\)"):
        read_squad(tmp_path, split="train")


def test_normalised_answers():
    assert normalised("  The  Café, a\tb-c and AN end!") == "café bc and end"
    assert normalised("theatre than") == "theatre than"
    assert normalised("“the”") == "“ ”"
    assert normalised("A. an the") == ""


@pytest.mark.parametrize(
    ("answer", "reference", "exact", "f1"),
    [
        ("the Denver Broncos!", "denver broncos", 1, 1),
        ("Denver", "Denver Broncos", 0, 2 / 3),
        ("to be or not to be", "to be", 0, 2 * 2 / (6 + 2)),
        ("to to be", "to be to", 0, 1),
        ("x", "y", 0, 0),
        ("", "x", 0, 0),
        ("x", "", 0, 0),
        ("", "", 1, 1),
        ("the", "a", 1, 1),
    ],
)
def test_one_answer_against_one(answer, reference, exact, f1):
    assert exact_match(answer, reference) == exact
    assert squad_f1(answer, reference) == pytest.approx(f1)


def test_the_best_right_answer_counts_for_each_measure():
    scores = squad_scores(["in Santa Clara", "1999"], [["Santa Clara, California", "Clara"], ["the 1999", "2000"]])
    assert scores == {"exact_match": 0.5, "squad_f1": pytest.approx((4 / 6 + 1) / 2)}


def test_scores_with_unanswerable_questions():
    scores = squad_scores(["x", "", "", "x y"], [["x"], ["x"], [], []])
    assert scores == {
        "exact_match": 0.5,
        "squad_f1": 0.5,
        "has_answer_exact_match": 0.5,
        "has_answer_f1": 0.5,
        "no_answer_accuracy": 0.5,
    }
    assert squad_scores([""], [[]]) == {"exact_match": 1.0, "squad_f1": 1.0, "no_answer_accuracy": 1.0}
    assert squad_scores(["x y", ""], [["x"], []])["has_answer_f1"] == pytest.approx(2 / 3)


def test_right_answers_of_articles_only():
    assert squad_scores(["A"], [["a"]]) == {"exact_match": 1.0, "squad_f1": 0.0}, "the script of SQuAD 1.1 gives no F1 for it"
    assert squad_scores(["A"], [["a", "x"]])["exact_match"] == 1.0
    assert squad_scores(["a", ""], [["a", "x"], []])["has_answer_exact_match"] == 0.0, "that of 2.0 leaves it out"
    assert squad_scores(["", ""], [["the"], []])["has_answer_f1"] == 1.0


def test_the_published_development_set(real_data):
    examples = read_squad(real_data / "squad" / "dev-v1.1.json", split="validation")
    assert len(examples) == 10_565
    assert examples.notes[0].endswith("beside their answer_start: 15")
    assert examples.labels is not None
    for context, right in zip(examples.inputs[1], examples.labels, strict=True):
        assert right
        assert all(context[start : start + len(text)] == text for start, text in right)
    references = [[text for _, text in right] for right in examples.labels]
    assert squad_scores([right[-1] for right in references], references) == {"exact_match": 1.0, "squad_f1": 1.0}
    first = squad_scores([right[0].split()[0] for right in references], references)
    assert 0.3 < first["exact_match"] < first["squad_f1"] < 0.9
