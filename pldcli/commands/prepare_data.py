"""`pld prepare-data`: from raw text to a prepared directory."""

from __future__ import annotations

import shlex
import sys
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from pldcli.choices import DocumentPer, Engine, JobFile
from pldcli.commands.tokenizer import ByteFallback, Cased, Coverage, Normalized, SkipBad, Strict, StripAccents, ToTrain, VocabSize
from pldcli.corpus.addresses import path_of
from pldcli.errors import UsageError

if TYPE_CHECKING:
    from pldcli.preparation.prepare import Prepared

__all__ = ["prepare_data"]

_LEFT_OUT, _SEVERAL = "What is left out", "On several machines"


def prepare_data(
    inputs: Annotated[
        list[Path] | None,
        typer.Argument(
            metavar="CORPUS...",
            parser=path_of,
            help="Text, JSON-lines, CSV, Parquet or Arrow files, directories, patterns such as 'wiki/*.gz', addresses such as "
            "hf://datasets/USER/NAME/*.parquet or s3://BUCKET/TEXT, or - for standard input.",
            show_default=False,
        ),
    ] = None,
    out: Annotated[Path, typer.Option(help="The directory to make.")] = Path("data"),
    source: Annotated[
        list[str] | None,
        typer.Option(
            metavar="PATH=WEIGHT",
            help="More text, which counts so often in training (2, 0.5); may be repeated.",
            show_default=False,
        ),
    ] = None,
    validation: Annotated[
        list[Path] | None,
        typer.Option(
            metavar="PATH",
            parser=path_of,
            help="Text for validation alone; may be repeated.",
            show_default="one document in 301",
        ),
    ] = None,
    stream: Annotated[
        bool,
        typer.Option("--stream", help="Read addresses in parts where they lie, once per pass, instead of fetching them first."),
    ] = False,
    document_per: Annotated[DocumentPer, typer.Option(help="What ends a document in a text file.")] = "blank-line",
    text_field: Annotated[str, typer.Option(help="The field of a JSON object that holds the text.")] = "text",
    tokenizer: Annotated[
        Path | None,
        typer.Option(help="Use this vocab.txt, tokenizer.json or SentencePiece .model instead of training.", show_default="train one"),
    ] = None,
    model_type: ToTrain = "bpe",
    cased: Cased = False,
    vocab_size: VocabSize = 30528,
    strip_accents: StripAccents = None,
    normalization: Normalized = None,
    byte_fallback: ByteFallback = False,
    character_coverage: Coverage = None,
    processes: Annotated[
        int | None, typer.Option(min=1, help="Processes that read and encode; they change no byte.", show_default="one per processor")
    ] = None,
    engine: Annotated[
        Engine,
        typer.Option(
            help="Who does the work: processes of this machine, or a Ray cluster whose machines see the same files.",
            rich_help_panel=_SEVERAL,
        ),
    ] = "local",
    encoding: Annotated[
        str | None, typer.Option(help="What the files are written in, such as cp1252.", show_default="UTF-8, or UTF-16 with its mark")
    ] = None,
    strict: Strict = False,
    skip_bad: SkipBad = False,
    keep_duplicates: Annotated[
        bool,
        typer.Option(
            "--keep-duplicates", help="Keep documents whose text occurred before, which else are left out.", rich_help_panel=_LEFT_OUT
        ),
    ] = False,
    near_duplicates: Annotated[
        float | None,
        typer.Option(
            metavar="0.8",
            help="Documents that share so many of their runs of five words with one before (Jaccard); needs rensa.",
            show_default="none",
            rich_help_panel=_LEFT_OUT,
        ),
    ] = None,
    min_words: Annotated[int, typer.Option(min=0, help="Documents of fewer words.", rich_help_panel=_LEFT_OUT)] = 0,
    max_words: Annotated[
        int | None, typer.Option(min=1, help="Documents of more words.", show_default="none", rich_help_panel=_LEFT_OUT)
    ] = None,
    script: Annotated[
        list[str] | None,
        typer.Option(
            metavar="LATIN",
            help="Documents with most of their letters in other scripts, named as Unicode does (CYRILLIC, ARABIC, CJK); may be repeated.",
            show_default="none",
            rich_help_panel=_LEFT_OUT,
        ),
    ] = None,
    decontaminate: Annotated[
        list[Path] | None,
        typer.Option(
            metavar="FILE or DIR",
            help="Documents that share --overlap-words words in a row with text to be scored on; may be repeated.",
            show_default="none",
            rich_help_panel=_LEFT_OUT,
        ),
    ] = None,
    overlap_words: Annotated[
        int | None, typer.Option(min=1, help="For --decontaminate.", show_default="13", rich_help_panel=_LEFT_OUT)
    ] = None,
    keep_rejects: Annotated[
        bool,
        typer.Option(
            "--keep-rejects", help="Write documents that are left out to OUT/rejected.jsonl, with the cause.", rich_help_panel=_LEFT_OUT
        ),
    ] = False,
    share: Annotated[
        str | None,
        typer.Option(
            "--share",
            "--shard",
            metavar="I/N",
            help="Do the I-th of N shares of the work, beside others that do theirs: run all, run all again, then run without.",
            show_default=False,
            rich_help_panel=_SEVERAL,
        ),
    ] = None,
    merge: Annotated[
        bool, typer.Option("--merge", help="Only put the shares together; where one is missing, say so.", rich_help_panel=_SEVERAL)
    ] = False,
    emit: Annotated[
        JobFile | None,
        typer.Option(
            help="Print a job file that does all of this in --share N shares on a cluster, and do nothing.",
            show_default=False,
            rich_help_panel=_SEVERAL,
        ),
    ] = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace prepared data that is there.")] = False,
) -> None:
    """Turn raw text into token ids, with a tokenizer trained on it."""
    from pldcli.corpus.spool import spooled
    from pldcli.filtering.quality import Filters
    from pldcli.preparation.prepare import Preparation
    from pldcli.tokenization.training import TokenizerTraining

    if overlap_words is not None and not decontaminate:
        raise UsageError("--overlap-words does nothing without --decontaminate", hint="leave it out")
    if emit is not None:
        typer.echo(_job_file(emit, share, out, overwrite=overwrite, merge=merge), nl=False)
        return
    number, count = (0, 1) if share is None else _share(share)
    filters = Filters(
        min_words=min_words,
        max_words=max_words,
        scripts=tuple(script or ()),
        against=tuple(decontaminate or ()),
        overlap_words=overlap_words or Filters.overlap_words,
    )
    with spooled(out, overwrite=overwrite, keep=share is not None, stream=stream) as spool:
        preparation = Preparation(
            inputs or [],
            out,
            weighted=list(map(_weighted, source or ())),
            validation=validation or [],
            document_per=document_per,
            text_field=text_field,
            tokenizer=tokenizer,
            training=TokenizerTraining(
                vocab_size,
                model_type,
                cased=cased,
                strip_accents=strip_accents,
                normalization=normalization,
                byte_fallback=byte_fallback,
                character_coverage=character_coverage,
            ),
            processes=processes,
            engine=engine,
            encoding=encoding,
            strict=strict,
            skip_bad=skip_bad,
            filters=filters,
            keep_duplicates=keep_duplicates,
            near_duplicates=near_duplicates,
            keep_rejects=keep_rejects,
            overwrite=overwrite,
            merge=merge,
        )
        preparation.check()  # before standard input is read, which cannot be read again
        preparation = replace(
            preparation,
            inputs=spool.local(preparation.inputs),
            weighted=[(path, weight) for given, weight in preparation.weighted for path in spool.local([given])],
            validation=spool.local(preparation.validation),
            names=spool.names,
        )
        if share is not None:
            typer.echo(f"share {share}: {preparation.run_share(number, count)}")
            return
        prepared = preparation.run()
    _show(prepared)


def _weighted(text: str) -> tuple[Path, float]:
    path, equals, weight = text.rpartition("=")
    try:
        if equals and path:
            return path_of(path), float(weight)
    except ValueError:
        pass
    raise UsageError(f"{text!r} is not PATH=WEIGHT", where="--source", hint="for example --source wiki.jsonl=2")


def _job_file(kind: JobFile, share: str | None, out: Path, *, overwrite: bool, merge: bool) -> str:
    """Write the job file for the command line as it was typed, but for what asks for the file."""
    from pldcli.preparation.job_files import kubernetes, slurm

    if share is None or not share.isdecimal() or int(share) < 1:
        raise UsageError("needs the number of shares", where="--emit", hint="for example --share 16")
    if merge:
        raise UsageError("cannot go with --merge: the last job puts the shares together", where="--emit", hint="leave it out")
    if overwrite:
        what = "cannot go with --overwrite: jobs tell by what is there that all is done"
        raise UsageError(what, where="--emit", hint="choose another --out")
    typed, words = iter(sys.argv[1:]), ["pld"]
    for word in typed:
        name, equals, _ = word.partition("=")
        if name not in ("--emit", "--share", "--shard"):
            words.append(word)
        elif not equals:
            next(typed)
    return slurm(words, int(share)) if kind == "slurm" else kubernetes(words, int(share), out)


def _share(text: str) -> tuple[int, int]:
    number, slash, count = text.partition("/")
    if not (slash and number.isdecimal() and count.isdecimal()):
        raise UsageError(f"{text!r} is not I/N", where="--share", hint="for example --share 0/16, to --share 15/16")
    return int(number), int(count)


def _show(prepared: Prepared) -> None:
    from rich.console import Console
    from rich.table import Table

    from pldcli.data.prepared import unknown_shares

    manifest, console = prepared.manifest, Console(soft_wrap=True, highlight=False, markup=False)
    train, validation, tokenizer = manifest["counts"]["train"], manifest["counts"]["validation"], manifest["tokenizer"]
    words, tokens = train["words"] + validation["words"], train["tokens"] + validation["tokens"]
    table = Table(show_header=False, box=None, padding=(0, 2, 0, 0))
    table.add_column(no_wrap=True)
    table.add_column(overflow="fold")
    rows = {
        "documents": f"{train['documents']:,} train, {validation['documents']:,} validation",
        "tokens": f"{train['tokens']:,} train, {validation['tokens']:,} validation",
        "unknown tokens": ", ".join(f"{share:.2%} {split}" for split, share in unknown_shares(manifest["counts"]).items()),
        "tokens per word": f"{tokens / words:.2f}" if words else "no words",
        "vocabulary": f"{tokenizer['vocab_size']:,} entries ({tokenizer['model_type']}, {tokenizer['normaliser']})",
        "skipped": ", ".join(f"{count:,} x {reason}" for reason, count in manifest["skipped"].items()) or "nothing",
        "replaced": f"{manifest['replaced_bytes']:,} bytes that are not of the encoding",
        "read": f"{prepared.num_bytes / 1e6:,.1f} MB in {prepared.seconds:,.1f} s, {prepared.num_bytes / 1e6 / prepared.seconds:.1f} MB/s",
        "written": str(prepared.path),
    }
    for name, value in rows.items():
        if name != "replaced" or manifest["replaced_bytes"]:
            table.add_row(name, value)
    console.print(table)
    for note in prepared.notes:
        console.print(f"Note: {note}")
    console.print(f"Next: pld pretrain --preset {_preset_for(train['tokens'])} --data {shlex.quote(str(prepared.path))}")


def _preset_for(num_tokens: int) -> str:
    """Name what goes with the machine, as far as one sees it without loading torch: on a CPU what runs on record advise, else a size."""
    if not Path("/dev/nvidia0").exists():
        return "auto --budget 1h"
    size = "tiny" if num_tokens < 3_000_000 else "small" if num_tokens < 300_000_000 else "base"
    return f"modern-{size}-preln"
