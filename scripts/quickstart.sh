#!/usr/bin/env bash
# The whole job on a toy data set: data, training, evaluation with its control, pictures. VENV=path reuses an environment.
# Arguments go to train.py: `bash scripts/quickstart.sh --seed 2` is another run. scripts/quickstart.py takes the steps.
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/environment.sh"
find_python
VENV="$VENV" exec "$BASE" scripts/quickstart.py "$@"
