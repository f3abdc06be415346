"""Read tokenizer files, and those of a directory as `AutoTokenizer` of transformers does, without that package.

What `tokenizer_config.json` says goes before what stands in `tokenizer.json`: the classes for BERT and RoBERTa take the vocabulary from
there and build the rest from their settings. A directory that is read by another class is refused, not read by half.

Source: transformers 5.23, `tokenization_auto.py`, `tokenization_utils_base.py`, `tokenization_utils_tokenizers.py`.
"""

from __future__ import annotations

import json
import textwrap
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal, cast

from pldcli.errors import DataError, PldError
from pldcli.system.input_files import input_errors
from pldcli.system.json_text import from_json
from pldcli.tokenization import conversion
from pldcli.tokenization.special_tokens import check_ids

__all__ = [
    "JSON",
    "SENTENCEPIECE",
    "FoundTokenizer",
    "library_errors",
    "parse_sentencepiece",
    "parse_tokenizer",
    "read_file",
    "read_prepared",
]

JSON = "tokenizer.json"
_VOCABULARY = "vocab.txt"
_CONFIG, _MODEL_CONFIG, _MAP, _ADDED = "tokenizer_config.json", "config.json", "special_tokens_map.json", "added_tokens.json"
_PIECES, _MERGES = "vocab.json", "merges.txt"
SENTENCEPIECE = "sentencepiece.model"
_SENTENCEPIECES = (SENTENCEPIECE, "spiece.model")

Family = Literal["bert", "roberta", "generic"]
_CLASSES: dict[str, Family] = {
    **dict.fromkeys(
        ("BertTokenizer", "ConvBertTokenizer", "DistilBertTokenizer", "ElectraTokenizer", "MobileBertTokenizer", "SqueezeBertTokenizer"),
        "bert",
    ),
    **dict.fromkeys(("BartTokenizer", "RobertaTokenizer"), "roberta"),
    **dict.fromkeys(("PreTrainedTokenizer", "TokenizersBackend"), "generic"),
}
_MODEL_TYPES: dict[str, Family] = {
    **dict.fromkeys(("bert", "convbert", "distilbert", "electra", "megatron-bert", "nomic_bert", "squeezebert"), "bert"),
    **dict.fromkeys(("ibert", "longformer", "roberta", "roberta-prelayernorm"), "roberta"),
    **dict.fromkeys(("modernbert", "nystromformer"), "generic"),
}
_ROLES = ("bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token")
_NAMES: dict[Family, dict[str, str]] = {
    "bert": {"unk_token": "[UNK]", "sep_token": "[SEP]", "pad_token": "[PAD]", "cls_token": "[CLS]", "mask_token": "[MASK]"},
    "roberta": {
        "bos_token": "<s>",
        "eos_token": "</s>",
        "unk_token": "<unk>",
        "sep_token": "</s>",
        "pad_token": "<pad>",
        "cls_token": "<s>",
        "mask_token": "<mask>",
    },
    "generic": {},
}
"""The names of the special tokens where no file gives others."""

_UNREAD = ("auto_map", "fast_tokenizer_files")
_WHITE_SPACE = (
    "\t\n\x0b\x0c\r \x85\xa0\u1680\u2000\u2001\u2002\u2003\u2004\u2005\u2006\u2007\u2008\u2009\u200a\u2028\u2029\u202f\u205f\u3000"
)
_AS_JSON = f"save it as {JSON} with `AutoTokenizer.from_pretrained(...).backend_tokenizer.save(...)`, and name that file"


@dataclass(frozen=True, kw_only=True)
class FoundTokenizer:
    """What files say of a tokenizer."""

    fast: Any
    """A `tokenizers.Tokenizer`."""
    where: str
    """The file of its vocabulary, for messages."""
    names: dict[str, str] = field(default_factory=dict)
    """Special tokens by role (`mask_token`), as far as files or the class name them."""
    json_text: str | None = None
    """The content of `tokenizer.json`, where it is the whole tokenizer."""
    sentencepiece: bytes | None = None
    """The SentencePiece model that it was converted from."""


def read_file(path: Path, *, cased: bool = False) -> FoundTokenizer:
    """Read a `tokenizer.json`, a `vocab.txt`, a SentencePiece model, or a directory or run that holds one.

    Args:
        path: The file or directory; what else transformers reads in a directory, or beside a `vocab.txt`, counts.
        cased: Keep upper and lower case apart, for BERT's WordPiece only.

    Raises:
        DataError: There is no such file, it is damaged, or says something that is not known here.
    """
    if path.is_dir():
        return _read_directory(path, cased=cased)
    content = _read_bytes(path)
    if path.suffix == ".json":
        return parse_tokenizer(_decoded(content, path), where=str(path))
    if path.suffix == ".txt":
        return _read_vocabulary(path, "generic", _read_config(path.parent), cased=cased)
    if path.suffix == ".model":
        return parse_sentencepiece(content, where=str(path))
    raise DataError("is not a tokenizer known here", where=str(path), hint="name a vocab.txt, a tokenizer.json or a SentencePiece .model")


def read_prepared(directory: Path) -> FoundTokenizer:
    """Read what `Tokenizer.save` wrote: `tokenizer.json` as it stands, with the SentencePiece model beside it."""
    found, model = read_file(directory / JSON), directory / SENTENCEPIECE
    if not model.is_file():
        return found
    content = _read_bytes(model)
    with library_errors("is not a SentencePiece model", where=str(model)):
        conversion.load(content).id_to_piece(0)  # none of an empty file
        conversion.normaliser_name(content)
    return replace(found, sentencepiece=content)


def parse_sentencepiece(model: bytes, *, where: str, plain_spaces: bool = False) -> FoundTokenizer:
    """Convert a serialised SentencePiece model, as `conversion.to_tokenizer` does.

    Raises:
        DataError: It is no such model.
    """
    with library_errors("is not a SentencePiece model", where=where):
        return FoundTokenizer(fast=conversion.to_tokenizer(model, where, plain_spaces=plain_spaces), where=where, sentencepiece=model)


def parse_tokenizer(text: str, *, where: str) -> FoundTokenizer:
    """Parse the content of a `tokenizer.json`.

    Raises:
        DataError: It is not one, or gives other ids each time.
    """
    import tokenizers

    with library_errors("is not a tokenizer.json", where=where):
        fast = tokenizers.Tokenizer.from_str(text)
    if getattr(fast.model, "dropout", None):
        raise DataError("its model has dropout, so that text has other ids each time", where=where, hint="set model.dropout to null")
    return FoundTokenizer(fast=fast, where=where, json_text=text)


def _read_directory(directory: Path, *, cased: bool) -> FoundTokenizer:
    place = next((place for place in (directory, directory / "model") if _has_tokenizer(place)), None)
    if place is None:
        what = f"has no {JSON} and no {_VOCABULARY}, {_PIECES} with {_MERGES}, or {SENTENCEPIECE}"
        raise DataError(what, where=str(directory), hint="put the model's tokenizer there, or name another place")
    if (place / JSON).is_file() and (place / SENTENCEPIECE).is_file() and not (place / _CONFIG).is_file():
        return read_prepared(place)  # our own: it encodes other text as it encoded its own
    config = _read_config(place)
    family = _family(place, config)
    if (place / JSON).is_file() or (not (place / _VOCABULARY).is_file() and (place / _PIECES).is_file()):
        return _read_json_or_pieces(place, family, config, cased=cased)
    if (place / _VOCABULARY).is_file():
        return _read_vocabulary(place / _VOCABULARY, family, config, cased=cased)
    return read_file(next(place / name for name in _SENTENCEPIECES if (place / name).is_file()))


def _read_json_or_pieces(directory: Path, family: Family, config: dict[str, Any], *, cased: bool) -> FoundTokenizer:
    path, where, text = directory / JSON, str(directory / _CONFIG), None
    try:
        settings, listed = _settings(directory, config)
        if path.is_file():
            text = _read(path)
            fast, parsed = parse_tokenizer(text, where=str(path)).fast, from_json(text)
            if not _is_of(family, parsed):
                _refuse_another_kind(directory, family)
                family = "generic"
            named = _NAMES[family] | _named(settings)
            if family != "generic":
                fast = _rebuilt(parsed, family, settings, named, cased=cased, where=where)
        else:
            path, family = directory / _PIECES, "roberta"
            named = _NAMES[family] | _named(settings)
            fast = _byte_level(*_read_merges(path, directory / _MERGES), settings, where=where)
        before = fast.to_str()
        _add_tokens(fast, listed, named, settings)
        if family == "roberta":
            _wrap_as_roberta(fast, named, settings, where=where)
    except (KeyError, TypeError, AttributeError) as error:
        raise DataError(f"is damaged: an entry is missing or wrong ({error})", where=str(path)) from error
    as_it_stands = family == "generic" and fast.to_str() == before
    return FoundTokenizer(fast=fast, where=str(path), names=named, json_text=text if as_it_stands else None)


def _read_vocabulary(path: Path, family: Family, config: dict[str, Any], *, cased: bool) -> FoundTokenizer:
    settings, listed = _settings(path.parent, config)
    lines = _read(path).split("\n")
    # A token per line, without the white space behind it; of equal ones the last counts.
    vocabulary = {line.rstrip(_WHITE_SPACE): i for i, line in enumerate(lines if lines[-1] else lines[:-1])}
    named = _named(settings)
    if family == "bert":
        named = _NAMES["bert"] | named
    usual = next((name for name in ("[UNK]", "<unk>") if name in vocabulary), "[UNK]")
    fast = _bert(vocabulary, named.get("unk_token", usual), settings, cased=cased, where=str(path.parent / _CONFIG))
    _add_tokens(fast, listed, named, settings)
    return FoundTokenizer(fast=fast, where=str(path), names=named)


def _read_config(directory: Path) -> dict[str, Any]:
    config = _object(directory / _CONFIG)
    for name in _UNREAD:
        if name in config:
            raise DataError(f"has {name!r}, which is not read here", where=str(directory / _CONFIG), hint=_AS_JSON)
    return config


def _named(settings: dict[str, Any]) -> dict[str, str]:
    return {role: _content(settings[role]) for role in _ROLES if settings.get(role) is not None}


def _bert(vocabulary: dict[str, int], unknown: str, settings: dict[str, Any], *, cased: bool, where: str) -> Any:
    """Build BERT's tokenizer of WordPiece entries; `unknown` stands for words that they cannot spell."""
    import tokenizers
    from tokenizers import decoders, models, normalizers, pre_tokenizers

    fast = tokenizers.Tokenizer(models.WordPiece(vocab=vocabulary, unk_token=unknown))
    fast.normalizer = normalizers.BertNormalizer(
        clean_text=True,
        handle_chinese_chars=_flag(settings, "tokenize_chinese_chars", True, where),
        strip_accents=None if settings.get("strip_accents") is None else _flag(settings, "strip_accents", False, where),
        lowercase=_flag(settings, "do_lower_case", True, where) and not cased,
    )
    fast.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    fast.decoder = decoders.WordPiece()
    return fast


@contextmanager
def library_errors(what: str, *, where: str) -> Iterator[None]:
    """Turn whatever the libraries of tokenizers raise about a file into a DataError; a panic of theirs is no Exception."""
    try:
        yield
    except (PldError, KeyboardInterrupt, SystemExit):  # a signal
        raise
    except BaseException as error:
        raise DataError(f"{what} ({textwrap.shorten(str(error), 200)})", where=where) from error


def _has_tokenizer(place: Path) -> bool:
    names = (JSON, _VOCABULARY, _PIECES, *_SENTENCEPIECES)
    return any((place / name).is_file() and (name != _PIECES or (place / _MERGES).is_file()) for name in names)


def _family(directory: Path, config: dict[str, Any]) -> Family:
    """Find the class that `AutoTokenizer` takes: that of `tokenizer_config.json`, of `config.json`, or that of the model type."""
    model = _object(directory / _MODEL_CONFIG)
    for file, given in ((_CONFIG, config), (_MODEL_CONFIG, model)):
        if name := given.get("tokenizer_class"):
            family = _CLASSES.get(str(name).removesuffix("Fast"))
            if family is None:
                raise DataError(f"has tokenizer_class {name!r}, which is not read here", where=str(directory / file), hint=_AS_JSON)
            return family
    if name := model.get("model_type"):
        if name not in _MODEL_TYPES:
            raise DataError(
                f"has model_type {name!r}, whose tokenizer is not read here", where=str(directory / _MODEL_CONFIG), hint=_AS_JSON
            )
        return _MODEL_TYPES[name]
    return "generic"


def _settings(directory: Path, config: dict[str, Any]) -> tuple[dict[str, Any], list[Any]]:
    """Merge the files beside the vocabulary; list the tokens that they add, in order.

    The older files count only where `tokenizer_config.json` does not list the added tokens itself.
    """
    if "added_tokens_decoder" in config:
        listed = config["added_tokens_decoder"]
        where = str(directory / _CONFIG)
        if not isinstance(listed, dict) or not all(str(key).isdigit() for key in listed):
            raise DataError("its added_tokens_decoder does not give tokens by id", where=where)
        return config, [_added(listed[key], where) for key in sorted(listed, key=int)]
    settings = config | {key: value for key, value in _object(directory / _MAP).items() if value is not None}
    special = {_content(settings[role]) for role in _ROLES if settings.get(role) is not None}
    special |= {_content(token) for token in _extra(settings)}
    by_id: dict[int, Any] = {}
    for content, index in _object(directory / _ADDED).items():
        if not isinstance(index, int):
            raise DataError(f"does not give ids by token ({content!r}: {index!r})", where=str(directory / _ADDED))
        by_id[index] = _added({"content": content, "special": content in special, "normalized": content not in special}, _ADDED)
    if (path := directory / JSON).is_file():
        for entry in _object(path).get("added_tokens", []):
            by_id[int(entry["id"])] = _added(entry, str(path))
    return settings, [by_id[index] for index in sorted(by_id)]


def _extra(settings: dict[str, Any]) -> list[Any]:
    """List the special tokens without a role of BERT's."""
    extra = settings.get("extra_special_tokens") or settings.get("additional_special_tokens") or []
    own = [value for key, value in settings.items() if key.endswith("_token") and key not in _ROLES and isinstance(value, str)]
    return [*own, *(extra.values() if isinstance(extra, dict) else extra)]


def _added(entry: Any, where: str) -> Any:
    from tokenizers import AddedToken

    try:
        return AddedToken(entry["content"], **{key: value for key, value in entry.items() if key not in ("__type", "content", "id")})
    except (KeyError, TypeError, AttributeError) as error:
        raise DataError(f"has an added token that is none: {entry!r}"[:200], where=where) from error


def _add_tokens(fast: Any, listed: list[Any], named: dict[str, str], settings: dict[str, Any]) -> None:
    """Add tokens in the order in which transformers does, which decides the ids of new ones."""
    from tokenizers import AddedToken

    known = {token.content for token in fast.get_added_tokens_decoder().values()} | {token.content for token in listed}
    others = [settings[role] for role in _ROLES if settings.get(role) is not None]
    whole = {_content(token): token for token in [*others, *_extra(settings)] if isinstance(token, dict)}
    added = []
    for token in listed:
        if not token.special and token.content in named.values():
            token.special = True
        added.append(token)
    for content in dict.fromkeys([*(named[role] for role in _ROLES if role in named), *map(_content, _extra(settings))]):
        if content not in known:
            flags = {
                key: value for key, value in whole.get(content, {}).items() if key in ("lstrip", "rstrip", "single_word", "normalized")
            }
            added.append(AddedToken(content, special=True, **flags))
    fast.add_tokens(added)


def _is_of(family: Family, parsed: dict[str, Any]) -> bool:
    """Return whether a `tokenizer.json` is of the kind that a class builds anew."""
    kind = parsed["model"].get("type")
    if family == "roberta":
        return kind in (None, "BPE") and "ByteLevel" in json.dumps(parsed.get("pre_tokenizer"))
    return family == "generic" or kind in (None, "WordPiece")


def _refuse_another_kind(directory: Path, family: Family) -> None:
    """Refuse a `tokenizer.json` that its class would break.

    Where no class is named, only the type of the model speaks for one, which no such tokenizer can have been meant for: the file then
    counts as it stands.
    """
    for file in (_CONFIG, _MODEL_CONFIG):
        if name := _object(directory / file).get("tokenizer_class"):
            what = f"is not what the tokenizer_class {name!r} of {file} reads, {'WordPiece' if family == 'bert' else 'byte-level BPE'}"
            raise DataError(
                what, where=str(directory / JSON), hint="the class PreTrainedTokenizerFast takes any tokenizer.json as it stands"
            )


def _rebuilt(parsed: dict[str, Any], family: Family, settings: dict[str, Any], named: dict[str, str], *, cased: bool, where: str) -> Any:
    """Build what a class makes of a `tokenizer.json`: its vocabulary counts, the rest comes from the settings."""
    model = parsed["model"]
    if family == "bert":
        return _bert(model["vocab"], named["unk_token"], settings, cased=cased, where=where)
    merges = [cast(tuple[str, str], tuple(merge.split(" ") if isinstance(merge, str) else merge)) for merge in model["merges"]]
    return _byte_level(model["vocab"], merges, settings, where=where)


def _wrap_as_roberta(fast: Any, named: dict[str, str], settings: dict[str, Any], *, where: str) -> None:
    from tokenizers import processors

    cls, sep = named["cls_token"], named["sep_token"]
    trims, adds_space = (_flag(settings, name, default, where) for name, default in (("trim_offsets", True), ("add_prefix_space", False)))
    fast.post_processor = processors.RobertaProcessing((sep, fast.token_to_id(sep)), (cls, fast.token_to_id(cls)), trims, adds_space)


def _byte_level(vocabulary: dict[str, int], merges: list[tuple[str, str]], settings: dict[str, Any], *, where: str) -> Any:
    """Build RoBERTa's tokenizer, as far as it concerns text."""
    import tokenizers
    from tokenizers import decoders, models, pre_tokenizers

    check_ids(vocabulary, where)
    with library_errors("has merges of pieces that are not in its vocabulary", where=where):
        fast = tokenizers.Tokenizer(models.BPE(vocab=vocabulary, merges=merges, continuing_subword_prefix="", end_of_word_suffix=""))
    fast.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=_flag(settings, "add_prefix_space", False, where))
    fast.decoder = decoders.ByteLevel()
    return fast


def _read_merges(pieces: Path, merges: Path) -> tuple[dict[str, int], list[tuple[str, str]]]:
    from tokenizers import models

    with library_errors(f"with {merges.name} is no BPE vocabulary", where=str(pieces)):
        return models.BPE.read_file(str(pieces), str(merges))


def _flag(settings: dict[str, Any], name: str, default: bool, where: str) -> bool:
    value = settings.get(name, default)
    if not isinstance(value, bool):
        raise DataError(f"has {name} {value!r}, which is neither true nor false", where=where)
    return value


def _content(token: Any) -> str:
    return str(token.get("content")) if isinstance(token, dict) else str(token)


def _object(path: Path) -> dict[str, Any]:
    """Read a JSON object; an empty one where there is no file."""
    if not path.is_file():
        return {}
    try:
        content = from_json(_read(path))
    except ValueError as error:
        raise DataError("is not JSON", where=str(path)) from error
    if not isinstance(content, dict):
        raise DataError("is not a JSON object", where=str(path))
    return content


def _read(path: Path) -> str:
    return _decoded(_read_bytes(path), path)


def _read_bytes(path: Path) -> bytes:
    with input_errors(path):
        return path.read_bytes()


def _decoded(content: bytes, path: Path) -> str:
    try:
        return content.decode()
    except UnicodeDecodeError as error:
        raise DataError("is not UTF-8 text", where=str(path)) from error
