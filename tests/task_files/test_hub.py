import socket
import threading
import time

import datasets
import pytest

from pldcli.errors import DataError
from pldcli.task_files import hub
from pldcli.task_files.sources import load_task
from pldcli.tasks.registry import find_task


@pytest.fixture
def reachable(monkeypatch):
    monkeypatch.setattr(hub, "_hub_answers", lambda: True)


def test_rows_of_the_hub(monkeypatch, reachable):
    features = datasets.Features({"sentence": datasets.Value("string"), "label": datasets.ClassLabel(names=["negative", "positive"]),
                                  "idx": datasets.Value("int32")})  # fmt: skip

    def load_dataset(*arguments):
        assert arguments == ("nyu-mll/glue", "sst2") and not datasets.config.HF_HUB_OFFLINE
        labels = {"train": [1, 0], "validation": [0, 0], "test": [-1, -1]}
        return datasets.DatasetDict({
            split: datasets.Dataset.from_dict({"sentence": ["a", "b"], "label": label, "idx": [8, 9]}, features=features)
            for split, label in labels.items()
        })  # fmt: skip

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    data = load_task(find_task("glue/sst2"))
    assert data.train.labels == [1, 0] and data.train.indices == [0, 1] and data.train.source == "nyu-mll/glue/sst2/train"
    assert data.test["test"].labels is None and data.test["test"].indices == [8, 9]
    assert data.train.notes == ("nyu-mll/glue/sst2/train: reads 2 of the official 67,349 training examples",)


def test_a_row_without_label_is_named(monkeypatch, reachable):
    rows = datasets.Dataset.from_dict({"sentence": ["a", "b"], "label": [1, -1]})
    monkeypatch.setattr(datasets, "load_dataset", lambda *_: {"train": rows})
    with pytest.raises(DataError, match=r"^nyu-mll/glue/sst2/train: row 2: has no label"):
        load_task(find_task("glue/sst2"))


def test_questions_of_the_hub(monkeypatch, reachable):
    row = {"id": ["5"], "title": ["t"], "question": ["What?"], "context": ["Paris"], "answers": [{"text": ["Paris"], "answer_start": [0]}]}
    monkeypatch.setattr(datasets, "load_dataset", lambda *_: {"validation": datasets.Dataset.from_dict(row)})
    data = load_task(find_task("squad"))
    assert (
        data.train is None and data.validation["validation"].labels == [[(0, "Paris")]] and data.validation["validation"].indices == ["5"]
    )


def test_the_hub_says_no(monkeypatch, reachable):
    def load_dataset(*_):
        raise datasets.exceptions.DatasetNotFoundError("Dataset 'x' doesn't exist.\nSecond line")

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    with pytest.raises(DataError) as caught:
        load_task(find_task("glue/rte"))
    assert str(caught.value) == (
        "glue/rte is not on this machine and cannot be downloaded (Dataset 'x' doesn't exist.); "
        "put train.tsv, dev.tsv, test.tsv (or .jsonl, .parquet) into DIR/RTE and give --data-dir DIR"
    )


def test_without_a_network_the_answer_comes_within_seconds(monkeypatch, tmp_path):
    def refuse(*_arguments, **_settings):
        raise OSError("no network")

    monkeypatch.setattr(socket, "create_connection", refuse)
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path)
    monkeypatch.chdir(tmp_path)
    began = time.monotonic()
    with pytest.raises(DataError) as caught:
        load_task(find_task("glue/mnli"))
    assert time.monotonic() - began < 5
    assert str(caught.value).startswith(
        "glue/mnli is not on this machine and cannot be downloaded (the Hugging Face hub cannot be reached); put"
    )
    assert "train.tsv, dev_matched.tsv, dev_mismatched.tsv" in str(caught.value) and "DIR/MNLI" in str(caught.value)
    assert not datasets.config.HF_HUB_OFFLINE


def test_a_name_that_takes_long_to_look_up(monkeypatch):
    monkeypatch.setattr(hub, "_PROBE_SECONDS", 0.05)
    found, left = threading.Event(), threading.Event()

    def connect(*_arguments, **_settings):
        found.wait()
        left.set()
        raise OSError

    monkeypatch.setattr(socket, "create_connection", connect)
    began = time.monotonic()
    assert not hub._hub_answers() and time.monotonic() - began < 2
    found.set()
    assert left.wait(5)


def test_offline_by_wish(monkeypatch):
    monkeypatch.setattr(socket, "create_connection", lambda *_arguments, **_settings: socket.socket())
    for name in ("HF_HUB_OFFLINE", "HF_DATASETS_OFFLINE", "HTTPS_PROXY", "https_proxy"):
        monkeypatch.delenv(name, raising=False)
    assert hub._hub_answers()
    monkeypatch.setenv("HF_DATASETS_OFFLINE", "1")
    assert not hub._hub_answers()
