#!/usr/bin/env bash
# Tests and measures on one GPU, in one run of at most 8 minutes, what a machine without one cannot tell.
#   bash tools/benchmark_gpu.sh [FOLDER]             log.txt, results.jsonl, summary.md and a trace, in FOLDER
#                                                    (benchmark_gpu): a smoke test first, then measurements
#   bash tools/benchmark_gpu.sh --dry-run [FOLDER]   every step with a nano network on the CPU: shows that all of them
#                                                    run, and measures nothing
# PYTHON=path names the interpreter. Packages that it lacks are installed for this run from the folder wheels, if there
# is one (python -m pip download -d wheels PACKAGE on a machine with a network). A step that fails, or that the time does
# not suffice for, is named at the end.
set -uo pipefail
DRY=""; [ "${1:-}" = --dry-run ] && { DRY=--dry-run; shift; }
OUT="$(mkdir -p "${1:-benchmark_gpu}" && cd "${1:-benchmark_gpu}" && pwd)" || exit 2
cd "$(dirname "${BASH_SOURCE[0]}")/.." || exit 2
PYTHON="${PYTHON:-python}"
why="$("$PYTHON" -c 'import torch' 2>&1)" || {
    echo "$PYTHON cannot import torch (${why##*$'\n'}): activate the environment, or name its interpreter, PYTHON=path" >&2
    exit 2
}
WORK="$(mktemp -d)"; trap 'rm -rf "$WORK"' EXIT
export PYTHONPATH="$WORK/packages"
missing="$("$PYTHON" - <<'END'
from importlib.util import find_spec
names = ("torchvision", "transformers", "tokenizers", "timm", "pycocotools", "numpy", "PIL", "matplotlib", "contourpy",
         "scipy", "h5py", "tqdm", "safetensors", "huggingface_hub")
print(*(name for name in names if find_spec(name) is None))
END
)"
if [ -n "$missing" ]; then
    # shellcheck disable=SC2086
    [ -d wheels ] && "$PYTHON" -m pip install --quiet --no-index --no-deps --find-links wheels \
        --target "$WORK/packages" $missing || {
        echo "$PYTHON lacks $missing: put their wheels into the folder wheels (python -m pip download -d wheels $missing)" >&2
        exit 2
    }
fi
"$PYTHON" tools/gpu_session.py "$OUT" "$WORK" $DRY 2>&1 | tee "$OUT/log.txt"
exit "${PIPESTATUS[0]}"
