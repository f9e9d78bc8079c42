"""Check that the tests notice changes of the code: mutmut over what makes the training signal.

    python tools/trust/mutate.py             # hours; begins again where it was stopped
    python tools/trust/mutate.py --survivors # those again that no test had noticed
    python tools/trust/mutate.py --report    # the table of what there is so far

Works in a copy of the repository, output/mutation, whose settings say what mutmut (pip install -e
'.[trust]') changes and runs. Delete it to begin anew: results are kept for functions that have
not changed since, also where their tests have. The differences of the mutants that no test has
noticed stand in output/mutation/survivors.txt.
"""

from __future__ import annotations

import argparse
import ast
import configparser
import json
import os
import shutil
import subprocess
import sys
from collections import Counter
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
FOLDER = ROOT / "output" / "mutation"
MUTATED = [
    "defcn_d2/modeling/matcher/*.py",
    "defcn_d2/modeling/box_ops.py",
    "defcn_d2/modeling/loss/functional.py",
]
MUTATED += ["defcn_d2/structures.py"]
TESTS = ["test_matcher_*.py", "test_matchers_*.py", "test_box_ops.py", "test_losses.py"]
TESTS += ["test_structures.py", "test_criterion_*.py"]
# What git does not know: without it the operators would be composed, and slow.
BUILT = ["defcn_d2/_C*.so", "defcn_d2/ops/_build.json"]
# Which example fails first does not matter, nor which is the smallest that does.
PROFILE = """

from hypothesis import Phase  # noqa: E402

settings.register_profile(
    "mutation",
    settings.get_profile("default"),
    phases=(Phase.explicit, Phase.generate),
    database=None,
    derandomize=True,
)
settings.load_profile("mutation")
"""
NOTICED = ("killed", "timeout", "segfault", "suspicious")  # the last: ended in another way
DECORATORS = ("configurable", "property")


def without_decorators(source: str) -> str:
    """``DECORATORS`` after the class: mutmut leaves functions with decorators as they are."""
    lines = source.splitlines(keepends=True)
    after = []
    owners = [node for node in ast.parse(source).body if isinstance(node, ast.ClassDef)]
    for owner in owners:
        for function in owner.body:
            if not isinstance(function, ast.FunctionDef) or len(function.decorator_list) != 1:
                continue
            decorator = function.decorator_list[0]
            if ast.unparse(decorator) in DECORATORS:
                lines[decorator.lineno - 1] = ""
                name = f"{owner.name}.{function.name}"
                after.append(f"{name} = {ast.unparse(decorator)}({name})\n")
    return "".join(lines + ["\n\n"] * bool(after) + after)


def prepare() -> None:
    """Bring the copy up to date; files keep their times, by which mutmut knows what is new."""
    # Files that are tracked, and what is built; functions of matchers without decorators.
    tracked = subprocess.run(
        ["git", "ls-files", "-z"], cwd=ROOT, check=True, capture_output=True, text=True
    ).stdout
    built = [str(path.relative_to(ROOT)) for pattern in BUILT for path in ROOT.glob(pattern)]
    for name in [*filter(None, tracked.split("\0")), *built]:
        if (ROOT / name).is_file():
            target = FOLDER / name
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(ROOT / name, target)
            if name.startswith("defcn_d2/modeling/matcher/"):
                target.write_text(without_decorators(target.read_text()))
                shutil.copystat(ROOT / name, target)
    with open(FOLDER / "tests" / "conftest.py", "a") as file:
        file.write(PROFILE)

    # Settings of mutmut.
    tests = sorted({path for pattern in TESTS for path in FOLDER.glob(f"tests/**/{pattern}")})
    settings = {
        "source_paths": ["defcn_d2"],
        "only_mutate": MUTATED,
        "also_copy": ["configs", "tools", "demo", "train_net.py", "README.md"],
        "pytest_add_cli_args": ["-p", "no:cacheprovider", "-W", "ignore"],
        "pytest_add_cli_args_test_selection": [str(x.relative_to(FOLDER)) for x in tests],
        "use_git_change_detection": ["false"],
        "track_dependencies": ["false"],
        "timeout_multiplier": ["20"],
        "timeout_constant": ["10"],
    }
    config = configparser.ConfigParser()
    config["mutmut"] = {
        key: values[0] if len(values) == 1 else "\n" + "\n".join(values)
        for key, values in settings.items()
    }
    with open(FOLDER / "setup.cfg", "w") as file:
        config.write(file)


def run_mutmut(*arguments: str) -> subprocess.CompletedProcess[str]:
    """mutmut in the copy: no threads, which a fork leaves behind, and no reports of failures."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "CI": "1"}
    environment["PYTEST_ADDOPTS"] = "--assert=plain --tb=no"
    command = [sys.executable, "-m", "mutmut", *arguments]
    output = None if arguments[0] == "run" else subprocess.PIPE
    return subprocess.run(command, cwd=FOLDER, env=environment, stdout=output, text=True)


def results() -> dict[str, dict[str, str]]:
    """Status of each mutant by file."""
    from mutmut.stats import status_by_exit_code

    found = {}
    for path in sorted((FOLDER / "mutants" / "defcn_d2").rglob("*.meta")):
        codes = json.loads(path.read_text())["exit_code_by_key"]
        if codes:
            name = path.relative_to(FOLDER / "mutants").as_posix().removesuffix(".meta")
            found[name] = {mutant: status_by_exit_code[code] for mutant, code in codes.items()}
    return found


def unnoticed_mutants(mutants: dict[str, str]) -> list[str]:
    return [x for x, status in mutants.items() if status not in (*NOTICED, "not checked")]


def report() -> int:
    """Print the table, write the survivors' differences; 1 unless all mutants are decided."""
    rows: list[tuple[str, int, int, int]] = []
    survivors: list[str] = []
    undecided = 0
    for name, mutants in results().items():
        statuses = Counter(mutants.values())
        noticed = sum(statuses[status] for status in NOTICED)
        undecided += statuses["not checked"]
        rows.append((name, len(mutants), noticed, len(mutants) - noticed - statuses["not checked"]))
        survivors += [run_mutmut("show", mutant).stdout for mutant in unnoticed_mutants(mutants)]
    _, numbers, killed, left = zip(*rows)
    rows.append(("total", sum(numbers), sum(killed), sum(left)))
    print("| file | mutants | killed | survived | |\n|---|---:|---:|---:|---:|")
    for name, number, noticed, survived in rows:
        share = 100 * noticed / max(noticed + survived, 1)
        print(f"| `{name}` | {number} | {noticed} | {survived} | {share:.1f} % |")
    if undecided:
        print(f"{undecided} mutants are not decided yet")
    (FOLDER / "survivors.txt").write_text("\n".join(survivors))
    return 1 if undecided else 0


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    what = parser.add_mutually_exclusive_group()
    what.add_argument("--report", action="store_true", help="run nothing")
    what.add_argument("--survivors", action="store_true", help="run those alone, after new tests")
    parser.add_argument("--processes", type=int, default=1, help="at a time [%(default)s]")
    args = parser.parse_args()
    if not args.report:
        prepare()
        names = sum(map(unnoticed_mutants, results().values()), []) if args.survivors else []
        run_mutmut("run", "--max-children", str(args.processes), *names)
    return report()


if __name__ == "__main__":
    sys.exit(main())
