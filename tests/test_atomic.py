import errno
import os
import signal
import subprocess
import sys

import pytest

from pldcli import atomic
from pldcli.errors import OutputError
from tests.conftest import wait_for


def names(path):
    return sorted(entry.name for entry in path.iterdir())


def test_a_directory_appears_whole(tmp_path):
    with atomic.directory(tmp_path / "deep" / "d") as temporary:
        (temporary / "a").write_text("1")
        assert not (tmp_path / "deep" / "d").exists()
    assert (tmp_path / "deep" / "d" / "a").read_text() == "1"
    assert names(tmp_path / "deep") == ["d"]


def test_a_failure_leaves_nothing(tmp_path):
    with pytest.raises(KeyboardInterrupt), atomic.directory(tmp_path / "d") as temporary:
        (temporary / "a").write_text("1")
        raise KeyboardInterrupt
    assert names(tmp_path) == []


def test_an_existing_directory_is_kept_unless_told_otherwise(tmp_path):
    (tmp_path / "d").mkdir()
    (tmp_path / "d" / "old").write_text("")
    with pytest.raises(OutputError, match="--overwrite"), atomic.directory(tmp_path / "d"):
        pytest.fail("must not begin")
    with pytest.raises(RuntimeError), atomic.directory(tmp_path / "d", overwrite=True):
        raise RuntimeError
    assert names(tmp_path / "d") == ["old"]
    with atomic.directory(tmp_path / "d", overwrite=True) as temporary:
        (temporary / "new").write_text("")
    assert names(tmp_path / "d") == ["new"]
    assert names(tmp_path) == ["d"]


def test_what_a_killed_process_left_is_removed_by_the_next(tmp_path):
    code = "import sys, time; from pathlib import Path; from pldcli import atomic\nwith atomic.directory(Path(sys.argv[1])): time.sleep(60)"
    process = subprocess.Popen(
        [sys.executable, "-c", code, str(tmp_path / "d")], env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    )
    wait_for(lambda: bool(names(tmp_path)))
    atomic.remove_leftovers(tmp_path / "d")
    assert len(names(tmp_path)) == 1, "the process still lives"
    process.send_signal(signal.SIGKILL)
    process.wait()
    atomic.remove_leftovers(tmp_path / "d")
    assert names(tmp_path) == []


def test_a_file_is_replaced_whole(tmp_path, monkeypatch):
    atomic.write_text(tmp_path / "sub" / "f", "ä")
    assert (tmp_path / "sub" / "f").read_bytes() == "ä".encode()

    def full(_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OutputError, match="the disk is full"):
        atomic.write_text(tmp_path / "sub" / "f", "new")
    assert (tmp_path / "sub" / "f").read_text() == "ä"
    assert names(tmp_path / "sub") == ["f"]


@pytest.mark.parametrize(
    ("number", "message"), [(errno.ENOSPC, "the disk is full"), (errno.EROFS, "cannot be written"), (errno.EACCES, "cannot be written")]
)
def test_failures_of_the_file_system(tmp_path, number, message):
    with pytest.raises(OutputError, match=message) as caught, atomic.directory(tmp_path / "d"):
        raise OSError(number, os.strerror(number))
    assert caught.value.exit_code == 7
    assert names(tmp_path) == []


def test_a_parent_that_is_a_file(tmp_path):
    (tmp_path / "f").write_text("")
    with pytest.raises(OutputError, match="cannot be written"), atomic.directory(tmp_path / "f" / "d"):
        pytest.fail("must not begin")
