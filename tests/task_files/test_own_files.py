import json
from dataclasses import replace

import datasets
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pldcli.errors import DataError, UsageError
from pldcli.task_files.own_files import load_own, load_split
from pldcli.tasks.registry import find_task


def write(path, content):
    path.write_text(content, encoding="utf-8")
    return path


def csv(path, rows, heading="text,label"):
    return write(path, "\n".join([heading, *rows]) + "\n")


def jsonl(path, rows):
    return write(path, "\n".join(map(json.dumps, rows)) + "\n")


def line_of(error, path, call, *arguments, **settings):
    with pytest.raises(error) as caught:
        call(*arguments, **settings)
    assert "\n" not in str(caught.value)
    return str(caught.value).replace(f"{path}/", "")


@pytest.fixture
def words(tmp_path):
    return csv(tmp_path / "words.csv", [f"text number {number},{'yes' if number % 3 else 'no'}" for number in range(40)])


def test_labels_are_found_and_rows_held_out(words):
    data = load_own(words)
    task = data.task
    assert (task.name, task.kind, task.text_columns, task.label_column) == ("words", "classification", ("text",), "label")
    assert task.labels == task.written == ("no", "yes") and task.metrics == ("accuracy", "macro_f1") and task.test == ()
    held_out = data.validation["validation"]
    assert len(data.train) == 36 and len(held_out) == 4 and data.test == {}
    assert sorted([*data.train.indices, *held_out.indices]) == list(range(40))
    for split in (data.train, held_out):
        assert split.indices == sorted(split.indices)
        assert split.inputs == ([f"text number {index}" for index in split.indices],)
        assert split.labels == [int(index % 3 > 0) for index in split.indices]
    assert data.train.notes == (
        f"{words}: 2 labels: no, yes (column 'label'); text: 'text'",
        f"{words}: 4 of 40 examples are held out for validation, 36 are left to train on",
    )


def test_the_seed_says_which_rows_are_held_out(words):
    first, again, other = (load_own(words, seed=seed, validation_fraction=0.5).validation["validation"].indices for seed in (0, 0, 1))
    assert first == again != other and len(first) == 20


def test_validation_and_test_files(words, tmp_path):
    validation = jsonl(tmp_path / "v.jsonl", [{"label": "yes", "text": "a"}])
    test = csv(tmp_path / "t.csv", ["b,17", "c,18"], heading="text,idx")
    data = load_own(words, validation=validation, test=test)
    assert len(data.train) == 40 and data.validation["validation"].labels == [1]
    assert data.test["test"].labels is None and data.test["test"].indices == [17, 18] and data.task.test == ("test",)


@pytest.mark.parametrize(
    ("heading", "texts", "label"),
    [
        ("sentence1,sentence2,label", ("sentence1", "sentence2"), "label"),
        ("Premise,Hypothesis,id,score", ("Premise", "Hypothesis"), "score"),
        ("question,sentence,label,id", ("question", "sentence"), "label"),
        ("label,sentence,id,other", ("sentence",), "label"),
        ("target,tweet", ("tweet",), "target"),
        (",target,tweet", ("tweet",), "target"),
    ],
)
def test_columns_are_told_by_their_names(tmp_path, heading, texts, label):
    rows = [",".join("ab"[number % 2] for _ in heading.split(",")) for number in range(20)]
    task = load_own(csv(tmp_path / "a.csv", rows, heading)).task
    assert (task.text_columns, task.label_column) == (texts, label)


@pytest.mark.parametrize(
    ("heading", "which"),
    [
        ("text,sentence,label", "text"),
        ("title,body,label", "text"),
        ("text,label,score", "label"),
        ("text,sentiment", "label"),
    ],
)
def test_columns_that_cannot_be_told(tmp_path, heading, which):
    path = csv(tmp_path / "a.csv", ["a,b,c"[: len(heading.split(",")) * 2 - 1]], heading)
    listed = ", ".join(heading.split(","))
    expected = f"a.csv: cannot tell which column holds the {which}; name it with --{which}-column; its columns are: {listed}"
    assert line_of(DataError, tmp_path, load_own, path) == expected


def test_columns_can_be_named(tmp_path):
    path = csv(tmp_path / "a.csv", [f"t{number},b{number},{number % 2},x" for number in range(20)], "title,body,good,label")
    task = load_own(path, text_columns=["body", "title"], label_column="good").task
    assert task.text_columns == ("body", "title") and task.labels == ("0", "1") and task.written == (0, 1)
    line = line_of(DataError, tmp_path, load_own, path, text_columns=["boddy"], label_column="good")
    assert line == "a.csv: has no column 'boddy'; did you mean 'body'? its columns are: title, body, good, label"
    line = line_of(DataError, tmp_path, load_own, path, text_columns=["body"], label_column="bad")
    assert line.startswith("a.csv: has no column 'bad'")
    for texts in (["title", "body", "label"], ["good"], ["title", "title"]):
        assert "one or two text columns" in line_of(UsageError, tmp_path, load_own, path, text_columns=texts, label_column="good")


@pytest.mark.parametrize(
    ("spelled", "names", "written"),
    [
        (["10", "9", "-1"], ("-1", "9", "10"), (-1, 9, 10)),
        (["b ", " a", "c"], ("a", "b", "c"), ("a", "b", "c")),
        (["01", "1", "2"], ("01", "1", "2"), ("01", "1", "2")),
        (["1.0", "0.0", "2.0"], ("0.0", "1.0", "2.0"), ("0.0", "1.0", "2.0")),
    ],
)
def test_how_labels_are_spelled(tmp_path, spelled, names, written):
    task = load_own(csv(tmp_path / "a.csv", [f"text,{label}" for label in spelled * 10])).task
    assert task.labels == names and task.written == written
    assert [type(one) for one in task.written] == [type(one) for one in written]


def test_labels_of_json_stay_as_they_are(tmp_path):
    rows = [{"text": f"t{number}", "label": number % 2 == 0} for number in range(20)]
    task = load_own(jsonl(tmp_path / "a.jsonl", rows)).task
    assert task.labels == ("False", "True") and task.written == (False, True) and task.spelled(1) is True
    rows[3]["label"] = "True"
    line = line_of(DataError, tmp_path, load_own, jsonl(tmp_path / "a.jsonl", rows))
    assert line == "a.jsonl: the label 'True' stands both in quotes and without; write it one way"


def test_named_classes_of_a_data_set(tmp_path):
    features = datasets.Features({"text": datasets.Value("string"), "label": datasets.ClassLabel(names=["neg", "pos"])})
    rows = datasets.Dataset.from_dict({"text": ["a"] * 20, "label": [0, 1] * 10}, features=features)
    rows.save_to_disk(str(tmp_path / "saved"))
    test = jsonl(tmp_path / "t.jsonl", [{"text": "x", "label": "pos"}, {"text": "y", "label": 0}])
    data = load_own(tmp_path / "saved", test=test)
    assert data.task.labels == ("neg", "pos") and data.task.written == (0, 1) and data.test["test"].labels == [1, 0]


def classes(path, names, labels, *, words=False):
    one, text = datasets.ClassLabel(names=names), datasets.Value("string")
    kinds = {"tokens": datasets.Sequence(text), "tags": datasets.Sequence(one)} if words else {"text": text, "label": one}
    rows = dict(zip(kinds, ([["a"]] * len(labels) if words else ["a"] * len(labels), labels), strict=True))
    datasets.Dataset.from_dict(rows, features=datasets.Features(kinds)).to_parquet(str(path))
    return path


def test_classes_in_another_order_are_matched_by_name(tmp_path):
    note = "its classes have other numbers than the task's; labels are matched by name"
    trained = load_own(classes(tmp_path / "a.parquet", ["neg", "pos"], [0, 1] * 10)).task
    from_words = load_own(csv(tmp_path / "a.csv", ["text,neg", "text,pos"] * 10)).task
    for task in (trained, from_words):
        found = load_split(task, classes(tmp_path / "c.parquet", ["pos", "neg"], [0, 1, 0]))
        assert found.labels == [1, 0, 1] and found.notes == (f"{tmp_path / 'c.parquet'}: {note}",)
    assert load_split(trained, classes(tmp_path / "d.parquet", ["neg", "pos"], [1, 0])).notes == ()
    tags = load_own(classes(tmp_path / "e.parquet", ["O", "B-X"], [[0], [1]] * 10, words=True)).task
    found = load_split(tags, classes(tmp_path / "f.parquet", ["B-X", "O"], [[0], [1]], words=True))
    assert found.labels == [[1], [0]] and len(found.notes) == 1


def test_classes_of_other_names_are_refused_where_the_labels_have_names(tmp_path):
    trained = load_own(classes(tmp_path / "a.parquet", ["neg", "pos"], [0, 1] * 10)).task
    line = line_of(DataError, tmp_path, load_split, trained, classes(tmp_path / "b.parquet", ["bad", "good"], [0, 1]))
    assert line == "b.parquet: row 1: the label 'bad' is not one of the model's labels; known labels are: neg, pos"
    numbered = load_own(csv(tmp_path / "a.csv", ["text,0", "text,1"] * 10)).task
    assert load_split(numbered, tmp_path / "b.parquet").labels == [0, 1]


def test_stars_are_matched_by_name(tmp_path):
    stars = load_own(csv(tmp_path / "a.csv", [f"text,{star}" for star in (1, 2, 3)] * 10)).task
    assert load_split(stars, classes(tmp_path / "b.parquet", list("123"), [0, 1, 2])).labels == [0, 1, 2]


def test_numbers_with_a_fraction_are_regression(tmp_path):
    data = load_own(csv(tmp_path / "a.csv", [f"t,{number / 2}" for number in range(21)]))
    assert data.task.kind == "regression" and data.task.labels == () and data.task.metrics == ("pearson", "spearman")
    assert data.train.labels == [index / 2 for index in data.train.indices]
    assert data.train.notes[0].endswith("regression, 0.0 to 10.0 (column 'label'); text: 'text'")
    assert load_own(tmp_path / "a.csv", kind="classification").task.kind == "classification"
    whole = csv(tmp_path / "b.csv", [f"t,{number % 2}" for number in range(20)])
    train = load_own(whole, kind="regression").train
    assert train.labels == [float(index % 2) for index in train.indices]


@pytest.mark.parametrize("value", ["nan", "inf", "-Infinity", "n/a", "1,5", "1e39"])
def test_a_target_that_is_no_number(tmp_path, value):
    hint = "write decimals with a point" if value == "1,5" else "regression needs numbers"
    rows = [f"t,{number / 2}" for number in range(21)]
    rows[7] = f't,"{value}"'
    path = csv(tmp_path / "a.csv", rows)
    assert line_of(DataError, tmp_path, load_own, path) == f"a.csv:9: the target {value!r} is not a finite float32 number; {hint}"
    skipping = load_own(path, skip_bad=True)
    assert len(skipping.train) + len(skipping.validation["validation"]) == 20
    assert f"{path}: left out line 9, which has a target that is no finite number" in skipping.train.notes


def test_nan_in_json_and_parquet(tmp_path):
    rows = [{"text": "t", "score": number / 2} for number in range(20)]
    rows[4]["score"] = float("nan")
    line = "the target nan is not a finite float32 number; regression needs numbers"
    assert line_of(DataError, tmp_path, load_own, jsonl(tmp_path / "a.jsonl", rows)) == f"a.jsonl:5: {line}"
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "a.parquet")
    assert line_of(DataError, tmp_path, load_own, tmp_path / "a.parquet") == f"a.parquet: row 5: {line}"
    (tmp_path / "a.jsonl").write_text((tmp_path / "a.jsonl").read_text().replace("NaN", "1" + "0" * 400))
    assert "is not a finite float32 number" in line_of(DataError, tmp_path, load_own, tmp_path / "a.jsonl")


@pytest.mark.parametrize(("word", "shown"), [("", "''"), (" \u00a0", repr(" \u00a0")), (3, "3"), (None, "None")])
def test_a_word_that_is_none_is_shown(tmp_path, word, shown):
    rows = [{"tokens": ["ton", "la"], "tags": ["O", "B-X"]} for _ in range(20)]
    rows[4]["tokens"][1] = word
    line = f"a.jsonl:5: 'tokens' holds {shown}, which is not a word; every word must be text, and not empty"
    assert line_of(DataError, tmp_path, load_own, jsonl(tmp_path / "a.jsonl", rows)) == line


def test_many_different_labels(tmp_path):
    path = csv(tmp_path / "a.csv", [f"t,{number * 3 % 90}" for number in range(200)])
    line = line_of(DataError, tmp_path, load_own, path)
    assert line.startswith(
        "a.csv: column 'label' has 30 different whole numbers in 200 rows; say --kind classification or --kind regression"
    )
    assert load_own(path, kind="regression").task.kind == "regression"
    assert len(load_own(path, kind="classification").task.labels) == 30
    assert len(load_own(csv(tmp_path / "b.csv", [f"t,{number % 30}" for number in range(200)])).task.labels) == 30
    path = csv(tmp_path / "d.csv", [f"t,{number * 3 % 90}.0" for number in range(200)])
    assert "has 30 different whole numbers in 200 rows" in line_of(DataError, tmp_path, load_own, path)
    numbered = [{"text": "t", "label": float(number % 30)} for number in range(200)]
    assert load_own(jsonl(tmp_path / "e.jsonl", numbered)).task.written == tuple(range(30))
    free = csv(tmp_path / "c.csv", [f"t,word{number}" for number in range(30)])
    assert "has 30 different labels in 30 rows; say --kind" in line_of(DataError, tmp_path, load_own, free)


@pytest.mark.parametrize(
    ("rows", "expected"),
    [
        (["a,1", ",0"], "a.csv:3: has an empty 'text'; mend it, or leave such rows out with --skip-bad"),
        (["a,1", "  ,0", ",1"], "a.csv:3: has an empty 'text'; so have 2 rows; mend them, or leave such rows out with --skip-bad"),
        (["a,1", "b,0", "c,"], "a.csv:4: has no label; mend it, or leave such rows out with --skip-bad"),
        (["a,1", "b,1"], "a.csv: has only one label, '1', in column 'label'; classification needs two or more"),
        (["a,", "b,"], "a.csv: has no labels in column 'label'; training needs them"),
        (["a,1", "b"], "a.csv:3: has 1 column, the heading has 2; is the file cut short?"),
        (["a,1", "b,0"], "a.csv: has 2 rows, too few to hold out 10 % of them for validation; add rows, or name a validation file"),
    ],
)
def test_training_files_that_cannot_be_used(tmp_path, rows, expected):
    assert line_of(DataError, tmp_path, load_own, csv(tmp_path / "a.csv", rows)) == expected


def test_bad_rows_can_be_left_out_and_are_counted(tmp_path):
    path = csv(tmp_path / "a.csv", ["a,1", ",0", "b,0", " ,1", "c,", "d", "e,1"])
    data = load_own(path, validation=csv(tmp_path / "v.csv", ["x,1", ",0"]), skip_bad=True)
    assert data.train.inputs == (["a", "b", "e"],) and data.train.labels == [1, 0, 1] and data.train.indices == [0, 2, 5]
    assert data.train.notes[1:] == (
        f"{path}: left out 1 row with a wrong number of columns (the first is line 7)",
        f"{path}: left out 2 rows that have an empty 'text' (the first is line 3)",
        f"{path}: left out line 6, which has no label",
    )
    assert data.validation["validation"].notes == (f"{tmp_path}/v.csv: left out line 3, which has an empty 'text'",)
    with pytest.raises(DataError, match="no row is left to use"):
        load_own(path, validation=csv(tmp_path / "v.csv", [",1", ",0"]), skip_bad=True)


def test_texts_that_are_no_text(tmp_path):
    path = jsonl(tmp_path / "a.jsonl", [{"text": "a", "label": 0}, {"text": 5, "label": 1}])
    assert line_of(DataError, tmp_path, load_own, path) == "a.jsonl:2: 'text' is not text but 5; name the right column"
    path = jsonl(tmp_path / "a.jsonl", [{"text": "a", "label": 0}, {"label": 1}])
    assert line_of(DataError, tmp_path, load_own, path).startswith("a.jsonl:2: has an empty 'text'")
    path = jsonl(tmp_path / "a.jsonl", [{"text": "a", "label": 0}, {"text": "b", "label": {"x": 1}}])
    assert line_of(DataError, tmp_path, load_own, path).startswith("a.jsonl:2: the label is neither a word nor a number but dict")


def test_a_label_unseen_in_training(words, tmp_path):
    validation = csv(tmp_path / "v.csv", ["a,yes", "b,maybe"])
    line = line_of(DataError, tmp_path, load_own, words, validation=validation)
    assert line == "v.csv:3: the label 'maybe' does not occur in training; known labels are: no, yes"


def test_validation_and_test_files_that_cannot_be_used(words, tmp_path):
    validation = csv(tmp_path / "v.csv", ["a"], "text")
    assert line_of(DataError, tmp_path, load_own, words, validation=validation) == "v.csv: has no column 'label'; its columns are: text"
    test = csv(tmp_path / "t.csv", ["a,yes", "b,"])
    for skip_bad in (False, True):
        line = line_of(DataError, tmp_path, load_own, words, test=test, skip_bad=skip_bad)
        assert line == "t.csv:3: has no label; other rows have one: fill all, or none"
    assert load_own(words, test=csv(tmp_path / "t.csv", ["a,", "b,"])).test["test"].labels is None
    assert load_own(words, test=csv(tmp_path / "t.csv", ["a,no", "b,yes"])).test["test"].labels == [0, 1]
    assert line_of(DataError, tmp_path, load_own, words, test=tmp_path / "none.csv") == "none.csv: no such file"
    assert "is 1.0" not in line_of(UsageError, tmp_path, load_own, words, validation_fraction=1.5)


def test_an_index_that_names_nothing(words, tmp_path):
    path = csv(tmp_path / "t.csv", ["a,7", "b,7"], "text,index")
    test = load_own(words, test=path).test["test"]
    assert test.indices == [0, 1] and test.notes == (
        f"{path}: its index does not name each example; predictions are named by their row, from 0",
    )


SENTENCES = "".join(f"Paris{number} B-LOC\nsleeps O\n\n" for number in range(20))


def test_conll_columns(tmp_path):
    data = load_own(write(tmp_path / "a.conll", SENTENCES))
    assert data.task.kind == "tags" and data.task.labels == ("B-LOC", "O") and data.task.metrics == ("entity_f1",)
    first = data.train.indices[0]
    assert data.train.inputs[0][0] == [f"Paris{first}", "sleeps"] and data.train.labels[0] == [0, 1] and len(data.train) == 18
    path = write(tmp_path / "a.txt", SENTENCES.replace(" B", " NNP B").replace(" O", " VB O"))
    assert load_own(path, kind="tags", label_column="1").task.labels == ("NNP", "VB")
    assert load_own(path, kind="tags", label_column="1").task.metrics == ("accuracy",)
    validation = write(tmp_path / "v.conll", "Rome B-PER\n")
    line = line_of(DataError, tmp_path, load_own, tmp_path / "a.conll", validation=validation)
    assert line == "v.conll: row 1: the label 'B-PER' does not occur in training; known labels are: B-LOC, O"
    line = line_of(UsageError, tmp_path, load_own, tmp_path / "a.conll", label_column="tag")
    assert line == "a.conll: 'tag' is not the number of a column; they count from 0, the last is -1"
    line = line_of(DataError, tmp_path, load_own, write(tmp_path / "b.conll", "Rome\nis\n"))
    assert line == "b.conll: has a single column, so no labels; training needs a label beside every word"


CONLLU = "".join(
    f"# text = Paris{number} sleeps\n1\tParis{number}\tParis\tPROPN\tNNP\t_\t2\tnsubj\t_\t_\n"
    "2-3\tsleeps\t_\t_\t_\t_\t_\t_\t_\t_\n2\tsleeps\tsleep\tVERB\tVBZ\t_\t0\troot\t_\tSpaceAfter=No\n\n"
    for number in range(20)
)


def test_words_and_labels_of_files_that_number_their_words(tmp_path):
    data = load_own(write(tmp_path / "a.conllu", CONLLU))
    assert data.task.labels == ("PROPN", "VERB") and (data.task.text_columns, data.task.label_column) == (("1",), "3")
    assert data.train.inputs[0][0] == [f"Paris{data.train.indices[0]}", "sleeps"]
    assert load_own(tmp_path / "a.conllu", label_column="4").task.labels == ("NNP", "VBZ")
    numbered = write(tmp_path / "a.tsv", SENTENCES.replace("Paris", "1 Paris").replace("sleeps", "2 sleeps").replace(" ", "\t"))
    data = load_own(numbered, kind="tags")
    assert data.task.labels == ("B-LOC", "O") and data.train.inputs[0][0] == [f"Paris{data.train.indices[0]}", "sleeps"]
    other = load_own(jsonl(tmp_path / "a.jsonl", [{"tokens": ["Paris", "is"], "tags": ["B-LOC", "O"]}] * 20)).task
    assert load_split(other, write(tmp_path / "b.conll", numbered.read_text())).inputs[0][0] == ["Paris0", "sleeps"]
    nested = write(tmp_path / "b.iob2", numbered.read_text().replace("B-LOC", "B-LOC\tO").replace("\tO\n\n", "\tO\tO\n\n"))
    line = line_of(DataError, tmp_path, load_own, nested)
    assert line.startswith("b.iob2: numbers its words, and it cannot be told which column holds the labels; name it with --label-column")
    assert load_own(nested, label_column="2").task.labels == ("B-LOC", "O")
    years = write(tmp_path / "c.conll", "1984 CD B-BOOK\nis VB O\n\n1 CD O\nand CC O\n\n" * 9)
    assert ["1984", "is"] in load_own(years).train.inputs[0], "a number may be a word"


def test_tags_that_follow_from_others_are_known(tmp_path):
    rows = [{"tokens": ["a", "b", "c"], "tags": ["B-X", "I-X", "B-Y"]}] * 20
    task = load_own(jsonl(tmp_path / "a.jsonl", rows)).task
    assert task.labels == ("B-X", "B-Y", "I-X", "I-Y")
    assert load_split(task, write(tmp_path / "b.conll", "a B-Y\nb I-Y\n")).labels == [[1, 3]]
    assert "M-Y" in load_own(jsonl(tmp_path / "c.jsonl", [{"tokens": list("abcd"), "tags": ["B-X", "M-X", "E-X", "S-Y"]}] * 20)).task.labels


def test_lists_of_words_and_tags(tmp_path):
    rows = [{"tokens": ["a", "b"], "ner_tags": ["O", "B-X"]}] * 20
    data = load_own(jsonl(tmp_path / "a.jsonl", rows))
    assert data.task.kind == "tags" and data.task.labels == ("B-X", "O") and data.train.labels[0] == [1, 0]
    short = jsonl(tmp_path / "b.jsonl", [*rows, {"tokens": ["a"], "ner_tags": ["O", "O"]}])
    assert line_of(DataError, tmp_path, load_own, short) == "b.jsonl:21: has 1 word but 2 labels; every word needs one label"
    assert load_split(data.task, write(tmp_path / "c.conll", "a O\nb B-X\n")).labels == [[1, 0]]
    names = datasets.Features({"tokens": datasets.Sequence(datasets.Value("string")),
                               "tags": datasets.Sequence(datasets.ClassLabel(names=["O", "B-X", "I-X"]))})  # fmt: skip
    datasets.Dataset.from_dict({"tokens": [["a", "b"]] * 20, "tags": [[0, 1]] * 20}, features=names).to_parquet(str(tmp_path / "a.parquet"))
    task = load_own(tmp_path / "a.parquet").task
    assert task.labels == ("O", "B-X", "I-X") and task.written == (0, 1, 2) and task.metrics == ("entity_f1",)


def squad(path, *, answered=12, unanswered=0):
    qas = [{"id": f"q{number}", "question": "Where?", "answers": [{"text": "Rome", "answer_start": 3}]} for number in range(answered)]
    qas += [{"id": f"u{number}", "question": "Who?", "answers": [], "is_impossible": True} for number in range(unanswered)]
    paragraphs = [{"context": f"In Rome. {number}", "qas": [one]} for number, one in enumerate(qas)]
    return write(path, json.dumps({"data": [{"title": "t", "paragraphs": paragraphs}]}))


def test_questions_of_a_table_without_ids_count_from_0(tmp_path):
    answers = {"text": ["Rome"], "answer_start": [3]}
    rows = [{"question": "Where?", "context": "In Rome.", "answers": answers} for _ in range(4)]
    data = load_own(jsonl(tmp_path / "a.jsonl", rows), validation=jsonl(tmp_path / "b.jsonl", rows[:2]), kind="spans")
    assert data.train.indices == ["0", "1", "2", "3"]


def test_questions_of_ones_own(tmp_path):
    data = load_own(squad(tmp_path / "a.json"))
    assert data.task.kind == "spans" and data.task.text_columns == ("question", "context") and not data.task.unanswerable
    assert data.task.metrics == ("exact_match", "squad_f1") and len(data.train) == 11 and len(data.validation["validation"]) == 1
    assert load_own(squad(tmp_path / "b.json", unanswered=2)).task.unanswerable
    rows = [{"q": "Where?", "c": f"In Rome. {number}", "a": {"text": ["Rome"], "answer_start": [3]}} for number in range(10)]
    path = jsonl(tmp_path / "a.jsonl", rows)
    other = load_own(path, kind="spans", text_columns=["q", "c"], label_column="a")
    assert other.train.labels[0] == [(3, "Rome")] and other.train.inputs[1][0].startswith("In Rome.")
    line = line_of(DataError, tmp_path, load_own, squad(tmp_path / "c.json", answered=0, unanswered=0))
    assert line.startswith("c.json: holds no questions")


def test_questions_of_a_table_are_told_by_their_answers(tmp_path):
    for answers in ({"text": ["Rome"], "answer_start": [3]}, [{"text": "Rome", "answer_start": 3}]):
        rows = [{"question": "Where?", "context": f"In Rome. {number}", "answers": answers} for number in range(20)]
        data = load_own(jsonl(tmp_path / "a.jsonl", rows))
        assert data.task.kind == "spans" and data.train.labels[0] == [(3, "Rome")]


def test_questions_about_one_text_are_held_out_together(tmp_path):
    paragraphs = [
        {"context": f"In Rome. {text}", "qas": [{"question": "Where?", "answers": [{"text": "Rome", "answer_start": 3}]}] * 5}
        for text in range(20)
    ]
    data = load_own(write(tmp_path / "a.json", json.dumps({"version": "1.1", "data": [{"paragraphs": paragraphs}]})))
    training, held_out = (set(examples.inputs[1]) for examples in (data.train, data.validation["validation"]))
    assert (len(training), len(held_out), training & held_out) == (18, 2, set())
    one = write(tmp_path / "b.json", json.dumps({"data": [{"paragraphs": paragraphs[:1]}]}))
    line = line_of(DataError, tmp_path, load_own, one, validation_fraction=0.5)
    assert line == "b.json: asks about too few texts to hold one out for validation; name a validation file"


@pytest.mark.parametrize("first", [{"version": 3}, {"version": "a"}, {"data": "x"}, {"data": ["a", "b"]}, {"data": 3}])
def test_lines_that_begin_with_a_key_of_squad_are_rows(tmp_path, first):
    rows = [{**first, "text": f"{number}", "label": "yes" if number % 2 else "no"} for number in range(20)]
    path = jsonl(tmp_path / "a.json", rows)
    assert load_own(path, text_columns=["text"], label_column="label").task.labels == ("no", "yes")


def test_a_file_for_a_task_that_is_known(words, tmp_path):
    task = load_own(words).task
    assert load_split(task, csv(tmp_path / "a.csv", ["a,yes"])).labels == [1]
    bare = load_split(task, csv(tmp_path / "a.csv", ["a,yes"], "text,verdict"), split="mine")
    assert bare.labels is None and bare.notes == (f"{tmp_path}/a.csv: there are no labels in 'label', so nothing is scored",)
    assert load_split(task, csv(tmp_path / "a.csv", ["a", ""], "text"), skip_bad=True).split == "validation"
    assert line_of(DataError, tmp_path, load_split, task, csv(tmp_path / "a.csv", ["a,perhaps"])).startswith("a.csv:2: the label 'perhaps'")
    assert line_of(DataError, tmp_path, load_split, task, csv(tmp_path / "a.csv", ['"",yes'])).startswith("a.csv:2: has an empty 'text'")
    assert line_of(DataError, tmp_path, load_split, task, tmp_path / "none.csv") == "none.csv: no such file"


def test_another_file_for_a_model_of_a_named_task(tmp_path):
    task = find_task("glue/sst2")
    examples = load_split(task, jsonl(tmp_path / "a.jsonl", [{"text": "a", "label": "positive"}, {"text": "b", "label": 0}]))
    assert examples.inputs == (["a", "b"],) and examples.labels == [1, 0]
    assert examples.notes == (f"{tmp_path}/a.jsonl: the text is taken from 'text', labels from 'label'",)
    line = line_of(DataError, tmp_path, load_split, task, csv(tmp_path / "b.csv", ["a,b,1"], "title,body,label"))
    assert line == "b.csv: has no column 'sentence'; its columns are: title, body, label"
    published = write(tmp_path / "dev.tsv", 'sentence1\tsentence2\tgold_label\n"a\tb\tneutral\n')
    examples = load_split(find_task("glue/mnli"), published)
    assert examples.inputs == (['"a'], ["b"]) and examples.labels == [1] and examples.notes == ()
    assert load_split(find_task("glue/cola"), write(tmp_path / "cola.tsv", "x\t1\t\tOne.\n")).labels == [1]


def test_what_else_a_file_holds_is_not_taken_for_labels_that_the_task_knows(words, tmp_path):
    task = replace(load_own(words).task, label_column="stars")
    path = csv(tmp_path / "new.csv", ["nice,Books,7", "bad,Toys,9"], "text,category,index")
    examples = load_split(task, path)
    assert examples.labels is None and examples.indices == [7, 9]
    assert [note.replace(f"{tmp_path}/", "") for note in examples.notes] == [
        "new.csv: there are no labels in 'stars', so nothing is scored"
    ]
    numbers = replace(task, kind="regression", labels=(), written=())
    unknown = jsonl(tmp_path / "new.jsonl", [{"text": "nice", "stars": float("nan")}] * 2)
    assert load_split(numbers, unknown).labels is None


def test_labels_are_not_guessed_from_numbers_that_are_none(words, tmp_path):
    task = replace(load_own(words).task, label_column="label")
    line = line_of(DataError, tmp_path, load_split, task, jsonl(tmp_path / "a.jsonl", [{"text": "a", "label": 1}]))
    assert line == "a.jsonl:1: the label 1 is not one of the model's labels; known labels are: no, yes"


def test_real_tags(real_data):
    data = load_own(
        real_data / "downstream" / "conll2000" / "train.txt", kind="tags", test=real_data / "downstream" / "conll2000" / "test.txt"
    )
    assert len(data.train) + len(data.validation["validation"]) == 8936 and len(data.test["test"]) == 2012
    # I-LST occurs in the test file only; B-LST is in both.
    assert "I-LST" in data.task.labels and len(data.task.labels) == 23 and data.task.metrics == ("entity_f1",)
    lengths = np.array([len(words) for words in data.train.inputs[0]])
    assert (lengths == [len(tags) for tags in data.train.labels]).all()


# Several labels per example


def test_lists_of_labels(tmp_path):
    rows = [{"text": f"text {number}", "labels": [["b", "a"], [], ["c"], ["a", "a"]][number % 4]} for number in range(40)]
    data = load_own(jsonl(tmp_path / "a.jsonl", rows))
    task = data.task
    assert (task.kind, task.labels, task.metrics, task.separator) == ("multi-label", ("a", "b", "c"), ("micro_f1", "macro_f1"), "")
    expected = [[0, 1], [], [2], [0]]
    for split in (data.train, data.validation["validation"]):
        assert split.labels == [expected[index % 4] for index in split.indices]
    assert data.train.notes[0].endswith(": any of 3 labels: a, b, c, 1.2 on average (column 'labels'); text: 'text'")


@pytest.mark.parametrize(("separator", "told"), [("|", "'|'"), (";", "';'"), (", ", "','")])
def test_labels_in_one_text(tmp_path, separator, told):
    values = [f"red{separator}deep blue", "", "red", f"green{separator} red"]
    rows = [{"text": f"text {number}", "label": values[number % 4]} for number in range(40)]
    train = jsonl(tmp_path / "a.jsonl", rows)
    data = load_own(train, kind="multi-label", validation=train, test=jsonl(tmp_path / "t.jsonl", [{"text": "x", "label": ""}]))
    assert data.task.labels == ("deep blue", "green", "red") and data.task.separator == separator.strip()
    assert data.train.labels[:4] == [[0, 2], [], [2], [1, 2]] == data.validation["validation"].labels[:4]
    assert data.test["test"].labels is None, "no row of it has a label"
    assert f"between {told}" in data.train.notes[0]
    known = replace(data.task)
    assert load_split(known, train).labels == data.train.labels
    assert type(data.task).from_record(data.task.record()).separator == data.task.separator
    earlier = {name: value for name, value in data.task.record().items() if name != "separator"}
    assert type(data.task).from_record(earlier).separator == ""


def test_numbers_as_several_labels(tmp_path):
    data = load_own(jsonl(tmp_path / "a.jsonl", [{"text": f"t {n}", "label": [[10, 2], [3]][n % 2]} for n in range(20)]))
    assert data.task.labels == ("2", "3", "10") and data.task.written == (2, 3, 10)


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        ([["x"], ["x"]], "a.jsonl: has fewer than two different labels in column 'label'; labels are lists, or stand in one text"),
        ([["x", "y"], [["z"]]], "a.jsonl:2: the label is neither a word nor a number but list"),
        ([["x", "y"], None], "a.jsonl:2: has no label; mend it, or leave such rows out with --skip-bad"),
    ],
)
def test_several_labels_that_are_none(tmp_path, labels, message):
    rows = [{"text": "a", "label": label} for label in labels]
    assert line_of(DataError, tmp_path, load_own, jsonl(tmp_path / "a.jsonl", rows)).startswith(message)


@pytest.mark.parametrize("marks", [[0, 1, 0, 1], [0.0, 1.0, 1.0], "[0, 1, 0]", "1|0|0", [True, False, True]])
def test_a_mark_for_each_label_is_no_list_of_labels(tmp_path, marks):
    rows = [{"text": f"text {number}", "label": marks} for number in range(20)]
    line = line_of(DataError, tmp_path, load_own, jsonl(tmp_path / "a.jsonl", rows), kind="multi-label")
    hint = "list the labels that an example has, not a 0 or 1 for each label there is"
    assert line == f"a.jsonl:1: names the number of a label twice; {hint}"


def test_a_mark_for_each_of_two_labels_is_no_list_of_labels(tmp_path):
    path = jsonl(tmp_path / "a.jsonl", [{"text": "t", "label": [number % 2, 1 - number % 2]} for number in range(30)])
    line = line_of(DataError, tmp_path, load_own, path)
    assert line == (
        "a.jsonl: column 'label' holds a 0 or a 1 for each of two labels; "
        "list the labels that an example has, not a 0 or 1 for each label there is"
    )
    both = jsonl(tmp_path / "b.jsonl", [{"text": "t", "label": [0, 1] if number % 3 else [number % 2]} for number in range(30)])
    assert load_own(both).task.kind == "multi-label"


def test_decimal_commas_are_numbers(tmp_path):
    path = csv(tmp_path / "a.csv", [f"t;{number % 4},5" for number in range(30)], "text;label")
    assert line_of(DataError, tmp_path, load_own, path) == (
        "a.csv: column 'label' holds numbers with a decimal comma, such as 0,5; "
        "write decimals with a point; if they are names, say --kind classification"
    )
    assert load_own(path, kind="classification").task.labels == ("0,5", "1,5", "2,5", "3,5")


def test_one_number_written_in_two_ways_is_one_label(tmp_path):
    path = jsonl(tmp_path / "a.jsonl", [{"text": "t", "label": 1.0 if number % 2 else 1} for number in range(30)])
    assert "has only one label, '1'" in line_of(DataError, tmp_path, load_own, path)


def test_entity_tags_in_small_letters_are_entity_tags(tmp_path):
    rows = [{"tokens": ["EU", "said"], "tags": ["b-org", "o"]}, {"tokens": ["x", "y"], "tags": ["i-per", "o"]}] * 10
    task = load_own(jsonl(tmp_path / "a.jsonl", rows)).task
    assert task.metrics == ("entity_f1",) and task.labels == ("b-org", "b-per", "i-org", "i-per", "o")
    rows = [{"tokens": ["run", "said"], "tags": ["v-fin", "n"]}, {"tokens": ["x", "y"], "tags": ["b-all", "o"]}] * 10
    assert load_own(jsonl(tmp_path / "b.jsonl", rows)).task.metrics == ("accuracy",)


def test_splits_that_were_saved_together_are_named(tmp_path):
    one = datasets.Dataset.from_dict({"text": ["a", "b"], "label": [0, 1]})
    datasets.DatasetDict(train=one, test=one).save_to_disk(tmp_path / "all")
    assert (
        line_of(DataError, tmp_path, load_own, tmp_path / "all")
        == "all: holds several splits: test, train; name one of them, such as all/test"
    )
    assert len(load_split(load_own(tmp_path / "all" / "train", validation=tmp_path / "all" / "test").task, tmp_path / "all" / "test")) == 2


@pytest.mark.parametrize("before", ['"version": 2.0,', '"version": "v2.0", "name": "a \\"name\\"",', '"year": null, "is_new": true,'])
def test_what_may_stand_before_the_articles_of_squad(tmp_path, before):
    asked = {"question": "Who?", "answers": [{"text": "EU", "answer_start": 0}]}
    articles = [{"paragraphs": [{"context": f"EU said {number}", "qas": [{**asked, "id": str(number)}]}]} for number in range(3)]
    path = write(tmp_path / "a.json", f'{{\n {before}\n "data": {json.dumps(articles)}}}')
    assert load_own(path, validation=path).task.kind == "spans"


def test_one_of_several_labels_that_training_does_not_have(tmp_path):
    train = jsonl(tmp_path / "a.jsonl", [{"text": "a", "label": ["x", "y"]}, {"text": "b", "label": []}])
    other = jsonl(tmp_path / "b.jsonl", [{"text": "a", "label": ["x"]}, {"text": "b", "label": ["y", "z"]}])
    message = line_of(DataError, tmp_path, load_own, train, validation=other)
    assert message == "b.jsonl:2: the label 'z' does not occur in training; known labels are: x, y"


def test_several_labels_printed_as_lists(tmp_path):
    for cells, labels, ids in (
        (["['b', 'a c']", "[]", "['b']"], ("a c", "b"), [[0, 1], [], [1]]),
        (["[10, 2]", "[]", "[2]"], ("2", "10"), [[0, 1], [], [0]]),
        (["[np.int64(10), np.int64(2)]", "[]", "[np.int64(2)]"], ("2", "10"), [[0, 1], [], [0]]),
        (["[10.0, 2.0]", "[]", "[2.0]"], ("2.0", "10.0"), [[0, 1], [], [0]]),
        (["('b', 'a')", "()", "('b',)"], ("a", "b"), [[0, 1], [], [1]]),
        (["{'b', 'a'}", "set()", "{'b'}"], ("a", "b"), [[0, 1], [], [1]]),
        ([r"['می\u200cروم', 'b']", "[]", "['b']"], ("b", "می\u200cروم"), [[0, 1], [], [0]]),
        ([r'["\u00e9", "\ud83d\ude00"]', "[]", r'["\u00e9"]'], ("é", "😀"), [[0, 1], [], [0]]),
    ):
        quoted = [cell.replace('"', '""') for cell in cells]
        path = csv(tmp_path / "a.csv", [f'text,"{quoted[number % 3]}"' for number in range(30)])
        data = load_own(path, kind="multi-label", validation=path)
        assert (data.task.labels, data.task.separator, data.train.labels[:3]) == (labels, "", ids)
        assert load_split(data.task, path).labels == data.train.labels
    path = csv(tmp_path / "a.csv", ["text,['a']", "text,['a' 'b']"])
    line = line_of(DataError, tmp_path, load_own, path, kind="multi-label")
    assert line == """a.csv:3: the label "['a' 'b']" is no list, but looks like one; write it as ['a', 'b'], or a|b"""
    for cell in ("[1 2]", "{a,b}", "[a, b]", "('a', b)"):
        path = csv(tmp_path / "a.csv", ["text,\"['a']\"", f'text,"{cell}"'])
        line = line_of(DataError, tmp_path, load_own, path, kind="multi-label")
        assert line == f"a.csv:3: the label {cell!r} is no list, but looks like one; write it as ['a', 'b'], or a|b"
    path = csv(tmp_path / "a.csv", ["text,(none)"] + ["text,a|b"] * 20)
    assert load_own(path, kind="multi-label").task.labels == ("(none)", "a", "b")


def test_several_labels_with_names_of_which_some_do_not_occur(tmp_path):
    classes = datasets.Sequence(datasets.ClassLabel(names=["x", "y", "z"]))
    features = datasets.Features({"text": datasets.Value("string"), "labels": classes})
    rows = datasets.Dataset.from_dict({"text": ["a"] * 20, "labels": [[0, 1], [1]] * 10}, features=features)
    rows.to_parquet(str(tmp_path / "a.parquet"))
    validation = jsonl(tmp_path / "v.jsonl", [{"text": "a", "labels": ["z", "x"]}, {"text": "b", "labels": [2]}])
    data = load_own(tmp_path / "a.parquet", validation=validation)
    assert data.task.labels == ("x", "y", "z") and data.task.written == (0, 1, 2)
    assert data.train.labels[:2] == [[0, 1], [1]] and data.validation["validation"].labels == [[0, 2], [2]]


def test_what_seldom_stands_between_labels_is_part_of_them(tmp_path):
    values = ["red,green", "green", "R|P,red", "green,red"]
    task = load_own(csv(tmp_path / "a.csv", [f'text,"{values[number % 4]}"' for number in range(40)]), kind="multi-label").task
    assert (task.labels, task.separator) == (("R|P", "green", "red"), ",")


# Labels and rows that cannot be used


def test_named_classes_that_are_digits(tmp_path):
    features = datasets.Features({"text": datasets.Value("string"), "label": datasets.ClassLabel(names=list("12345"))})
    rows = datasets.Dataset.from_dict({"text": ["a"] * 20, "label": [0, 1, 2, 3, 4] * 4}, features=features)
    rows.to_parquet(str(tmp_path / "a.parquet"))
    stars = csv(tmp_path / "v.csv", [f"text,{star}" for star in range(1, 6)])
    data = load_own(tmp_path / "a.parquet", validation=stars)
    assert data.train.labels == [0, 1, 2, 3, 4] * 4 and data.validation["validation"].labels == [0, 1, 2, 3, 4]
    known = "is not one of the model's labels; known labels are: 1, 2, 3, 4, 5"
    line = line_of(DataError, tmp_path, load_split, data.task, csv(tmp_path / "v.csv", ["text,0"]))
    assert line == f"v.csv:2: the label '0' {known}"
    numbers = jsonl(tmp_path / "v.jsonl", [{"text": "a", "label": number} for number in range(1, 6)])
    line = line_of(DataError, tmp_path, load_split, data.task, numbers)
    assert line == f"v.jsonl:5: the label 5 {known}; as numbers they count from 0"


@pytest.mark.parametrize(("tag", "shown"), [(["B-X"], "list"), ({"x": 1}, "dict"), (None, "null")])
def test_tags_that_are_none(tmp_path, tag, shown):
    rows = [{"tokens": ["a", "b"], "tags": ["O", "B-X"]} for _ in range(20)]
    good = jsonl(tmp_path / "good.jsonl", rows)
    rows[4]["tags"][1] = tag
    path = jsonl(tmp_path / "a.jsonl", rows)
    expected = f"a.jsonl:5: the label of word 2 is neither a word nor a number but {shown}; mend it, or name another label column"
    assert line_of(DataError, tmp_path, load_own, path) == expected
    assert line_of(DataError, tmp_path, load_own, good, validation=path) == expected
    assert len(load_own(path, validation=good, skip_bad=True).train) == 19


def test_tags_need_lists_of_labels_spelled_one_way(tmp_path):
    line = line_of(DataError, tmp_path, load_own, csv(tmp_path / "a.csv", ["a b c,O B-X O"] * 20), kind="tags")
    assert line.startswith("a.csv: column 'label' holds no lists, which tags of words are; JSON lines, Parquet and CoNLL files can")
    path = jsonl(tmp_path / "a.jsonl", [{"tokens": ["a", "b"], "tags": [1, "1"]}] * 20)
    assert line_of(DataError, tmp_path, load_own, path) == "a.jsonl: the label '1' stands both in quotes and without; write it one way"


@pytest.mark.parametrize(("scale", "label", "labels"), [(0, 1, ("0", "1")), (2, 0.5, ())])
def test_decimal_numbers_of_databases(tmp_path, scale, label, labels):
    column = pa.array([0, label] * 20).cast(pa.decimal128(30, scale))
    pq.write_table(pa.table({"text": ["t"] * 40, "label": column}), tmp_path / "a.parquet")
    data = load_own(tmp_path / "a.parquet")
    assert data.task.labels == labels and set(data.train.labels) == {0, label}


def test_rows_that_are_unusable_in_other_ways_can_be_left_out(tmp_path):
    good = [{"text": f"text {number}", "label": ["yes", "no"][number % 2]} for number in range(20)]
    bad = ["{", "[1]", '{"text": 5, "label": "no"}', '{"text": "a", "label": {"x": 1}}', '{"text": 6, "label": "no"}']
    path = write(tmp_path / "a.jsonl", "\n".join([*map(json.dumps, good), *bad]))
    validation = jsonl(tmp_path / "v.jsonl", [*good[:2], {"text": "a", "label": "maybe"}])
    data = load_own(path, validation=validation, skip_bad=True)
    assert len(data.train) == 20 and data.train.labels == [1, 0] * 10 and data.task.labels == ("no", "yes")
    assert [note.replace(f"{tmp_path}/", "") for note in data.train.notes[1:]] == [
        "a.jsonl: left out 2 rows without a JSON object (the first is line 21)",
        "a.jsonl: left out 2 rows that cannot be used; the first: a.jsonl:23: 'text' is not text but 5; name the right column",
        "a.jsonl: left out 1 row that cannot be used; the first: a.jsonl:24: the label is neither a word nor a number but dict; "
        "mend it, or name another label column",
    ]
    assert [note.replace(f"{tmp_path}/", "") for note in data.validation["validation"].notes] == [
        "v.jsonl: left out 1 row that cannot be used; the first: v.jsonl:3: the label 'maybe' does not occur in training; "
        "known labels are: no, yes"
    ]
    line = line_of(DataError, tmp_path, load_own, write(tmp_path / "b.jsonl", "{\n{\n"), skip_bad=True)
    assert line == "b.jsonl: has no rows; b.jsonl: left out 2 rows without a JSON object (the first is line 1)"


def test_sentences_that_cannot_be_used_can_be_left_out(tmp_path):
    rows = [{"tokens": ["a", "b"], "tags": ["O", "B-X"]}] * 20
    good = jsonl(tmp_path / "good.jsonl", rows)
    path = jsonl(tmp_path / "a.jsonl", [*rows, {"tokens": ["a"], "tags": ["O", "O"]}, {"tokens": ["a", ""], "tags": ["O", "O"]}])
    train = load_own(path, validation=good, skip_bad=True).train
    assert len(train) == 20 and len(train.inputs[0]) == 20
    assert [note.partition("; the first: ")[2].replace(f"{tmp_path}/", "") for note in train.notes[1:]] == [
        "a.jsonl:21: has 1 word but 2 labels; every word needs one label",
        "a.jsonl:22: 'tokens' holds '', which is not a word; every word must be text, and not empty",
    ]
    path = write(tmp_path / "a.conll", f"{SENTENCES}Rome\nis O\n\nRome B-LOC\n\nso O O\n")
    train = load_own(path, validation=path, skip_bad=True).train
    assert len(train) == 21
    assert train.notes[1].startswith(f"{path}: left out 2 sentences that cannot be used; the first: {path}:61: has 1 column, and the first")


def test_questions_that_cannot_be_read_are_counted(tmp_path):
    row = {"question": "Where?", "context": "In Rome.", "answers": {"text": ["Rome"], "answer_start": [3]}}
    path = write(tmp_path / "a.jsonl", f"{json.dumps(row)}\n" * 4 + "{")
    train = load_own(path, validation=path, kind="spans", skip_bad=True).train
    assert len(train) == 4 and f"{path}: left out 1 row without a JSON object (the first is line 5)" in train.notes


# Rows held out


@pytest.mark.parametrize(
    ("text", "labels"),
    [
        ("text", ["common"] * 26 + ["rare", "rarer", "rare", "other"]),
        ("text", [["common"]] * 26 + [["rare", "common"], ["rarer"], ["rare"], ["other", "common"]]),
        (["word"], [["common"]] * 26 + [["rare"], ["rarer"], ["rare"], ["other"]]),
    ],
)
def test_an_example_of_each_class_is_left_to_train_on(tmp_path, text, labels):
    path = jsonl(tmp_path / "a.jsonl", [{"text": text, "label": label} for label in labels])
    for seed in range(12):
        data = load_own(path, validation_fraction=0.5, seed=seed)
        known = {one for label in data.train.labels for one in (label if isinstance(label, list) else [label])}
        assert known == {0, 1, 2, 3} and len(data.validation["validation"]) == 15
        assert data.train.indices == load_own(path, validation_fraction=0.5, seed=seed).train.indices


def test_classes_with_one_row_each_are_noted(tmp_path):
    path = csv(tmp_path / "a.csv", [f"text {number},class {number}" for number in range(20)])
    note = load_own(path, kind="classification").train.notes[-1]
    assert note.endswith("18 are left to train on; 2 of 20 classes are in validation only")
