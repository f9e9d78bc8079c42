"""Put the results of ``make demo`` into README.md: its table and a small picture.

Usage: python tools/update_readme.py [output/demo]
"""

import json
import sys
from pathlib import Path

import cv2
from make_demo import ROOT, table

BEGIN, END = "<!-- demo-results:begin -->", "<!-- demo-results:end -->"
PICTURE = ROOT / "docs" / "images" / "detections.jpg"
PICTURE_WIDTH = 1000  # pixels


def results(summary: dict) -> str:
    """The text between the markers."""
    minutes = {name: seconds / 60 for name, seconds in summary["seconds"].items()}
    return (
        f"{table(summary)}\n\n"
        f"after {summary['iterations']} iterations of {summary['batch']} images; training with its "
        f"evaluations took {minutes['training and evaluation']:.1f} minutes on "
        f"{summary['cores']} CPU cores (PyTorch {summary['versions']['torch']}, Detectron2 "
        f"{summary['versions']['detectron2']}). This table is written by "
        "`python tools/update_readme.py`."
    )


def replace_between(text: str, new: str) -> str:
    """``text`` with ``new`` between the two markers.

    Raises:
        ValueError: the markers are not there, once each and in order.
    """
    if text.count(BEGIN) != 1 or text.count(END) != 1 or text.index(BEGIN) > text.index(END):
        raise ValueError(f"README.md needs the lines {BEGIN} and {END}, once each, in this order")
    return text[: text.index(BEGIN) + len(BEGIN)] + f"\n{new}\n" + text[text.index(END) :]


def main(arguments: list[str]) -> int:
    output = Path(arguments[0]) if arguments else ROOT / "output" / "demo"
    if not (output / "summary.json").exists():
        print(f"{output / 'summary.json'} is not there; run `make demo` first", file=sys.stderr)
        return 1
    summary = json.loads((output / "summary.json").read_text())
    readme = ROOT / "README.md"
    readme.write_text(replace_between(readme.read_text(), results(summary)))
    picture = cv2.imread(str(output / "detections.jpg"))
    picture = picture[: picture.shape[0] // 2]  # half of the grid's rows
    scale = PICTURE_WIDTH / picture.shape[1]
    small = cv2.resize(picture, None, fx=scale, fy=scale, interpolation=cv2.INTER_AREA)
    PICTURE.parent.mkdir(parents=True, exist_ok=True)
    cv2.imwrite(str(PICTURE), small, [cv2.IMWRITE_JPEG_QUALITY, 80])
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
