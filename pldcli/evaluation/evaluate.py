"""Evaluation assembled: find the model, check that the data was tokenized with its tokenizer, score it."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Generic, Literal, TypeVar, Unpack

from pldcli.choices import BlockChoice
from pldcli.console.progress import Progress
from pldcli.data.loader import Batch, count_tokens
from pldcli.data.shards import open_prepared
from pldcli.data.text_stream import TextStream, tokenise
from pldcli.engine.model_source import check_tokenizer, recorded_data
from pldcli.engine.validation import MaskedLmScore, fixed_batches, score_masked_lm, stream_batches, unigram_baseline
from pldcli.evaluation.depth import DepthReport, Gates, Measure, choose_depths, measure_depths, parse_depths
from pldcli.evaluation.fill_mask import Candidate
from pldcli.evaluation.fill_mask import fill_mask as fill_in
from pldcli.evaluation.pseudo_likelihood import masked_copies
from pldcli.evaluation.subject import Opening, Subject, open_subject
from pldcli.evaluation.zero_shot import MinimalPairs, PseudoPerplexity, judge_pairs, read_pairs, score_texts

__all__ = [
    "Evaluated",
    "Material",
    "evaluate",
    "evaluate_depths",
    "evaluate_pairs",
    "evaluate_text",
    "fill_mask",
    "pseudo_perplexity",
]

Score = TypeVar("Score")

Material = Literal["validation", "text", "pseudo-perplexity", "minimal-pairs"]
"""What a masked language model can be scored on."""

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


def evaluate(target: Path, **opening: Unpack[Opening]) -> Evaluated[MaskedLmScore]:
    """Score a model on the validation split at full depth, on fixed masks.

    Args:
        target: A run, a checkpoint, or a Hugging Face directory.
        opening: How it is opened; `data` is the prepared directory, by default the one that the run was trained on, and `data` where
            none is recorded.

    Raises:
        CheckpointError: The model cannot be read.
        DataError: The data is damaged, or was tokenized with another tokenizer.
    """
    prepared = open_prepared(opening.get("data") or recorded_data(target))
    with open_subject(target, **_with_data(opening, prepared.path)) as subject:
        check_tokenizer(subject.loaded, prepared)
        score = _masked_lm(subject, fixed_batches(prepared, subject.loaded.seq_len))
        mark = unigram_baseline(prepared.sampled("train"), fixed_batches(prepared, subject.loaded.seq_len))
        return _evaluated(subject, f"{prepared.path}, validation split", score, (f"token frequencies alone score {mark:.4f} there",))


def evaluate_text(
    target: Path, inputs: Sequence[Path], *, text_field: str = "text", **opening: Unpack[Opening]
) -> Evaluated[MaskedLmScore]:
    """Score a model on any text, cut into rows as validation data is, on fixed masks.

    Args:
        target: A run, a checkpoint, or a Hugging Face directory.
        inputs: Text or JSON-lines files, plain or compressed, or directories of them.
        text_field: The field of a JSON object that holds the text.
        opening: How the model is opened.
    """
    with open_subject(target, **opening) as subject:
        stream = tokenise(inputs, subject.loaded.tokenizer, text_field=text_field)
        return _evaluated(subject, _named(inputs), _masked_lm(subject, _rows(subject, stream)), stream.notes)


def pseudo_perplexity(
    target: Path, inputs: Sequence[Path], *, text_field: str = "text", **opening: Unpack[Opening]
) -> Evaluated[PseudoPerplexity]:
    """Mask each token of each line in turn.

    Args:
        target: A run, a checkpoint, or a Hugging Face directory.
        inputs: Text files with a text per line, JSON-lines files, or directories of them.
        text_field: The field of a JSON object that holds the text.
        opening: How the model is opened.
    """
    with open_subject(target, **opening) as subject:
        stream = tokenise(inputs, subject.loaded.tokenizer, text_field=text_field, document_per="line")
        return _evaluated(subject, _named(inputs), score_texts(subject, stream), stream.notes)


def evaluate_pairs(target: Path, inputs: Sequence[Path], **opening: Unpack[Opening]) -> Evaluated[MinimalPairs]:
    """Count how often the good sentence of a minimal pair is the more likely one.

    Args:
        target: A run, a checkpoint, or a Hugging Face directory.
        inputs: Files with `sentence_good` and `sentence_bad`, or directories of them.
        opening: How the model is opened.
    """
    with open_subject(target, **opening) as subject:
        return _evaluated(subject, _named(inputs), judge_pairs(subject, read_pairs(inputs, subject.loaded.tokenizer)))


def fill_mask(target: Path, text: str, *, top: int = 5, **opening: Unpack[Opening]) -> Evaluated[list[list[Candidate]]]:
    """Fill each mask of a text.

    Args:
        target: A run, a checkpoint, or a Hugging Face directory.
        text: With one mask or more.
        top: Candidates per mask.
        opening: How the model is opened.
    """
    with open_subject(target, **opening) as subject:
        return _evaluated(subject, text, fill_in(subject, text, top=top))


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
    """Score a model with only some of its blocks, nothing scaled, and time it.

    Args:
        target: A run, a checkpoint, or a Hugging Face directory.
        depths: Numbers of blocks, separated by commas.
        blocks: Which ones are kept.
        material: What it is scored on.
        inputs: The files of the material; none for the validation split.
        text_field: The field of a JSON object that holds the text.
        opening: How the model is opened.

    Raises:
        UsageError: The model does not have so many blocks.
    """
    parse_depths(depths)  # a slip of the pen is said before anything is read
    if material == "validation":
        prepared = open_prepared(opening.get("data") or recorded_data(target))
        opening, inputs = _with_data(opening, prepared.path), [prepared.path]
    with open_subject(target, **opening) as subject:
        choice = choose_depths(target, depths, blocks, subject.loaded.settings.num_hidden_layers)
        measure, notes = _measure(subject, material, inputs, text_field)
        what = _named(inputs) + (", validation split" if material == "validation" else "")
        return _evaluated(subject, what, measure_depths(measure, choice, subject.runtime), notes)


def _measure(subject: Subject, material: Material, inputs: Sequence[Path], text_field: str) -> tuple[Measure, tuple[str, ...]]:
    """Make something to score of files, and say what the user should hear of them."""
    tokenizer = subject.loaded.tokenizer
    if material == "minimal-pairs":
        pairs = read_pairs(inputs, tokenizer)
        return _of_copies(
            subject, [pair.good for pair in pairs[:_TIMED_TEXTS]], lambda gates: judge_pairs(subject, pairs, gates=gates).values
        )
    if material == "pseudo-perplexity":
        lines = tokenise(inputs, tokenizer, text_field=text_field, document_per="line")
        texts = [ids.tolist() for ids in islice(lines.documents(), _TIMED_TEXTS)]
        return _of_copies(subject, texts, lambda gates: score_texts(subject, lines, gates=gates).values, lines.notes)
    if material == "text":
        stream = tokenise(inputs, tokenizer, text_field=text_field)
        return _of_batches(subject, lambda: _rows(subject, stream), stream.notes)
    prepared = open_prepared(inputs[0])
    check_tokenizer(subject.loaded, prepared)
    return _of_batches(subject, lambda: fixed_batches(prepared, subject.loaded.seq_len))


def _of_batches(subject: Subject, batches: Callable[[], Iterable[Batch]], notes: tuple[str, ...] = ()) -> tuple[Measure, tuple[str, ...]]:
    return Measure(lambda gates: _masked_lm(subject, batches(), gates).values, _pass_over(subject, next(iter(batches())))), notes


def _of_copies(
    subject: Subject, texts: Sequence[Sequence[int]], score: Callable[[Gates], Mapping[str, float]], notes: tuple[str, ...] = ()
) -> tuple[Measure, tuple[str, ...]]:
    batch, _ = next(masked_copies(texts, subject.loaded.tokenizer.special, subject.loaded.seq_len))
    return Measure(score, _pass_over(subject, batch)), notes


def _pass_over(subject: Subject, batch: Batch) -> Callable[[Gates], int]:
    def run(gates: Gates) -> int:
        subject.logits(batch, gates)
        return count_tokens(batch)

    return run


def _masked_lm(subject: Subject, batches: Iterable[Batch], gates: Gates | None = None) -> MaskedLmScore:
    return score_masked_lm(subject.model, batches, subject.precision, subject.runtime, gates)


def _rows(subject: Subject, stream: TextStream) -> Iterator[Batch]:
    tokenizer = subject.loaded.tokenizer
    batches = stream_batches(stream, tokenizer.special, subject.loaded.seq_len, vocab_size=tokenizer.vocab_size)
    with Progress("Scoring", total=stream.num_tokens, unit="tokens") as progress:
        for batch in batches:
            yield batch
            progress.advance(count_tokens(batch) - 2 * len(batch.input_ids))


def _evaluated(subject: Subject, what: str, score: Score, notes: tuple[str, ...] = ()) -> Evaluated[Score]:
    return Evaluated(Path(subject.loaded.where), what, subject.precision.name, subject.loaded.seq_len, score, notes)


def _named(inputs: Sequence[Path]) -> str:
    more = f" and {len(inputs) - 3} more" if len(inputs) > 3 else ""
    return ", ".join(map(str, inputs[:3])) + more


def _with_data(opening: Opening, data: Path) -> Opening:
    return {**opening, "data": data}
