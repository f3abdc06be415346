"""Job files for clusters, on which shares of the work are done side by side: Slurm and Kubernetes.

Each share reads; when all have read, each encodes; when all have encoded, one command puts the parts together.
"""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from pathlib import Path

__all__ = ["kubernetes", "slurm"]


def slurm(words: Sequence[str], count: int) -> str:
    """Write a script that sends the work to Slurm.

    Args:
        words: The command line, without `--share`.
        count: Of shares.
    """
    command = shlex.join(words)
    return f"""#!/bin/bash
# Two arrays of jobs, the second one behind the first, and a job behind both. Options of sbatch, such as --time, go into SBATCH_OPTIONS.
set -euo pipefail
share={shlex.quote(f"{command} --share $SLURM_ARRAY_TASK_ID/{count}")}
read=$(sbatch --parsable ${{SBATCH_OPTIONS:-}} --job-name=pld-read --array=0-{count - 1} --wrap "$share")
encode=$(sbatch --parsable ${{SBATCH_OPTIONS:-}} --job-name=pld-encode --array=0-{count - 1} --dependency="afterok:$read" --wrap "$share")
sbatch ${{SBATCH_OPTIONS:-}} --job-name=pld-collect --dependency="afterok:$encode" --wrap {shlex.quote(command)}
"""


def kubernetes(words: Sequence[str], count: int, out: Path) -> str:
    """Write an Indexed Job, whose pods wait for each other through the files that they share.

    Args:
        words: The command line, without `--share`.
        count: Of shares.
        out: The directory that is made, which ends the waiting.
    """
    import yaml

    command, done = shlex.join(words), f"[ -e {shlex.quote(str(out / 'manifest.json'))} ]"
    script = f"""until {done} || {command} --share "$JOB_COMPLETION_INDEX/{count}" | grep ': encoded'; do sleep 10; done
if [ "$JOB_COMPLETION_INDEX" = 0 ]; then until {done} || {command}; do sleep 10; done; fi
"""
    container = {
        "name": "pld",
        "image": "IMAGE-WITH-PLDCLI",
        "workingDir": "/work",
        "command": ["sh", "-c", script],
        "volumeMounts": [{"name": "work", "mountPath": "/work"}],
    }
    volume = {"name": "work", "persistentVolumeClaim": {"claimName": "CLAIM-THAT-ALL-PODS-CAN-WRITE"}}
    pod = {"spec": {"restartPolicy": "OnFailure", "containers": [container], "volumes": [volume]}}
    job = {
        "apiVersion": "batch/v1",
        "kind": "Job",
        "metadata": {"name": "pld-prepare-data"},
        "spec": {"completions": count, "parallelism": count, "completionMode": "Indexed", "template": pod},
    }
    text: str = yaml.safe_dump(job, sort_keys=False, width=1000)
    return text
