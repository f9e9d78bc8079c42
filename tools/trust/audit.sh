#!/bin/sh
# Looks up known vulnerabilities of the installed packages, then of those that constraints.txt
# names. Needs pip-audit (pip install -e '.[trust]') and an index that has data on them.
#   tools/trust/audit.sh [pip-audit arguments]     PYTHON=... names the interpreter
# Exit status: 0 all were checked and none is known; 1 there are some; 3 not all could be checked.
set -u
cd "$(dirname "$0")/../.."
python=${PYTHON:-python}
"$python" -c 'import pip_audit' 2>/dev/null || {
  echo "error: $python has no pip-audit: pip install -e '.[trust]'" >&2
  exit 3
}

summary='
import json, sys
name, own = sys.argv[1], {"defcn-d2", "defcn_d2", "detectron2", "detectron2-cdo"}
try:
    packages = json.load(sys.stdin)["dependencies"]
except (ValueError, KeyError, TypeError):
    print(f"{name}: nothing was checked, pip-audit failed (see above)")
    sys.exit(3)
packages = [p for p in packages if p["name"] not in own]  # on no index
unknown = [p["name"] for p in packages if "skip_reason" in p]
flaws = [(p["name"], p["version"], v["id"], v["fix_versions"])
         for p in packages for v in p.get("vulns", ())]
print(f"{name}: {len(packages) - len(unknown)} of {len(packages)} packages checked, "
      f"{len(flaws)} known vulnerabilities")
for package, version, flaw, fixed in flaws:
    print(f"  {package} {version}: {flaw}, fixed in {chr(44).join(fixed) or chr(45)}")
if unknown:
    few = ", ".join(unknown[:5]) + (", ..." if len(unknown) > 5 else "")
    print(f"  not checked, as the index has no data on them here: {few}")
sys.exit(1 if flaws else 3 if unknown else 0)
'
status=0
check() {
  name=$1
  shift
  "$python" -m pip_audit --progress-spinner off --format json "$@" |
    "$python" -c "$summary" "$name"
  result=$?
  if [ $status -ne 1 ] && [ $result -ne 0 ]; then status=$result; fi
}
check "installed" --local "$@"
check "constraints.txt" --requirement constraints.txt --no-deps --disable-pip "$@"
exit $status
