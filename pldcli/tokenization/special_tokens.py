"""The tokens with a role in a tokenizer: which they are, and that everything is there which training and export need of them."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

from pldcli.errors import DataError

__all__ = [
    "NOTED_UNKNOWN_SHARE",
    "SPECIAL_NAMES",
    "SpecialTokens",
    "begin_template",
    "check_frame",
    "check_ids",
    "complete",
    "mark_special",
]

SPECIAL_NAMES = {
    "pad": ("[PAD]", "<pad>"),
    "unk": ("[UNK]", "<unk>"),
    "cls": ("[CLS]", "<s>"),
    "sep": ("[SEP]", "</s>"),
    "mask": ("[MASK]", "<mask>"),
}
"""Each special token under the names of BERT and RoBERTa."""

NOTED_UNKNOWN_SHARE = 0.01
"""Of the tokens of a text; more unknown ones than this are worth a note."""

_STRANGE = "\U00013000 \ua66e \u2603 \u2e18 \u16a0 \u1f702"
"""Characters that most vocabularies lack."""
_MOST_UNUSED = 1000
"""Ids without a token, beyond as many as there are tokens."""


@dataclass(frozen=True)
class SpecialTokens:
    """Ids that have a role and never stand for text."""

    pad_id: int
    unk_id: int
    cls_id: int
    sep_id: int
    mask_id: int
    other_ids: tuple[int, ...] = ()

    @property
    def ids(self) -> tuple[int, ...]:
        """List every special id of the tokenizer, in order."""
        return tuple(sorted({self.pad_id, self.unk_id, self.cls_id, self.sep_id, self.mask_id, *self.other_ids}))


def complete(fast: Any, names: dict[str, str], *, where: str) -> tuple[SpecialTokens, bool]:
    """Find the special tokens of a tokenizer, mark them as such, and check that training and export can use its vocabulary.

    Args:
        fast: A `tokenizers.Tokenizer`, which is changed.
        names: Special tokens by role (`mask_token`), as far as they are known; else they have the names of BERT or RoBERTa.
        where: The file to name in an error.

    Returns:
        The special tokens, and whether anything was changed.

    Raises:
        DataError: A special token is missing or has two roles, ids cannot be those of a model's rows, or text would get lost.
    """
    vocabulary, parsed = fast.get_vocab(with_added_tokens=True), json.loads(fast.to_str())
    special = _find(fast, vocabulary, parsed["model"], names, where)
    check_ids(vocabulary, where)
    try:
        fast.encode(_STRANGE, add_special_tokens=False)
    except Exception as error:  # the library raises nothing narrower
        raise DataError(f"cannot encode text that its vocabulary lacks ({error})", where=where, hint="name its unknown token") from error
    if _drops_text(parsed, vocabulary):
        what = "drops characters that its vocabulary lacks: its BPE has neither an unk_token nor a token for each byte"
        raise DataError(what, where=where, hint="set model.unk_token")
    changed = fast.truncation is not None or fast.padding is not None
    fast.no_truncation()
    fast.no_padding()
    return special, mark_special(fast, special) or changed


def mark_special(fast: Any, special: SpecialTokens) -> bool:
    """Mark special tokens as such, so that export finds them, and wrap sequences as BERT does where nothing else does.

    The frame of a tokenizer that was exported with a causal model gives way too: pre-training wraps all sequences alike.

    Args:
        fast: A `tokenizers.Tokenizer`, which is changed.
        special: Its special tokens.

    Returns:
        Whether anything was changed.
    """
    from tokenizers import AddedToken

    added = fast.get_added_tokens_decoder()
    unmarked = [i for i in special.ids if i not in added or not added[i].special]
    if unmarked:
        fast.add_special_tokens([AddedToken(fast.id_to_token(i), special=True, normalized=False) for i in unmarked])
    wraps = any(text is None for text in fast.encode(_STRANGE).sequence_ids)
    if begins := fast.post_processor is not None and _begins_only(fast, special):
        fast.post_processor = None
    if begins or not wraps:
        _add_template(fast, special)
    return bool(unmarked) or begins or not wraps


def begin_template(fast: Any, special: SpecialTokens) -> Any:
    """Make a post-processor that puts [CLS] before a text and nothing behind it."""
    from tokenizers import processors

    cls = fast.id_to_token(special.cls_id)
    return processors.TemplateProcessing(single=f"{cls} $A", pair=f"{cls} $A $B:1", special_tokens=[(cls, special.cls_id)])


def _begins_only(fast: Any, special: SpecialTokens) -> bool:
    """Return whether a tokenizer has the frame that it was exported with beside a causal model."""
    return bool(fast.post_processor.__getstate__() == begin_template(fast, special).__getstate__())  # they have no other way to compare


def _find(fast: Any, vocabulary: dict[str, int], model: dict[str, Any], names: dict[str, str], where: str) -> SpecialTokens:
    families = list(zip(*SPECIAL_NAMES.values(), strict=True))
    whole = next((number for number, family in enumerate(families) if all(name in vocabulary for name in family)), 0)
    ids: dict[str, int] = {}
    for role, usual in SPECIAL_NAMES.items():
        candidates = (names.get(f"{role}_token"), usual[whole], *usual)
        found = next((vocabulary[name] for name in candidates if name in vocabulary), None)
        if role == "unk":  # the id that comes out of text which the vocabulary cannot spell goes before one that is only called so
            unknown = model["unk_id"] if model.get("unk_id") is not None else vocabulary.get(model.get("unk_token", ""))
            found = found if unknown is None else int(unknown)
        if found is None:
            what = f"has no special token {usual[0]} (or {usual[1]})"
            raise DataError(what, where=where, hint="a BERT or RoBERTa vocabulary is needed; without --tokenizer one is trained")
        if found in ids.values():
            token = fast.id_to_token(found)
            raise DataError(f"uses {token!r} for two roles, {usual[0]} and another", where=where, hint="each role needs a token of its own")
        ids[role] = found
    others = {i for i, token in fast.get_added_tokens_decoder().items() if token.special}
    return SpecialTokens(**{f"{role}_id": i for role, i in ids.items()}, other_ids=tuple(sorted(others - set(ids.values()))))


def check_ids(vocabulary: dict[str, int], where: str) -> None:
    """Refuse ids that cannot be the rows of a model; the library itself counts up to the largest one, however large.

    Raises:
        DataError: An id has two tokens, or is far larger than their number.
    """
    by_id: dict[int, str] = {}
    for token, i in vocabulary.items():
        if i in by_id:
            raise DataError(f"gives id {i} to two tokens, {by_id[i]!r} and {token!r}", where=where)
        by_id[i] = token
    if by_id and max(by_id) >= 2 * len(by_id) + _MOST_UNUSED:
        what = f"has an id of {max(by_id):,} but {len(by_id):,} tokens only: the model would have a row for every id below"
        raise DataError(what, where=where, hint="number the tokens from 0")


def _drops_text(parsed: dict[str, Any], vocabulary: dict[str, int]) -> bool:
    from tokenizers import pre_tokenizers

    model = parsed["model"]
    if model["type"] != "BPE" or model.get("unk_token") is not None:
        return False
    if model.get("byte_fallback") and all(f"<0x{byte:02X}>" in vocabulary for byte in range(256)):
        return False
    splits_bytes = "ByteLevel" in json.dumps([parsed.get("pre_tokenizer"), parsed.get("normalizer")])
    return not (splits_bytes and all(letter in vocabulary for letter in pre_tokenizers.ByteLevel.alphabet()))


def _add_template(fast: Any, special: SpecialTokens) -> None:
    from tokenizers import processors

    cls, sep = fast.id_to_token(special.cls_id), fast.id_to_token(special.sep_id)
    template = processors.TemplateProcessing(
        single=f"{cls}:0 $A:0 {sep}:0",
        pair=f"{cls}:0 $A:0 {sep}:0 $B:1 {sep}:1",
        special_tokens=[(cls, special.cls_id), (sep, special.sep_id)],
    )
    fast.post_processor = template if fast.post_processor is None else processors.Sequence([fast.post_processor, template])


def check_frame(fast: Any, special: SpecialTokens, *, where: str) -> None:
    """Check that a tokenizer puts [CLS] and [SEP] around a text, as pre-training does.

    Raises:
        DataError: It puts others there, so that the exported model would read other sequences than it was trained on.
    """
    encoding = fast.encode(_STRANGE)
    added = [i for i, text in zip(encoding.ids, encoding.sequence_ids, strict=True) if text is None]
    if added != [special.cls_id, special.sep_id] or encoding.ids[0] != special.cls_id or encoding.ids[-1] != special.sep_id:
        frame = " ".join(str(fast.id_to_token(i)) for i in added)
        what = f"its post_processor puts {frame} around a text, and pre-training puts {fast.id_to_token(special.cls_id)} and "
        raise DataError(what + f"{fast.id_to_token(special.sep_id)} there", where=where, hint="remove post_processor from the file")
