"""Directories of many kinds, each read here and by `AutoTokenizer` of transformers."""

import io
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import sentencepiece
from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers

from pldcli.errors import DataError
from pldcli.tokenization.tokenizer import load_prepared_tokenizer, load_tokenizer
from pldcli.tokenization.training import TokenizerTraining

SCRIPTS = """The quick brown fox, no. 42; don't stop! <ent> x_y user@example.org
Größe, Straße, möchte: Ärger über Öl. SCHÖN
L'été à Noël, où garçon naïf — «bœuf» Ça va? E\u0301te\u0301 e\u0301
İstanbul'da ışık, IĞDIR; Diyarbakır I ı i İ
Zażółć gęślą jaźń; příliš žluťoučký kůň
Đường Nguyễn Huệ, Thành phố
зима и лето, Ёлка; Київ — їжак
ΣΊΣΥΦΟΣ σίσυφος, Ἀθῆναι
العربية لُغَةٌ جميلة، ١٢٣
עברית שָׁלוֹם
فارسی می‌خواهم
हिन्दी में लिखा है। क्षत्रिय
বাংলা ভাষা
தமிழ் மொழி
తెలుగు భాష
ไทยไม่มีช่องว่าง ภาษา
ລາວ ភាសាខ្មែរ မြန်မာ
東京都に住んでいます。カタカナ ｶﾀｶﾅ
我们在北京，学习中文。㐀𠀀
한국어를 배우다 \u1112\u1161\u11ab
ქართული Հայերեն አማርኛ
ᚠᚢᚦ ᏣᎳᎩ ꙮ
🤖🏽 👩‍👩‍👧 ☃ ½ Ⅳ ﬁne ＡＢ ㎏ \u200b\u00ad\ufeff a\u00a0b\u3000c\tend  two
"""
SPECIAL = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
ROBERTA = ["<s>", "<pad>", "</s>", "<unk>", "<mask>"]


def put(directory: Path, name: str, content: Any) -> None:
    directory.mkdir(exist_ok=True)
    (directory / name).write_text(content if isinstance(content, str) else json.dumps(content), encoding="utf-8")


@pytest.fixture(scope="module")
def wordpiece() -> list[str]:
    """Entries of a vocabulary with letters of all scripts, with and without accents and case, and some words."""
    made = Tokenizer(models.WordPiece(unk_token="[UNK]"))
    made.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    texts = [SCRIPTS, SCRIPTS.lower(), normalizers.BertNormalizer(lowercase=True).normalize_str(SCRIPTS)]
    made.train_from_iterator(texts * 3, trainers.WordPieceTrainer(vocab_size=1200, special_tokens=SPECIAL, show_progress=False))
    return [token for token, _ in sorted(made.get_vocab().items(), key=lambda item: item[1])]


def byte_level(special: list[str] = ROBERTA, **how: Any) -> Tokenizer:
    made = Tokenizer(models.BPE())
    made.pre_tokenizer, made.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=700, special_tokens=special, initial_alphabet=alphabet, show_progress=False)
    made.train_from_iterator([SCRIPTS] * 3, trainer)
    made.post_processor = processors.RobertaProcessing((special[2], 2), (special[0], 0), **how)
    return made


def trained(model: Any, trainer: Any, **parts: Any) -> Tokenizer:
    made = Tokenizer(model)
    for name, part in parts.items():
        setattr(made, name, part)
    made.train_from_iterator([SCRIPTS] * 3, trainer)
    return made


def bert_json(words: list[str], **normalizer: Any) -> Tokenizer:
    made = Tokenizer(models.WordPiece(vocab={token: i for i, token in enumerate(words)}, unk_token="[UNK]"))
    made.normalizer, made.pre_tokenizer = normalizers.BertNormalizer(**normalizer), pre_tokenizers.BertPreTokenizer()
    made.add_special_tokens(SPECIAL)
    return made


def with_tokens(made: Tokenizer, *tokens: AddedToken) -> Tokenizer:
    made.add_tokens(list(tokens))
    return made


def added(content: str, **flags: bool) -> dict[str, Any]:
    usual = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": True, "special": False}
    return {"content": content, **usual, **flags}


ENT = AddedToken("<ent>", normalized=False)
Make = Callable[[Path, list[str]], None]


def vocab_txt(config: dict[str, Any] | None, model: dict[str, Any] | None = None, **more: Any) -> Make:
    def make(directory: Path, words: list[str]) -> None:
        put(directory, "vocab.txt", "\n".join(words) + "\n")
        for name, content in ({"tokenizer_config": config, "config": model} | more).items():
            if content is not None:
                put(directory, f"{name}.json", content)

    return make


def tokenizer_json(build: Callable[[list[str]], Tokenizer], config: dict[str, Any] | None, model: dict[str, Any] | None = None) -> Make:
    def make(directory: Path, words: list[str]) -> None:
        put(directory, "tokenizer.json", build(words).to_str())
        for name, content in {"tokenizer_config": config, "config": model}.items():
            if content is not None:
                put(directory, f"{name}.json", content)

    return make


def merges(config: dict[str, Any]) -> Make:
    def make(directory: Path, words: list[str]) -> None:
        directory.mkdir()
        byte_level().model.save(str(directory))
        put(directory, "tokenizer_config.json", config)

    return make


def both(*makes: Make) -> Make:
    def make(directory: Path, words: list[str]) -> None:
        for one in makes:
            one(directory, words)

    return make


BERT, FAST = {"tokenizer_class": "BertTokenizer"}, {"tokenizer_class": "PreTrainedTokenizerFast"}
LIKE_ROBERTA = {"tokenizer_class": "RobertaTokenizerFast"}
OTHER_NAMES = {"unk_token": "[UNK]", "pad_token": "[PAD]", "cls_token": "[CLS]", "sep_token": "[SEP]", "mask_token": "<mask_1>"}
KINDS: dict[str, Make] = {
    "vocab.txt": vocab_txt(BERT),
    "vocab.txt of a model": vocab_txt(None, {"model_type": "bert"}),
    "cased": vocab_txt(BERT | {"do_lower_case": False}),
    "accents kept": vocab_txt(BERT | {"strip_accents": False}),
    "accents stripped of cased text": vocab_txt(BERT | {"do_lower_case": False, "strip_accents": True}),
    "Chinese in words": vocab_txt({"tokenizer_class": "BertTokenizerFast", "tokenize_chinese_chars": False}),
    "Electra": vocab_txt({"tokenizer_class": "ElectraTokenizer", "strip_accents": False}),
    "DistilBERT": vocab_txt(None, {"model_type": "distilbert"}, special_tokens_map=dict.fromkeys(["unk_token"], "[UNK]")),
    "a class in config.json": vocab_txt({"do_lower_case": False}, {"model_type": "nomic_bert", "tokenizer_class": "BertTokenizer"}),
    "a token by id": vocab_txt(BERT | {"added_tokens_decoder": {"9000": added("<ent>", normalized=False)}}),
    "a token of the vocabulary by id": vocab_txt(BERT | {"added_tokens_decoder": {"20": added("fox"), "1": added("[UNK]", special=True)}}),
    "added_tokens.json": vocab_txt(BERT, added_tokens={"<ent>": 5000, "user": 5001}),
    "another mask": vocab_txt(BERT | OTHER_NAMES),
    "special_tokens_map.json": vocab_txt(BERT, special_tokens_map={"mask_token": added("<mask_1>", lstrip=True)}),
    "extra special tokens": vocab_txt(BERT | {"additional_special_tokens": ["<one>", "<two>"], "domain_token": "<dom>"}),
    "json": tokenizer_json(bert_json, None),
    "json as it stands": tokenizer_json(lambda words: bert_json(words, lowercase=False), FAST),
    "json, lower-cased by its class": tokenizer_json(lambda words: bert_json(words, lowercase=False), BERT),
    "json, cased by its configuration": tokenizer_json(bert_json, BERT | {"do_lower_case": False, "strip_accents": True}),
    "json, its class from the model": tokenizer_json(lambda words: bert_json(words, lowercase=False), {}, {"model_type": "bert"}),
    "json with a token": tokenizer_json(lambda words: with_tokens(bert_json(words), ENT), BERT),
    "json with another flag of a token": tokenizer_json(
        lambda words: with_tokens(bert_json(words), AddedToken("Fox")),
        FAST | {"added_tokens_decoder": {"1": added("quick"), "2": added("user")}}
    ),
    "json with truncation and padding": tokenizer_json(lambda words: cut_short(bert_json(words)), FAST),
    "json with a new mask": tokenizer_json(bert_json, FAST | OTHER_NAMES),
    "json and vocab.txt": both(vocab_txt(None), tokenizer_json(lambda words: bert_json(words[:600]), BERT)),
    "byte-level json": tokenizer_json(lambda _: byte_level(), None),
    "byte-level json of RoBERTa": tokenizer_json(lambda _: byte_level(add_prefix_space=True), {}, {"model_type": "roberta"}),
    "byte-level json, prefix space": tokenizer_json(lambda _: byte_level(), LIKE_ROBERTA | {"add_prefix_space": True}),
    "byte-level json, mask with space": tokenizer_json(
        lambda _: byte_level(), LIKE_ROBERTA | {"mask_token": {"__type": "AddedToken", **added("<mask>", lstrip=True)}}
    ),
    "vocab.json and merges.txt": merges({"tokenizer_class": "RobertaTokenizer"}),
    "vocab.json and merges.txt, prefix space": merges({"tokenizer_class": "RobertaTokenizer", "add_prefix_space": True}),
    "unigram": tokenizer_json(
        lambda _: trained(
            models.Unigram(),
            trainers.UnigramTrainer(vocab_size=400, special_tokens=SPECIAL, unk_token="[UNK]", show_progress=False),
            normalizer=normalizers.NFKC(),
            pre_tokenizer=pre_tokenizers.Metaspace(),
        ),
        FAST,
    ),
    "word level": tokenizer_json(
        lambda _: trained(
            models.WordLevel(unk_token="[UNK]"),
            trainers.WordLevelTrainer(vocab_size=90, special_tokens=SPECIAL, show_progress=False),
            pre_tokenizer=pre_tokenizers.Whitespace(),
        ),
        {"tokenizer_class": "TokenizersBackend"},
    ),
    "BPE of words": tokenizer_json(
        lambda _: trained(
            models.BPE(unk_token="[UNK]", end_of_word_suffix="</w>"),
            trainers.BpeTrainer(vocab_size=500, special_tokens=SPECIAL, end_of_word_suffix="</w>", show_progress=False),
            normalizer=normalizers.Sequence([normalizers.NFD(), normalizers.Lowercase(), normalizers.StripAccents()]),
            pre_tokenizer=pre_tokenizers.WhitespaceSplit(),
        ),
        FAST,
    ),
}  # fmt: skip


def cut_short(made: Tokenizer) -> Tokenizer:
    made.enable_truncation(8)
    made.enable_padding(length=500)
    return made


@pytest.fixture
def offline(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    transformers = pytest.importorskip("transformers")
    from transformers.utils import logging

    before = logging.get_verbosity()
    logging.set_verbosity_error()
    yield transformers
    logging.set_verbosity(before)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("kind", KINDS)
def test_a_directory_gives_the_ids_of_transformers(tmp_path: Path, offline: Any, wordpiece: list[str], kind: str) -> None:
    directory = tmp_path / "given"
    KINDS[kind](directory, wordpiece)
    theirs = offline.AutoTokenizer.from_pretrained(directory)
    ours = load_tokenizer(directory)
    for text in (SCRIPTS, *SCRIPTS.splitlines(), SCRIPTS * 40):
        expected = theirs(text, add_special_tokens=False)["input_ids"]
        assert ours.fast.encode(text, add_special_tokens=False).ids == expected
        assert ours.encode_document_lines(text.split("\n")) == expected
    assert ours.vocab_size == max(theirs.get_vocab().values()) + 1
    for role, token in (("mask", theirs.mask_token), ("unk", theirs.unk_token), ("cls", theirs.cls_token), ("pad", theirs.pad_token)):
        if token is not None:
            assert getattr(ours.special, f"{role}_id") == theirs.convert_tokens_to_ids(token)
    put(tmp_path / "exported", "tokenizer.json", ours.json_text)
    put(tmp_path / "exported", "tokenizer_config.json", FAST)
    again = offline.AutoTokenizer.from_pretrained(tmp_path / "exported")
    assert again(SCRIPTS, add_special_tokens=False)["input_ids"] == ours.encode_document_lines(SCRIPTS.split("\n"))
    marked = {entry["id"] for entry in json.loads(ours.json_text)["added_tokens"] if entry["special"]}
    assert marked == set(ours.special.ids)


REFUSED: dict[str, tuple[Make, str]] = {
    "another class": (vocab_txt({"tokenizer_class": "AlbertTokenizer"}), r"config.json: has tokenizer_class 'AlbertTokenizer'"),
    "another model": (vocab_txt({}, {"model_type": "deberta-v2"}), r"config.json: has model_type 'deberta-v2'"),
    "code": (vocab_txt({"auto_map": {"AutoTokenizer": ["own.Own", None]}}), r"config.json: has 'auto_map'"),
    "a flag that is none": (vocab_txt(BERT | {"strip_accents": "no"}), r"config.json: has strip_accents 'no'"),
    "tokens that are none": (vocab_txt(BERT | {"added_tokens_decoder": {"7": {"id": 1}}}), r"config.json: has an added token that is"),
    "tokens without ids": (vocab_txt(BERT | {"added_tokens_decoder": ["a"]}), r"config.json: its added_tokens_decoder does not give"),
    "ids that are none": (vocab_txt(BERT, added_tokens={"a": "b"}), r"added_tokens.json: does not give ids by token"),
    "a damaged map": (vocab_txt(BERT, special_tokens_map="{"), r"special_tokens_map.json: is not JSON"),
    "no object": (vocab_txt(None, tokenizer_config=["a"]), r"config.json: is not a JSON object"),
    "a class of another kind": (tokenizer_json(lambda _: byte_level(), BERT), r"is not what the tokenizer_class 'BertTokenizer'"),
}  # fmt: skip


@pytest.mark.parametrize("kind", REFUSED)
def test_what_is_not_read_is_refused_by_name(tmp_path: Path, kind: str) -> None:
    make, line = REFUSED[kind]
    make(tmp_path / "given", SPECIAL)
    with pytest.raises(DataError, match=line):
        load_tokenizer(tmp_path / "given")


def test_a_sentencepiece_model_of_another_class_is_refused(tmp_path: Path) -> None:
    put(tmp_path, "spiece.model", "")
    put(tmp_path, "config.json", {"model_type": "albert"})
    with pytest.raises(DataError, match="model_type 'albert'"):
        load_tokenizer(tmp_path)


def test_a_type_of_model_alone_does_not_break_a_tokenizer_of_another_kind(tmp_path: Path) -> None:
    put(tmp_path, "tokenizer.json", byte_level().to_str())
    put(tmp_path, "config.json", {"model_type": "bert"})
    assert load_tokenizer(tmp_path).json_text == load_tokenizer(tmp_path / "tokenizer.json").json_text


def test_the_settings_beside_a_vocabulary_count(tmp_path: Path) -> None:
    words = [*SPECIAL, "schon", "schön", "SCHÖN"]
    vocab_txt({"do_lower_case": True, "strip_accents": False})(tmp_path / "de", words)
    for path in (tmp_path / "de", tmp_path / "de" / "vocab.txt"):
        assert load_tokenizer(path).encode_document_lines(["SCHÖN schon"]) == [6, 5]
        assert load_tokenizer(path, cased=True).encode_document_lines(["SCHÖN schon"]) == [7, 5]


def test_a_directory_without_a_tokenizer(tmp_path: Path) -> None:
    put(tmp_path, "vocab.json", {})
    with pytest.raises(DataError, match=r"has no tokenizer\.json and no vocab\.txt"):
        load_tokenizer(tmp_path)


@pytest.mark.parametrize("content", [b"", b"plain text", b"half"])
def test_a_damaged_sentencepiece_model_beside_our_tokenizer_is_named(tmp_path: Path, content: bytes) -> None:
    texts = ["the quick brown fox jumps over a lazy dog", "while seven other animals look on"] * 20
    TokenizerTraining(vocab_size=60).run(texts).save(tmp_path)
    whole = (tmp_path / "sentencepiece.model").read_bytes()
    (tmp_path / "sentencepiece.model").write_bytes(whole[: len(whole) // 2] if content == b"half" else content)
    with pytest.raises(DataError, match=r"sentencepiece.model: is not a SentencePiece model"):
        load_prepared_tokenizer(tmp_path)


def test_a_sentencepiece_model_of_another_kind_is_named(tmp_path: Path) -> None:
    texts, model = ["the quick brown fox", "jumps over a lazy dog"], io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(texts), model_writer=model, model_type="char", vocab_size=20, hard_vocab_limit=False, minloglevel=2
    )
    (tmp_path / "char.model").write_bytes(model.getvalue())
    with pytest.raises(DataError, match=r"char.model: the SentencePiece model is neither BPE nor unigram"):
        load_tokenizer(tmp_path / "char.model")


def test_an_id_far_above_the_others_is_refused_before_the_library_counts_up_to_it(tmp_path: Path) -> None:
    (tmp_path / "vocab.json").write_text(json.dumps({"<s>": 0, "</s>": 1, "<unk>": 2, "<pad>": 3, "<mask>": 4, "a": 1_600_000_000}))
    (tmp_path / "merges.txt").write_text("#version: 0.2\n")
    (tmp_path / "tokenizer_config.json").write_text('{"tokenizer_class": "RobertaTokenizer"}')
    with pytest.raises(DataError, match="has an id of 1,600,000,000 but 6 tokens only"):
        load_tokenizer(tmp_path)


def test_merges_of_pieces_that_are_not_there(tmp_path: Path) -> None:
    (tmp_path / "vocab.json").write_text(json.dumps({"<s>": 0, "</s>": 1, "<unk>": 2, "<pad>": 3, "<mask>": 4, "a": 5}))
    (tmp_path / "merges.txt").write_text("#version: 0.2\na b\n")
    (tmp_path / "tokenizer_config.json").write_text('{"tokenizer_class": "RobertaTokenizer"}')
    with pytest.raises(DataError, match="has merges of pieces that are not in its vocabulary"):
        load_tokenizer(tmp_path)
