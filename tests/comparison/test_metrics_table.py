from __future__ import annotations

import gzip
from pathlib import Path

import pytest

from pldcli.comparison.comparison import compare_runs
from pldcli.comparison.files import as_json
from pldcli.comparison.metrics_table import read_table, table_bytes
from pldcli.errors import DataError
from tests.comparison.test_runs import START, made_up_run

RUNS = [
    made_up_run("preln-seed0", "pld.theta_bar=1", losses=(5.0, 4.0, 10 / 3, 2.5), frequency_loss=6.125),
    made_up_run("preln-seed1", "pld.theta_bar=1", "train.seed=1", losses=(5.0, None, 3.0, 2.6), unreadable_lines=2),
    made_up_run(
        "pld, seed 0",
        finetuned={"glue/rte": (0.5, 0.625)},
        score_conditions={"glue/rte": {"data": "d"}},
        score_notes=("n",),
        starts=[START, {**START, "threads": 2, "command": 'pld "x", y\nz'}],
    ),
    made_up_run("pld-seed1", "train.seed=1", "train.init_from=null", losses=(4.0, 3.0), state="stopped", starts=[]),
]


def table(place: Path, content: str | bytes | None = None) -> Path:
    path = place / "metrics.csv.gz"
    written = table_bytes(RUNS) if content is None else content
    path.write_bytes(gzip.compress(written.encode()) if isinstance(written, str) else written)
    return path


def test_runs_come_back_equal(tmp_path: Path) -> None:
    again = read_table(table(tmp_path))
    assert list(again) == [run.name for run in RUNS]
    assert list(again.values()) == RUNS
    assert as_json(compare_runs(list(again.values()))) == as_json(compare_runs(RUNS))


def test_the_same_runs_give_the_same_bytes_and_the_table_is_plain_csv_inside(tmp_path: Path) -> None:
    assert table_bytes(RUNS) == table_bytes(list(read_table(table(tmp_path)).values()))
    plain = tmp_path / "metrics.csv"
    plain.write_bytes(gzip.decompress(table_bytes(RUNS)))
    assert list(read_table(plain).values()) == RUNS
    assert plain.read_text().startswith("run,about,step,train/loss,optim/learning_rate,progress/tokens,")


def test_a_run_that_was_started_very_often_is_read(tmp_path: Path) -> None:
    run = made_up_run(starts=[START] * 1000)
    assert read_table(table(tmp_path, table_bytes([run])))["a"] == run


TEXT = gzip.decompress(table_bytes(RUNS[:1])).decode()


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"no gzip\0", "metrics.csv.gz: is truncated or damaged"),
        (table_bytes(RUNS)[:-40], "metrics.csv.gz: is truncated or damaged"),
        (gzip.compress(b"\xff\xfe", mtime=0), "cannot be read as a table of runs"),
        ("", "is no table of runs: it has no column run, about, step, eval/mlm_loss, progress/tokens"),
        (TEXT.replace("progress/train_seconds", "seconds"), "is no table of runs: it has no column progress/train_seconds;"),
        (TEXT.splitlines()[0], "holds no run"),
        (TEXT[: TEXT.rindex(",")], r"line 13 has \d+ cells, the head \d+"),
        (TEXT.replace(",2.5,", ",two,"), "line 13: eval/mlm_loss is 'two', which is no number"),
        (TEXT + TEXT[TEXT.index("\n") + 1 :], "line 14 begins preln-seed0 a second time"),
        (TEXT.replace("model.norm", "model.nrm"), "does not say how preln-seed0 was trained .*model.nrm: unknown key"),
        (TEXT.replace('""state""', '""stat""'), "does not say how preln-seed0 was trained .*state"),
        ("\n".join(line for number, line in enumerate(TEXT.splitlines()) if number != 1), "does not say how preln-seed0 was trained"),
        (TEXT.replace(",10240,", ",,"), "metrics.csv.gz: preln-seed0: step 40 has no number under progress/tokens"),
        ("\n".join(TEXT.splitlines()[:2]), r"preln-seed0: has no validation yet \(step 5 of 40"),
    ],
)  # fmt: skip
def test_a_damaged_table_is_named_with_what_is_wrong(content: str | bytes, message: str, tmp_path: Path) -> None:
    path = table(tmp_path, content)
    with pytest.raises(DataError, match=message) as caught:
        read_table(path)
    assert "metrics.csv.gz" in str(caught.value) or "runs/preln-seed0" in str(caught.value)
