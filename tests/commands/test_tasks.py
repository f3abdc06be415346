import json
import subprocess
import sys

import pytest

from pldcli.commands.tasks import tasks
from pldcli.tasks.registry import TASKS


def shown(capsys, monkeypatch, columns=None, **settings):
    monkeypatch.delenv("COLUMNS", raising=False)
    if columns:
        monkeypatch.setenv("COLUMNS", str(columns))
    tasks(**settings)
    return capsys.readouterr().out


def test_one_line_per_task(capsys, monkeypatch):
    lines = [" ".join(line.split()) for line in shown(capsys, monkeypatch).splitlines()]
    assert lines[0] == "task what it asks columns labels metrics train validation test"
    assert len(lines) == 2 + len(TASKS)
    assert "glue/cola Is the sentence acceptable English? sentence unacceptable, acceptable matthews 8,551 1,043 1,063" in lines
    expected = "entailment, neutral, contradiction accuracy 392,702 9,815 + 9,832 9,796 + 9,847"
    assert any(line.startswith("glue/mnli") and line.endswith(expected) for line in lines)
    assert any(line.startswith("squad_v2") and line.endswith("or none exact_match, squad_f1 130,319 11,873 -") for line in lines)


@pytest.mark.parametrize("columns", [80, 100, 120, 140])
def test_a_screen_cuts_nothing(capsys, monkeypatch, columns):
    out = shown(capsys, monkeypatch, columns)
    assert max(map(len, out.splitlines())) <= columns and "…" not in out
    words = set(out.replace(",", " ").split())
    for task in TASKS.values():
        wanted = [task.name, *task.title.split(), *task.text_columns, *task.labels, *task.metrics]
        assert {word.replace(",", "") for word in wanted} <= words | {word.replace(",", "") for word in words}
    assert "9,815 + 9,832" in out and "390,965" in out


def test_json(capsys, monkeypatch):
    listed = json.loads(shown(capsys, monkeypatch, as_json=True))
    assert [task["task"] for task in listed] == list(TASKS)
    assert listed[5] == {
        "task": "glue/mnli",
        "kind": "classification",
        "title": "Does the premise entail the hypothesis?",
        "text_columns": ["premise", "hypothesis"],
        "label_column": "label",
        "labels": ["entailment", "neutral", "contradiction"],
        "metrics": ["accuracy"],
        "rows": {
            "train": 392702,
            "validation_matched": 9815,
            "validation_mismatched": 9832,
            "test_matched": 9796,
            "test_mismatched": 9847,
        },
        "hub": "nyu-mll/glue/mnli",
        "folder": "MNLI",
    }


def test_nothing_heavy_is_imported():
    program = "import sys; from pldcli.commands.tasks import tasks; tasks(); print({'torch', 'datasets', 'pyarrow'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "set()"
