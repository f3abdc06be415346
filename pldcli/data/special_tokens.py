"""The tokens with a role in a tokenizer: which they are, and that everything is there which training and export need of them."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

from pldcli.errors import DataError

__all__ = ["NOTED_UNKNOWN_SHARE", "SPECIAL_NAMES", "SpecialTokens", "check_frame", "check_vocabulary", "complete_special", "find_special"]

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


def check_vocabulary(fast: Any, vocabulary: dict[str, int], *, where: str) -> None:
    """Check that ids can be those of a model's rows, and that text comes through whole.

    Args:
        fast: A `tokenizers.Tokenizer`.
        vocabulary: Its tokens with their ids.
        where: The file to name in an error.

    Raises:
        DataError: It is not so.
    """
    by_id: dict[int, str] = {}
    for token, i in vocabulary.items():
        if i in by_id:
            raise DataError(f"gives id {i} to two tokens, {by_id[i]!r} and {token!r}", where=where)
        by_id[i] = token
    if max(by_id) >= 2 * len(by_id) + _MOST_UNUSED:
        what = f"has an id of {max(by_id):,} but {len(by_id):,} tokens only: the model would have a row for every id below"
        raise DataError(what, where=where, hint="number the tokens from 0")
    try:
        fast.encode(_STRANGE, add_special_tokens=False)
    except Exception as error:  # the library raises nothing narrower
        raise DataError(f"cannot encode text that its vocabulary lacks ({error})", where=where, hint="name its unknown token") from error
    if _drops_text(fast, vocabulary):
        what = "drops characters that its vocabulary lacks: its BPE has neither an unk_token nor a token for each byte"
        raise DataError(what, where=where, hint="set model.unk_token")


def _drops_text(fast: Any, vocabulary: dict[str, int]) -> bool:
    from tokenizers import models, pre_tokenizers

    if not isinstance(fast.model, models.BPE) or fast.model.unk_token is not None:
        return False
    parsed = json.loads(fast.to_str())
    if parsed["model"].get("byte_fallback") and all(f"<0x{byte:02X}>" in vocabulary for byte in range(256)):
        return False
    splits_bytes = "ByteLevel" in json.dumps([parsed.get("pre_tokenizer"), parsed.get("normalizer")])
    return not (splits_bytes and all(letter in vocabulary for letter in pre_tokenizers.ByteLevel.alphabet()))


def find_special(fast: Any, vocabulary: dict[str, int], names: dict[str, str], *, where: str) -> SpecialTokens:
    """Find the special tokens of a tokenizer.

    Args:
        fast: A `tokenizers.Tokenizer`.
        vocabulary: Its tokens with their ids.
        names: Special tokens by role (`mask_token`), as far as they are known; else they have the names of BERT or RoBERTa.
        where: The file to name in an error.

    Raises:
        DataError: One is missing, or one token has two roles.
    """
    families = list(zip(*SPECIAL_NAMES.values(), strict=True))
    whole = next((number for number, family in enumerate(families) if all(name in vocabulary for name in family)), 0)
    ids: dict[str, int] = {}
    for role, usual in SPECIAL_NAMES.items():
        candidates = (names.get(f"{role}_token"), usual[whole], *usual)
        found = next((vocabulary[name] for name in candidates if name in vocabulary), None)
        if role == "unk":
            found = _model_unknown(fast, vocabulary, found)
        if found is None:
            what = f"has no special token {usual[0]} (or {usual[1]})"
            raise DataError(what, where=where, hint="a BERT or RoBERTa vocabulary is needed; without --tokenizer one is trained")
        if found in ids.values():
            token = fast.id_to_token(found)
            raise DataError(f"uses {token!r} for two roles, {usual[0]} and another", where=where, hint="each role needs a token of its own")
        ids[role] = found
    others = {i for i, token in fast.get_added_tokens_decoder().items() if token.special}
    return SpecialTokens(**{f"{role}_id": i for role, i in ids.items()}, other_ids=tuple(sorted(others - set(ids.values()))))


def _model_unknown(fast: Any, vocabulary: dict[str, int], named: int | None) -> int | None:
    """Prefer the id that comes out of text which the vocabulary cannot spell to one that is only called so."""
    model = json.loads(fast.to_str())["model"]
    unknown = model["unk_id"] if model.get("unk_id") is not None else vocabulary.get(model.get("unk_token"))
    return named if unknown is None else int(unknown)


def complete_special(fast: Any, vocabulary: dict[str, int], special: SpecialTokens) -> bool:
    """Mark the special tokens as such, so that export finds them, and wrap sequences as BERT does where nothing else does.

    Args:
        fast: A `tokenizers.Tokenizer`, which is changed.
        vocabulary: Its tokens with their ids.
        special: Its special tokens.

    Returns:
        Whether anything was changed.
    """
    from tokenizers import AddedToken

    changed = fast.truncation is not None or fast.padding is not None
    fast.no_truncation()
    fast.no_padding()
    names, added = {i: token for token, i in vocabulary.items()}, fast.get_added_tokens_decoder()
    unmarked = [i for i in special.ids if i not in added or not added[i].special]
    if unmarked:
        fast.add_special_tokens([AddedToken(names[i], special=True, normalized=False) for i in unmarked])
    wraps = any(text is None for text in fast.encode(_STRANGE).sequence_ids)
    if not wraps:
        _add_template(fast, names, special)
    return changed or bool(unmarked) or not wraps


def _add_template(fast: Any, names: dict[int, str], special: SpecialTokens) -> None:
    from tokenizers import processors

    cls, sep = names[special.cls_id], names[special.sep_id]
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
