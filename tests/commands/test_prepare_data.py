import subprocess
import sys
from pathlib import Path

import pytest
import typer
from typer.testing import CliRunner

from pldcli.commands.prepare_data import prepare_data
from pldcli.errors import DataError, UsageError
from pldcli.filtering.quality import Filters
from pldcli.preparation import prepare as module
from pldcli.tokenization.training import TokenizerTraining

app = typer.Typer()
app.command()(prepare_data)


def run(*arguments):
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


def test_the_arguments_that_reach_prepare(monkeypatch):
    calls = []

    def record(*args, **kwargs):
        calls.append((args, kwargs))
        raise DataError("seen")

    monkeypatch.setattr(module, "Preparation", record)
    run("a.txt", "b", "--out", "o", "--document-per", "line", "--text-field", "body", "--tokenizer", "t.json", "--model-type", "unigram")
    assert calls[0][0] == ([Path("a.txt"), Path("b")], Path("o"))
    given = {"document_per": "line", "text_field": "body", "tokenizer": Path("t.json"), "training": TokenizerTraining(30528, "unigram")}
    rest = {"validation": [], "processes": None, "strict": False, "overwrite": False}
    rest |= {"encoding": None, "skip_bad": False, "filters": Filters(), "keep_duplicates": False, "keep_rejects": False, "weighted": []}
    rest |= {"engine": "local", "near_duplicates": None, "merge": False}
    assert calls[0][1] == given | rest
    words = ("--cased", "--vocab-size", "100", "--processes", "3", "--strict", "--overwrite", "--merge", "--encoding", "cp1252")
    words += ("--skip-bad",)
    filters = (
        "--min-words",
        "2",
        "--max-words",
        "9",
        "--script",
        "LATIN",
        "--script",
        "GREEK",
        "--decontaminate",
        "e",
        "--overlap-words",
        "5",
    )
    more = ("--engine", "ray", "--near-duplicates", "0.9")
    run(
        "a.txt",
        *words,
        "--validation",
        "v",
        "--validation",
        "w",
        *filters,
        "--keep-duplicates",
        "--keep-rejects",
        "--source",
        "a=b=0.5",
        *more,
    )
    assert calls[1][0] == ([Path("a.txt")], Path("data"))
    assert calls[1][1] == {
        "validation": [Path("v"), Path("w")], "document_per": "blank-line", "text_field": "text", "tokenizer": None,
        "training": TokenizerTraining(100, "bpe", cased=True),
        "processes": 3, "strict": True, "overwrite": True, "encoding": "cp1252", "skip_bad": True,
        "filters": Filters(min_words=2, max_words=9, scripts=("LATIN", "GREEK"), against=(Path("e"),), overlap_words=5),
        "keep_duplicates": True, "keep_rejects": True, "weighted": [(Path("a=b"), 0.5)], "engine": "ray",
        "near_duplicates": 0.9, "merge": True,
    }  # fmt: skip


def test_the_table_at_the_end(tmp_path):
    (tmp_path / "a.txt").write_bytes(b"one two three\nfour\n\n\nfive \xff six seven")
    result = run(tmp_path / "a.txt", "--out", tmp_path / "out", "--document-per", "line")
    assert result.exit_code == 0, result.output
    for words in (
        "3 train",
        "1 validation",
        "tokens per word",
        "unknown tokens   0.00% train, 0.00% validation",
        "vocabulary",
        "2 x empty document",
        "1 bytes that are not of the encoding",
        "MB/s",
    ):
        assert words in result.output.replace("2 train", "3 train")
    assert "unknown tokens   0.00% train, 0.00% validation" in result.output
    assert "Note: The corpus supports a vocabulary of" in result.output
    assert f"Next: pld pretrain --preset auto --budget 1h --data {tmp_path / 'out'}" in result.output


@pytest.mark.parametrize("share", ["1", "x/2", "2/2", "0/0", "-1/2"])
def test_a_share_that_is_none(tmp_path, share):
    (tmp_path / "a.txt").write_text("some text")
    result = run(tmp_path / "a.txt", "--out", tmp_path / "out", "--share", share)
    assert isinstance(result.exception, UsageError) and "--share: " in str(result.exception)


@pytest.mark.parametrize("source", ["a.txt", "a.txt=", "=2", "a.txt=much", "a.txt=0", "a.txt=-1", "a.txt=nan", "a.txt=1e9"])
def test_a_weight_that_is_none(tmp_path, monkeypatch, source):
    monkeypatch.chdir(tmp_path)
    Path("a.txt").write_text("some text")
    result = run("--source", source)
    assert isinstance(result.exception, UsageError) and "--source" in str(result.exception)


def test_no_text_at_all():
    result = run("--validation", "a.txt")
    assert isinstance(result.exception, UsageError) and "names no text to train on" in str(result.exception)


def test_a_share_is_read_before_anything_is_fetched(tmp_path):
    result = run("http://nowhere.invalid/a.txt", "--out", tmp_path / "out", "--share", "half")
    assert isinstance(result.exception, UsageError) and "--share: 'half' is not I/N" in str(result.exception)


def test_overlap_words_without_anything_to_compare_with():
    result = run("a.txt", "--overlap-words", "5")
    assert "--overlap-words does nothing without --decontaminate" in str(result.exception)


@pytest.mark.parametrize("arguments", [("a.txt", "--vocab-size", "5"), ("a.txt", "--processes", "0"), ("a.txt", "--document-per", "page")])
def test_usage_errors(arguments):
    assert run(*arguments).exit_code == 2


def test_the_command_imports_nothing_heavy():
    heavy = ("torch", "datasets", "pyarrow", "numpy", "sentencepiece")
    code = f"import sys; import pldcli.commands.prepare_data; print([m for m in {heavy} if m in sys.modules])"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=Path(__file__).parents[2])
    assert result.stdout.strip() == "[]"
