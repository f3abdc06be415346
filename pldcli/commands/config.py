"""`pld config`: the resolved configuration, where each value came from, and what it means."""

from __future__ import annotations

from dataclasses import asdict
from itertools import groupby
from typing import Annotated

import typer
from rich.markup import escape

from pldcli import presets
from pldcli.config import documentation, field_docstrings, flatten
from pldcli.finetune_config import FinetuneConfig

__all__ = ["Overrides", "Preset", "complete_override", "complete_preset", "finetune_settings", "list_presets", "show", "validate"]


def complete_preset(incomplete: str) -> list[tuple[str, str]]:
    """Offer the shipped presets, each with its purpose."""
    return [(name, _header_field(name, "Purpose")) for name in presets.names() if name.startswith(incomplete)]


def complete_override(incomplete: str) -> list[str]:
    """Offer the keys, ready for a value."""
    return [f"{key}=" for key in presets.key_types() if key.startswith(incomplete)]


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
    resolved = presets.resolve(preset, overrides or ())
    if as_yaml:
        typer.echo(presets.dump(resolved.config), nl=False)
    else:
        _print_values(resolved)


def validate(preset: Preset, overrides: Overrides = None) -> None:
    """Check a configuration without running anything."""
    resolved = presets.resolve(preset, overrides or ())
    resolved.config.forwards_per_group(1, most_sequences=1)
    typer.echo(f"{preset}: ok")


def list_presets() -> None:
    """List the shipped presets: purpose, parameters, hardware, and the mean number of blocks that run."""
    from pldcli.commands.screen import NARROW, screen, table

    console = screen()
    beside = console.width >= NARROW
    rows = []
    for name in presets.names():
        config = presets.resolve(name).config
        blocks = config.model.num_hidden_layers
        purpose, hardware = (_header_field(name, field).rstrip(".") for field in ("Purpose", "Hardware"))
        size, kept = f"{config.num_parameters / 1e6:.1f} M", f"{config.pld_schedule.mean_kept_fraction * blocks:.2f}/{blocks}"
        rows.append([name, size, kept, hardware, purpose] if beside else [name, size, kept, f"{purpose}; {hardware}"])
    headings = ["preset", "parameters", "blocks run", *(["hardware", "purpose"] if beside else ["purpose; hardware"])]
    console.print(table(headings, rows, right=headings[1:3], fold=headings[-1:]))


def finetune_settings() -> None:
    """Show the settings of `pld finetune`, their defaults and what they mean."""
    from pldcli.commands.screen import screen, table

    texts = field_docstrings(FinetuneConfig)
    console = screen()
    rows = [[key, _as_typed(value), escape(texts[key])] for key, value in asdict(FinetuneConfig()).items()]
    console.print(table(["setting", "default", "meaning"], rows, fold=["meaning"]))


def _header_field(preset: str, field: str) -> str:
    """Read what stands behind `field:` in a preset's header."""
    lines = (line.partition(":") for line in presets.header(preset))
    return next((text.strip() for name, _, text in lines if name == field), "")


def _print_values(resolved: presets.Resolved) -> None:
    """Print the knobs section by section; on a narrow screen a meaning stands below its knob, not beside it."""
    from rich.padding import Padding

    from pldcli.commands.screen import NARROW, screen, table

    console = screen()
    texts, flat = documentation(), flatten(resolved.config)
    beside = console.width >= NARROW
    columns = [list(flat), [_as_typed(value) for value in flat.values()], list(resolved.origins.values())]
    widths = [max(map(len, column)) for column in columns]
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
    """Write a value as it would be typed after KEY=."""
    return str(value).lower() if isinstance(value, bool) else str(value)
