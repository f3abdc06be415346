from __future__ import annotations

import json
import random
import subprocess
import sys
import unicodedata
from pathlib import Path
from typing import Any

import pytest
import sentencepiece
from transformers import AutoTokenizer

from pldcli.errors import DataError, UsageError
from pldcli.tokenization.distinctions import characters, lost_distinctions
from pldcli.tokenization.tokenizer import load_tokenizer
from pldcli.tokenization.training import TokenizerTraining, train_tokenizer

SCRIPTS = {
    "Latin": (0x61, 0x7A), "Greek": (0x3B1, 0x3C9), "Cyrillic": (0x430, 0x44F), "Hebrew": (0x5D0, 0x5EA), "Arabic": (0x621, 0x64A),
    "Devanagari": (0x904, 0x94D), "Bengali": (0x985, 0x9CD), "Thai": (0xE01, 0xE4E), "Georgian": (0x10D0, 0x10F0),
    "Hangul": (0xAC00, 0xAD00), "Kana": (0x3041, 0x30FE), "Han": (0x4E00, 0x4F00),
}  # fmt: skip
WITHOUT_SPACES = ("Thai", "Kana", "Han")
FOUR = ("bpe", "unigram", "wordpiece", "byte-level-bpe")
ODD = "Ee\u0301 \u00c9 x\u00b2 \ufb01 \u0628\u200c\u0628 \u0915\u094d\u200d\u0937 I\u0130\u0131 \uff21 \u200b \U0001f916 \u00df \u01c6"


def lines_of(script: str, count: int, seed: int = 0) -> list[str]:
    """Make up lines of words of a script, some of them capitals, some with digits, accents and odd characters."""
    draw, (first, last) = random.Random(f"{script} {seed}"), SCRIPTS[script]
    letters = [chr(code) for code in range(first, last + 1) if unicodedata.category(chr(code)) not in ("Cn", "Cc")]
    words = ["".join(draw.choices(letters, k=draw.randint(1, 6))) for _ in range(200)]
    space = "" if script in WITHOUT_SPACES else " "
    lines = [space.join(draw.choices(words, k=draw.randint(1, 12))) for _ in range(count)]
    odd = ODD.split(" ")
    decorated = [f"{line.title()} {draw.choice(odd)}{draw.choice(words)}, {draw.randint(0, 2000)}" for line in lines]
    # Marks in the order that Unicode gives them, as keyboards do: SentencePiece leaves them as they are, tokenizer.json has to order them.
    return [unicodedata.normalize("NFC", other if draw.random() < 0.2 else line) for line, other in zip(lines, decorated, strict=True)]


@pytest.fixture(scope="module")
def texts() -> list[str]:
    return [line for script in SCRIPTS for line in lines_of(script, 60)]


@pytest.mark.parametrize(
    "settings",
    [
        {"byte_fallback": True},
        {"byte_fallback": True, "model_type": "unigram"},
        {"normalization": "nfkc"},
        {"normalization": "nfkc", "cased": True, "model_type": "unigram"},
        {"normalization": "identity", "cased": True},
        {"normalization": "identity", "cased": True, "byte_fallback": True, "character_coverage": 0.98},
    ],
    ids=str,
)
def test_tokenizer_json_gives_the_ids_of_sentencepiece(texts: list[str], settings: dict[str, Any]) -> None:
    tokenizer = train_tokenizer(texts, vocab_size=2400, seed_sentencepiece_size=20_000, **settings)
    unseen = [line for script in SCRIPTS for line in lines_of(script, 100, seed=1)]
    draw, codes = random.Random(5), [*range(32, 0xD800), *range(0xE000, 0x1FFFF)]
    unseen += ["".join(map(chr, draw.choices(codes, k=30))) for _ in range(200)]
    assert tokenizer.count_conversion_differences(unseen) <= (len(unseen) // 500 if settings.get("model_type") == "unigram" else 0)
    processor = sentencepiece.SentencePieceProcessor(model_proto=tokenizer.sentencepiece)
    assert [tokenizer.encode_document_lines([line]) for line in unseen] == [processor.encode(line) for line in unseen]
    ids = {i for line in unseen for i in tokenizer.encode_document_lines([line])}
    assert (tokenizer.special.unk_id in ids) != bool(settings.get("byte_fallback"))


@pytest.mark.parametrize("model_type", FOUR)
def test_every_kind_is_trained_saved_and_read_by_transformers(tmp_path: Path, texts: list[str], model_type: Any) -> None:
    training = TokenizerTraining(1200, model_type)
    tokenizer = training.run(texts)
    assert 1000 < tokenizer.vocab_size <= 1200 and tokenizer.special.ids == (0, 1, 2, 3, 4)
    tokenizer.save(tmp_path)
    again, theirs = load_tokenizer(tmp_path / "tokenizer.json"), AutoTokenizer.from_pretrained(tmp_path)
    lines = [*texts[::7], ODD]
    ours = [tokenizer.encode_document_lines([line]) for line in lines]
    assert ours == [again.encode_document_lines([line]) for line in lines]
    if model_type != "unigram":
        assert ours == [theirs(line, add_special_tokens=False)["input_ids"] for line in lines]
    assert tokenizer.encode_document_lines(["Abc"]) == tokenizer.encode_document_lines(["aBC"])
    kept = TokenizerTraining(1200, model_type, cased=True).run(texts)
    assert kept.encode_document_lines(["Abc"]) != kept.encode_document_lines(["abc"])


def test_byte_level_bpe_knows_everything_and_loses_nothing(texts: list[str]) -> None:
    tokenizer = train_tokenizer(texts, vocab_size=600, model_type="byte-level-bpe", cased=True, normalization="identity")
    ids = tokenizer.encode_document_lines([ODD, "  two\tlines "])
    assert tokenizer.special.unk_id not in ids and tokenizer.fast.decode(ids) == f"{ODD}\n  two\tlines "


_TRAIN = """
import sys
from tests.tokenization.test_training import SCRIPTS, lines_of
from pldcli.tokenization.training import train_tokenizer
texts = [line for script in SCRIPTS for line in lines_of(script, 60)]
print(train_tokenizer(texts, vocab_size=1200, model_type=sys.argv[1]).fingerprint)
"""


@pytest.mark.usefixtures("forked")
@pytest.mark.parametrize("model_type", ["wordpiece", "byte-level-bpe"])
def test_the_number_of_threads_changes_nothing(model_type: str) -> None:
    found = set()
    for threads in ("1", "2", "3"):
        environment = {"RAYON_NUM_THREADS": threads, "PYTHONPATH": ":".join(sys.path)}
        done = subprocess.run([sys.executable, "-c", _TRAIN, model_type], env=environment, capture_output=True, text=True, check=True)
        found.add(done.stdout)
    assert len(found) == 1


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"vocab_size": 5}, "--vocab-size: must be at least 6: five are special tokens"),
        ({"vocab_size": 200, "byte_fallback": True}, "--vocab-size: must be at least 262: five are special tokens, and 256 are bytes"),
        ({"vocab_size": 200, "model_type": "byte-level-bpe"}, "--vocab-size: must be at least 262"),
        ({"strip_accents": True}, "--strip-accents: does not go with --model-type bpe; wordpiece or byte-level-bpe takes it"),
        ({"model_type": "wordpiece", "byte_fallback": True}, "--byte-fallback: does not go with --model-type wordpiece"),
        ({"model_type": "wordpiece", "character_coverage": 0.9}, "--character-coverage: does not go with --model-type wordpiece"),
        ({"character_coverage": 1.5}, "--character-coverage: must be above 0 and at most 1, not 1.5"),
        ({"normalization": "nfc"}, "--normalization nfc: does not go with --model-type bpe"),
        ({"model_type": "byte-level-bpe", "normalization": "nmt_nfkc"}, "--normalization nmt_nfkc: does not go with"),
        ({"normalization": "identity"}, "--normalization identity: changes nothing, not case either; add --cased"),
    ],
)
def test_settings_that_do_not_go_together(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError) as caught:
        TokenizerTraining(**settings).check()
    assert str(caught.value).startswith(message)


@pytest.mark.parametrize("model_type", FOUR)
def test_too_little_text(model_type: Any) -> None:
    if model_type == "byte-level-bpe":
        assert train_tokenizer([], vocab_size=300, model_type=model_type).vocab_size == 261, "bytes are always there"
        return
    with pytest.raises(DataError, match="too little text"):
        train_tokenizer([], vocab_size=300, model_type=model_type)


@pytest.mark.parametrize("model_type", ["bpe", "wordpiece"])
def test_a_vocabulary_that_does_not_hold_the_characters(model_type: Any) -> None:
    texts = ["a quick brown fox jumps over the lazy dog"] * 50
    with pytest.raises(UsageError, match=r"--vocab-size: a vocabulary of 12 does not hold the characters of the corpus"):
        train_tokenizer(texts, vocab_size=12, model_type=model_type)
    assert train_tokenizer(texts, vocab_size=60, model_type=model_type).vocab_size > 12


PERSIAN, HINDI, TURKISH, PLAIN = "\u0645\u06cc\u200c\u062e\u0648\u0627\u0647\u0645", "हिन्दी में", "ISI ısı İl", "x² ﬁne"


@pytest.mark.parametrize(
    ("settings", "text", "said"),
    [
        ({}, PERSIAN, "zero-width joiners"),
        ({"normalization": "nfkc"}, PERSIAN, ""),
        ({"model_type": "wordpiece"}, PERSIAN, "zero-width joiners"),
        ({"model_type": "byte-level-bpe"}, PERSIAN, ""),
        ({}, HINDI, ""),
        ({"model_type": "wordpiece"}, HINDI, "accents and vowel signs"),
        ({"model_type": "wordpiece", "strip_accents": False}, HINDI, ""),
        ({"model_type": "byte-level-bpe", "strip_accents": True}, HINDI, "accents and vowel signs"),
        ({"model_type": "wordpiece"}, "été", "accents and vowel signs"),
        ({"model_type": "wordpiece", "cased": True}, "été", ""),
        ({}, TURKISH, "letters İ and ı"),
        ({"cased": True}, TURKISH, ""),
        ({}, PLAIN, "such as ², ﬁ"),
        ({"normalization": "identity", "cased": True}, PLAIN, ""),
        ({"model_type": "byte-level-bpe"}, PLAIN, ""),
        ({"model_type": "byte-level-bpe", "normalization": "nfkc"}, PLAIN, "such as ², ﬁ"),
    ],
)
def test_distinctions_that_are_lost_are_told(texts: list[str], settings: dict[str, Any], text: str, said: str) -> None:
    tokenizer = train_tokenizer(texts, vocab_size=1200, **settings)
    notes = lost_distinctions(characters([text]), tokenizer.normalize)
    assert len(notes) == bool(said) and all(said in note for note in notes)
    assert lost_distinctions(characters([text, "a" * 200_000]), tokenizer.normalize) == [], "too few to speak of"


def test_prepared_text_says_what_a_tokenizer_does_to_it(pld: Any, tmp_path: Path) -> None:
    (tmp_path / "fa.txt").write_text("\n\n".join(f"{PERSIAN} {line}" for line in lines_of("Arabic", 400)), encoding="utf-8")
    line = ["prepare-data", tmp_path / "fa.txt", "--vocab-size", 300, "--processes", 1]
    outcome = pld(*line, "--out", tmp_path / "lost")
    assert outcome.code == 0 and "zero-width joiners" in outcome.out and "--normalization" in outcome.out
    outcome = pld(*line, "--out", tmp_path / "kept", "--normalization", "nfkc")
    assert outcome.code == 0 and "zero-width joiners" not in outcome.out
    outcome = pld("prepare-data", tmp_path / "fa.txt", "--tokenizer", tmp_path / "lost", "--out", tmp_path / "again")
    assert outcome.code == 0 and "zero-width joiners" in outcome.out, "of a tokenizer that is there, too"
    outcome = pld("tokenizer", "inspect", tmp_path / "lost", tmp_path / "fa.txt", "--json")
    assert "zero-width joiners" in json.loads(outcome.out)["notes"][0]
    outcome = pld(*line, "--out", tmp_path / "none", "--model-type", "wordpiece", "--byte-fallback")
    assert outcome.code == 2 and outcome.err.startswith("error: --byte-fallback: does not go with") and not (tmp_path / "none").exists()
