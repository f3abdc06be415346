import errno
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from pldcli.errors import OutputError
from pldcli.system import atomic
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


@pytest.mark.parametrize("path", [".", "..", "/"])
def test_a_place_without_a_name_of_its_own(path):
    with pytest.raises(OutputError, match="has no name of its own; give a path that ends in a name"):
        atomic.write_text(Path(path), "x")
    with pytest.raises(OutputError, match="has no name of its own"), atomic.directory(Path(path), overwrite=True):
        pytest.fail("must not begin")


def start(code, *arguments):
    return subprocess.Popen(
        [
            sys.executable,
            "-c",
            f"import sys, time, os, signal\nfrom pathlib import Path\nfrom pldcli.system import atomic\n{code}",
            *arguments,
        ],
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
    )


def test_what_a_killed_process_left_is_removed_by_the_next(tmp_path):
    process = start("with atomic.directory(Path(sys.argv[1])): time.sleep(60)", str(tmp_path / "d"))
    wait_for(lambda: bool(names(tmp_path)))
    for clean in (lambda: atomic.remove_leftovers(tmp_path / "d"), lambda: atomic.remove_leftovers_in(tmp_path)):
        clean()
        assert len(names(tmp_path)) == 1, "the process still lives"
    process.send_signal(signal.SIGKILL)
    process.wait()
    atomic.remove_leftovers(tmp_path / "e")
    assert len(names(tmp_path)) == 1, "it is not of that name"
    atomic.remove_leftovers_in(tmp_path)
    assert names(tmp_path) == []


KILLED_WHILE_REMOVING = """
def kill(*arguments, **named):
    os.kill(os.getpid(), signal.SIGKILL)
os.rmdir = kill
atomic.remove(Path(sys.argv[1]))
"""


def test_what_is_removed_is_never_half_there(tmp_path):
    path = tmp_path / "d"
    path.mkdir()
    (path / "file").touch()
    assert start(KILLED_WHILE_REMOVING, str(path)).wait() == -signal.SIGKILL
    assert not path.exists() and len(names(tmp_path)) == 1
    atomic.remove_leftovers_in(tmp_path)
    assert names(tmp_path) == []
    atomic.remove(path)  # which is not there
    path.mkdir()
    (path / "file").touch()
    atomic.remove(path)
    assert names(tmp_path) == []


KILLED_BETWEEN_TWO_RENAMES = """
rename = Path.rename
def kill(self, target):
    if target.name == "d":
        os.kill(os.getpid(), signal.SIGKILL)
    return rename(self, target)
Path.rename = kill
with atomic.directory(Path(sys.argv[1]), overwrite=True) as place:
    (place / "new").touch()
"""


@pytest.mark.parametrize("is_new_lost", [False, True])
def test_killed_between_the_two_renames_of_an_overwrite(tmp_path, is_new_lost):
    """A second failure then finds a complete directory back at its place: the new one, or the old one where the new is gone."""
    path, there = tmp_path / "d", ["old"] if is_new_lost else ["new"]
    path.mkdir()
    (path / "old").touch()
    process = start(KILLED_BETWEEN_TWO_RENAMES, str(path))
    assert process.wait() == -signal.SIGKILL
    assert not path.exists() and len(names(tmp_path)) == 2
    if is_new_lost:
        [new] = [entry for entry in tmp_path.iterdir() if "old-" not in entry.name]
        shutil.rmtree(new)
    with pytest.raises(OutputError, match="is already there"), atomic.directory(path):
        pytest.fail("must not begin")
    with pytest.raises(RuntimeError), atomic.directory(path, overwrite=True):
        raise RuntimeError
    assert names(tmp_path) == ["d"] and names(path) == there


def test_a_temporary_of_another_machine_is_not_taken_for_dead_by_its_number(tmp_path):
    """Its process may live there; a week without a change says that it does not."""
    (tmp_path / "d").mkdir()
    for machine in ("00000000-", ""):
        leftover = tmp_path / f".d.tmp-{machine}{2**22 + 1}"
        leftover.mkdir()
        (leftover / "shard").touch()
        for age, stays in ((6, True), (8, False)):
            for place in (leftover / "shard", leftover):
                os.utime(place, (time.time() - age * 86400,) * 2)
            with atomic.directory(tmp_path / "d", overwrite=True):
                pass
            assert leftover.exists() == stays, (machine, age)
    leftover.mkdir()
    (leftover / "shard").touch()
    os.utime(leftover, (0, 0))
    atomic.remove_leftovers(tmp_path / "d")
    assert leftover.exists(), "it is being written"


@pytest.mark.parametrize("name", ["n" * 255, "[d]*?", "\N{LATIN SMALL LETTER A WITH DIAERESIS}" * 127])
def test_any_name_that_a_file_system_takes(tmp_path, name):
    for _ in range(2):
        with atomic.directory(tmp_path / name, overwrite=True):
            [temporary] = [entry.name for entry in tmp_path.iterdir() if entry.name != name]
            (tmp_path / temporary).with_name(temporary.rpartition("-")[0] + f"-{2**22 + 1}").mkdir()
        atomic.remove_leftovers_in(tmp_path / "nowhere")
        atomic.remove_leftovers(tmp_path / name)
        assert names(tmp_path) == [name]


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
    ("number", "message"),
    [
        (errno.ENOSPC, "the disk is full"),
        (errno.EROFS, "cannot be written"),
        (errno.EACCES, "cannot be written"),
        (errno.ESTALE, "cannot be written"),
        (errno.EBUSY, "cannot be written"),
        (errno.EISDIR, "cannot be written"),
    ],
)
def test_failures_of_the_file_system(tmp_path, number, message):
    with pytest.raises(OutputError, match=message) as caught, atomic.directory(tmp_path / "d") as temporary:
        raise OSError(number, os.strerror(number), str(temporary / "file"))
    assert caught.value.exit_code == 7 and caught.value.where == str(tmp_path / "d")
    assert names(tmp_path) == []


def test_a_write_that_fails_names_no_file(tmp_path):
    with pytest.raises(OutputError, match="the disk is full"), atomic.directory(tmp_path / "d"), open("/dev/full", "wb") as full:
        full.write(b"content")


@pytest.mark.parametrize("number", [errno.ENOENT, errno.EACCES, errno.EISDIR, errno.EIO, errno.ENOSPC])
def test_a_failure_elsewhere_is_not_blamed_on_the_output(tmp_path, number):
    """An input that is gone, above all: the sibling `d.txt` is not below `d` either."""
    for place in ("input", "d.txt", "d"):
        with pytest.raises(OSError) as caught, atomic.directory(tmp_path / "d"):
            raise OSError(number, os.strerror(number), str(tmp_path / place))
        assert caught.value.filename == str(tmp_path / place)
    with pytest.raises(FileNotFoundError), atomic.directory(tmp_path / "d"):
        (tmp_path / "input").read_text()
    assert names(tmp_path) == []


def test_a_parent_that_is_a_file(tmp_path):
    (tmp_path / "f").write_text("")
    with pytest.raises(OutputError, match="cannot be written"), atomic.directory(tmp_path / "f" / "d"):
        pytest.fail("must not begin")


def test_what_a_thread_of_this_process_is_writing_is_left_alone(tmp_path):
    with atomic.directory(tmp_path / "other") as place:
        (place / "file").write_text("half")
        atomic.remove_leftovers_in(tmp_path)
        assert (place / "file").read_text() == "half"
    assert (tmp_path / "other" / "file").is_file()
