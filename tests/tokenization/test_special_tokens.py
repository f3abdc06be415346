"""Tokenizers whose special tokens are not as training and export need them: mended on loading, or refused."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors

from pldcli.errors import DataError
from pldcli.preparation.prepare import prepare
from pldcli.tokenization.tokenizer import load_prepared_tokenizer, load_tokenizer

WORDS = {
    token: i for i, token in enumerate(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *"abcdefghij", *(f"##{c}" for c in "abcdefghij")])
}


def bare(model: Any = None) -> dict[str, Any]:
    made = Tokenizer(model or models.WordPiece(vocab=WORDS, unk_token="[UNK]"))
    made.normalizer, made.pre_tokenizer = normalizers.BertNormalizer(), pre_tokenizers.BertPreTokenizer()
    parsed: dict[str, Any] = json.loads(made.to_str())
    return parsed


def put(directory: Path, parsed: dict[str, Any]) -> Path:
    path = directory / "given.json"
    path.write_text(json.dumps(parsed), encoding="utf-8")
    return path


def token(content: str, number: int, *, special: bool = True) -> dict[str, Any]:
    return {
        "id": number, "content": content, "special": special, "single_word": False, "lstrip": False, "rstrip": False, "normalized": False,
    }  # fmt: skip


def template(*tokens: str) -> dict[str, Any]:
    parts = " ".join(tokens)
    made = processors.TemplateProcessing(
        single=parts, pair=f"{parts} $B", special_tokens=[(name, WORDS[name]) for name in tokens if name in WORDS]
    )
    wrapped = Tokenizer(models.WordPiece(vocab=WORDS, unk_token="[UNK]"))
    wrapped.post_processor = made
    parsed: dict[str, Any] = json.loads(wrapped.to_str())["post_processor"]
    return parsed


MENDED: dict[str, Callable[[dict[str, Any]], Any]] = {
    "only in the vocabulary": lambda parsed: None,
    "added, but not special": lambda parsed: parsed["added_tokens"].append(token("[MASK]", 4, special=False)),
    "other ids in added_tokens": lambda parsed: parsed["added_tokens"].extend([token("[MASK]", 40), token("[PAD]", 2)]),
    "one with an id beyond": lambda parsed: parsed["added_tokens"].append(token("<ent>", 99)),
    "truncation and padding": lambda parsed: parsed.update(
        truncation={"direction": "Right", "max_length": 4, "strategy": "LongestFirst", "stride": 0},
        padding={
            "strategy": {"Fixed": 9}, "direction": "Right", "pad_to_multiple_of": None, "pad_id": 0, "pad_type_id": 0, "pad_token": "[PAD]",
        },
    ),
    "a post-processor that adds nothing": lambda parsed: parsed.update(
        post_processor={"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True}
    ),
    "ids with a gap": lambda parsed: parsed["model"]["vocab"].update({"k": 40}),
}  # fmt: skip


@pytest.mark.parametrize("kind", MENDED)
def test_a_tokenizer_is_completed_for_training_and_export(tmp_path: Path, kind: str) -> None:
    parsed = bare()
    MENDED[kind](parsed)
    given = put(tmp_path, parsed)
    (tmp_path / "a.txt").write_text("ab [MASK] cd efgh\n\nab\n\ncd [PAD] gh", encoding="utf-8")
    prepared = prepare([tmp_path / "a.txt"], tmp_path / "out", tokenizer=given, quiet=True)
    tokenizer = load_prepared_tokenizer(prepared.path)
    assert (tokenizer.special.pad_id, tokenizer.special.unk_id, tokenizer.special.mask_id) == (0, 1, 4)
    written = json.loads(tokenizer.json_text)
    marked = {entry["id"]: entry["content"] for entry in written["added_tokens"] if entry["special"]}
    assert {i: marked[i] for i in range(5)} == {0: "[PAD]", 1: "[UNK]", 2: "[CLS]", 3: "[SEP]", 4: "[MASK]"}
    assert (written["truncation"], written["padding"]) == (None, None)
    assert not set(tokenizer.special.ids) - {1} & set(tokenizer.encode_document_lines(["ab [MASK] [PAD][CLS]"]))
    exported = Tokenizer.from_str(tokenizer.json_text)
    assert exported.encode("a", "b").ids == [2, WORDS["a"], 3, WORDS["b"], 3]
    assert exported.encode("abcdefgh abcdefgh", add_special_tokens=False).ids == tokenizer.encode_document_lines(["abcdefgh abcdefgh"])
    assert load_tokenizer(tmp_path / "out" / "tokenizer.json") == tokenizer, "a second loading finds nothing to mend"


def missing(*names: str) -> dict[str, int]:
    return {name: i for name, i in WORDS.items() if name not in names}


def with_id(**ids: int) -> Callable[[dict[str, Any]], Any]:
    return lambda parsed: parsed["model"]["vocab"].update(ids)


REFUSED: dict[str, tuple[Callable[[dict[str, Any]], Any], str]] = {
    "no padding": (lambda parsed: parsed["model"].update(vocab=missing("[PAD]")), r"has no special token \[PAD\]"),
    "no unknown": (lambda parsed: parsed["model"].update(vocab=missing("[UNK]")), r"has no special token \[UNK\]"),
    "another mask": (lambda parsed: parsed["model"].update(vocab=missing("[MASK]") | {"[GAP]": 4}), r"has no special token \[MASK\]"),
    "an unknown token of its own": (lambda parsed: parsed["model"].update(unk_token="<?>"), "cannot encode text that its vocabulary lacks"),
    "two tokens with one id": (with_id(k=7), "gives id 7 to two tokens"),
    "two roles of one token": (lambda parsed: parsed["model"].update(unk_token="[PAD]"), r"uses '\[PAD\]' for two roles"),
    "an id far beyond": (with_id(k=1_000_000), "has an id of 1,000,000 but 26 tokens only"),
    "no frame of BERT's": (
        lambda parsed: parsed.update(post_processor=template("[CLS]", "$A")), r"its post_processor puts \[CLS\] around a text"
    ),
    "another frame": (
        lambda parsed: parsed.update(post_processor=template("[CLS]", "$A", "[SEP]", "[MASK]")), r"puts \[CLS\] \[SEP\] \[MASK\] around"
    ),
    "chance": (
        lambda parsed: parsed.update(model={**json.loads(Tokenizer(models.BPE(vocab=WORDS, merges=[], dropout=0.1)).to_str())["model"]}),
        "its model has dropout",
    ),
    "text that vanishes": (
        lambda parsed: parsed.update(model={**json.loads(Tokenizer(models.BPE(vocab=WORDS, merges=[])).to_str())["model"]}),
        "drops characters that its vocabulary lacks",
    ),
}  # fmt: skip


@pytest.mark.parametrize("kind", REFUSED)
def test_a_tokenizer_that_export_could_not_use_is_refused_before_any_work(tmp_path: Path, kind: str) -> None:
    change, line = REFUSED[kind]
    parsed = bare()
    change(parsed)
    given = put(tmp_path, parsed)
    (tmp_path / "a.txt").write_text("ab cd efgh\n\nab", encoding="utf-8")
    with pytest.raises(DataError, match=line) as caught:
        prepare([tmp_path / "a.txt"], tmp_path / "out", tokenizer=given, quiet=True)
    assert caught.value.where == str(given) and caught.value.what
    assert not (tmp_path / "out").exists()


def test_the_unknown_token_is_the_one_that_comes_out_of_text(tmp_path: Path) -> None:
    parsed = bare()
    parsed["model"]["vocab"] |= {"[OOV]": 25}
    parsed["model"]["unk_token"] = "[OOV]"
    tokenizer = load_tokenizer(put(tmp_path, parsed))
    assert tokenizer.special.unk_id == 25 == tokenizer.encode_document_lines(["тон"])[0]


def test_a_family_of_names_that_is_whole_comes_first(tmp_path: Path) -> None:
    roberta = ["<s>", "<pad>", "</s>", "<unk>", "<mask>"]
    vocabulary = {name: i for i, name in enumerate([*roberta, "[MASK]", "[CLS]", "a"])}
    tokenizer = load_tokenizer(put(tmp_path, bare(models.WordLevel(vocab=vocabulary, unk_token="<unk>"))))
    assert (tokenizer.special.cls_id, tokenizer.special.mask_id, tokenizer.special.sep_id) == (0, 4, 2)
