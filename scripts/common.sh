# Sourced by the numbered scripts: the project's root, the interpreter, and what stands where.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
if [ -z "${PYTHON:-}" ]; then
    if [ -x .venv/bin/python ]; then PYTHON=.venv/bin/python; else PYTHON=python3; fi
fi
DATA=data/sample            # training images
RUN=results/demo            # runs of the short training
MODEL=output/demo/best_model.pdparams
EXPORT=output/demo/export
PICTURES=output/demo/pictures

step() { printf '\n== %s\n' "$*"; }

# needs FILE SCRIPT: says which earlier script makes a missing file.
needs() {
    [ -e "$1" ] && return
    echo "$(basename "$0"): $1 is missing; run scripts/$2 first" >&2
    exit 2
}
