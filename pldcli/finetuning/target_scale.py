"""Targets of a regression on the scale that a fresh head can reach: mean 0, standard deviation 1.

A fresh head begins at about 0 and moves by about the learning rate per step, so that prices around 100,000 stay out of its reach. Training
therefore sees standardised targets; every score, prediction and export is of a head that the scale is folded into.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace

import numpy as np
import torch

from pldcli.choices import TaskKind
from pldcli.errors import DataError
from pldcli.model import StBert
from pldcli.tasks.task import Examples, Features, Task

__all__ = ["TargetScale"]


@dataclass(frozen=True)
class TargetScale:
    """Mean and standard deviation of the training targets."""

    mean: float
    std: float

    @classmethod
    def of(cls, task: Task, train: Examples) -> TargetScale | None:
        """Measure the training targets.

        Returns:
            None for other kinds, and for tasks with a name: STS-B (0 to 5) is within reach, and its published recipes, with which results
            are compared, learn the numbers as they are.

        Raises:
            DataError: The targets are all the same, or would be as outputs in float32.
        """
        if task.kind != TaskKind.REGRESSION or task.hub is not None:
            return None
        targets = np.array(train.labels, np.float64)
        mean, std = float(targets.mean()), float(targets.std())
        if np.ptp(targets) == 0:
            raise DataError(f"all targets are {targets[0]:,.6g}: nothing to learn", where=train.source, hint="name another --label-column")
        if std < np.spacing(np.float32(abs(mean))):
            what = f"the targets vary by {std:.2g} around {mean:,.6g}, less than the steps of float32 there"
            raise DataError(what, where=train.source, hint="subtract a constant from them")
        return cls(mean, std)

    def standardise(self, features: Features, examples: Examples) -> Features:
        """Replace the labels of training rows, from the numbers as read: float32 keeps seven digits, the mean may take them all."""
        standardised = (np.array(examples.labels, np.float64) - self.mean) / self.std
        return replace(features, labels=standardised.astype(np.float32))

    @torch.no_grad()
    def fold_into(self, model: StBert) -> None:
        """Change a trained head so that it gives targets as the files have them."""
        assert model.task_head is not None
        output = model.task_head.output
        output.weight.copy_(output.weight.double() * self.std)
        output.bias.copy_(output.bias.double() * self.std + self.mean)

    @contextmanager
    def folded(self, model: StBert) -> Iterator[None]:
        """Fold the scale into a head that is being trained while the block runs."""
        assert model.task_head is not None
        parameters = list(model.task_head.output.parameters())
        before = [parameter.detach().clone() for parameter in parameters]
        self.fold_into(model)
        try:
            yield
        finally:
            with torch.no_grad():
                for parameter, value in zip(parameters, before, strict=True):
                    parameter.copy_(value)
