"""How advice is told."""

from __future__ import annotations

from pldcli.advice.advise import Advice
from pldcli.console.section import Section
from pldcli.console.units import quantity

__all__ = ["candidates_table"]


def candidates_table(advice: Advice) -> Section:
    """Lay out the candidates, the choice first, with the reasons below."""
    rows = tuple(
        (
            candidate.name,
            quantity(candidate.config.num_parameters),
            f"{candidate.step_seconds * 1e3:,.0f}" + ("" if candidate.is_timed else " est."),
            f"{candidate.config.train.total_steps:,}",
            quantity(candidate.tokens),
            advice.written_loss(candidate),
        )
        for candidate in advice.candidates
    )
    headings = ("blocks x width", "parameters", "ms a step", "steps", "tokens", "expected loss")
    title = f"validation loss to expect (unigram baseline {advice.unigram_loss:.2f})"
    return Section(title, headings, rows, notes=advice.reasons)
