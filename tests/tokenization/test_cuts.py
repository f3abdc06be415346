"""The same text has the same ids however it is cut into lines, pieces and parts on the way."""

import json
import random
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers

from pldcli.corpus import reader as corpus
from pldcli.data.prepared import open_prepared
from pldcli.data.text_stream import tokenise
from pldcli.preparation.prepare import prepare
from pldcli.tokenization import words
from pldcli.tokenization.cuts import cut_before, encode_plainly, lines_are_independent, parting_spaces
from pldcli.tokenization.tokenizer import load_prepared_tokenizer, load_tokenizer
from pldcli.tokenization.training import train_tokenizer

ROBERTA, BERT = ["<s>", "<pad>", "</s>", "<unk>", "<mask>"], ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
SYLLABLES = ["ton", "la", "re", "pli", "do", "ba", "su", "na", "gra", "al", "or", "en", "mi", "ker"]


def made_up_text(draw: random.Random, words: int) -> str:
    """Text with every kind of white space between words, and marks and digits among them."""
    spaces = [" "] * 30 + ["\n"] * 8 + ["  ", " \n", "\n ", "\t", "\u00a0", "   ", "\r\n"]
    forms = ["{}"] * 20 + ["{}.", "({})", "{}'s", "{}-{}", "«{}»", "{} 42", "Été{}", "東京{}", "{}🤖"]
    draws = (draw.choice(forms).replace("{}", "".join(draw.choices(SYLLABLES, k=draw.randint(1, 3)))) for _ in range(words))
    return "".join(word + draw.choice(spaces) for word in draws).strip()


@pytest.fixture(scope="module")
def documents() -> list[str]:
    draw = random.Random(0)
    return [made_up_text(draw, draw.randint(5, 200)) for _ in range(60)]


def byte_level(documents: list[str], *, prefix: bool = False) -> Tokenizer:
    made = Tokenizer(models.BPE())
    made.pre_tokenizer, made.decoder = pre_tokenizers.ByteLevel(add_prefix_space=prefix), decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    made.train_from_iterator(
        documents, trainers.BpeTrainer(vocab_size=400, special_tokens=ROBERTA, initial_alphabet=alphabet, show_progress=False)
    )
    made.post_processor = processors.RobertaProcessing(("</s>", 2), ("<s>", 0), add_prefix_space=prefix)
    return made


def metaspace(documents: list[str], **how: Any) -> Tokenizer:
    made = Tokenizer(models.BPE(unk_token="[UNK]"))
    made.pre_tokenizer, made.decoder = pre_tokenizers.Metaspace(**how), decoders.Metaspace()
    made.train_from_iterator(documents, trainers.BpeTrainer(vocab_size=400, special_tokens=BERT, show_progress=False))
    return made


def wordpiece(documents: list[str]) -> Tokenizer:
    made = Tokenizer(models.WordPiece(unk_token="[UNK]"))
    made.normalizer, made.pre_tokenizer = normalizers.BertNormalizer(), pre_tokenizers.BertPreTokenizer()
    made.train_from_iterator(documents, trainers.WordPieceTrainer(vocab_size=400, special_tokens=BERT, show_progress=False))
    return made


def trained(documents: list[str]) -> Tokenizer:
    pieces = [document.replace("\n", " ") for document in documents]
    return Tokenizer.from_str(train_tokenizer(pieces, vocab_size=300).json_text)


KINDS = {
    "byte-level": byte_level,
    "byte-level with a prefix": lambda documents: byte_level(documents, prefix=True),
    "words begun with a mark": lambda documents: metaspace(documents),
    "the first word begun with a mark": lambda documents: metaspace(documents, prepend_scheme="first"),
    "WordPiece": wordpiece,
    "SentencePiece": trained,
}


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("processes", [1, 2])
def test_prepared_text_has_the_ids_of_whole_documents(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, documents: list[str], kind: str, processes: int
) -> None:
    KINDS[kind](documents).save(str(tmp_path / "given.json"))
    (tmp_path / "a.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in documents), encoding="utf-8")
    if "mark" not in kind:  # there a line end is a letter like others, which pieces of a megabyte are cut at all the same
        monkeypatch.setattr(corpus, "CHUNK_BYTES", 300)
    monkeypatch.setattr(words, "MAX_LINE_CHARACTERS", 50)
    prepared = prepare([tmp_path / "a.jsonl"], tmp_path / "out", tokenizer=tmp_path / "given.json", quiet=True, processes=processes)
    tokenizer, data = load_prepared_tokenizer(prepared.path), open_prepared(prepared.path)
    whole = [tokenizer.fast.encode(text, add_special_tokens=False).ids for text in documents]
    found = []
    for split in ("train", "validation"):
        stream, start = data.stream(split), 0
        for end in stream.document_ends.tolist():
            found.append(stream.slice(start, end - 1).tolist())
            start = end
    assert sorted(found) == sorted(whole)
    assert [ids.tolist() for ids in tokenise([tmp_path / "a.jsonl"], tokenizer, quiet=True).documents()] == whole
    if processes == 1:
        assert check_export(tmp_path, tokenizer.json_text, documents[:20]) == whole[:20]


def check_export(tmp_path: Path, json_text: str, texts: list[str]) -> list[list[int]]:
    """Encode with transformers what `pretrain` would export."""
    transformers = pytest.importorskip("transformers")
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "tokenizer.json").write_text(json_text, encoding="utf-8")
    (tmp_path / "model" / "tokenizer_config.json").write_text('{"tokenizer_class": "PreTrainedTokenizerFast"}')
    theirs = transformers.AutoTokenizer.from_pretrained(tmp_path / "model")
    return [theirs(text, add_special_tokens=False)["input_ids"] for text in texts]


def test_no_text_is_glued_at_line_ends(tmp_path: Path, documents: list[str]) -> None:
    byte_level(documents).save(str(tmp_path / "given.json"))
    texts = ["ton la re\npli do ba", "su na gra\n  al or en\n\tmi"]
    tokenizer = load_tokenizer(tmp_path / "given.json")
    for text in texts:
        assert tokenizer.fast.decode(tokenizer.encode_document_lines(text.split("\n"))) == text


def independent(tokenizer: Any) -> bool:
    return lines_are_independent(tokenizer.fast, lambda texts: encode_plainly(tokenizer.fast, texts))


@pytest.mark.parametrize(
    ("kind", "lines", "spaces"),
    [
        ("byte-level", False, " \n"),
        ("byte-level with a prefix", False, " \n"),
        ("words begun with a mark", False, " "),
        ("the first word begun with a mark", False, " "),
        ("WordPiece", True, " \n"),
        ("SentencePiece", True, " \n"),
    ],
)
def test_the_fast_way_is_taken_where_it_changes_nothing(tmp_path: Path, documents: list[str], kind: str, lines: bool, spaces: str) -> None:
    KINDS[kind](documents).save(str(tmp_path / "given.json"))
    tokenizer = load_tokenizer(tmp_path / "given.json")
    assert (independent(tokenizer), parting_spaces(tokenizer.fast)) == (lines, spaces)


def test_a_trained_tokenizer_goes_the_fast_way_with_lone_accents_in_its_vocabulary() -> None:
    """tokenizer.json takes an accent at a text's begin as the SentencePiece model does."""
    pieces = train_tokenizer(["ba ke x\u0301 lo mi q\u0301\u0323 " * 20] * 5, vocab_size=60)
    assert independent(pieces)
    lines = ["ba x\u0301", "\u0301lo", "", "mi \u0301 q\u0301"]
    assert pieces.encode_document_lines(lines) == pieces._processor.encode("\n".join(lines))
    assert pieces.encode_document_lines(lines) == pieces.fast.encode("\n".join(lines), add_special_tokens=False).ids
    assert set(pieces.known_parts) >= {"x\u0301", "\u0301lo", "mi", "\u0301"}


def test_parts_of_byte_level_bpe_are_encoded_once(tmp_path: Path, documents: list[str]) -> None:
    byte_level(documents).save(str(tmp_path / "given.json"))
    tokenizer = load_tokenizer(tmp_path / "given.json")
    lines = ["ton la  re", "", "pli la, ton\tba la"] * 50
    whole = tokenizer.fast.encode("\n".join(lines), add_special_tokens=False).ids
    assert tokenizer.encode_document_lines(lines) == whole
    assert set(tokenizer.known_parts) == {" la", "  re", "\n\npli", " la,", " ton\tba", "\nton"}
    assert tokenizer.encode_document_lines(["la"], continued=True) == tokenizer.fast.encode("la", add_special_tokens=False).ids


def test_pieces_over_line_ends_keep_lines_together() -> None:
    pieces = train_tokenizer(["ba ke lo mi " * 20] * 5, vocab_size=60)
    assert independent(pieces)
    parsed = json.loads(pieces.json_text)
    vocabulary = parsed["model"]["vocab"]
    vocabulary["o\u2581m"] = len(vocabulary)
    parsed["model"]["merges"].append(["o", "\u2581m"])
    crossing = replace(pieces, json_text=json.dumps(parsed), sentencepiece=None, vocab_size=pieces.vocab_size + 1)
    assert not independent(crossing)


@pytest.mark.parametrize(
    ("given", "text"),
    [
        (AddedToken("ba ke", normalized=False), "ton ba ke la " * 9),
        (AddedToken("ba\nke", normalized=False), "ton ba\nke la\n" * 9),
        (AddedToken("ba", rstrip=True, normalized=False), "ton ba \n ke ba\n\nla " * 9),
    ],
)
@pytest.mark.parametrize("kind", ["WordPiece", "byte-level"])
def test_added_tokens_that_hold_white_space_are_kept_whole(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, documents: list[str], kind: str, given: AddedToken, text: str
) -> None:
    monkeypatch.setattr(words, "MAX_LINE_CHARACTERS", 7)
    made = KINDS[kind](documents)
    made.add_tokens([given])
    made.save(str(tmp_path / "given.json"))
    tokenizer = load_tokenizer(tmp_path / "given.json")
    assert tokenizer.encode_document_lines(text.split("\n")) == tokenizer.fast.encode(text, add_special_tokens=False).ids


def test_parts_begin_with_white_space_and_miss_nothing() -> None:
    text = "one two  three\n\n four " + "x" * 40 + " five\n"
    parts = cut_before(text, " \n")
    assert "".join(parts) == text and len(parts) == 7
    assert all(part[0].isspace() and not before[-1].isspace() for before, part in pairwise(parts))
    assert cut_before("x" * 50, " ") == ["x" * 50]
    assert cut_before("", " ") == [""]


def test_lines_without_spaces_are_not_kept_in_memory() -> None:
    tokenizer = train_tokenizer(["ba ke lo mi nu " * 20] * 5, vocab_size=60)
    lines = ["".join(random.Random(number).choices("bakelominu", k=2000)) for number in range(50)]
    ids = tokenizer.encode_document_lines(lines)
    assert sum(map(len, tokenizer.known_parts)) < 100
    assert ids == [i for line in lines for i in tokenizer.fast.encode(line, add_special_tokens=False).ids]


def test_words_without_an_end_are_not_kept_in_memory_by_wordpiece(documents: list[str], tmp_path: Path) -> None:
    wordpiece(documents).save(str(tmp_path / "given.json"))
    tokenizer = load_tokenizer(tmp_path / "given.json")
    line = " ".join(["tonla" * 100, "ton-la", "東京" * 50, "été" * 40])
    assert tokenizer.encode_document_lines([line]) == tokenizer.fast.encode(line, add_special_tokens=False).ids
    assert set(tokenizer.known_parts) == {"", "ton", "-", "la"}


@pytest.mark.parametrize("batch_characters", [1, 60, 1 << 22])
@pytest.mark.parametrize("kind", ["WordPiece", "byte-level"])
def test_each_document_gets_its_own_ids_however_many_are_encoded_together(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, documents: list[str], kind: str, batch_characters: int
) -> None:
    monkeypatch.setattr(words, "_BATCH_CHARACTERS", batch_characters)
    KINDS[kind](documents).save(str(tmp_path / "given.json"))
    tokenizer = load_tokenizer(tmp_path / "given.json")
    pieces = [("ton (la)\n\n pli,\n", False), ("re ton", True), ("", True), (" ", True), ("\n", False), ("la.\ttón🤖", True)]
    found = list(tokenizer.encode_pieces(iter(pieces)))
    assert [piece for piece, _ in found] == pieces
    ends = [number + 1 for number, (_, last) in enumerate(pieces) if last]
    for start, end in pairwise([0, *ends]):
        text = "".join(text for text, _ in pieces[start:end])
        ids = [i for _, some in found[start:end] for i in some.tolist()]
        assert ids == tokenizer.fast.encode(text, add_special_tokens=False).ids
