"""`pld tokenizer`: train a tokenizer, and see how one fits a text."""

from __future__ import annotations

import json
import shlex
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

import typer

from pldcli.choices import DocumentPer, ModelType, Normalization
from pldcli.corpus.addresses import path_of

__all__ = ["inspect", "train"]

_TRAINED = "What tokenizer is trained"
ToTrain = Annotated[
    ModelType, typer.Option(help="The first two are SentencePiece's, the others those of BERT and GPT-2.", rich_help_panel=_TRAINED)
]
Cased = Annotated[bool, typer.Option("--cased/--uncased", help="Keep upper and lower case apart.", rich_help_panel=_TRAINED)]
VocabSize = Annotated[int, typer.Option(min=6, help="Entries of the vocabulary.", rich_help_panel=_TRAINED)]
StripAccents = Annotated[
    bool | None,
    typer.Option(
        "--strip-accents/--keep-accents",
        help="Remove accents and vowel signs; of wordpiece and byte-level-bpe.",
        show_default="as BERT: wordpiece does where it is uncased",
        rich_help_panel=_TRAINED,
    ),
]
Normalized = Annotated[
    Normalization | None,
    typer.Option(
        help="What is made of characters that Unicode calls equivalent or compatible.",
        show_default="nmt_nfkc of SentencePiece, nfc of byte-level-bpe, as BERT of wordpiece",
        rich_help_panel=_TRAINED,
    ),
]
ByteFallback = Annotated[
    bool,
    typer.Option("--byte-fallback", help="Spell in bytes what has no entry, instead of [UNK]; of SentencePiece.", rich_help_panel=_TRAINED),
]
Coverage = Annotated[
    float | None,
    typer.Option(
        help="Share of the text whose characters have entries; of SentencePiece.",
        show_default="0.9995, and 1 where there is room",
        rich_help_panel=_TRAINED,
    ),
]
TextField = Annotated[str, typer.Option(help="The field of a JSON object, or the column of a table, that holds the text.")]
Encoding = Annotated[
    str | None, typer.Option(help="What the files are written in, such as cp1252.", show_default="UTF-8, or UTF-16 with its mark")
]
Strict = Annotated[bool, typer.Option("--strict", help="Stop at a byte that is not of the encoding, instead of replacing it.")]
SkipBad = Annotated[
    bool, typer.Option("--skip-bad", help="Leave out lines and rows without a text, and files that cannot be read; else they are errors.")
]


def train(
    inputs: Annotated[
        list[Path],
        typer.Argument(
            metavar="CORPUS...", parser=path_of, help="Files and directories, as `pld prepare-data` reads them.", show_default=False
        ),
    ],
    out: Annotated[Path, typer.Option(help="The directory to make.")] = Path("tokenizer"),
    model_type: ToTrain = "bpe",
    cased: Cased = False,
    vocab_size: VocabSize = 30528,
    strip_accents: StripAccents = None,
    normalization: Normalized = None,
    byte_fallback: ByteFallback = False,
    character_coverage: Coverage = None,
    document_per: Annotated[DocumentPer, typer.Option(help="What ends a document in a text file.")] = "blank-line",
    text_field: TextField = "text",
    encoding: Encoding = None,
    strict: Strict = False,
    skip_bad: SkipBad = False,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace a tokenizer that is there.")] = False,
) -> None:
    """Train a tokenizer without preparing data; `pld prepare-data --tokenizer` takes it for any text."""
    from pldcli.corpus.spool import spooled
    from pldcli.tokenization.step import train as engine
    from pldcli.tokenization.training import TokenizerTraining

    training = TokenizerTraining(
        vocab_size,
        model_type,
        cased=cased,
        strip_accents=strip_accents,
        normalization=normalization,
        byte_fallback=byte_fallback,
        character_coverage=character_coverage,
    )
    reading = {"document_per": document_per, **_reading(text_field, encoding, strict=strict, skip_bad=skip_bad)}
    with spooled(out, overwrite=overwrite, stream=True) as spool:
        tokenizer, fit, notes = engine(spool.local(inputs), out, training, reading=reading, overwrite=overwrite)
    typer.echo(f"{out}: {tokenizer.vocab_size:,} entries ({tokenizer.model_type}, {tokenizer.normaliser})")
    sizes = f"{fit.tokens_per_word:.2f} tokens per word, {fit.characters_per_token:.2f} characters per token"
    typer.echo(f"on a sample of the text: {sizes}, {fit.unknown_share:.2%} unknown tokens")
    for note in notes:
        typer.echo(f"note: {note}")
    alike = [
        *(["--document-per", document_per] if document_per != "blank-line" else []),
        *(["--text-field", text_field] if text_field != "text" else []),
        *(["--encoding", encoding] if encoding else []),
        *(["--strict"] if strict else []),
        *(["--skip-bad"] if skip_bad else []),
    ]
    typer.echo(f"next: {shlex.join(['pld', 'prepare-data', *map(str, inputs), '--tokenizer', str(out), *alike])}")


def inspect(
    tokenizer: Annotated[Path, typer.Argument(metavar="TOKENIZER", help="As `pld prepare-data --tokenizer` takes it.", show_default=False)],
    texts: Annotated[
        list[Path] | None, typer.Argument(metavar="[TEXT...]", parser=path_of, help="Files and directories to tokenize.")
    ] = None,
    text_field: TextField = "text",
    encoding: Encoding = None,
    strict: Strict = False,
    skip_bad: SkipBad = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Show what a tokenizer is, and how it fits texts: tokens per word, characters per token, and what it cannot express."""
    from pldcli.console.screen import print_sections, screen
    from pldcli.console.section import Section
    from pldcli.tokenization.step import fit_to
    from pldcli.tokenization.tokenizer import load_tokenizer

    found = load_tokenizer(tokenizer)
    reading = _reading(text_field, encoding, strict=strict, skip_bad=skip_bad)
    fits, notes = fit_to(found, texts, reading=reading, quiet=as_json) if texts else ([], [])
    special = {name: found.fast.id_to_token(getattr(found.special, f"{name}_id")) for name in ("pad", "unk", "cls", "sep", "mask")}
    if as_json:
        content = {
            "vocab_size": found.vocab_size,
            "model_type": found.model_type,
            "normaliser": found.normaliser,
            "special": special,
            "fingerprint": found.fingerprint,
            "texts": [
                {**asdict(fit), **{name: getattr(fit, name) for name in ("tokens_per_word", "characters_per_token", "unknown_share")}}
                for fit in fits
            ],
            "notes": notes,
        }
        typer.echo(json.dumps(content, indent=1, ensure_ascii=False))
        return
    typer.echo(f"{tokenizer}: {found.vocab_size:,} entries ({found.model_type}, {found.normaliser})")
    typer.echo("special: " + ", ".join(f"{name} {token}" for name, token in special.items()))
    if fits:
        rows = tuple(
            (
                fit.name,
                f"{fit.words:,}",
                f"{fit.tokens:,}",
                f"{fit.tokens_per_word:.2f}",
                f"{fit.characters_per_token:.2f}",
                f"{fit.unknown_share:.2%}",
            )
            for fit in fits
        )
        headings = ("text", "words", "tokens", "tokens per word", "characters per token", "unknown")
        print_sections(screen(), [Section("how it fits", headings, rows)])
    for note in notes:
        typer.echo(f"note: {note}")


def _reading(text_field: str, encoding: str | None, *, strict: bool, skip_bad: bool) -> dict[str, Any]:
    """Return the arguments of `Reader` for what was asked for."""
    from pldcli.corpus.decoding import check_encoding

    return {"text_field": text_field, "encoding": encoding and check_encoding(encoding), "strict": strict, "skip_bad": skip_bad}
