"""Which tokens of a vocabulary continue a word."""

from __future__ import annotations

import json
import re

import numpy as np
import numpy.typing as npt
from tokenizers import decoders

from pldcli.corpus.reader import UNSPACED
from pldcli.errors import UsageError
from pldcli.tokenization.conversion import SPACE
from pldcli.tokenization.tokenizer import Tokenizer

__all__ = ["find_continuations"]

_UNSPACED = re.compile(UNSPACED)
_BYTES = decoders.ByteLevel()
_BYTE_SPACES = tuple("\u0120\u010a\u0109\u010d\u010b\u010c")
"""Space, line feed, tabulator, carriage return, vertical tabulator and form feed, as byte-level BPE writes these bytes."""


def find_continuations(tokenizer: Tokenizer, *, where: str) -> npt.NDArray[np.bool_]:
    """Find the tokens that continue the word of the token before.

    WordPiece marks these (`##`), SentencePiece and byte-level BPE those that begin a word (`▁`, `Ġ`). So punctuation is a word of its own
    with WordPiece, and belongs to the word before with the others, as in the whole-word masking of fairseq. In scripts without spaces a
    token is a word: nothing marks where one begins.

    Args:
        tokenizer: Whose vocabulary it is.
        where: The setting that needs it, to name in an error.

    Returns:
        [V]; special tokens do not count.

    Raises:
        UsageError: The tokens have no such mark.
    """
    model = json.loads(tokenizer.json_text)["model"]
    vocabulary: dict[str, int] = tokenizer.fast.get_vocab()
    prefix = model.get("continuing_subword_prefix")
    marks = ((prefix,),) if prefix else ((SPACE,), _BYTE_SPACES)
    marked = next(filter(None, ({i for token, i in vocabulary.items() if token.startswith(mark)} for mark in marks)), None)
    if marked is None:
        what = "needs tokens that show where words begin, and those of this tokenizer do not"
        raise UsageError(what, where=where, hint="use objective.masking=token")
    table = np.zeros(tokenizer.vocab_size, bool)
    table[list(marked if prefix else set(vocabulary.values()) - marked)] = True
    is_of_bytes = not prefix and not any(SPACE in token for token in vocabulary)
    written = {i: _BYTES.decode([token]) if is_of_bytes else token.removeprefix(prefix or "") for token, i in vocabulary.items()}
    table[[i for i, text in written.items() if _UNSPACED.match(text)]] = False
    return table
