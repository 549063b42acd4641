#!/bin/sh
# All checks and measurements that need a GPU, in one run under 8 minutes; the table goes to the screen and to a file.
#
#     benchmarks/gpu.sh [table.md]        PYTHON names the interpreter, default .venv/bin/python
#     benchmarks/gpu.sh --dry             the same on a CPU with tiny sizes: whether it runs, not how fast
set -eu
cd "$(dirname "$0")/.."
python="${PYTHON:-.venv/bin/python}"
export HF_HUB_OFFLINE=1
if [ "${1:-}" = "--dry" ]; then exec timeout 480 "$python" -m benchmarks.gpu --dry; fi
table="${1:-gpu.md}"
timeout 360 "$python" -m benchmarks.gpu | tee "$table"
printf '\nTests of generation on this device:\n\n' | tee -a "$table"
timeout 110 "$python" -m pytest -q -p no:cacheprovider tests/generation | tail -5 | tee -a "$table"
