"""The card of a fine-tuned model: what it is, how well it did, how to use it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pldcli.choices import TaskKind
from pldcli.console.section import markdown_text
from pldcli.finetuning.config import FinetuneConfig, changed
from pldcli.finetuning.results import flat_scores
from pldcli.settings import validate
from pldcli.tasks.metrics import shown
from pldcli.tasks.task import Task

__all__ = ["task_card"]

_CLASSES = {
    TaskKind.CLASSIFICATION: ("text-classification", "AutoModelForSequenceClassification"),
    TaskKind.MULTI_LABEL: ("text-classification", "AutoModelForSequenceClassification"),
    TaskKind.REGRESSION: ("text-classification", "AutoModelForSequenceClassification"),
    TaskKind.TAGS: ("token-classification", "AutoModelForTokenClassification"),
    TaskKind.SPANS: ("question-answering", "AutoModelForQuestionAnswering"),
}


def task_card(task: Task, start: str, cell: Mapping[str, Any], num_cells: int) -> str:
    """Write the card of the best of `num_cells` runs, whose result is `cell`."""
    pipeline, class_name = _CLASSES[task.kind]
    settings = validate(FinetuneConfig, cell["settings"])
    scores = "\n".join(f"| {markdown_text(name)} | {shown(name, value)} |" for name, value in flat_scores(cell).items())
    units = f"\n\nThe errors are in the units of {markdown_text(task.label_column)}." if task.kind == TaskKind.REGRESSION else ""
    differing = ", ".join(f"{key}={value}" for key, value in {**changed(settings), "seed": settings.seed}.items())
    chosen = "" if num_cells == 1 else f" It is the best of {num_cells} runs on these examples, so the score is a little too good."
    labels = f"Labels: {markdown_text(', '.join(task.labels))}.\n\n" if task.labels else ""
    return f"""---
library_name: transformers
pipeline_tag: {pipeline}
---

# {markdown_text(task.name)}

Fine-tuned from {markdown_text(start)} with `pld finetune`: {markdown_text(differing)}; every other setting has its default.
{cell["examples"]["train"]:,} training examples, {cell["total_steps"]:,} steps planned, weights of step {cell["best_step"]:,}.{chosen}

{labels}| validation | x 100 |
|---|---|
{scores}{units}

{cell["precision"]} on {markdown_text(cell["hardware"])}; pldcli {cell["pldcli"]}, torch {cell["torch"]}.

```python
from transformers import {class_name}, AutoTokenizer

model = {class_name}.from_pretrained("DIRECTORY")
tokenizer = AutoTokenizer.from_pretrained("DIRECTORY")
```
"""
