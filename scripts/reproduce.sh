#!/usr/bin/env bash
# From files to a paper's row: `bash scripts/reproduce.sh METHOD DATASET`, for example rmsin rrsisd; `--help` lists flags.
# `--toy` takes every step on a toy set, on a CPU. VENV=path reuses an environment. scripts/reproduce.py takes the steps.
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/environment.sh"
has_torch='import importlib.util, sys; sys.exit(importlib.util.find_spec("torch") is None)'
[ -x "$PYTHON" ] && "$PYTHON" -c "$has_torch" || make_environment requirements.txt
exec "$PYTHON" scripts/reproduce.py "$@"
