#!/bin/sh
# Runs the tests under coverage.py, with branches and with every process that they start, and
# prints what of the package they do not reach. Needs coverage (pip install -e '.[trust]').
#   tools/trust/coverage.sh [pytest arguments]     PYTHON=... names the interpreter
# The record and coverage.json, the same figures for programs, are left in output/coverage; the last
# lines are the table of docs/reliability.md.
set -u
cd "$(dirname "$0")/../.."
python=${PYTHON:-python}
settings=$PWD/tools/trust/coverage.ini
export COVERAGE_FILE="$PWD/output/coverage/record"
mkdir -p output/coverage
"$python" -m coverage erase --rcfile "$settings" || exit 1

OMP_NUM_THREADS=1 "$python" -m coverage run --rcfile "$settings" -m pytest \
    -n auto --maxprocesses 4 --dist loadfile "$@"
tests=$?

"$python" -m coverage combine -q --rcfile "$settings" || exit 1
"$python" -m coverage json -q --rcfile "$settings" -o output/coverage/coverage.json
"$python" -m coverage report --rcfile "$settings" || exit 1
"$python" - output/coverage/coverage.json <<'EOF'
import json
import sys
from collections import Counter

parts = {}
for name, file in json.load(open(sys.argv[1]))["files"].items():
    folders = name.split("/")[:-1]
    for part in ("/".join(folders), "total"):
        counts = {k: v for k, v in file["summary"].items() if isinstance(v, int)}
        parts.setdefault(part, Counter()).update(counts)
print("\n| package | statements | missed | branches | missed | covered |")
print("|---|---:|---:|---:|---:|---:|")
for name, n in sorted(parts.items()):
    whole = n["num_statements"] + n["num_branches"]
    share = 100 * (n["covered_lines"] + n["covered_branches"]) / whole
    print(
        f"| `{name}` | {n['num_statements']} | {n['missing_lines']} | {n['num_branches']} "
        f"| {n['missing_branches']} | {share:.1f} % |"
    )
EOF
exit $tests
