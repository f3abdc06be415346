import json

import datasets
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pldcli.errors import DataError, UsageError
from pldcli.task_files.sources import load_task
from pldcli.tasks.registry import TASKS, find_task


def write(root, **files):
    """Write files called like `RTE__dev`, as TSV."""
    for name, content in files.items():
        path = root / f"{name.replace('__', '/')}.tsv"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(content, encoding="utf-8")
    return root


def load(task, data_dir=None, **settings):
    return load_task(find_task(task), data_dir=data_dir, **settings)


def error_of(task, root, **settings):
    with pytest.raises(DataError) as caught:
        load(task, root, **settings)
    assert "\n" not in str(caught.value)
    return str(caught.value).replace(f"{root}/", "")


def test_a_text_that_is_missing_is_no_empty_text(tmp_path):
    path = tmp_path / "RTE" / "train.jsonl"
    path.parent.mkdir()
    rows = [{"sentence1": "a", "sentence2": "", "label": "entailment"}, {"sentence1": "c", "label": "not_entailment"}]
    path.write_text("\n".join(map(json.dumps, rows)))
    assert error_of("glue/rte", tmp_path) == "RTE/train.jsonl:2: has no 'sentence2'; fill it"


def test_cola_has_no_heading(tmp_path):
    write(tmp_path, CoLA__train="gj04\t1\t\tOne.\ngj04\t0\t*\tTwo.\n", CoLA__test="index\tsentence\n0\tA.\n1\tB.\n")
    data = load("glue/cola", tmp_path)
    assert data.train.inputs == (["One.", "Two."],) and data.train.labels == [1, 0]
    assert data.test["test"].inputs == (["A.", "B."],) and data.test["test"].labels is None
    assert data.validation == {}


def test_mrpc_has_a_byte_order_mark_and_quotes_that_are_none(tmp_path):
    heading = "Quality\t#1 ID\t#2 ID\t#1 String\t#2 String\n"
    write(tmp_path, MRPC__train=f'\ufeff{heading}1\t1\t2\t"He said\tHe "said"\n0\t3\t4\tx\ty\n', MRPC__dev=heading + '0\t1\t2\t"all"\tb\n')
    data = load("glue/mrpc", tmp_path)
    assert data.train.inputs == (['"He said', "x"], ['He "said"', "y"]) and data.train.labels == [1, 0]
    assert data.validation["validation"].inputs == (['"all"'], ["b"])


def test_qqp_has_broken_rows_and_calls_its_index_id(tmp_path):
    train = "id\tqid1\tqid2\tquestion1\tquestion2\tis_duplicate\n7\t1\t2\ta?\tb?\t1\n8\t1\t2\ta? 1\n9\t1\t2\t\td?\t0\n"
    write(tmp_path, QQP__train=train, QQP__test="id\tquestion1\tquestion2\n0\ta\tb\n1\tc\td\n")
    data = load("glue/qqp", tmp_path)
    assert data.train.labels == [1, 0] and data.train.inputs == (["a?", ""], ["b?", "d?"])
    assert data.train.indices == [0, 1] and data.test["test"].indices == [0, 1]
    path = tmp_path / "QQP" / "train.tsv"
    assert data.train.notes == (
        f"{path}: left out 1 row with a wrong number of columns (the first is line 3)",
        f"{path}: reads 2 of the official 363,846 training examples",
    )


def test_mnli_has_two_validation_sets_and_pairs_without_agreement(tmp_path):
    heading = "index\tgenre\tsentence1\tsentence2\tlabel1\tgold_label\n"
    write(
        tmp_path,
        MNLI__train=f"{heading}0\tfiction\ta\tb\tneutral\tcontradiction\n1\tx\tc\td\tneutral\t-\n2\tx\te\tf\tneutral\tneutral\n",
        MNLI__dev_mismatched=f"{heading}0\tx\tg\th\tneutral\tentailment\n",
        MNLI__test_matched="index\tsentence1\tsentence2\n0\ti\tj\n",
    )
    data = load("glue/mnli", tmp_path)
    assert data.train.inputs == (["a", "e"], ["b", "f"]) and data.train.labels == [2, 1] and data.train.indices == [0, 2]
    assert f"{tmp_path}/MNLI/train.tsv: left out line 3, which has the label '-'" in data.train.notes
    assert list(data.validation) == ["validation_mismatched"] and list(data.test) == ["test_matched"]


def test_stsb_has_numbers(tmp_path):
    write(tmp_path, **{"STS-B__train": "index\tsentence1\tsentence2\tscore\n0\ta\tb\t3.800\n1\tc\td\t5\n"})
    assert load("glue/stsb", tmp_path).train.labels == [3.8, 5.0]


def test_rows_of_the_hub_in_other_formats(tmp_path):
    rows = [{"premise": "a", "hypothesis": "b", "label": 2, "idx": 5}, {"premise": "c", "hypothesis": "d", "label": 0, "idx": 6}]
    (tmp_path / "mnli").mkdir()
    (tmp_path / "mnli" / "train.jsonl").write_text("\n".join(map(json.dumps, rows)))
    names = [{**row, "label": ["entailment", "neutral", "contradiction"][row["label"]]} for row in rows]
    (tmp_path / "mnli" / "validation_matched.json").write_text(json.dumps(names))
    pq.write_table(pa.Table.from_pylist([{**row, "label": -1} for row in rows]), tmp_path / "mnli" / "test_matched.parquet")
    data = load("glue/mnli", tmp_path)
    assert data.train.labels == data.validation["validation_matched"].labels == [2, 0]
    assert data.train.indices == [0, 1]
    assert data.test["test_matched"].labels is None and data.test["test_matched"].indices == [5, 6]


def test_parts_are_read_one_behind_the_other(tmp_path):
    for number, texts in enumerate((["a", "b"], ["c"])):
        pq.write_table(pa.table({"sentence": texts, "label": [number] * len(texts)}), tmp_path / f"train-0000{number}-of-00002.parquet")
    train = load("glue/sst2", tmp_path).train
    assert train.inputs == (["a", "b", "c"],) and train.labels == [0, 0, 1] and train.indices == [0, 1, 2]
    assert any(
        note.endswith("train-00000-of-00002.parquet and 1 more: reads 3 of the official 67,349 training examples") for note in train.notes
    )


def test_what_datasets_saved(tmp_path):
    features = datasets.Features({"sentence": datasets.Value("string"), "label": datasets.ClassLabel(names=["negative", "positive"])})
    rows = datasets.Dataset.from_dict({"sentence": ["a", "b"], "label": [1, 0]}, features=features)
    datasets.DatasetDict({"train": rows, "validation": rows}).save_to_disk(str(tmp_path / "sst2"))
    data = load("glue/sst2", tmp_path)
    assert data.train.labels == data.validation["validation"].labels == [1, 0]


def test_single_files_stand_in_for_those_of_the_directory(tmp_path):
    write(
        tmp_path,
        RTE__train="index\tsentence1\tsentence2\tlabel\n0\ta\tb\tentailment\n",
        mine="sentence1\tsentence2\tlabel\nx\ty\tnot_entailment\n",
    )
    data = load("glue/rte", tmp_path, files={"validation": tmp_path / "mine.tsv"})
    assert data.train.labels == [0] and data.validation["validation"].labels == [1]
    assert load("glue/rte", files={"train": tmp_path / "mine.tsv"}).validation == {}
    matched = load("glue/mnli", files={"validation": write(tmp_path, dev="sentence1\tsentence2\tgold_label\na\tb\tneutral\n") / "dev.tsv"})
    assert list(matched.validation) == ["validation_matched"]
    with pytest.raises(UsageError, match=r"glue/rte has no split 'dev'; its splits are: train, validation, test$"):
        load("glue/rte", files={"dev": tmp_path / "mine.tsv"})


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        (
            "sentence\tlabel\nfine\t1\nbad\t2\n",
            "SST-2/train.tsv:3: the label '2' is not one of glue/sst2; known labels are: negative, positive",
        ),
        ("sentence\tlabel\nfine\t\n", "SST-2/train.tsv:2: has no label; fill it"),
        ("sentence\tlabel\nfine\t-1\n", "SST-2/train.tsv:2: the label '-1' is not one of"),
        ("sentence\nfine\n", "SST-2/train.tsv: has no column 'label'; its columns are: sentence"),
        ("sentence\tlabel\nfine\t1\nfi", "SST-2/train.tsv:3: has 1 column, the heading has 2; is the file cut short?"),
        ("text\tlabel\nfine\t1\n", "SST-2/train.tsv: has no column 'sentence'; its columns are: text, label"),
    ],
)
def test_files_that_are_not_as_published(tmp_path, content, expected):
    assert error_of("glue/sst2", write(tmp_path, **{"SST-2__train": content})).startswith(expected)


@pytest.mark.parametrize(("value", "shown"), [("nan", "'nan'"), ("many", "'many'"), ("inf", "'inf'")])
def test_a_score_that_is_no_number(tmp_path, value, shown):
    write(tmp_path, **{"STS-B__train": f"sentence1\tsentence2\tscore\na\tb\t1.0\nc\td\t{value}\n"})
    assert (
        error_of("glue/stsb", tmp_path) == f"STS-B/train.tsv:3: the target {shown} is not a finite float32 number; regression needs numbers"
    )


def test_nothing_there(tmp_path):
    assert "holds no files of glue/rte; put train.tsv, dev.tsv, test.tsv" in error_of("glue/rte", tmp_path)


def test_squad_in_both_layouts(tmp_path):
    context = "Paris is in France."
    answers = {"text": ["Paris"], "answer_start": [0]}
    question = {"id": "q1", "question": "Where?", "answers": [{"text": "Paris", "answer_start": 0}]}
    published = {"version": "1.1", "data": [{"title": "t", "paragraphs": [{"context": context, "qas": [question]}]}]}
    (tmp_path / "squad").mkdir()
    (tmp_path / "squad" / "dev-v1.1.json").write_text(json.dumps(published))
    row = {"id": "q2", "title": "t", "question": "What?", "context": context, "answers": answers}
    pq.write_table(pa.Table.from_pylist([row]), tmp_path / "squad" / "train-00000-of-00001.parquet")
    data = load("squad", tmp_path)
    assert data.train.inputs == (["What?"], [context]) and data.train.labels == [[(0, "Paris")]] and data.train.indices == ["q2"]
    assert data.validation["validation"].indices == ["q1"] and data.validation["validation"].labels == [[(0, "Paris")]]
    assert data.train.notes[-1].endswith("reads 1 of the official 87,599 training examples")


def test_real_files_have_the_official_counts(real_data):
    whole = {"cola": 3, "sst2": 3, "mrpc": 3, "stsb": 3, "rte": 3, "wnli": 3, "ax": 1}
    for name, num_splits in whole.items():
        data = load(f"glue/{name}", real_data)
        splits = [split for split in (data.train, *data.validation.values(), *data.test.values()) if split is not None]
        assert len(splits) == num_splits
        for split in splits:
            assert len(split) == TASKS[f"glue/{name}"].num_rows[split.split] and split.notes == ()
            assert (split.labels is None) == (split.split == "test")
            assert split.indices == list(range(len(split)))


def test_a_real_file_with_quotes(real_data):
    first = load("glue/mrpc", real_data).validation["validation"]
    assert first.inputs[1][0] == '"The foodservice pie business does not fit our long-term growth strategy.'
    matched = load("glue/mnli", real_data)
    assert len(matched.validation["validation_matched"]) == 9815
    assert [note.replace(str(real_data), "ROOT") for note in matched.train.notes] == [
        "ROOT/glue/MNLI/train_sample.tsv is taken for train",
        "ROOT/glue/MNLI/train_sample.tsv: reads 9,999 of the official 392,702 training examples",
    ]
