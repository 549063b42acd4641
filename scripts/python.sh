#!/bin/sh
# Runs a Python that is new enough for prefanno and can make a venv: $PYTHON where it is set, else the newest found.
#
#     sh scripts/python.sh scripts/prepare.py serve
set -eu

usable() {
    "$1" -c 'import sys, ensurepip, venv; sys.exit(sys.version_info < (3, 11))' >/dev/null 2>&1
}

for python in "${PYTHON:-python3.13}" "${PYTHON:-python3.12}" "${PYTHON:-python3.11}" "${PYTHON:-python3}"; do
    if usable "$python"; then exec "$python" "$@"; fi
done
found=$("$python" --version 2>&1) || found="not there"
echo "prefanno needs Python 3.11 or newer with venv; $python is: $found." \
    "Debian, Ubuntu: apt install python3 python3-venv; macOS: brew install python; else https://www.python.org/downloads/." \
    "One in another place: make serve PYTHON=/path/to/python3" >&2
exit 1
