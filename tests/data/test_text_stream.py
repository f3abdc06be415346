from __future__ import annotations

from pathlib import Path

from pldcli.data.text_stream import tokenise
from pldcli.tokenization.tokenizer import Tokenizer
from tests.finetuning.conftest import words_tokenizer

__all__ = ["words_tokenizer"]


def test_what_is_left_out_of_a_directory_is_told(tmp_path: Path, words_tokenizer: Tokenizer) -> None:
    (tmp_path / "a.txt").write_text("the river\n")
    (tmp_path / "b.txt").write_text("")
    (tmp_path / "c.txt").symlink_to(tmp_path / "gone")
    (tmp_path / "d.jsonl").write_text('{"text": "the river"}\n{"text": ""}\n')
    stream = tokenise([tmp_path], words_tokenizer, quiet=True)
    assert stream.notes == ("skipped: 1 x empty document, 1 x empty file, 1 x link to nothing",)
    assert tokenise([tmp_path / "a.txt"], words_tokenizer, quiet=True).notes == ()
