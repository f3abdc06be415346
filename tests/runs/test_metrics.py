import json
import math
import threading
import time
from contextlib import closing
from pathlib import Path

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from pldcli.errors import OutputError
from pldcli.runs.metrics import MetricsLog, read_metrics
from pldcli.system import atomic


def write(directory, from_step, *rows):
    with closing(MetricsLog(directory, from_step=from_step)) as log:
        for row in rows:
            log.write(row)


def test_rows_are_there_at_once_and_read_back(tmp_path):
    with closing(MetricsLog(tmp_path, from_step=0)) as log:
        log.write({"step": 1, "train/loss": 2.5, "note": "text"})
        assert (tmp_path / "metrics.jsonl").read_text() == '{"step": 1, "train/loss": 2.5, "note": "text"}\n'
    assert read_metrics(tmp_path / "metrics.jsonl") == [{"step": 1, "train/loss": 2.5, "note": "text"}]


def test_going_on_drops_rows_that_will_come_again(tmp_path):
    write(tmp_path, 0, *({"step": step, "a": step} for step in (1, 2, 2, 3, 4)))
    write(tmp_path, 2, {"step": 3, "a": 30})
    assert [(row["step"], row["a"]) for row in read_metrics(tmp_path / "metrics.jsonl")] == [(1, 1), (2, 2), (2, 2), (3, 30)]
    write(tmp_path, 0)
    assert (tmp_path / "metrics.jsonl").read_text() == ""


def test_a_line_cut_off_by_a_crash(tmp_path):
    path = tmp_path / "metrics.jsonl"
    path.write_bytes(b'{"step": 1}\n\xff\xfe\n[1]\n{"no step": 1}\n{"step": 2, "a"')
    assert read_metrics(path) == [{"step": 1}]
    write(tmp_path, 5, {"step": 6})
    assert [json.loads(line) for line in path.read_text().splitlines()] == [{"step": 1}, {"step": 6}]
    assert read_metrics(tmp_path / "none.jsonl") == []


def test_no_nan_in_json(tmp_path):
    write(tmp_path, 0, {"step": 1, "a": math.nan, "b": math.inf, "c": 1})
    assert json.loads((tmp_path / "metrics.jsonl").read_text(), parse_constant=pytest.fail) == {"step": 1, "a": None, "b": None, "c": 1}


def test_tensorboard_has_the_same_numbers(tmp_path):
    write(tmp_path, 0, {"step": 1, "train/loss": 3.0}, {"step": 2, "train/loss": 2.5}, {"step": 3, "train/loss": 2.0})
    time.sleep(1.0)  # files are read in the order of their names: the second, the process, and a count in which 10 comes before 9
    write(tmp_path, 2, {"step": 3, "train/loss": 1.5})
    board = EventAccumulator(str(tmp_path / "tensorboard"))
    board.Reload()
    assert [(event.step, event.value) for event in board.Scalars("train/loss")] == [(1, 3.0), (2, 2.5), (3, 1.5)]


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="only Linux has a device that is always full")
def test_a_full_disk(tmp_path, monkeypatch):
    """Also while the file is closed, where what is left in its buffer is tried once more."""
    opened = Path.open
    monkeypatch.setattr(Path, "open", lambda self, mode="r", **kw: opened(Path("/dev/full") if mode == "a" else self, mode, **kw))
    log = MetricsLog(tmp_path, from_step=0)
    for action in (lambda: log.write({"step": 1}), log.close):
        with pytest.raises(OutputError, match=r"metrics.jsonl: the disk is full"):
            action()


def test_a_directory_that_vanishes_is_one_error(tmp_path, monkeypatch):
    """Not also one of TensorBoard's thread, which would print a traceback; other threads' errors are left to whoever had them before."""
    told = []
    monkeypatch.setattr(threading, "excepthook", lambda failed: told.append(str(failed.exc_value)))
    run = tmp_path / "run"
    run.mkdir()
    log = MetricsLog(run, from_step=0)
    run.rename(tmp_path / "elsewhere")
    with pytest.raises(OutputError, match=r"metrics\.jsonl: cannot be written \(no such file or directory\)"):
        for step in range(1, 2000):
            log.write({"step": step, "train/loss": 1.0})
            time.sleep(0.001)
    with pytest.raises(OutputError):
        log.close()
    other = threading.Thread(target=lambda: [][1])
    other.start()
    other.join()
    assert told == ["list index out of range"]


def test_a_directory_that_cannot_be_written(tmp_path):
    (tmp_path / "run").write_text("")
    with pytest.raises(OutputError):
        MetricsLog(tmp_path / "run", from_step=0)


def test_setting_aside_takes_a_name_of_its_own(tmp_path):
    path = tmp_path / "metrics.jsonl"
    for number in (1, 2):
        path.write_text(str(number))
        assert atomic.set_aside(path) == tmp_path / f"metrics.jsonl.{number}"
    assert [(tmp_path / f"metrics.jsonl.{number}").read_text() for number in (1, 2)] == ["1", "2"] and not path.exists()
