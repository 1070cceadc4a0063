#!/usr/bin/env bash
# Lint, types and the test suite, from a bare Python ≥ 3.10. VENV=path reuses an environment. Arguments go to pytest.
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/environment.sh"
make_environment requirements-dev.txt
"$PYTHON" -m ruff check .
"$PYTHON" -m mypy
# Three processes on two cores, since tests of failures wait for much of their time. tests/conftest.py hands out whole files.
exec "$PYTHON" -m pytest -n 3 --no-loadscope-reorder "$@"
