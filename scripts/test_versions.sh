#!/usr/bin/env bash
# The fast tests with the lowest, a middle (PyTorch 2.8) and the newest set of versions that the requirements allow.
# `bash scripts/test_versions.sh [lowest|middle|newest]...` runs these sets, without arguments all three. Each takes 7 GB
# below VERSIONS (default: .versions) and about 10 minutes. BASE names the Python of the environments (default: python3).
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
FOLDER="${VERSIONS:-.versions}" BASE="$(command -v "${BASE:-python3}")"
mkdir -p "$FOLDER"
[ -x "$FOLDER/uv/bin/uv" ] || { python3 -m venv "$FOLDER/uv" && "$FOLDER/uv/bin/python" -m pip install --quiet uv; }
UV="$FOLDER/uv/bin/uv"

install() {  # install SET
    local set="$1"
    case "$set" in
        lowest) "$UV" pip compile --quiet --python "$BASE" --resolution lowest-direct requirements-dev.txt \
                    --output-file "$FOLDER/$set.txt" >/dev/null ;;
        middle) printf '%s\n' "-r $PWD/requirements-dev.txt" "torch==2.8.*" > "$FOLDER/$set.txt" ;;
        newest) printf '%s\n' "-r $PWD/requirements-dev.txt" > "$FOLDER/$set.txt" ;;
        *) echo "'$set' is no set: give lowest, middle or newest" >&2; exit 2 ;;
    esac
    [ -x "$FOLDER/$set/bin/python" ] || "$UV" venv --quiet --python "$BASE" "$FOLDER/$set"
    "$UV" pip install --quiet --python "$FOLDER/$set/bin/python" -r "$FOLDER/$set.txt"
}

status=0
for set in "${@:-lowest middle newest}"; do
    for one in $set; do
        echo "== $one: installing"
        install "$one"
        "$FOLDER/$one/bin/python" --version
        "$UV" pip list --quiet --python "$FOLDER/$one/bin/python" \
            | grep -E '^(torch|torchvision|transformers|tokenizers|timm|numpy|pillow|matplotlib|scipy|h5py) '
        echo "== $one: testing"
        OMP_NUM_THREADS=1 "$FOLDER/$one/bin/python" -m pytest -n 2 --no-loadscope-reorder -m "not slow" || status=1
    done
done
exit $status
