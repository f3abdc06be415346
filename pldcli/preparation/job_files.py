"""Job files for clusters, on which shares of the work are done side by side: Slurm and Kubernetes.

Each share reads; when all have read, each encodes; when all have encoded, one command puts the parts together.
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Sequence
from pathlib import Path

from pldcli.errors import UsageError

__all__ = ["kubernetes", "slurm"]

_STANDARD_INPUT = re.compile(r"(--[a-z]+=)?-(=.*)?")
_POD_CORES = 4


def slurm(words: Sequence[str], count: int) -> str:
    """Write a script that sends the work to Slurm.

    Args:
        words: The command line, without `--share`.
        count: Of shares.

    Raises:
        UsageError: It reads standard input.
    """
    command = _joined(words)
    behind = "--kill-on-invalid-dep=yes --dependency"  # else what waits for a job that failed waits for ever
    return f"""#!/bin/bash
# Two arrays of jobs, the second one behind the first, and a job behind both. Options of sbatch, such as --time, go into SBATCH_OPTIONS.
set -euo pipefail
share={shlex.quote(f"{command} --share $SLURM_ARRAY_TASK_ID/{count}")}
read=$(sbatch --parsable ${{SBATCH_OPTIONS:-}} --job-name=pld-read --array=0-{count - 1} --wrap "$share")
encode=$(sbatch --parsable ${{SBATCH_OPTIONS:-}} --job-name=pld-encode --array=0-{count - 1} {behind}="afterok:$read" --wrap "$share")
sbatch ${{SBATCH_OPTIONS:-}} --job-name=pld-collect {behind}="afterok:$encode" --wrap {shlex.quote(command)}
"""


def kubernetes(words: Sequence[str], count: int, out: Path) -> str:
    """Write an Indexed Job, whose pods wait for each other through the files that they share, and for nothing else.

    Args:
        words: The command line, without `--share`.
        count: Of shares.
        out: The directory that is made, which ends the waiting.

    Raises:
        UsageError: It reads standard input.
    """
    import yaml

    # A pod sees all processors of its machine, whatever it may use.
    processes = [] if any(word.startswith("--processes") for word in words) else ["--processes", str(_POD_CORES)]
    command, done = _joined([*words, *processes]), f"[ -e {shlex.quote(str(out / 'manifest.json'))} ]"
    script = f"""said=$(mktemp)
until {done}; do
  {command} --share "$JOB_COMPLETION_INDEX/{count}" 2>&1 | tee "$said"
  if {done} || grep -q ': encoded' "$said"; then break; fi
  grep -q -e ': read;' -e 'another process is' "$said" || exit 1
  sleep 10
done
if [ "$JOB_COMPLETION_INDEX" != 0 ]; then exit 0; fi
until {done}; do
  {command} 2>&1 | tee "$said"
  if {done}; then break; fi
  grep -q 'another process is' "$said" || exit 1
  sleep 10
done
"""
    container = {
        "name": "pld",
        "image": "IMAGE-WITH-PLDCLI",
        "workingDir": "/work",
        "command": ["sh", "-c", script],
        "resources": {"requests": {"cpu": _POD_CORES, "memory": "8Gi"}},
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


def _joined(words: Sequence[str]) -> str:
    """Join a command line that several jobs can run."""
    if any(_STANDARD_INPUT.fullmatch(word) for word in words):
        raise UsageError("standard input is read by one process alone", where="-", hint="write the text to a file that all jobs see")
    return shlex.join(words)
