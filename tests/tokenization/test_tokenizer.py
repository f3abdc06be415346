import json
import os
import random
import tempfile
from dataclasses import replace
from pathlib import Path

import pytest
import sentencepiece
import tokenizers

from pldcli.errors import DataError, UsageError
from pldcli.tokenization.tokenizer import Tokenizer, load_prepared_tokenizer, load_tokenizer
from pldcli.tokenization.training import train_tokenizer

SPECIAL = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
ODD = [
    "",
    " ",
    "\u2581",
    "a\u2581 b \u2581",
    "  two   spaces  ",
    "tab\tand\u3000wide\u00a0space\r",
    "Straße İstanbul ΣΊΣΥΦΟΣ ǆ ŉ",
    "ﬁne ① ½ Ⅳ ㎏ ｆｕｌｌ",
    "e\u0301 E\u0301 Q\u0323 q\u0323\u0302 x\u0301\u0301",
    "зима İ ß 東京 العربية हिन्दी ไทย 한국어 \u1112\u1161\u11ab",
    "👩‍👩‍👧 🤖🏽 \u200b\u200c\u200d\ufeff\u00ad",
    "\x01\x02\x7f\x85",
    "\u0301 first",
    "\u094d\u0915",
    "[MASK] [CLS]<s></s>",
    "a" * 300,
]


def data_dir() -> Path:
    return Path(os.environ.get("PLD_DATA_DIR") or Path(os.environ.get("TMPDIR", tempfile.gettempdir())) / "pld-data")


@pytest.fixture(scope="module")
def real_lines() -> list[str]:
    path = data_dir() / "pretrain" / "valid" / "enwiki2015_valid_000.jsonl"
    if not path.is_file():
        pytest.skip(f"real text is not here: {path}")
    return [
        line for record in path.read_text(encoding="utf-8").rstrip("\n").split("\n") for line in json.loads(record)["text"].split("\n")
    ][:6000]


def made_up_lines(count: int = 400) -> list[str]:
    draw = random.Random(0)
    syllables = ["ba", "ke", "lo", "mi", "nu", "ra", "so", "ti", "ul", "ven"]
    words = ["".join(draw.choices(syllables, k=draw.randint(1, 4))) for _ in range(300)]
    return [" ".join(draw.choices(words, k=20)).capitalize() for _ in range(count)]


@pytest.fixture(scope="module")
def small() -> Tokenizer:
    return train_tokenizer(made_up_lines(), vocab_size=200)


@pytest.mark.parametrize("model_type", ["bpe", "unigram"])
@pytest.mark.parametrize("cased", [False, True])
def test_json_equals_sentencepiece_on_real_and_odd_text(real_lines, model_type, cased):
    pieces = [line.encode()[:4000].decode(errors="ignore") for line in real_lines[:2500]]
    tokenizer = train_tokenizer(pieces, vocab_size=2000, model_type=model_type, cased=cased, seed_sentencepiece_size=20_000)
    assert tokenizer.count_conversion_differences(real_lines) <= (0 if model_type == "bpe" else len(real_lines) // 1000)
    assert tokenizer.count_conversion_differences(ODD) == 0
    processor = sentencepiece.SentencePieceProcessor(model_proto=tokenizer.sentencepiece)
    for lines in (real_lines, ODD):
        whole = [processor.encode(line) for line in lines]
        assert [tokenizer.encode_document_lines([line]) for line in lines] == whole
    assert bool(tokenizer.known_parts) == (model_type == "bpe"), "the fast way is right for BPE alone"


def test_the_comparison_sees_a_difference(small):
    broken = json.loads(small.json_text)
    broken["normalizer"]["normalizers"].pop()
    changed = replace(small, json_text=json.dumps(broken))
    assert changed.count_conversion_differences(["ba ke lo"]) == 1


def test_special_tokens_come_first(small):
    assert small.special.ids == (0, 1, 2, 3, 4)
    assert [small.fast.id_to_token(i) for i in range(5)] == SPECIAL
    assert small.vocab_size == 200
    assert small.normaliser == "nmt_nfkc_cf"


def test_case_is_kept_only_when_asked():
    lines = made_up_lines()
    folded, kept = (train_tokenizer(lines, vocab_size=200, cased=cased) for cased in (False, True))
    assert folded.encode_document_lines(["Bake"]) == folded.encode_document_lines(["bake"])
    assert kept.encode_document_lines(["Bake"]) != kept.encode_document_lines(["bake"])
    assert kept.normaliser == "nmt_nfkc"


@pytest.mark.parametrize("model_type", ["bpe", "unigram"])
def test_literal_special_tokens_stay_text(tmp_path, model_type):
    trained = train_tokenizer([*made_up_lines(), "[ ] M A S K C L P D E U N S"], vocab_size=200, model_type=model_type)
    trained.save(tmp_path)
    for tokenizer in (trained, load_tokenizer(tmp_path / "tokenizer.json")):
        ids = tokenizer.encode_document_lines(["ba [MASK] ke", "[CLS][SEP] [PAD]"])
        assert not {0, 2, 3, 4} & set(ids)
        assert len(ids) > 8


def test_a_special_id_that_comes_out_of_text_becomes_unknown(small):
    parsed = json.loads(small.json_text)
    for token in parsed["added_tokens"]:
        token["special"] = False
    stubborn = replace(small, json_text=json.dumps(parsed), sentencepiece=None)
    assert 4 in stubborn.fast.encode("ba [MASK] ke", add_special_tokens=False).ids
    ids = stubborn.encode_document_lines(["ba [MASK] ke"])
    assert 4 not in ids and 1 in ids


def test_long_lines_are_cut_without_changing_ids(small):
    line = "ba ke lo " * 4000
    assert small.encode_document_lines([line]) == small.encode_document_lines(["ba ke lo"]) * 4000


def test_a_corpus_that_supports_fewer_entries_gets_fewer():
    for model_type in ("bpe", "unigram"):
        assert 5 < train_tokenizer(["hello world this is small"] * 9, vocab_size=8192, model_type=model_type).vocab_size < 100


def test_too_little_text_and_too_small_a_vocabulary():
    with pytest.raises(DataError, match="too little text"):
        train_tokenizer([], vocab_size=100)
    with pytest.raises(UsageError, match=r"--vocab-size: .*is the least"):
        train_tokenizer(made_up_lines(), vocab_size=10)


def test_saving_and_loading(tmp_path, small):
    small.save(tmp_path)
    assert load_prepared_tokenizer(tmp_path) == small
    from_model = load_tokenizer(tmp_path / "sentencepiece.model")
    assert (from_model.fingerprint, from_model.special) == (small.fingerprint, small.special)
    from_json = load_tokenizer(tmp_path)
    assert from_json.encode_document_lines(made_up_lines()) == small.encode_document_lines(made_up_lines())


def test_it_loads_in_transformers(tmp_path, small):
    transformers = pytest.importorskip("transformers")
    small.save(tmp_path)
    names = {"pad_token": "[PAD]", "unk_token": "[UNK]", "cls_token": "[CLS]", "sep_token": "[SEP]", "mask_token": "[MASK]"}
    fast = transformers.PreTrainedTokenizerFast(tokenizer_file=str(tmp_path / "tokenizer.json"), **names)
    encoded = fast("Bake [MASK] lo", "ti", return_token_type_ids=True)
    inner = small.encode_document_lines(["Bake"]), small.encode_document_lines(["lo"]), small.encode_document_lines(["ti"])
    assert encoded["input_ids"] == [2, *inner[0], 4, *inner[1], 3, *inner[2], 3]
    assert encoded["token_type_ids"] == [0] * (3 + len(inner[0]) + len(inner[1])) + [1] * (len(inner[2]) + 1)
    assert fast.decode(small.encode_document_lines(["bake lo  ti"])) == "bake lo ti"


@pytest.fixture
def vocab(tmp_path) -> Path:
    path = tmp_path / "vocab.txt"
    path.write_text("\n".join([*SPECIAL, "hello", "wor", "##ld", "Hello", "[", "]", "mask"]) + "\n")
    return path


def test_wordpiece(tmp_path, vocab):
    uncased, cased = load_tokenizer(vocab), load_tokenizer(vocab, cased=True)
    assert uncased.encode_document_lines(["Hello world [MASK]"]) == [5, 6, 7, 9, 11, 10]
    assert cased.encode_document_lines(["Hello world"]) == [8, 6, 7]
    assert (uncased.normaliser, cased.normaliser, uncased.vocab_size) == ("bert-uncased", "bert-cased", 12)
    (tmp_path / "made").mkdir()
    uncased.save(tmp_path / "made")
    assert uncased.fingerprint == load_tokenizer(tmp_path / "made" / "tokenizer.json").fingerprint
    assert load_tokenizer(tmp_path / "made").normaliser == "bert-uncased"


@pytest.mark.parametrize("cased", [False, True])
def test_words_of_wordpiece_have_the_ids_that_they_have_in_lines(real_lines, cased):
    tokenizer = load_tokenizer(data_dir() / "vocab" / "bert-base-uncased-vocab.txt", cased=cased)
    draw = random.Random(1)
    pool = [*"aZ.ß!'-[] 東한ไ\t\r\x00\x7f\u00ad\u200b\u200d\u3000\u00a0\ufffd\u0301\u0323\u0345ΣςİŉǆÅ🤖", "MASK", "[MASK]", "##s", "  "]
    made_up = ["".join(draw.choices(pool, k=draw.randint(1, 30))) for _ in range(20_000)]
    for lines in (ODD, made_up, real_lines):
        expected = [encoding.ids for encoding in tokenizer.fast.encode_batch(lines, add_special_tokens=False)]
        assert [ids.tolist() for _, ids in tokenizer.encode_pieces((line, True) for line in lines)] == expected
    assert len(tokenizer.known_parts) > 1000


def test_a_token_that_is_found_in_text_keeps_lines_whole(tmp_path):
    made = tokenizers.Tokenizer.from_file(str(wordpiece_json(tmp_path)))
    made.add_tokens(["two words"])
    made.save(str(tmp_path / "tokenizer.json"))
    tokenizer = load_tokenizer(tmp_path / "tokenizer.json")
    assert tokenizer.encode_document_lines(["a two words b"]) == tokenizer.fast.encode("a two words b", add_special_tokens=False).ids
    assert tokenizer.fast.token_to_id("two words") in tokenizer.encode_document_lines(["a two words b"]) and not tokenizer.known_parts


def wordpiece_json(place):
    (place / "vocab.txt").write_text("\n".join([*SPECIAL, "a", "b", "two", "words", ""]))
    load_tokenizer(place / "vocab.txt").save(place)
    return place / "tokenizer.json"


def test_words_are_forgotten_when_there_are_too_many(small, monkeypatch):
    from pldcli.tokenization import words as module

    lines = made_up_lines()
    expected = small.encode_document_lines(lines)
    monkeypatch.setattr(module, "MAX_KNOWN", 5)
    assert [i for line in lines for i in small.encode_document_lines([line])] == expected
    assert len(small.known_parts) <= 5


def test_fingerprints_tell_vocabularies_apart(vocab):
    before = load_tokenizer(vocab).fingerprint
    vocab.write_text(vocab.read_text().replace("hello", "hallo"))
    assert load_tokenizer(vocab).fingerprint != before


@pytest.mark.parametrize("missing", SPECIAL)
def test_a_missing_special_token_is_named(vocab, missing):
    vocab.write_text(vocab.read_text().replace(missing + "\n", "other\n"))
    with pytest.raises(DataError) as caught:
        load_tokenizer(vocab)
    assert f"has no special token {missing}" in str(caught.value)


def test_roberta_names(tmp_path):
    (tmp_path / "vocab.txt").write_text("\n".join(["<s>", "<pad>", "</s>", "<unk>", "a", "<mask>"]))
    special = load_tokenizer(tmp_path / "vocab.txt").special
    assert (special.cls_id, special.pad_id, special.sep_id, special.unk_id, special.mask_id) == (0, 1, 2, 3, 5)


def test_a_json_with_truncation_and_padding_encodes_everything(tmp_path, small):
    fast = load_tokenizer_of(small, tmp_path)
    fast.enable_truncation(8)
    fast.enable_padding(length=64)
    fast.save(str(tmp_path / "tokenizer.json"))
    text = ["ba ke lo " * 50]
    assert load_tokenizer(tmp_path / "tokenizer.json").encode_document_lines(text) == small.encode_document_lines(text)


def load_tokenizer_of(small: Tokenizer, directory: Path):
    import tokenizers

    return tokenizers.Tokenizer.from_str(small.json_text)


@pytest.mark.parametrize(
    ("name", "content"), [("tokenizer.json", b"{}"), ("tokenizer.json", b"\xff"), ("a.model", b"junk"), ("a.bin", b"x")]
)
def test_files_that_are_no_tokenizers(tmp_path, name, content):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(DataError, match=name):
        load_tokenizer(tmp_path / name)


def test_a_damaged_table_of_characters_is_an_error_in_the_data(tmp_path, small):
    written = json.loads(small.json_text)
    tables = [part for part in written["normalizer"]["normalizers"] if part["type"] == "Precompiled"]
    tables[0]["precompiled_charsmap"] = "~" + tables[0]["precompiled_charsmap"][1:]
    (tmp_path / "tokenizer.json").write_text(json.dumps(written))
    with pytest.raises(DataError, match=r"tokenizer.json: is not a tokenizer.json \(Precompiled: "):
        load_tokenizer(tmp_path / "tokenizer.json")
    model = bytearray(small.sentencepiece)
    place = model.rindex(b"nmt_nfkc_cf") + 20  # the size of a part of the table behind its name
    model[place : place + 8] = bytes(8)
    (tmp_path / "a.model").write_bytes(model)
    with pytest.raises(DataError, match=r"a.model: is not a SentencePiece model \("):
        load_tokenizer(tmp_path / "a.model")


def test_a_missing_file(tmp_path):
    with pytest.raises(DataError, match=r"none.json: no such file"):
        load_tokenizer(tmp_path / "none.json")


def test_a_tokenizer_without_a_template_gets_berts(tmp_path):
    (tmp_path / "vocab.txt").write_text("\n".join(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "a", "b"]), encoding="utf-8")
    bare = json.loads(load_tokenizer(tmp_path / "vocab.txt").json_text) | {"post_processor": None}
    (tmp_path / "tokenizer.json").write_text(json.dumps(bare), encoding="utf-8")
    encoded = load_tokenizer(tmp_path / "tokenizer.json").fast.encode("a", "b")
    assert (encoded.ids, encoded.type_ids) == ([2, 5, 3, 6, 3], [0, 0, 0, 1, 1])


@pytest.mark.parametrize("model_type", ["bpe", "unigram"])
def test_rare_characters_have_entries_while_there_is_room(model_type):
    lines = [*made_up_lines(), "x = ~y ^ JSON & Q; É «東»"]
    tokenizer = train_tokenizer(lines, vocab_size=200, model_type=model_type, cased=True)
    assert tokenizer.special.unk_id not in tokenizer.encode_document_lines(lines)


def test_of_many_characters_the_frequent_ones_have_entries():
    letters = [chr(0x4E00 + number) for number in range(300)]
    lines = [*made_up_lines() * 12, *(letter * (3 if number < 50 else 1) for number, letter in enumerate(letters))]
    tokenizer = train_tokenizer(lines, vocab_size=240)
    unknown = [letter for letter in letters if tokenizer.special.unk_id in tokenizer.encode_document_lines([letter])]
    assert not set(letters[:50]) & set(unknown) and 180 < len(unknown) < 220
    assert tokenizer.special.unk_id not in tokenizer.encode_document_lines(made_up_lines())
