#!/usr/bin/env bash
# One section of the GPU measurements, within ten minutes: benchmarks/gpu.sh rate|compare|profile [--small]
set -euo pipefail
here="$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)"
exec timeout --signal=INT --kill-after=20 590 "${PYTHON:-python}" "$here/gpu.py" "$@"
