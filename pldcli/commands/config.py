"""`pld config`: the resolved configuration, where each value came from and what it means; presets listed, and made of other files."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from itertools import chain, groupby
from pathlib import Path
from textwrap import wrap
from typing import TYPE_CHECKING, Annotated, Literal

import typer
from rich.markup import escape

if TYPE_CHECKING:
    from pldcli.presets import Resolved

__all__ = [
    "Overrides",
    "Preset",
    "complete_override",
    "complete_preset",
    "finetune_settings",
    "import_deepspeed",
    "list_presets",
    "schema",
    "show",
    "validate",
]


def complete_preset(incomplete: str) -> list[tuple[str, str]]:
    """Offer the shipped presets, each with its purpose."""
    from pldcli import presets

    headers = ((name, presets.header(name)) for name in presets.names() if name.startswith(incomplete))
    return [(name, fields.get("Purpose") or fields["System"]) for name, fields in headers]


def complete_override(incomplete: str) -> list[str]:
    """Offer the keys, ready for a value."""
    from pldcli.config import Config
    from pldcli.settings import fields

    return [f"{key}=" for key in fields(Config) if key.startswith(incomplete)]


_LISTED = ("preset", "parameters", "blocks run", "hardware", "purpose")
"""The columns of `pld config list`; the last one on wide screens only."""

_NUMBERS = ("parameters", "blocks run")
_MAIN_SYSTEMS = ("pld", "postln", "preln")
"""Listed before the others."""

Preset = Annotated[str, typer.Argument(metavar="PRESET", help="A shipped preset or a YAML file.", autocompletion=complete_preset)]
Overrides = Annotated[
    list[str] | None,
    typer.Argument(metavar="KEY=VALUE", help="Changes, such as train.total_steps=1000.", autocompletion=complete_override),
]


def show(
    preset: Preset,
    overrides: Overrides = None,
    as_yaml: Annotated[bool, typer.Option("--yaml", help="Print YAML that can be used as a preset.")] = False,
) -> None:
    """Show every value of a configuration, where it came from and what it means."""
    from pldcli import presets

    resolved = presets.resolve(preset, overrides or ())
    if as_yaml:
        typer.echo(presets.dump(resolved.config), nl=False)
    else:
        _print_parts(preset)
        _print_values(resolved)


def validate(preset: Preset, overrides: Overrides = None) -> None:
    """Check a configuration without running anything."""
    from pldcli import presets

    resolved = presets.resolve(preset, overrides or ())
    resolved.config.forwards_per_group(1, most_sequences=1)
    typer.echo(f"{preset}: ok")


def import_deepspeed(
    file: Annotated[Path, typer.Argument(metavar="FILE", help="A DeepSpeed configuration, JSON.", show_default=False)],
    base: Annotated[
        str, typer.Option("--base", metavar="PRESET", help="What it extends: model and data.", autocompletion=complete_preset)
    ] = "bert-base-pld",
    out: Annotated[Path | None, typer.Option("--out", metavar="FILE", help="A .yaml file to write.", show_default="printed")] = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace a file that is there.")] = False,
) -> None:
    """Turn a DeepSpeed JSON configuration into a preset.

    Read are progressive_layer_drop, the optimizer, gradient clipping, batch sizes, fp16 and bf16, and warm-up schedules.
    """
    from pldcli import deepspeed
    from pldcli.presets import check_new_preset
    from pldcli.system import atomic

    if out is not None:
        check_new_preset(out, overwrite=overwrite)
    text, not_imported = deepspeed.import_deepspeed(file, base=base)
    if out is None:
        typer.echo(text, nl=False)
    else:
        atomic.write_text(out, text)
        typer.echo(f"preset written to {out}; `pld config show {out}` explains it")
    if not_imported:
        typer.echo(f"note: not imported: {', '.join(not_imported)}", err=True)


def list_presets() -> None:
    """List the shipped presets by system: parameters, the mean number of blocks that run, and hardware."""
    from rich.padding import Padding

    from pldcli import presets
    from pldcli.console.screen import NARROW, screen, table

    console = screen()
    columns = len(_LISTED) if console.width >= 2 * NARROW else len(_LISTED) - 1
    groups: dict[str, list[list[str]]] = {}
    for name in sorted(presets.names(), key=lambda name: presets.resolve(name).config.num_parameters):
        groups.setdefault(presets.system(name), []).append(_listed(name)[:columns])
    widths = [max(map(len, column)) for column in zip(_LISTED[:columns], *chain(*groups.values()), strict=True)]

    console.print(Padding(table(None, [_aligned(_LISTED, widths)]), (0, 0, 0, 2)), style="bold")
    for system in sorted(groups, key=lambda system: (system not in _MAIN_SYSTEMS, system)):
        console.print(table(None, [[f"[bold cyan]{system}[/]", f"[dim]{escape(presets.header(system)['System'])}[/]"]]))
        console.print(Padding(table(None, [_aligned(row, widths) for row in groups[system]]), (0, 0, 0, 2)))


def _listed(name: str) -> list[str]:
    """Say what `config list` says of a preset, column by column."""
    from pldcli import presets

    config = presets.resolve(name).config
    blocks = config.model.num_hidden_layers
    kept = f"{config.pld_schedule.mean_kept_fraction * blocks:.2f}/{blocks}"
    fields = presets.header(name)
    purpose, hardware = (text.rstrip(".") for text in (fields.get("Purpose") or fields["Size"], fields["Hardware"]))
    return [name, f"{config.num_parameters / 1e6:.1f} M", kept, hardware, purpose]


def _aligned(row: Sequence[str], widths: Sequence[int]) -> list[str]:
    """Pad the cells of a row, so that the rows of all groups stand below one another; the last one may wrap."""
    *cells, last = (
        cell.rjust(width) if heading in _NUMBERS else cell.ljust(width) for heading, cell, width in zip(_LISTED, row, widths, strict=False)
    )
    return [*map(escape, cells), escape(last.rstrip())]


def finetune_settings() -> None:
    """Show the settings of `pld finetune`, their defaults and what they mean."""
    from pldcli.console.screen import screen, table
    from pldcli.finetuning.config import FinetuneConfig
    from pldcli.settings import fields

    rows = [[key, _as_typed(field.default), escape(field.description or "")] for key, field in fields(FinetuneConfig).items()]
    screen().print(table(["setting", "default", "meaning"], rows, fold=["meaning"]))


def schema(
    what: Annotated[
        Literal["preset", "finetune", "study"], typer.Argument(help="The file of a preset or a study, or the settings of `pld finetune`.")
    ] = "preset",
) -> None:
    """Print a JSON Schema, with which an editor completes and checks such a file.

    The shipped presets name theirs in the first line: # yaml-language-server: $schema=FILE
    """
    from pldcli import presets
    from pldcli.finetuning.config import FinetuneConfig
    from pldcli.study.spec import Study

    schemas = {"preset": presets.schema, "finetune": FinetuneConfig.model_json_schema, "study": Study.model_json_schema}
    found = schemas[what]()
    if what == "study":
        found["required"] = []  # what one file lacks may stand in another that it extends
    typer.echo(json.dumps(found, indent=1))


def _print_parts(preset: str) -> None:
    """Print what a preset is made of, and what its header says."""
    from pldcli import presets
    from pldcli.console.screen import screen

    made_of = " + ".join(part.name if part.kind == "preset" else f"{part.kind} {part.name}" for part in presets.parts(preset))
    rows, console = {"Made of": made_of, **presets.header(preset)}, screen()
    indent = max(map(len, rows)) + 2
    for name, text in rows.items():
        lines = wrap(text, console.width - indent, break_on_hyphens=False)  # a table would fill them up with spaces
        for number, line in enumerate(lines):
            console.print(f"[bold cyan]{('' if number else name).ljust(indent)}[/]{escape(line)}", highlight=False)
    console.print()


def _print_values(resolved: Resolved) -> None:
    """Print the knobs section by section; on a narrow screen a meaning stands below its knob, not beside it."""
    from rich.padding import Padding

    from pldcli.config import documentation, flatten
    from pldcli.console.screen import NARROW, screen, table

    console = screen()
    texts, flat = documentation(), flatten(resolved.config)
    beside = console.width >= NARROW
    words = [_as_typed(value) for value in flat.values() if not isinstance(value, list)]  # a list may be longer, and moves what follows
    widths = [max(map(len, column)) for column in (flat, words, resolved.origins.values())]
    for section, keys in groupby(flat, key=lambda key: key.partition(".")[0]):
        console.print(f"[bold cyan]{section}[/]  [dim]{escape(texts[section])}[/]")
        for key in keys:
            changed = resolved.origins[key] != "default"
            cells = [key, _as_typed(flat[key]), resolved.origins[key]]
            padded = [escape(cell.ljust(width)) for cell, width in zip(cells, widths, strict=True)]
            styled = [padded[0], f"[bold]{padded[1]}[/]", padded[2]] if changed else [padded[0], padded[1], f"[dim]{padded[2]}[/]"]
            meaning = f"[dim]{escape(texts[key])}[/]"
            if beside:
                console.print(Padding(table(None, [[*styled, meaning]]), (0, 0, 0, 2), expand=False))
            else:
                console.print("  " + "  ".join(styled).rstrip(), no_wrap=True, overflow="ignore", crop=False)
                console.print(Padding(meaning, (0, 0, 0, 6), expand=False))
        console.print()


def _as_typed(value: object) -> str:
    """Write a value as it would be typed after KEY=, a list as YAML has it."""
    from pldcli.settings import spelled

    if isinstance(value, list):
        import yaml

        return yaml.safe_dump(value, default_flow_style=True, sort_keys=False, width=math.inf).strip()
    return spelled(value)
