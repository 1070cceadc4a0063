#!/usr/bin/env bash
# Lint, types and the test suite, from a bare Python ≥ 3.10. VENV=path reuses an environment. Arguments go to pytest.
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/environment.sh"
make_environment requirements-dev.txt
"$PYTHON" -m ruff check .
"$PYTHON" -m mypy
# A file stays with one worker: two training goldens at a time would need more memory than many machines have.
exec "$PYTHON" -m pytest -n 2 --dist loadfile --no-loadscope-reorder "$@"
