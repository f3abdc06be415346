#!/usr/bin/env bash
# One section of the GPU measurements, within ten minutes or, where it is a short one, four: benchmarks/gpu.sh rate|compare|compare-modern|profile|modern|small|trust [--small]
set -euo pipefail
here="$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)"
case "${1:-}" in modern | small | trust) limit=215 ;; *) limit=590 ;; esac
exec timeout --signal=INT --kill-after=20 "$limit" "${PYTHON:-python}" "$here/gpu.py" "$@"
