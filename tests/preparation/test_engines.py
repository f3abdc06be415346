"""What comes out does not depend on who does the work: Ray, or processes of this machine. And near duplicates, wherever they lie."""

import hashlib
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from pldcli.errors import DataError, UsageError
from pldcli.preparation import job_files, ray_engine, units
from pldcli.preparation.prepare import Preparation, prepare
from tests.conftest import ROOT
from tests.preparation.test_prepare import made_up_documents


def sums(place: Path) -> dict[str, str]:
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in place.iterdir()}


@pytest.fixture
def corpus(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Several units of text, with near duplicates of the first in the last."""
    monkeypatch.setattr(units, "_LEAST_BYTES", 20_000)
    documents = made_up_documents(600)
    near = [f"{text} more" for text in documents[:20]]
    path = tmp_path / "corpus.txt"
    path.write_text("\n\n".join([*documents, *near]))
    return path


def test_ray_makes_the_same_bytes(tmp_path: Path, corpus: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ray = pytest.importorskip("ray", reason="needs pldcli[ray]")
    monkeypatch.setenv("RAY_USAGE_STATS_ENABLED", "0")
    monkeypatch.setenv("PYTHONPATH", ":".join(sys.path))
    made = {"vocab_size": 200, "quiet": True}
    prepare([corpus], tmp_path / "local", processes=1, **made)
    prepare([corpus], tmp_path / "ray", processes=2, engine="ray", **made)
    assert sums(tmp_path / "ray") == sums(tmp_path / "local")
    assert not ray.is_initialized()
    damaged = tmp_path / "damaged.jsonl"
    damaged.write_text("".join('{"text": "some words"}\n' for _ in range(3000)) + "{\n")
    with pytest.raises(DataError, match=r"damaged.jsonl:3001: is not JSON"):
        prepare([damaged], tmp_path / "no", processes=2, engine="ray", **made)
    assert not (tmp_path / "no").exists()


def test_a_task_on_ray_begins_where_the_command_was_typed(tmp_path: Path, corpus: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    preparation = Preparation([Path(corpus.name)], Path("out"), quiet=True)
    files, num_train, _ = preparation._find()
    stages = preparation._work(files, num_train).stages
    stages.place.mkdir()
    with stages.described() as place:
        monkeypatch.chdir("/")
        assert ray_engine._do(str(tmp_path), str(place), "scan", 0) == {}
        answer = ray_engine._do(str(tmp_path / "elsewhere"), str(place), "scan", 0)
    assert answer["error"] == "DeviceError" and answer["where"] == str(tmp_path / "elsewhere")
    assert len(list((tmp_path / stages.place).glob("scan-*.json"))) == 1


def test_ray_leaves_sigterm_to_the_command(monkeypatch: pytest.MonkeyPatch) -> None:
    class Ray:
        @staticmethod
        def init(**_: Any) -> None:
            signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))

    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    before = signal.getsignal(signal.SIGTERM)
    ray_engine._connect(Ray, 1)
    assert signal.getsignal(signal.SIGTERM) is before


@pytest.mark.parametrize(
    ("module", "settings", "message"),
    [
        ("ray", {"engine": "ray"}, r"--engine ray: needs ray; pip install 'pldcli\[ray\]'"),
        ("rensa", {"near_duplicates": 0.8}, r"--near-duplicates: needs rensa; pip install 'pldcli\[dedup\]'"),
    ],
)
def test_without_what_an_extra_brings(
    tmp_path: Path, corpus: Path, monkeypatch: pytest.MonkeyPatch, module: str, settings: dict[str, Any], message: str
) -> None:
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(UsageError, match=message):
        prepare([corpus], tmp_path / "out", quiet=True, **settings)


def test_near_duplicates_in_other_units_are_left_out_and_counted(tmp_path: Path, corpus: Path) -> None:
    pytest.importorskip("rensa", reason="needs pldcli[dedup]")
    made = {"vocab_size": 200, "quiet": True, "near_duplicates": 0.8, "keep_rejects": True}
    first = prepare([corpus], tmp_path / "one", processes=1, **made)
    assert first.manifest["skipped"] == {"document that nearly occurred before": 20}
    assert (tmp_path / "one" / "rejected.jsonl").read_text().count(" more") == 20
    prepare([corpus], tmp_path / "two", processes=2, **made)
    assert sums(tmp_path / "two") == sums(tmp_path / "one")


@pytest.mark.parametrize("threshold", [0.0, -1.0, 1.5, float("nan")])
def test_thresholds_that_make_no_sense(tmp_path: Path, corpus: Path, threshold: float) -> None:
    with pytest.raises(UsageError, match=r"--near-duplicates: must be above 0 and at most 1, not .*; 0.8 is usual"):
        prepare([corpus], tmp_path / "out", near_duplicates=threshold, quiet=True)


SBATCH = """#!/bin/bash
# A Slurm of one machine: arrays run at once, one after the other.
for word; do
  case $word in --array=*) last=${word#--array=0-};; --wrap) wrapped=1;; *) [ -z "$wrapped" ] || { line=$word; wrapped=; };; esac
done
for number in $(seq 0 ${last:-0}); do SLURM_ARRAY_TASK_ID=$number bash -c "$line" >&2 || exit 1; done
echo 17
"""


@pytest.mark.parametrize("kind", ["slurm", "k8s"])
def test_job_files_do_the_work(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str) -> None:
    """As far as a cluster can be stood in for: `sbatch` and pods are processes here."""
    corpus = tmp_path / "some text.txt"
    corpus.write_text("\n\n".join(made_up_documents(300)))
    monkeypatch.chdir(tmp_path)
    prepare([Path(corpus.name)], Path("expected"), vocab_size=200, quiet=True)
    environment = os.environ | {"PATH": f"{tmp_path}:{os.environ['PATH']}", "PYTHONPATH": str(ROOT)}
    line = ["prepare-data", "some text.txt", "--vocab-size", "200", "--out", "data", "--share", "2", "--emit", kind]
    done = subprocess.run([sys.executable, "-m", "pldcli", *line], capture_output=True, text=True, cwd=tmp_path, env=environment)
    assert done.returncode == 0, done.stderr
    for name, content in {"pld": f'#!/bin/bash\nexec {sys.executable} -m pldcli "$@"\n', "sbatch": SBATCH}.items():
        (tmp_path / name).write_text(content)
        (tmp_path / name).chmod(0o755)
    if kind == "slurm":
        subprocess.run(["bash", "-c", done.stdout], check=True, cwd=tmp_path, env=environment, capture_output=True)
    else:
        job = yaml.safe_load(done.stdout)
        assert job["spec"]["completions"] == job["spec"]["parallelism"] == 2 and job["spec"]["completionMode"] == "Indexed"
        [container] = job["spec"]["template"]["spec"]["containers"]
        command = [word.replace("sleep 10", "sleep 0.2") for word in container["command"]]
        pods = [subprocess.Popen(command, cwd=tmp_path, env=environment | {"JOB_COMPLETION_INDEX": str(index)}) for index in range(2)]
        assert [pod.wait(timeout=120) for pod in pods] == [0, 0]
    assert sums(tmp_path / "data") == sums(tmp_path / "expected")
    assert not (tmp_path / ".data.parts").exists()


@pytest.mark.parametrize("more", [[], ["--share", "0/2"], ["--share", "2", "--overwrite"], ["--share", "2", "--merge"]])
def test_job_files_that_cannot_be(pld, more: list[str]) -> None:
    outcome = pld("prepare-data", "corpus.txt", "--emit", "slurm", *more)
    message = f"cannot go with {more[-1]}: " if len(more) > 2 else "needs the number of shares; for example --share 16"
    assert outcome.code == 2 and f"error: --emit: {message}" in outcome.err


def test_a_pod_fails_where_waiting_mends_nothing(tmp_path: Path) -> None:
    (tmp_path / "pld").write_text(f'#!/bin/bash\nexec {sys.executable} -m pldcli "$@"\n')
    (tmp_path / "pld").chmod(0o755)
    (tmp_path / "data").mkdir()
    environment = os.environ | {"PATH": f"{tmp_path}:{os.environ['PATH']}", "PYTHONPATH": str(ROOT), "JOB_COMPLETION_INDEX": "0"}
    for line, message in (("gone.txt --out out", "gone.txt: no such file"), ("pld --out data", "data: is already there")):
        text = job_files.kubernetes(["pld", "prepare-data", *line.split()], 2, Path(line.split()[-1]))
        [container] = yaml.safe_load(text)["spec"]["template"]["spec"]["containers"]
        done = subprocess.run(container["command"], cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=120)
        assert done.returncode == 1 and message in done.stdout


def test_jobs_say_what_they_use_and_end_with_those_that_they_wait_for() -> None:
    words = ["pld", "prepare-data", "a.txt"]
    assert job_files.slurm(words, 2).count(" --kill-on-invalid-dep=yes --dependency=") == 2
    text = job_files.kubernetes(words, 2, Path("data"))
    assert "pld prepare-data a.txt --processes 4 " in text and "cpu: 4" in text
    assert "--processes 4" not in job_files.kubernetes([*words, "--processes=8"], 2, Path("data"))
