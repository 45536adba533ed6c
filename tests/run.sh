#!/bin/sh
# Builds the wheel, installs it in a fresh environment (.venv-test), and checks what is installed
# there: lint, types, the analytic gate, tests. PYTHON chooses the interpreter; arguments go to
# pytest.
set -eu
cd "$(dirname "$0")/.."
bin=.venv-test/bin

"${PYTHON:-python3}" -m venv --clear .venv-test
$bin/pip install --quiet --disable-pip-version-check "build>=1.2"
# Through the sdist, so that nothing left over in build/ can get into the wheel.
$bin/python -m build --outdir .venv-test/dist >.venv-test/build.log 2>&1 || {
    cat .venv-test/build.log >&2
    exit 1
}
$bin/pip install --quiet --disable-pip-version-check "$(echo .venv-test/dist/*.whl)[dev]"

# What drives a browser, and axe-core, for the tests of the pages; without them they are skipped.
$bin/pip install --quiet --disable-pip-version-check "playwright>=1.40" || true
if [ -z "${AXE:-}" ] && command -v npm >/dev/null; then
    npm install --silent --no-save --prefix .venv-test axe-core >/dev/null 2>&1 || true
    export AXE="$PWD/.venv-test/node_modules/axe-core/axe.min.js"
fi

$bin/ruff check .
$bin/ruff format --check .
$bin/mypy --strict -p fairbench
$bin/fairbench check --baseline tests/baselines/analytic.json

# As many processes as there are cores, eight at most; each computes with one thread.
cores=$($bin/python -c "import os; print(min(8, os.cpu_count() or 1))")
OMP_NUM_THREADS=1 $bin/pytest -n "$cores" --dist loadfile "$@"
