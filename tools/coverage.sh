#!/bin/sh
# Runs the tests under coverage.py, with branches and with every process that they start, and
# prints what of the package they do not reach. Needs coverage (pip install -e '.[trust]').
#   tools/coverage.sh [pytest arguments]     PYTHON=... names the interpreter
# The record and coverage.json, the same figures for programs, are left in output/coverage.
set -u
cd "$(dirname "$0")/.."
python=${PYTHON:-python}
settings=$PWD/tools/coverage.ini
export COVERAGE_FILE="$PWD/output/coverage/record"
mkdir -p output/coverage
"$python" -m coverage erase --rcfile "$settings" || exit 1

OMP_NUM_THREADS=1 "$python" -m coverage run --rcfile "$settings" -m pytest \
    -n auto --maxprocesses 4 --dist loadfile "$@"
tests=$?

"$python" -m coverage combine -q --rcfile "$settings" || exit 1
"$python" -m coverage json -q --rcfile "$settings" -o output/coverage/coverage.json
"$python" -m coverage report --rcfile "$settings" || exit 1
exit $tests
