"""Train a tokenizer: BPE and unigram by SentencePiece, WordPiece and byte-level BPE by `tokenizers`."""

from __future__ import annotations

import io
import re
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import KW_ONLY, dataclass
from functools import cached_property
from typing import Any

from pldcli.choices import ModelType, Normalization
from pldcli.errors import DataError, UsageError
from pldcli.tokenization.distinctions import characters, lost_distinctions
from pldcli.tokenization.files import FoundTokenizer, parse_sentencepiece
from pldcli.tokenization.special_tokens import SPECIAL_NAMES
from pldcli.tokenization.tokenizer import Tokenizer, complete_tokenizer

__all__ = ["TokenizerTraining", "train_tokenizer"]

_CHARACTER_COVERAGE = 0.9995
"""The share of the text whose characters always have entries, however many they are."""
_CHARACTER_SHARE, _PLAIN_CHARACTERS = 0.1, 256
"""The rarer ones have entries too as long as all characters take a tenth of the vocabulary, or in a small one 256 and a half at most."""
_LEAST_COVERED = 0.5
"""Of the characters of a text, counted as often as they occur; with fewer in the vocabulary hardly a word is known."""
_NUM_TRAINING_THREADS = 8
"""The same everywhere: the sums of unigram training depend on it."""
_SPECIAL = tuple(bert for bert, _ in SPECIAL_NAMES.values())
_NUM_BYTES = 256
_CHECKED_LINES = 2000
_KEEPS = "--normalization, --cased and --model-type choose what is kept apart"
_SENTENCEPIECE = ("bpe", "unigram")

_TOO_LARGE = re.compile(r"Vocabulary size too high \(\d+\)\. Please set it to a value <= (\d+)")
_TOO_SMALL = re.compile(r"Vocabulary size is smaller than required_chars\. \d+ vs (\d+)")


@dataclass(frozen=True)
class TokenizerTraining:
    """What tokenizer to train."""

    vocab_size: int = 30528
    """Entries wanted; fewer come out where the text does not support that many."""
    model_type: ModelType = "bpe"
    """Unigram is slower to train."""
    _: KW_ONLY
    cased: bool = False
    """Keep upper and lower case apart."""
    strip_accents: bool | None = None
    """Remove accents, and vowel signs that Unicode counts as such; None for BERT's ways: WordPiece does that where it lower-cases."""
    normalization: Normalization | None = None
    """Of equivalent or compatible characters; None for `nmt_nfkc` of SentencePiece, `nfc` of byte-level BPE, BERT's of WordPiece."""
    byte_fallback: bool = False
    """With SentencePiece: spell what has no entry in bytes, which have 256 entries."""
    character_coverage: float | None = None
    """With SentencePiece: the share of the text whose characters have entries; None for 0.9995, and all of them where there is room."""
    seed_sentencepiece_size: int = 1_000_000
    """Candidates that unigram training starts with."""

    def check(self) -> None:
        """Refuse settings that do not go together.

        Raises:
            UsageError: There are some.
        """
        least = len(_SPECIAL) + 1 + (_NUM_BYTES if self.byte_fallback or self.model_type == "byte-level-bpe" else 0)
        if self.vocab_size < least:
            what = f"must be at least {least}: five are special tokens" + (f", and {_NUM_BYTES} are bytes" if least > _NUM_BYTES else "")
            raise UsageError(what, where="--vocab-size")
        if self.character_coverage is not None and not 0 < self.character_coverage <= 1:
            raise UsageError(f"must be above 0 and at most 1, not {self.character_coverage:g}", where="--character-coverage")
        own = {
            "--strip-accents": self.strip_accents and self._is_sentencepiece,
            "--byte-fallback": self.byte_fallback and not self._is_sentencepiece,
            "--character-coverage": self.character_coverage is not None and not self._is_sentencepiece,
            "--normalization nfc": self.normalization == "nfc" and self._is_sentencepiece,
            "--normalization nmt_nfkc": self.normalization == "nmt_nfkc" and not self._is_sentencepiece,
        }
        if refused := next((option for option, is_wrong in own.items() if is_wrong), ""):
            others = "wordpiece or byte-level-bpe" if self._is_sentencepiece else "bpe or unigram"
            raise UsageError(f"does not go with --model-type {self.model_type}", where=refused, hint=f"{others} takes it")
        if self._is_sentencepiece and self.normalization == "identity" and not self.cased:
            raise UsageError("changes nothing, not case either", where="--normalization identity", hint="add --cased")

    def run(self, texts: Sequence[str]) -> Tokenizer:
        """Train.

        Args:
            texts: Each at most 4192 bytes: SentencePiece drops longer ones.

        Raises:
            DataError: There is too little text.
            UsageError: The vocabulary wanted does not even hold the characters.
        """
        self.check()
        if self._is_sentencepiece:
            return complete_tokenizer(self._sentencepiece(list(texts)))
        fast = self._wordpiece(texts) if self.model_type == "wordpiece" else self._byte_level(texts)
        return complete_tokenizer(FoundTokenizer(fast=fast, where="the trained tokenizer"))

    def notes(self, tokenizer: Tokenizer, texts: Sequence[str]) -> list[str]:
        """Compare a trained tokenizer with what was asked for and with the text, and its two files with each other."""
        notes = []
        if tokenizer.vocab_size < self.vocab_size:
            notes.append(f"The corpus supports a vocabulary of {tokenizer.vocab_size:,} only; {self.vocab_size:,} were asked for.")
        lines = texts[:: len(texts) // _CHECKED_LINES + 1]
        if different := tokenizer.count_conversion_differences(lines):
            notes.append(f"tokenizer.json and sentencepiece.model differ on {different} of {len(lines):,} pieces of text.")
        return notes + lost_distinctions(characters(lines), tokenizer.normalize, keeps=_KEEPS)

    @property
    def _is_sentencepiece(self) -> bool:
        return self.model_type in _SENTENCEPIECE

    @cached_property
    def _rule(self) -> str:
        """Name the rule of SentencePiece."""
        rule = self.normalization or "nmt_nfkc"
        return rule if self.cased else f"{rule}_cf"

    def _sentencepiece(self, texts: list[str]) -> FoundTokenizer:
        import sentencepiece

        size, fallback = self.vocab_size, _NUM_BYTES if self.byte_fallback else 0
        most = max(int(_CHARACTER_SHARE * size), min(_PLAIN_CHARACTERS, (size - fallback) // 2))
        coverage = self.character_coverage or _character_coverage(texts, self._rule, most)
        while True:
            model = io.BytesIO()
            try:
                sentencepiece.SentencePieceTrainer.train(
                    sentence_iterator=iter(texts),
                    model_writer=model,
                    vocab_size=size,
                    model_type=self.model_type,
                    normalization_rule_name=self._rule,
                    pad_id=0,
                    pad_piece="[PAD]",
                    unk_id=1,
                    unk_piece="[UNK]",
                    bos_id=-1,
                    eos_id=-1,
                    control_symbols=["[CLS]", "[SEP]", "[MASK]"],
                    byte_fallback=self.byte_fallback,
                    character_coverage=coverage,
                    seed_sentencepiece_size=self.seed_sentencepiece_size,
                    num_threads=_NUM_TRAINING_THREADS,
                    minloglevel=4,
                )
            except (RuntimeError, ValueError) as error:
                if found := _TOO_SMALL.search(str(error)):
                    raise self._too_small(f"{int(found[1]):,} is the least") from error
                found = _TOO_LARGE.search(str(error))
                if found is None or not 5 < int(found[1]) < size:
                    raise _too_little_text() from error
                size = int(found[1])
            else:
                return parse_sentencepiece(model.getvalue(), where="the trained tokenizer", plain_spaces=not self._rule.startswith("nmt"))

    def _too_small(self, hint: str) -> UsageError:
        what = f"a vocabulary of {self.vocab_size:,} does not hold the characters of the corpus"
        return UsageError(what, where="--vocab-size", hint=hint)

    def _byte_level(self, texts: Sequence[str]) -> Any:
        from tokenizers import Tokenizer as Fast
        from tokenizers import decoders, models, pre_tokenizers, trainers

        fast = Fast(models.BPE())
        fast.normalizer, fast.pre_tokenizer = self._normalizer(), pre_tokenizers.ByteLevel(add_prefix_space=False)
        fast.decoder, letters = decoders.ByteLevel(), pre_tokenizers.ByteLevel.alphabet()
        named: dict[str, Any] = {"special_tokens": list(_SPECIAL), "initial_alphabet": letters}
        fast.train_from_iterator(texts, trainers.BpeTrainer(vocab_size=self.vocab_size, show_progress=False, **named))
        return fast

    def _wordpiece(self, texts: Sequence[str]) -> Any:
        """Train, with all characters named beforehand, also those inside words.

        The trainer would number them as they come out of a hash table, and choose between equally frequent pairs by number.
        """
        from tokenizers import Tokenizer as Fast
        from tokenizers import decoders, models, pre_tokenizers, trainers

        def untrained(model: Any) -> Any:
            fast = Fast(model)
            fast.normalizer, fast.pre_tokenizer, fast.decoder = normalizer, pre_tokenizers.BertPreTokenizer(), decoders.WordPiece()
            return fast

        normalizer, (_, unknown, *_) = self._normalizer(), _SPECIAL
        counts = characters(map(normalizer.normalize_str, texts))
        most = max(int(_CHARACTER_SHARE * self.vocab_size), min(_PLAIN_CHARACTERS, self.vocab_size // 4))
        kept = sorted(sorted((one for one in counts if not one.isspace()), key=lambda one: (-counts[one], one))[:most])
        if not kept:
            raise _too_little_text()
        if sum(counts[one] for one in kept) < _LEAST_COVERED * sum(count for one, count in counts.items() if not one.isspace()):
            raise self._too_small("use a larger one")
        named: dict[str, Any] = {
            "special_tokens": [*_SPECIAL, *kept, *(f"##{one}" for one in kept)],
            "initial_alphabet": kept,
            "limit_alphabet": len(kept),
        }
        fast = untrained(models.WordPiece(unk_token=unknown))
        fast.train_from_iterator(texts, trainers.WordPieceTrainer(vocab_size=self.vocab_size, show_progress=False, **named))
        return untrained(models.WordPiece(fast.get_vocab(), unk_token=unknown))  # in which they are entries like others

    def _normalizer(self) -> Any:
        from tokenizers import normalizers

        forms: dict[str, list[Any]] = {"nfkc": [normalizers.NFKC()], "nfc": [normalizers.NFC()], "identity": []}
        if self.model_type == "wordpiece":
            bert = normalizers.BertNormalizer(lowercase=not self.cased, strip_accents=self.strip_accents)
            steps = [*forms[self.normalization or "identity"], bert]
        else:
            strips = [normalizers.NFD(), normalizers.StripAccents()] if self.strip_accents else []
            steps = [*strips, *forms[self.normalization or "nfc"], *([] if self.cased else [normalizers.Lowercase()])]
        return normalizers.Sequence(steps) if len(steps) > 1 else steps[0] if steps else None


def train_tokenizer(texts: Iterable[str], **settings: Any) -> Tokenizer:
    """Train a tokenizer; the settings are those of `TokenizerTraining`."""
    return TokenizerTraining(**settings).run(list(texts))


def _too_little_text() -> DataError:
    return DataError("there is too little text to train a tokenizer on", hint="add text, or name a tokenizer with --tokenizer")


def _character_coverage(texts: Sequence[str], rule: str, most: int) -> float:
    """Choose the share of the text whose characters have entries: all of it, or that of the `most` frequent characters."""
    import sentencepiece

    normalizer = sentencepiece.SentencePieceNormalizer(rule_name=rule)
    found: set[str] = set()
    for text in texts:
        found.update(normalizer.normalize(text))
    if len(found) <= most:
        return 1.0
    counts = Counter[str]()
    for text in texts:
        counts.update(normalizer.normalize(text))
    kept = sorted(counts.values(), reverse=True)[:most]
    between = sum(kept) - kept[-1] / 2  # SentencePiece adds characters until it is past the share
    return max(_CHARACTER_COVERAGE, between / counts.total())
