"""What a user is told of text that is read wrongly, compared in vain, or left out."""

from __future__ import annotations

import gzip
import json
import os
import re
import signal
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pytest

from pldcli.errors import DataError, OutputError, PreemptedError
from pldcli.filtering import quality
from pldcli.filtering.quality import Filters
from pldcli.preparation import stages, units
from pldcli.preparation.prepare import prepare
from tests.conftest import Outcome
from tests.preparation.test_prepare import made_up_documents, names

POEM = "Überall ähnliche Größen, süß und schön, und über allen Gipfeln.\n"
QUIET = {"vocab_size": 200, "quiet": True}


def corpus(place: Path, texts: list[str], encoding: str = "utf-8") -> Path:
    place.mkdir(exist_ok=True)
    for number, text in enumerate(texts):
        (place / f"{number:03}.txt").write_bytes(text.encode(encoding))
    return place


def test_many_small_files_in_another_encoding_are_refused(tmp_path: Path) -> None:
    folder = corpus(tmp_path / "poems", [f"{number} {POEM}" for number in range(30)], "latin-1")
    (folder / "000.txt").write_text("this one is UTF-8: süß")
    with pytest.raises(DataError, match=r"001.txt: is not UTF-8, and 28 more files are not; they look like cp125") as caught:
        prepare([folder], tmp_path / "out", **QUIET)
    assert re.search(r"--encoding cp125\d`, or convert them", caught.value.hint)
    prepared = prepare([folder], tmp_path / "out", encoding="cp1252", **QUIET)
    assert prepared.manifest["replaced_bytes"] == 0
    prepared = prepare([folder], tmp_path / "out", encoding="utf-8", overwrite=True, **QUIET)
    assert any(note.startswith("232 bytes do not belong to the encoding of their files") for note in prepared.notes)


@pytest.mark.parametrize("where", ["begin", "end", "all"])
def test_a_large_file_is_judged_as_a_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, where: str) -> None:
    """A unit in which many bytes are bad says nothing of the others; where all are like it, that is said at once."""
    monkeypatch.setattr(units, "_LEAST_BYTES", 100_000)
    sound, bad = f"{POEM}\n".encode() * 50, (POEM * 3).encode("latin-1") + b"\n"
    text = {"begin": bad * 10 + sound * 1000, "end": sound * 1000 + bad * 10, "all": bad * 10_000}[where]
    (tmp_path / "text.txt").write_bytes(text)
    scanned: list[stages.Task] = []
    do = stages.Stages.do
    monkeypatch.setattr(stages.Stages, "do", lambda self, task, report: (scanned.append(task), do(self, task, report)))
    told = {"processes": 1, "keep_duplicates": True, **QUIET}
    if where != "all":
        assert prepare([tmp_path / "text.txt"], tmp_path / "out", **told).manifest["replaced_bytes"] == 10 * 3 * 8
        return
    with pytest.raises(DataError, match=r"text.txt: is not UTF-8: 12.4% of its bytes .* it looks like cp125"):
        prepare([tmp_path / "text.txt"], tmp_path / "out", **told)
    assert [task.stage for task in scanned] == ["hash", "scan"]


def test_a_file_of_which_a_part_is_in_another_encoding_is_refused_when_all_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(units, "_LEAST_BYTES", 10_000)
    text = f"{POEM}\n".encode() * 4000 + f"{POEM}\n".encode("latin-1") * 480
    (tmp_path / "text.txt").write_bytes(text)
    with pytest.raises(DataError, match=r"text.txt: is not UTF-8; it looks like cp125.*; say what it is with .*--encoding cp125"):
        prepare([tmp_path / "text.txt"], tmp_path / "out", processes=1, **QUIET)


def test_evaluation_text_that_changed_is_compared_with_anew(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(units, "_LEAST_BYTES", 5000)
    documents = made_up_documents(200)
    (tmp_path / "text.txt").write_text("\n\n".join(documents))
    scored, do, did = tmp_path / "scored.txt", stages.Stages.do, 0

    def stopping(self: stages.Stages, task: stages.Task, report: stages.Report) -> None:
        nonlocal did
        did += 1
        if did == 8:
            signal.raise_signal(signal.SIGTERM)
        do(self, task, report)

    scored.write_text("nothing of it")
    told = {"filters": Filters(against=(scored,)), "processes": 1, **QUIET}
    monkeypatch.setattr(stages.Stages, "do", stopping)
    with pytest.raises(PreemptedError):
        prepare([tmp_path / "text.txt"], tmp_path / "out", **told)
    scored.write_text(f"{documents[0]}\n")
    prepared = prepare([tmp_path / "text.txt"], tmp_path / "out", **told)
    assert prepared.manifest["skipped"] == {"document that has 13 words in a row of scored.txt": 1}


def test_a_file_that_nothing_can_overlap_with_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "text.txt").write_text("\n\n".join(made_up_documents(50)))
    (tmp_path / "words.txt").write_text("so few words")
    read = Counter[str]()
    for name in ("_checksum", "_decoded"):
        monkeypatch.setattr(quality, name, lambda path, name=name, before=getattr(quality, name): (read.update([name]), before(path))[1])
    filters = Filters(against=(tmp_path / "words.txt",))
    prepared = prepare([tmp_path / "text.txt"], tmp_path / "out", filters=filters, processes=1, **QUIET)
    assert read == {"_checksum": 1, "_decoded": 1}, "once for its checksum, once by whoever reads documents"
    assert any("words.txt has no 13 words in a row, so nothing was found" in note for note in prepared.notes)


def test_training_text_that_validation_has_too_is_said(tmp_path: Path) -> None:
    documents = made_up_documents(60)
    (tmp_path / "text.txt").write_text("\n\n".join(documents))
    (tmp_path / "valid.txt").write_text("\n\n".join([*documents[:3], "and a text of its own"]))
    prepared = prepare([tmp_path / "text.txt"], tmp_path / "out", validation=[tmp_path / "valid.txt"], **QUIET)
    assert any(note.startswith("3 training documents stand in the validation text, too") for note in prepared.notes)


def test_settings_without_an_effect_are_said(tmp_path: Path) -> None:
    folder = corpus(tmp_path / "corpus", made_up_documents(20))
    first = prepare([folder], tmp_path / "first", **QUIET)
    told = {"tokenizer": first.path, "quiet": True}
    asked = {"vocab_size": 300, "model_type": "wordpiece", "cased": True}
    notes = prepare([folder], tmp_path / "second", **asked, **told).notes
    training = "Without effect, since --tokenizer is used as it is: --vocab-size, --model-type, --cased."
    assert training in notes
    notes = prepare([folder], tmp_path / "third", vocab_size=first.manifest["tokenizer"]["vocab_size"], **told).notes
    assert not any("effect" in note for note in (*notes, *first.notes))


def test_an_address_to_write_to_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    corpus(Path("corpus"), ["text"])
    with pytest.raises(OutputError, match="is an address, not a folder"):
        prepare([Path("corpus")], Path("s3://bucket/data"), **QUIET)


def test_text_of_which_the_tokenizer_leaves_nothing_is_not_called_unknown(tmp_path: Path) -> None:
    (tmp_path / "spaces.txt").write_text("\u200b\u200b\n")
    folder = corpus(tmp_path / "corpus", made_up_documents(20))
    with pytest.raises(DataError, match="validation text: nothing is left of it when the tokenizer has normalised it"):
        prepare([folder], tmp_path / "out", validation=[tmp_path / "spaces.txt"], **QUIET)


def test_near_duplicates_of_nothing(tmp_path: Path) -> None:
    pytest.importorskip("rensa")
    (tmp_path / "blank.txt").write_text(" \n\n \n")
    with pytest.raises(DataError, match="holds no documents"):
        prepare([tmp_path / "blank.txt"], tmp_path / "out", near_duplicates=0.8, **QUIET)


def test_bad_files_of_a_folder_are_left_out_and_counted_where_asked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(units, "_LEAST_BYTES", 5000)
    documents = made_up_documents(100)
    folder = corpus(tmp_path / "corpus", ["\n\n".join(documents[start : start + 20]) for start in range(0, 100, 20)])
    (folder / "cut.txt.gz").write_bytes(gzip.compress("\n\n".join(made_up_documents(99)).encode())[:900])
    (folder / "image.txt").write_bytes(b"\x89PNG\0\0\0")
    (folder / "other.jsonl").write_text('{"body": "one"}\n')
    with pytest.raises(DataError, match=r"cut.txt.gz: is truncated or damaged"):
        prepare([folder], tmp_path / "out", **QUIET)
    prepared = prepare([folder], tmp_path / "out", skip_bad=True, **QUIET)
    causes = {"file that is truncated or damaged": 1, "file that is binary, not text": 1, "line without a field 'text'": 1}
    assert causes.items() <= prepared.manifest["skipped"].items()
    assert prepared.manifest["counts"]["train"]["documents"] >= 99


def test_a_large_file_that_cannot_be_read_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "text.txt").write_text("\n\n".join(made_up_documents(300)))
    monkeypatch.setattr(units, "_LEAST_BYTES", 5000)
    opened = Path.open

    def refused(self: Path, mode: str = "r", **named: object) -> object:
        if self.name == "text.txt":
            raise PermissionError(13, "Permission denied")
        return opened(self, mode, **named)  # type: ignore[call-overload]

    monkeypatch.setattr(Path, "open", refused)
    with pytest.raises(DataError, match=r"text.txt: cannot be read \(permission denied\)"):
        prepare([tmp_path / "text.txt"], tmp_path / "out", processes=1, **QUIET)


def test_what_was_left_out_is_sealed_too(tmp_path: Path, pld: Callable[..., Outcome]) -> None:
    documents = made_up_documents(60)
    (tmp_path / "text.txt").write_text("\n\n".join([*documents, documents[0]]))
    prepare([tmp_path / "text.txt"], tmp_path / "out", keep_rejects=True, **QUIET)
    assert "rejected.jsonl" in names(tmp_path / "out") and pld("data", "verify", tmp_path / "out").code == 0
    (tmp_path / "out" / "rejected.jsonl").write_text("{}\n")
    outcome = pld("data", "verify", tmp_path / "out")
    assert outcome.code == 3 and f"{tmp_path / 'out' / 'rejected.jsonl'}: " in outcome.err


def test_a_file_whose_name_is_no_unicode_may_be_left_out_of(tmp_path: Path) -> None:
    folder = corpus(tmp_path / "corpus", made_up_documents(20))
    path = Path(os.fsdecode(os.fsencode(folder) + b"/caf\xe9.txt"))
    path.write_text("two words")
    prepared = prepare([folder], tmp_path / "out", filters=Filters(min_words=3), keep_rejects=True, **QUIET)
    [rejected] = map(json.loads, (prepared.path / "rejected.jsonl").read_text(encoding="utf-8").splitlines())
    assert rejected == {"source": str(path), "cause": "document under 3 words", "text": "two words"}


def test_weights_change_nothing_that_is_said_of_the_text(tmp_path: Path, pld: Callable[..., Outcome]) -> None:
    documents = made_up_documents(120)
    for name, texts in (("a", documents[:60]), ("b", documents[60:])):
        (tmp_path / f"{name}.txt").write_text("\n\n".join(texts))
    found = []
    for name, weight in (("plain", 1.0), ("heavy", 3.0)):
        prepare([tmp_path / "a.txt"], tmp_path / name, weighted=[(tmp_path / "b.txt", weight)], **QUIET)
        found.append(json.loads(pld("data", "inspect", tmp_path / name, "--json", "--samples", "0").out))
    plain, heavy = ({key: value for key, value in one["splits"]["train"].items() if key != "lengths"} for one in found)
    assert plain == heavy and found[0]["frequent"] != found[1]["frequent"]


def test_merging_does_nothing_that_a_share_has_not(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, pld: Callable[..., Outcome]) -> None:
    monkeypatch.setattr(units, "_LEAST_BYTES", 5000)
    (tmp_path / "text.txt").write_text("\n\n".join(made_up_documents(100)))
    line = ["prepare-data", tmp_path / "text.txt", "--vocab-size", 200, "--processes", 1, "--out"]
    assert pld(*line, tmp_path / "whole").code == 0
    for share, missing in (("0/2", "reading"), ("1/2", "encoding")):  # the last one to read encodes its share at once
        assert pld(*line, tmp_path / "out", "--shard", share).code == 0
        early = pld(*line, tmp_path / "out", "--merge")
        assert early.code == 2
        assert re.search(rf"--merge: \d+ of \d+ parts are not done \({missing}\); run the shares that are missing", early.err)
    assert pld(*line, tmp_path / "out", "--shard", "0/2").code == 0
    assert pld(*line, tmp_path / "out", "--merge").code == 0
    assert (tmp_path / "out" / "manifest.json").read_bytes() == (tmp_path / "whole" / "manifest.json").read_bytes()
