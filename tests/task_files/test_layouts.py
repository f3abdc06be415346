import datasets
import pytest

from pldcli.errors import DataError
from pldcli.task_files.layouts import find_split_files
from pldcli.tasks.registry import find_task


def place(root, *names):
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text("x")
    return root


def found(root, task="glue/rte"):
    return {
        split: [str(path.relative_to(root)) for path in files.paths] for split, files in find_split_files(root, find_task(task)).items()
    }


def error_of(root, task="glue/rte"):
    with pytest.raises(DataError) as caught:
        find_split_files(root, find_task(task))
    return str(caught.value).replace(str(root), "ROOT")


@pytest.mark.parametrize("folder", ["RTE/", "rte/", "glue/RTE/", "GLUE/rte/", "glue_data/RTE/", "", "snapshots/1a2b/rte/"])
def test_a_folder_of_the_task_wherever_it_lies(tmp_path, folder):
    place(tmp_path, f"{folder}train.tsv", f"{folder}dev.tsv", f"{folder}test.tsv", "QNLI/train.tsv", f"{folder}readme.md")
    assert found(tmp_path) == {"train": [f"{folder}train.tsv"], "validation": [f"{folder}dev.tsv"], "test": [f"{folder}test.tsv"]}


@pytest.mark.parametrize(
    "names", ["train.csv dev.jsonl", "train.json valid.parquet", "Train.tsv.gz val.arrow", "train.txt validation.ndjson"]
)
def test_endings_and_names_that_people_use(tmp_path, names):
    train, validation = names.split()
    assert found(place(tmp_path, train, validation, ".train.tsv")) == {"train": [train], "validation": [validation]}


def test_the_two_sets_of_mnli(tmp_path):
    place(tmp_path, "MNLI/dev_matched.tsv", "MNLI/validation_mismatched.jsonl", "MNLI/test_mismatched.tsv", "MNLI/original/train.jsonl")
    assert found(tmp_path, "glue/mnli") == {
        "validation_matched": ["MNLI/dev_matched.tsv"],
        "validation_mismatched": ["MNLI/validation_mismatched.jsonl"],
        "test_mismatched": ["MNLI/test_mismatched.tsv"],
    }


@pytest.mark.parametrize("name", ["AX/AX.tsv", "diagnostic/diagnostic.tsv", "glue/ax/test.jsonl", "AX/test.tsv"])
def test_the_diagnostic_set(tmp_path, name):
    assert found(place(tmp_path, name), "glue/ax") == {"test": [name]}


def test_squad_has_two_versions_in_one_folder(tmp_path):
    place(tmp_path, "squad/train-v1.1.json", "squad/dev-v1.1.json", "squad/dev-v2.0.json")
    assert found(tmp_path, "squad") == {"train": ["squad/train-v1.1.json"], "validation": ["squad/dev-v1.1.json"]}
    assert found(tmp_path, "squad_v2") == {"validation": ["squad/dev-v2.0.json"]}
    assert found(tmp_path / "squad", "squad_v2") == {"validation": ["dev-v2.0.json"]}


def test_a_file_of_the_other_squad_is_never_taken(tmp_path):
    place(tmp_path, "squad/train-v2.0.json", "squad/train.json")
    assert found(tmp_path, "squad") == {"train": ["squad/train.json"]}
    (tmp_path / "squad" / "train.json").unlink()
    assert error_of(tmp_path, "squad").startswith("ROOT: holds no files of squad; put train-v1.1.json, dev-v1.1.json (or")


def test_parts_of_the_hub(tmp_path):
    parts = [f"plain_text/train-0000{number}-of-00003.parquet" for number in range(3)]
    place(tmp_path, *reversed(parts), "plain_text/validation-00000-of-00001.parquet")
    assert found(tmp_path, "squad") == {"train": parts, "validation": ["plain_text/validation-00000-of-00001.parquet"]}
    (tmp_path / parts[1]).unlink()
    assert "part 00001 of 00003 of train is missing; copy the files again" in error_of(tmp_path, "squad")


def test_a_folder_of_parquet_files(tmp_path):
    place(tmp_path, "rte/train/0001.parquet", "rte/train/0000.parquet", "rte/validation/0000.parquet")
    assert found(tmp_path)["train"] == ["rte/train/0000.parquet", "rte/train/0001.parquet"]


def test_what_datasets_saved(tmp_path):
    rows = datasets.Dataset.from_dict({"sentence1": ["a"]})
    datasets.DatasetDict({"train": rows, "validation": rows}).save_to_disk(str(tmp_path / "rte"))
    assert found(tmp_path) == {"train": ["rte/train"], "validation": ["rte/validation"]}
    assert found(tmp_path / "rte") == {"train": ["train"], "validation": ["validation"]}


def test_a_sample_is_taken_where_the_whole_is_missing(tmp_path):
    place(tmp_path, "RTE/train_sample.tsv", "RTE/dev.tsv", "RTE/dev_sample.tsv", "RTE/trainer.json")
    files = find_split_files(tmp_path, find_task("glue/rte"))
    assert files["train"].note == f"{tmp_path}/RTE/train_sample.tsv is taken for train"
    assert files["validation"].paths == (tmp_path / "RTE" / "dev.tsv",) and not files["validation"].note


@pytest.mark.parametrize(
    ("names", "expected"),
    [
        (["RTE/train.tsv", "RTE/train.jsonl"], "ROOT/RTE: train.jsonl and train.tsv are the same split; keep one of them"),
        (["RTE/dev.tsv", "RTE/validation.tsv"], "ROOT/RTE: dev.tsv and validation.tsv are the same split; keep one of them"),
        (["RTE/train-a.tsv", "RTE/train-b.tsv"], "ROOT/RTE: both train-a.tsv and train-b.tsv could be train; call the one meant train.tsv"),
        (["RTE/train.tsv", "rte/dev.tsv"], "ROOT: both ROOT/RTE and ROOT/rte hold glue/rte; name one of them with --data-dir"),
        (["SST-2/train.tsv"], "ROOT: holds no files of glue/rte; put train.tsv, dev.tsv, test.tsv (or .jsonl"),
    ],
)  # fmt: skip
def test_what_cannot_be_told(tmp_path, names, expected):
    assert error_of(place(tmp_path, *names)).startswith(expected)


def test_the_folder_of_another_task_is_not_taken(tmp_path):
    place(tmp_path, "QNLI/train.tsv")
    assert error_of(tmp_path / "QNLI").startswith("ROOT: holds no files of glue/rte")
    place(tmp_path, "SST-2/train.tsv", "squad/train.json")
    assert error_of(tmp_path / "SST-2").startswith("ROOT: holds no files of glue/rte")
    assert found(tmp_path, "squad") == {"train": ["squad/train.json"]}
    assert error_of(tmp_path, "squad_v2").startswith("ROOT: holds no files of squad_v2")


def test_no_directory(tmp_path):
    assert error_of(tmp_path / "none").startswith("ROOT: no such directory; to use glue/rte, put train.tsv")
    assert error_of(place(tmp_path, "a.tsv") / "a.tsv").startswith("ROOT: is not a directory")
