"""Measure a language model: find it, check that the data was tokenized with its tokenizer, score it."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any, Generic, Literal, TypeVar, Unpack

from pldcli.choices import BlockChoice
from pldcli.console.progress import Progress
from pldcli.data.loader import Batch, count_tokens
from pldcli.data.prepared import PreparedData, open_prepared
from pldcli.data.stream import TokenStream
from pldcli.data.text_stream import tokenise
from pldcli.engine.validation import LmScore, fixed_batches, score_lm, stream_batches, unigram_baseline
from pldcli.errors import UsageError
from pldcli.evaluation.depth import DepthReport, Gates, Measure, choose_depths, measure_depths, parse_depths
from pldcli.evaluation.fill_mask import Candidate
from pldcli.evaluation.fill_mask import fill_mask as fill_in
from pldcli.evaluation.pseudo_likelihood import scored_rows
from pldcli.evaluation.subject import Opening, Subject, open_subject
from pldcli.evaluation.zero_shot import judge_pairs, read_pairs, score_texts
from pldcli.runs.model_source import check_tokenizer, recorded_data

__all__ = ["Evaluated", "Material", "evaluate", "evaluate_depths", "fill_mask"]

Score = TypeVar("Score")

Material = Literal["validation", "text", "pseudo-perplexity", "minimal-pairs"]
"""What a language model can be scored on."""

_TIMED_TEXTS = 256
"""Texts at most that the batch for timing is made of."""


@dataclass(frozen=True)
class Evaluated(Generic[Score]):
    """A score and what was scored."""

    source: Path
    """The directory that the weights came from."""
    what: str
    """The text or the data that it was scored on."""
    precision: str
    seq_len: int
    score: Score
    notes: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True)
class _Scorer:
    """A material as an open model is scored on it."""

    score: Callable[[Gates | None], Any]
    """With these blocks, None for all; the score's `values` name what says how good the model is."""
    sample: Callable[[], Batch]
    """A typical batch, to time forward passes on."""
    notes: tuple[str, ...] = ()
    baseline: Callable[[], tuple[str, ...]] = tuple
    """What a model without context would score, as a note; costly."""


def evaluate(
    target: Path, material: Material = "validation", inputs: Sequence[Path] = (), *, text_field: str = "text", **opening: Unpack[Opening]
) -> Evaluated[Any]:
    """Score a model at full depth.

    Args:
        target: A run, a checkpoint, or a Hugging Face directory.
        material: `validation`: loss on the validation split of prepared data, on fixed masks or, of a causal model, of next tokens. `text`:
            the same on any text. `pseudo-perplexity`: each token of each line masked in turn. `minimal-pairs`: how often the good sentence
            is the likelier one.
        inputs: The files of the material, or directories of them; none for the validation split.
        text_field: The field of a JSON object that holds the text.
        opening: How the model is opened; `data` is the prepared directory, by default the one that the run was trained on, and `data`
            where none is recorded.

    Returns:
        The score: a `LmScore`, a `PseudoPerplexity` or a `MinimalPairs`.

    Raises:
        CheckpointError: The model cannot be read.
        DataError: The data is damaged, or was tokenized with another tokenizer.
    """
    with _opened(target, material, inputs, text_field, opening) as (subject, scorer, what):
        score = scorer.score(None)
        return _evaluated(subject, what, score, (*scorer.notes, *scorer.baseline()))


def evaluate_depths(
    target: Path,
    depths: str,
    blocks: BlockChoice = "keep-prob",
    *,
    material: Material = "validation",
    inputs: Sequence[Path] = (),
    text_field: str = "text",
    **opening: Unpack[Opening],
) -> Evaluated[DepthReport]:
    """Score a model as `evaluate` does, with only some of its blocks, nothing scaled, and time it.

    `depths` are numbers of blocks, separated by commas; `blocks` says which ones are kept.

    Raises:
        UsageError: The model does not have so many blocks.
    """
    wanted = parse_depths(depths)  # a typing error is reported before anything is read
    with _opened(target, material, inputs, text_field, opening) as (subject, scorer, what):
        choice = choose_depths(target, wanted, blocks, subject.loaded.settings)
        batch = scorer.sample()

        def forward(gates: Gates) -> int:
            subject.logits(batch, gates)
            return count_tokens(batch)

        report = measure_depths(Measure(lambda gates: scorer.score(gates).values, forward), choice, subject.runtime)
        return _evaluated(subject, what, report, scorer.notes)


def fill_mask(target: Path, text: str, *, top: int = 5, **opening: Unpack[Opening]) -> Evaluated[list[list[Candidate]]]:
    """Fill each mask of a text with its `top` likeliest tokens; `opening` is how the model is opened."""
    with open_subject(target, **opening) as subject:
        _check_masks(subject, "--fill", hint="give a masked language model")
        return _evaluated(subject, text, fill_in(subject, text, top=top), ())


@contextmanager
def _opened(
    target: Path, material: Material, inputs: Sequence[Path], text_field: str, opening: Opening
) -> Iterator[tuple[Subject, _Scorer, str]]:
    """Open the model and the material; say what it is scored on."""
    if material == "validation":
        prepared = open_prepared(opening.get("data") or recorded_data(target))
        opening = {**opening, "data": prepared.path}
        with open_subject(target, **opening) as subject:
            check_tokenizer(subject.loaded, prepared)
            yield subject, _of_validation(subject, prepared), f"{prepared.path}, validation split"
        return
    more = f" and {len(inputs) - 3} more" if len(inputs) > 3 else ""
    with open_subject(target, **opening) as subject:
        yield subject, _SCORERS[material](subject, inputs, text_field), ", ".join(map(str, inputs[:3])) + more


def _of_validation(subject: Subject, prepared: PreparedData) -> _Scorer:
    def batches() -> Iterable[Batch]:
        return fixed_batches(prepared, subject.loaded.seq_len, causal=subject.loaded.causal)

    def baseline() -> tuple[str, ...]:
        loss = unigram_baseline(prepared.sampled("train"), batches(), causal=subject.loaded.causal)
        return (f"token frequencies alone score {loss:.4f} there",)

    return _of_batches(subject, batches, baseline=baseline)


def _of_text(subject: Subject, inputs: Sequence[Path], text_field: str) -> _Scorer:
    """Cut text into sequences as validation data is, on fixed masks."""
    stream = tokenise(inputs, subject.loaded.tokenizer, text_field=text_field)
    return _of_batches(subject, lambda: _sequences(subject, stream), notes=stream.notes)


def _of_batches(subject: Subject, batches: Callable[[], Iterable[Batch]], **more: Any) -> _Scorer:
    def score(gates: Gates | None) -> LmScore:
        return score_lm(subject.model, batches(), subject.precision, subject.runtime, gates)

    return _Scorer(score=score, sample=lambda: next(iter(batches())), **more)


def _of_lines(subject: Subject, inputs: Sequence[Path], text_field: str) -> _Scorer:
    _check_masks(subject, "--pseudo-perplexity", hint="--text FILE gives its perplexity")
    stream = tokenise(inputs, subject.loaded.tokenizer, text_field=text_field, document_per="line")
    return _Scorer(
        score=lambda gates: score_texts(subject, stream, gates=gates),
        sample=lambda: _copies(subject, [ids.tolist() for ids in islice(stream.documents(), _TIMED_TEXTS)]),
        notes=stream.notes,
    )


def _of_pairs(subject: Subject, inputs: Sequence[Path], _text_field: str) -> _Scorer:
    pairs = read_pairs(inputs, subject.loaded.tokenizer)
    return _Scorer(
        score=lambda gates: judge_pairs(subject, pairs, gates=gates),
        sample=lambda: _copies(subject, [pair.good for pair in pairs[:_TIMED_TEXTS]]),
    )


_SCORERS: dict[str, Callable[[Subject, Sequence[Path], str], _Scorer]] = {
    "text": _of_text,
    "pseudo-perplexity": _of_lines,
    "minimal-pairs": _of_pairs,
}


def _check_masks(subject: Subject, option: str, *, hint: str) -> None:
    """Check that a model can fill masks.

    Raises:
        UsageError: It is causal.
    """
    if subject.loaded.causal:
        what = f"{subject.loaded.where} is a causal model, which predicts the next token and fills no masks"
        raise UsageError(what, where=option, hint=hint)


def _copies(subject: Subject, texts: Sequence[Sequence[int]]) -> Batch:
    batch, _ = next(scored_rows(texts, subject))
    return batch


def _sequences(subject: Subject, stream: TokenStream) -> Iterator[Batch]:
    loaded, tokenizer = subject.loaded, subject.loaded.tokenizer
    batches = stream_batches(stream, tokenizer.special, loaded.seq_len, vocab_size=tokenizer.vocab_size, causal=loaded.causal)
    with Progress("Scoring", total=stream.num_tokens, unit="tokens", quiet=not subject.runtime.is_main) as progress:
        for batch in batches:
            yield batch
            progress.advance(count_tokens(batch) - 2 * len(batch.input_ids))


def _evaluated(subject: Subject, what: str, score: Score, notes: tuple[str, ...]) -> Evaluated[Score]:
    return Evaluated(
        Path(subject.loaded.where), what, subject.precision.name, subject.loaded.seq_len, score, (*subject.loaded.notes, *notes)
    )
