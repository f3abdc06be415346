"""Start worker processes: fresh interpreters behind two pipes.

Unlike `multiprocessing` they never import the caller's main module, so that any script may use them; their own session keeps
Ctrl-C away from them, and they end when their pipe closes, even if this process was killed.
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Mapping, Sequence
from typing import IO

__all__ = ["close_pipe", "start_worker"]


def start_worker(
    module: str, arguments: Sequence[str] = (), *, threads: int = 1, environment: Mapping[str, str] | None = None
) -> subprocess.Popen[bytes]:
    """Start the function `serve` of a module in an interpreter of its own.

    Args:
        module: Its full name.
        arguments: What it finds in sys.argv[1:].
        threads: Of numeric libraries.
        environment: Variables besides those of this process.
    """
    variables = {
        **os.environ,
        "PYTHONPATH": os.pathsep.join(path for path in sys.path if path),
        "TOKENIZERS_PARALLELISM": "false",
        "OMP_NUM_THREADS": str(threads),
        "OPENBLAS_NUM_THREADS": str(threads),
        **(environment or {}),
    }
    command = [sys.executable, "-c", f"from {module} import serve; serve()", *arguments]
    return subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=variables, start_new_session=True)


def close_pipe(pipe: IO[bytes] | None) -> None:
    """Close a pipe to a worker that may be gone."""
    try:
        if pipe is not None:
            pipe.close()
    except OSError:
        return  # what was left to flush went to a worker that is gone
