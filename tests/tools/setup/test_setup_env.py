"""The set-up behind the Makefile: which stages run again, and which remedy is named.

No network, no pip: stages and commands of this test's own.
"""

import fcntl
import re
import subprocess
import sys
from pathlib import Path

import pytest
import setup_env
import setup_remedies
import setup_stages
from setup_stages import ROOT, CommandFailed, Environment, SetupError, Stage


class Plan(Environment):
    """An environment with two stages that only note that they ran, and fail on request."""

    def __init__(self, venv: Path) -> None:
        super().__init__(venv, venv / "constraints.txt", False)
        self.inputs = {"one": "a", "two": "a"}
        self.ran: list[tuple[str, dict[str, str]]] = []
        self.failing: BaseException | None = None

    def stages(self) -> list[Stage]:
        return [self.stage("one"), self.stage("two")]

    def stage(self, name: str) -> Stage:
        def run(before: dict[str, str]) -> None:
            self.ran.append((name, before))
            if name == "two" and self.failing:
                raise self.failing

        return Stage(name, name, lambda: {"input": self.inputs[name]}, run)

    def go(self) -> list[str]:
        self.ran.clear()
        assert setup_env.set_up(self) == bool(self.ran)
        return [name for name, _ in self.ran]


@pytest.fixture
def plan(tmp_path):
    return Plan(tmp_path / "venv")


def test_a_second_run_does_nothing(plan, capsys):
    assert plan.go() == ["one", "two"]
    printed = "[1/2] one ...\n[1/2] one: done in 0 s\n[2/2] two ...\n[2/2] two: done in 0 s\n"
    assert capsys.readouterr().out == printed
    assert plan.go() == []
    assert capsys.readouterr().out == ""


def test_only_what_changed_runs_again_and_learns_what_it_was(plan):
    plan.go()
    plan.inputs["two"] = "b"
    assert plan.go() == ["two"]
    assert plan.ran == [("two", {"input": "a"})]
    assert plan.go() == []


@pytest.mark.parametrize("failure", [CommandFailed("No space left on device"), KeyboardInterrupt()])
def test_a_stage_that_did_not_end_runs_again(plan, failure):
    plan.failing = failure
    with pytest.raises((SetupError, KeyboardInterrupt)):
        plan.go()
    plan.failing = None
    assert plan.go() == ["two"]
    assert plan.ran[0][1]["unfinished"] == "yes"
    assert plan.go() == []


def test_a_stage_that_fails_after_a_change_does_not_count_as_its_old_self(plan):
    plan.go()
    plan.inputs["two"], plan.failing = "b", OSError("gone")
    with pytest.raises(SetupError):
        plan.go()
    plan.inputs["two"], plan.failing = "a", None
    assert plan.go() == ["two"]


def test_a_failure_names_stage_remedy_and_log(plan):
    plan.failing = CommandFailed("OSError: [Errno 28] No space left on device")
    with pytest.raises(SetupError, match=r"^two: the disk is full \(.*free some space.*two\.log\)"):
        plan.go()


def test_a_damaged_stamp_counts_as_none(plan):
    plan.go()
    (plan.state / "one.json").write_text("{")
    assert plan.go() == ["one"]


def test_a_folder_that_is_no_environment_is_not_deleted(tmp_path):
    (tmp_path / "thesis.tex").write_text("years of work")
    (tmp_path / "setup").mkdir()
    environment = Environment(tmp_path, tmp_path / "c.txt", False)
    with pytest.raises(SetupError, match="no virtual environment; name another folder"):
        environment.remove_venv()
    assert (tmp_path / "thesis.tex").exists()
    (tmp_path / "pyvenv.cfg").write_text("")
    environment.remove_venv()
    assert not tmp_path.exists()


def test_another_python_counts_only_where_it_was_asked_for(tmp_path):
    def inputs(asked: bool) -> dict[str, str]:
        return Environment(tmp_path, tmp_path / "c.txt", asked).venv_inputs()

    current = "{}.{}".format(*sys.version_info)
    assert inputs(False) == {"python": current, "made": "no"}
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin" / "python").touch()
    (tmp_path / "setup").mkdir()
    (tmp_path / "setup" / "environment.json").write_text('{"python": "3.99"}')
    assert inputs(False) == {"python": "3.99"}
    assert inputs(True) == {"python": current}


def test_the_setting_of_detectron2_is_kept_until_another_is_set(tmp_path, monkeypatch):
    constraints = ROOT / "constraints.txt"
    environment = Environment(tmp_path, constraints, False)
    (tmp_path / "setup").mkdir()
    (tmp_path / "setup" / "detectron2.json").write_text('{"setting": "/a"}')
    monkeypatch.delenv("DETECTRON2", raising=False)
    assert environment.detectron2_inputs()["setting"] == "/a"
    monkeypatch.setenv("DETECTRON2", "/b")
    assert environment.detectron2_inputs()["setting"] == "/b"


def test_the_requirements_are_read_from_the_project():
    result = subprocess.run(
        [sys.executable, "-c", setup_stages.READ_REQUIREMENTS, ROOT / "pyproject.toml"],
        capture_output=True,
        text=True,
        check=True,
    )
    for name in ("torch>=", "opencv-python>=", "pytest>=", "mypy>="):
        assert f'"{name}' in result.stdout


def test_every_requirement_has_a_tested_version():
    text = (ROOT / "constraints.txt").read_text()
    pinned = {line.split("==")[0].lower() for line in text.splitlines() if "==" in line}
    project = (ROOT / "pyproject.toml").read_text()
    named = re.findall(r'"([\w-]+)(?:>=[^"]*)?"', project.split("[tool.")[0].split("dynamic")[1])
    wanted = {name.lower() for name in named} - {"version"}
    assert len(wanted) > 12
    assert wanted <= pinned


# --------------------------------------------------------------------------------- OpenCV


class OpenCV(Environment):
    """An environment whose cv2 fails with ``error`` until the headless wheel is installed."""

    def __init__(self, folder: Path, error: str) -> None:
        super().__init__(folder, folder / "c.txt", False)
        self.error, self.calls = error, []

    def ask(self, code, *arguments):
        if "import cv2" in code and self.error:
            raise CommandFailed(f"Traceback\n{self.error}\n")
        return "4.13.0.92"

    def command(self, *arguments, **variables):
        self.calls.append(" ".join(map(str, arguments[2:])))

    def pip(self, *arguments, **variables):
        self.calls.append("install " + " ".join(arguments))

    def check(self, code):
        self.calls.append(code)


def test_opencv_without_libgl_is_replaced_by_the_headless_wheel(tmp_path, capsys):
    error = "ImportError: libGL.so.1: cannot open shared object file: No such file or directory"
    environment = OpenCV(tmp_path, error)
    environment.check_opencv()
    assert environment.calls == [
        "uninstall --yes opencv-python",
        "install --no-deps opencv-python-headless==4.13.0.92",
        "import cv2",
    ]
    assert "replacing opencv-python 4.13.0.92" in capsys.readouterr().out


def test_opencv_that_loads_is_left_alone_and_another_error_is_told(tmp_path):
    environment = OpenCV(tmp_path, "")
    environment.check_opencv()
    assert environment.calls == []
    with pytest.raises(SetupError, match="OpenCV does not import: ImportError: numpy"):
        OpenCV(tmp_path, "ImportError: numpy.core.multiarray failed to import").check_opencv()


# ------------------------------------------------------------------------------- commands


def test_commands_print_for_themselves_and_pip_writes_into_the_log(plan, capfd):
    plan.begin_log(plan.stage("one"))
    plan.log.parent.mkdir(parents=True)
    code = (
        "import os, sys; print(os.environ['A'], sys.stdin.read() == '');"
        "open(os.environ['PIP_LOG'], 'a').write('No space'); sys.exit(int(sys.argv[1]))"
    )
    plan.run(sys.executable, "-c", code, "0", A="b")
    assert capfd.readouterr().out == "b True\n"
    with pytest.raises(CommandFailed, match="^No spaceNo space$"):
        plan.run(sys.executable, "-c", code, "1", A="b")
    plan.begin_log(plan.stage("one"))
    with pytest.raises(CommandFailed, match="^$"):
        plan.run(sys.executable, "-c", "raise SystemExit(1)")


def test_a_command_that_was_killed_is_named_so(plan):
    with pytest.raises(CommandFailed, match="ended by signal 9"):
        plan.run(sys.executable, "-c", "import os; os.kill(os.getpid(), 9)")


def test_two_set_ups_wait_for_each_other():
    other = open(setup_env.__file__)
    fcntl.flock(other, fcntl.LOCK_EX)
    code = (
        "import sys; sys.path.insert(0, sys.argv[1]); import setup_env;"
        "setup_env.lock(); print('locked', flush=True)"
    )
    command = [sys.executable, "-u", "-c", code, str(ROOT / "tools" / "setup")]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert "waiting for it to end" in process.stdout.readline()
        other.close()
        assert process.stdout.readline() == "locked\n"


# ---------------------------------------------------------------------------------- remedies


@pytest.mark.parametrize(
    ("output", "words"),
    [
        ("OSError: [Errno 28] No space left on device", "disk is full"),
        ("Retry ... Failed to establish a new connection: Connection refused", "the network"),
        ("Temporary failure in name resolution", "the network"),
        ("ERROR: Could not find a version ... (from versions: none)", "pip config list"),
        (
            "(from versions: 1.0)\nERROR: No matching distribution found for torch==2.15.0",
            "no versions that fit this Python",
        ),
        ("SSLError(SSLCertVerificationError(1, '[SSL: CERTIFICATE_VERIFY_FAILED]", "PIP_CERT"),
        ("HTTP error 403 Client Error: Forbidden", "credentials"),
        ("error: command 'g++' failed: No such file or directory", "no C++ compiler"),
        ("unable to execute 'x86_64-linux-gnu-gcc': No such file", "no C++ compiler"),
        ("fatal error: Python.h: No such file or directory", "python3-dev"),
        ("PermissionError: [Errno 13] Permission denied: '/x'", "owner and the rights"),
        ("ended by signal 9", "killed"),
        ("error: command '/usr/bin/g++' failed with exit code 1", "what it printed stands above"),
    ],
)
def test_remedies(output, words, tmp_path):
    assert words in setup_remedies.remedy_for(output, tmp_path / "venv")


def test_a_python_without_venv_is_told_which_package_brings_it(monkeypatch):
    assert setup_stages.missing_venv() is None
    monkeypatch.setattr(setup_stages.importlib.util, "find_spec", lambda name: None)
    assert re.search(r"apt-get install python3\.\d+-venv", setup_stages.missing_venv() or "")
