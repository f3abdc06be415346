import zipfile

import pytest

from pldcli.errors import DataError, OutputError, UsageError
from pldcli.finetuning.submission import check_submission, write_submission
from pldcli.tasks.registry import find_task

ALL = [
    "CoLA.tsv",
    "SST-2.tsv",
    "MRPC.tsv",
    "STS-B.tsv",
    "QQP.tsv",
    "MNLI-m.tsv",
    "MNLI-mm.tsv",
    "QNLI.tsv",
    "RTE.tsv",
    "WNLI.tsv",
    "AX.tsv",
]


def whole(task, split="test", value=None):
    found = find_task(task)
    return [(row, found.spelled(row % 2) if value is None else value) for row in range(found.num_rows[split])]


def test_the_format_of_the_server(tmp_path):
    path = tmp_path / "submission.zip"
    numbers = [2.5, -0.1, 5.2, 3.14159, 0.0004]
    predictions = {
        "RTE.tsv": [(0, "entailment"), (1, "not_entailment")],
        "CoLA.tsv": [(0, 1), (1, 0)],
        "STS-B.tsv": list(enumerate(numbers)),
        "AX.tsv": [(0, "neutral")],
        "WNLI.tsv": whole("glue/wnli"),
    }
    missing = write_submission(path, predictions)
    with zipfile.ZipFile(path) as archive:
        assert archive.testzip() is None
        assert archive.namelist() == ["CoLA.tsv", "STS-B.tsv", "RTE.tsv", "WNLI.tsv", "AX.tsv"]
        read = {name: archive.read(name).decode() for name in archive.namelist()}
    assert read["RTE.tsv"] == "index\tprediction\n0\tentailment\n1\tnot_entailment\n"
    assert read["CoLA.tsv"] == "index\tprediction\n0\t1\n1\t0\n"
    assert read["STS-B.tsv"] == "index\tprediction\n0\t2.500\n1\t0.000\n2\t5.000\n3\t3.142\n4\t0.000\n"
    assert read["WNLI.tsv"].splitlines()[-1] == "145\t1" and len(read["WNLI.tsv"].splitlines()) == 147
    assert missing == [
        "CoLA.tsv (2 of 1,063 rows)", "SST-2.tsv", "MRPC.tsv", "STS-B.tsv (5 of 1,379 rows)", "QQP.tsv", "MNLI-m.tsv", "MNLI-mm.tsv",
        "QNLI.tsv", "RTE.tsv (2 of 3,000 rows)", "AX.tsv (1 of 1,104 rows)",
    ]  # fmt: skip


def test_nothing_is_missing_of_a_whole_submission(tmp_path):
    mnli = find_task("glue/mnli")
    predictions = {file: whole("glue/mnli", split) for split, file in mnli.server_files.items()}
    for name in ("cola", "sst2", "mrpc", "qqp", "qnli", "rte", "wnli", "ax"):
        predictions[find_task(f"glue/{name}").server_files["test"]] = whole(f"glue/{name}")
    predictions["STS-B.tsv"] = whole("glue/stsb", value=1.5)
    assert set(predictions) == set(ALL) and write_submission(tmp_path / "s.zip", predictions) == []
    del predictions["MNLI-mm.tsv"]
    assert write_submission(tmp_path / "s.zip", predictions) == ["MNLI-mm.tsv"]


def test_equal_predictions_give_equal_bytes(tmp_path):
    first, second = tmp_path / "1.zip", tmp_path / "2.zip"
    write_submission(first, {"RTE.tsv": [(0, "entailment")], "CoLA.tsv": [(0, 1)]})
    write_submission(second, {"CoLA.tsv": [(0, 1)], "RTE.tsv": [(0, "entailment")]})
    assert first.read_bytes() == second.read_bytes()
    with zipfile.ZipFile(first) as archive:
        assert {entry.date_time for entry in archive.infolist()} == {(1980, 1, 1, 0, 0, 0)}


@pytest.mark.parametrize("indices", [[1, 0], [0, 2], [1, 2], ["a", "b"], [0, 0]])
def test_an_index_that_is_not_that_of_the_official_set(tmp_path, indices):
    with pytest.raises(DataError) as caught:
        write_submission(tmp_path / "s.zip", {"CoLA.tsv": [(index, 1) for index in indices]})
    assert str(caught.value).startswith("CoLA.tsv: example ") and str(caught.value).endswith(
        "the GLUE server wants 0, 1, 2 and so on; predict the published test file, whole and in its order"
    )
    assert list(tmp_path.iterdir()) == []


def test_a_number_that_is_none(tmp_path):
    with pytest.raises(DataError, match=r"^STS-B.tsv: the prediction of example 1 is nan; has training diverged\?$"):
        write_submission(tmp_path / "s.zip", {"STS-B.tsv": [(0, 1.0), (1, float("nan"))]})


def test_labels_and_files_that_do_not_exist_are_our_own_mistakes(tmp_path):
    for predictions in ({"CoLA.tsv": [(0, "acceptable")]}, {"cola.tsv": [(0, 1)]}, {"RTE.tsv": [(0, 0)]}):
        with pytest.raises(AssertionError):
            write_submission(tmp_path / "s.zip", predictions)


def test_a_place_that_cannot_be_written(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(OutputError, match="cannot be written"):
        write_submission(tmp_path / "file" / "s.zip", {"CoLA.tsv": [(0, 1)]})


def test_several_processes_write_no_submission(monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(UsageError, match="--submission: is written by one process"):
        check_submission("glue/mnli")
