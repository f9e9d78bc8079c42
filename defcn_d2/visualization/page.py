"""One HTML page that holds its pictures itself, and the files of a command."""

import base64
import html
import io
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from PIL import Image

from ..utils.errors import UserError
from ..utils.files import write_atomically
from ..utils.printable import printable

_STYLE = """
body { font: 15px/1.45 system-ui, sans-serif; margin: 2em auto; max-width: 1500px; color: #202020;
       padding: 0 1em }
h1 { font-size: 1.5em } h2 { font-size: 1.15em; margin-top: 1.6em }
figure { margin: 1em 0 } img { max-width: 100%; height: auto }
figcaption, .note { color: #505050; max-width: 60em }
"""


@dataclass(frozen=True)
class Picture:
    """A picture of a page: what it shows, as plain text, and its PNG or JPEG file."""

    title: str
    note: str
    content: bytes


def figure_png(figure: Figure, dpi: int = 110) -> bytes:
    """The figure as a PNG file."""
    FigureCanvasAgg(figure)
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=dpi)
    return buffer.getvalue()


def figure_text(text: str) -> str:
    """Names of runs, files and classes for a figure: their dollars begin no formula."""
    return printable(text).replace("$", r"\$")


def array_png(pixels: np.ndarray) -> bytes:
    """(H, W, 3) uint8 RGB as a PNG file."""
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, format="PNG", optimize=True)
    return buffer.getvalue()


def array_jpeg(pixels: np.ndarray, quality: int = 82) -> bytes:
    """(H, W, 3) uint8 RGB as a JPEG file."""
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, format="JPEG", quality=quality)
    return buffer.getvalue()


def image_tag(content: bytes, text: str) -> str:
    """An <img> that holds a PNG or JPEG file; ``text`` is plain and describes it."""
    kind = "png" if content.startswith(b"\x89PNG") else "jpeg"
    with Image.open(io.BytesIO(content)) as image:
        width, height = image.size
    data = base64.b64encode(content).decode()
    return (
        f'<img width="{width}" height="{height}" alt="{html.escape(text)}" '
        f'src="data:image/{kind};base64,{data}">'
    )


def page(title: str, note: str, body: str, style: str = "", script: str = "") -> str:
    """A whole HTML page.

    Args:
        title, note: plain text.
        body: HTML.
        style, script: CSS and JavaScript of the page.
    """
    name = html.escape(title)
    scripts = f"<script>{script}</script>\n" if script else ""
    return (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        f"<title>{name}</title>\n"
        f"<style>{_STYLE}{style}</style>\n</head>\n<body>\n<h1>{name}</h1>\n"
        f'<p class="note">{html.escape(note)}</p>\n{body}\n{scripts}</body>\n</html>\n'
    )


def pictures_page(title: str, note: str, pictures: Sequence[Picture], head: str = "") -> str:
    """A page of pictures, one below the other; ``head`` is HTML above them."""
    figures = [
        f"<h2>{html.escape(picture.title)}</h2>\n<figure>"
        f"{image_tag(picture.content, picture.title)}\n"
        f"<figcaption>{html.escape(picture.note)}</figcaption></figure>"
        for picture in pictures
    ]
    return page(title, note, "\n".join([head, *figures] if head else figures))


def page_files(name: str, text: str, pictures: Sequence[Picture]) -> dict[str, bytes]:
    """A page and its pictures by file name; pictures from the second on are numbered."""
    files = {f"{name}.html": text.encode("utf-8", "backslashreplace")}
    for number, picture in enumerate(pictures, start=1):
        files[f"{name}.png" if number == 1 else f"{name}_{number}.png"] = picture.content
    return files


def save(folder: Path, files: dict[str, bytes]) -> None:
    """Write files by name, each whole or not at all, and say where they are.

    Raises:
        UserError: the folder cannot be written to.
    """
    folder = folder.expanduser()
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for name, content in files.items():
            write_atomically(folder / name, content)
            print(printable(f"see {folder / name} ({len(content) / 1024:.0f} KiB)"))
    except OSError as error:
        raise UserError(
            f"--output {str(folder)!r} cannot be written to ({error.strerror}); give another folder"
        ) from error
