"""Run every block of commands of a page, and put what they gave into it: text and pictures.

    python tools/study/run_page.py docs/real-data.md

Blocks that only a reader has to run say so in their first line. After

    <!-- file: output/cells/exports.md -->

all up to ``<!-- end -->`` becomes the content of that file, and the picture of the line after
``<!-- picture: output/cells/drawn.jpg -->`` becomes a small form of that one.
"""

import argparse
import os
import re
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import cv2

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))  # this checkout's package, installed or not

from defcn_d2.utils.files import write_atomically  # noqa: E402

BLOCK = re.compile(r"^```bash[^\n]*\n(.*?)^```$", re.MULTILINE | re.DOTALL)
FILE = re.compile(r"(<!-- file: (\S+) -->\n).*?(<!-- end -->)", re.DOTALL)
PICTURE = re.compile(r"<!-- picture: (\S+) -->\n!\[[^\]]*\]\((\S+)\)")
READER = "# for a reader"
WIDTH = 1000  # of a picture, in pixels


def commands(text: str) -> list[str]:
    """The blocks of a page to run, in order."""
    return [code for code in BLOCK.findall(text) if not code.startswith(READER)]


def run(code: str, folder: Path) -> None:
    """Run a block in ``folder`` by bash; ends at its first failure.

    Raises:
        SystemExit: with the status of the command that failed.
    """
    here = os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", "")])
    environment = {**os.environ, "PATH": here, "PYTHONPATH": str(ROOT)}
    print(f"$ {code}", flush=True)
    done = subprocess.run(["bash", "-euo", "pipefail", "-c", code], cwd=folder, env=environment)
    if done.returncode:
        raise SystemExit(f"error: a block ended with status {done.returncode}: {code}")


def with_files(text: str, folder: Path) -> str:
    """The text with the files' contents at their places.

    Raises:
        FileNotFoundError: a file was not written.
    """

    def filled(match: re.Match) -> str:
        begin, name, end = match.groups()
        content = (folder / name).read_text().strip("\n")
        return f"{begin}\n{content}\n\n{end}"

    return FILE.sub(filled, text)


def small_pictures(text: str, folder: Path, page: Path) -> None:
    """Write the small pictures of the page.

    Raises:
        FileNotFoundError: a picture was not drawn.
    """
    for source, target in PICTURE.findall(text):
        picture = cv2.imread(str(folder / source))
        if picture is None:
            raise FileNotFoundError(f"{folder / source} was not drawn")
        scale = min(1.0, WIDTH / picture.shape[1])
        small = cv2.resize(picture, None, fx=scale, fy=scale, interpolation=cv2.INTER_AREA)
        encoded = cv2.imencode(".jpg", small, [cv2.IMWRITE_JPEG_QUALITY, 85])[1]
        write_atomically(page.parent / target, encoded.tobytes())


def main(arguments: Sequence[str] | None = None) -> int:
    """The command; returns the exit status."""
    parser = argparse.ArgumentParser(
        description="Run a page's commands and fill in what they gave."
    )
    parser.add_argument("page", type=Path)
    parser.add_argument("--folder", type=Path, default=ROOT, help="to run in [the checkout]")
    parser.add_argument("--fill", action="store_true", help="run nothing: fill in what is there")
    parser.add_argument("--from-block", type=int, default=1, metavar="N", help="[1]")
    args = parser.parse_args(arguments)
    text = args.page.read_text()
    if not args.fill:
        for code in commands(text)[args.from_block - 1 :]:
            run(code, args.folder)
    try:
        small_pictures(text, args.folder, args.page)
        write_atomically(args.page, with_files(text, args.folder).encode())
    except FileNotFoundError as error:
        raise SystemExit(f"error: {error}") from error
    return 0


if __name__ == "__main__":
    sys.exit(main())
