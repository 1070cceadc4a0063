# Sourced by the other scripts: goes to the repository's root and sets PYTHON to an environment's interpreter.
# VENV=path reuses an environment or names where to make it; the default is .venv in the repository.
case "${VENV:=}" in
    "") VENV=.venv ;;
    /*) ;;
    *) VENV="$PWD/$VENV" ;;  # as seen from where the user stands
esac
cd "$(dirname "${BASH_SOURCE[0]}")/.."
PYTHON="$VENV/bin/python"

find_python() {  # sets BASE to a Python that can make an environment
    for BASE in python3 python3.14 python3.13 python3.12 python3.11 python3.10 ""; do
        [ -n "$BASE" ] || { echo "Python 3.10 or newer is needed, and none was found" >&2; exit 2; }
        "$BASE" -c 'import sys; sys.exit(sys.version_info < (3, 10))' 2>/dev/null && break
    done
}

make_environment() {  # make_environment REQUIREMENTS_FILE
    if [ ! -x "$PYTHON" ]; then
        find_python
        echo "Making the virtual environment $VENV with $("$BASE" --version)"
        "$BASE" -m venv "$VENV" || { echo "Its venv module is missing (Debian: apt-get install python3-venv)" >&2; exit 2; }
    fi
    # Installed once for each state of the requirements; a marker inside the environment remembers it.
    local wanted
    wanted="$(cat requirements*.txt | cksum) $1"
    if ! grep -qxF "$wanted" "$VENV/installed-requirements" 2>/dev/null; then
        echo "Installing $1 (PyTorch is large: a few minutes)"
        "$PYTHON" -m pip install --quiet --disable-pip-version-check -r "$1"
        echo "$wanted" >> "$VENV/installed-requirements"
    fi
}
