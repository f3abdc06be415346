from __future__ import annotations

import json
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from pldcli.corpus.docstrings import docstring_corpus
from pldcli.data.prepared import open_prepared
from tests.conftest import Outcome


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("corpus") / "corpus.txt"
    path.write_text("\n\n".join(docstring_corpus(80_000)), encoding="utf-8")
    return path


@pytest.mark.parametrize("model_type", ["bpe", "unigram", "wordpiece", "byte-level-bpe"])
def test_two_steps_give_the_bytes_of_one(pld: Callable[..., Outcome], corpus: Path, tmp_path: Path, model_type: str) -> None:
    words = ("--vocab-size", "300", "--model-type", model_type)
    done = pld("tokenizer", "train", corpus, "--out", tmp_path / "a tokenizer", *words)
    assert done.code == 0, done.err
    assert f"{tmp_path / 'a tokenizer'}: 300 entries ({model_type.removeprefix('byte-level-')}, " in done.out
    assert f"next: pld prepare-data {corpus} --tokenizer '{tmp_path / 'a tokenizer'}'" in done.out
    assert pld("prepare-data", corpus, "--tokenizer", tmp_path / "a tokenizer", "--out", tmp_path / "two", "--processes", "1").code == 0
    assert pld("prepare-data", corpus, *words, "--out", tmp_path / "one", "--processes", "1").code == 0
    ours, theirs = open_prepared(tmp_path / "two"), open_prepared(tmp_path / "one")
    assert (ours.fingerprint, ours.data_fingerprint) == (theirs.fingerprint, theirs.data_fingerprint)
    assert pld("tokenizer", "train", corpus, "--out", tmp_path / "a tokenizer").code == 7
    assert pld("tokenizer", "train", corpus, "--out", tmp_path / "a tokenizer", *words, "--overwrite").code == 0


def test_how_a_tokenizer_fits(pld: Callable[..., Outcome], corpus: Path, tmp_path: Path, prepared: Path) -> None:
    strange = tmp_path / "strange.txt"
    strange.write_text("\u0420\u0435\u043a\u0430 \u4e00 river", encoding="utf-8")
    done = pld("tokenizer", "inspect", prepared, corpus, strange)
    assert done.code == 0, done.err
    assert f"{prepared}: 512 entries (bpe, " in done.out and "special: pad [PAD], unk [UNK], cls [CLS], sep [SEP], mask [MASK]" in done.out
    assert "tokens per word" in done.out and str(strange) in done.out
    found = json.loads(pld("tokenizer", "inspect", prepared, corpus, strange, "--json").out)
    plain, other = found["texts"]
    manifest = open_prepared(prepared).manifest
    assert found["vocab_size"] == manifest["tokenizer"]["vocab_size"] and found["special"]["mask"] == "[MASK]"
    assert plain["unknown"] == 0 and 1 < plain["tokens_per_word"] < 6
    assert plain["tokens_per_word"] == pytest.approx(plain["tokens"] / plain["words"])
    assert other["words"] == 3 and other["unknown"] >= 1 and other["unknown_share"] > 0.05
    assert json.loads(pld("tokenizer", "inspect", prepared, "--json").out)["texts"] == []


def test_lines_without_a_text_are_left_out_where_that_is_asked_for(pld: Callable[..., Outcome], tmp_path: Path, prepared: Path) -> None:
    path, out = tmp_path / "lines.jsonl", tmp_path / "t"
    texts = [json.dumps({"body": text}) for text in docstring_corpus(20_000)]
    path.write_bytes("\n".join([*texts, "{broken"]).encode() + b'\n{"body": "caf\xe9"}\n')
    line = ("tokenizer", "train", path, "--out", out, "--vocab-size", "200", "--text-field", "body")
    refused = pld(*line)
    assert refused.code == 3 and f"{path}:{len(texts) + 1}" in refused.err and not out.exists()
    done = pld(*line, "--skip-bad")
    assert done.code == 0 and "1 byte" in done.out and "is not JSON" in done.out, done.out
    assert f"next: pld prepare-data {path} --tokenizer {out} --text-field body --skip-bad" in done.out
    assert pld(*line, "--skip-bad", "--strict", "--overwrite").code == 3
    assert pld("tokenizer", "inspect", prepared, path, "--text-field", "body").code == 3
    seen = pld("tokenizer", "inspect", prepared, path, "--text-field", "body", "--skip-bad")
    assert seen.code == 0 and "is not JSON" in seen.out and "1 bytes that are not of the encoding were replaced" in seen.out


def test_refusals(pld: Callable[..., Outcome], tmp_path: Path, corpus: Path) -> None:
    assert pld("tokenizer", "train", tmp_path / "nothing.txt").code == 3
    assert pld("tokenizer", "inspect", tmp_path / "nothing").code == 3
    done = pld("tokenizer", "train", corpus, "--encoding", "klingon", "--out", tmp_path / "t")
    assert done.code == 2 and "klingon" in done.err and not (tmp_path / "t").exists()


def test_what_is_no_tokenizer_is_left_alone(pld: Callable[..., Outcome], tmp_path: Path, corpus: Path) -> None:
    place = tmp_path / "texts"
    place.mkdir()
    (place / "a.txt").write_text("words")
    for text, mark, message in (
        (place / "a.txt", "", "is not a tokenizer, and is left alone"),
        (place / "a.txt", "tokenizer.json", "holds the corpus itself"),
        (corpus, "tokenizer.json", "holds more than a tokenizer (a.txt)"),
    ):
        if mark:
            (place / mark).write_text("{}")
        done = pld("tokenizer", "train", text, "--out", place, "--overwrite")
        assert done.code == 7 and f"error: {place}: {message}" in done.err
    assert (place / "a.txt").read_text() == "words"


@pytest.mark.parametrize("out", [".", "..", "/"])
@pytest.mark.parametrize("command", [("prepare-data",), ("tokenizer", "train")])
def test_a_place_without_a_name(pld: Callable[..., Outcome], corpus: Path, command: tuple[str, ...], out: str) -> None:
    done = pld(*command, corpus, "--out", out, "--overwrite")
    assert done.code == 7 and done.err == f"error: {out}: does not name a new place; choose another place with --out\n"


def test_what_was_read_and_how_the_tokenizer_fits_is_said(pld: Callable[..., Outcome], tmp_path: Path, corpus: Path) -> None:
    place = tmp_path / "texts"
    place.mkdir()
    (place / "a.txt").write_bytes(corpus.read_bytes() + b" \xff")
    (place / "b.jsonl").write_text('{"text": ""}\n{"text": "more words"}\n')
    (place / "c.txt").write_text("")
    done = pld("tokenizer", "train", place, "--vocab-size", "300", "--out", tmp_path / "tokenizer")
    assert done.code == 0, done.err
    assert "note: 1 bytes that are not of the encoding were replaced.\n" in done.out
    assert "note: skipped: 1 x empty document, 1 x empty file\n" in done.out
    [line] = [line for line in done.out.splitlines() if line.startswith("on a sample of the text: ")]
    found = re.fullmatch(r".*: (\d\.\d\d) tokens per word, (\d\.\d\d) characters per token, 0\.\d\d% unknown tokens", line)
    read = json.loads(pld("tokenizer", "inspect", tmp_path / "tokenizer", place, "--json").out)
    replaced = "1 bytes that are not of the encoding were replaced."
    assert read["notes"] == [replaced, "skipped: 1 x empty document, 1 x empty file"] and len(read["texts"]) == 2
    [text] = json.loads(pld("tokenizer", "inspect", tmp_path / "tokenizer", corpus, "--json").out)["texts"]
    assert found and float(found[1]) == pytest.approx(text["tokens_per_word"], rel=0.05)
    assert float(found[2]) == pytest.approx(text["characters_per_token"], rel=0.05)


def test_standard_input_trains_as_a_file_does(pld: Callable[..., Outcome], tmp_path: Path, corpus: Path) -> None:
    line = ["tokenizer", "train", "-", "--vocab-size", "300", "--out", str(tmp_path / "pipe")]
    done = subprocess.run([sys.executable, "-m", "pldcli", *line], input=corpus.read_bytes(), capture_output=True, check=False)
    assert done.returncode == 0, done.stderr.decode()
    assert pld("tokenizer", "train", corpus, "--vocab-size", "300", "--out", tmp_path / "file").code == 0
    ours, theirs = ((tmp_path / name / "tokenizer.json").read_bytes() for name in ("pipe", "file"))
    assert ours == theirs and not list(tmp_path.glob(".*"))
