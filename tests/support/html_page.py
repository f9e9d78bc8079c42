"""A reader of the pages that ``tools/visualize.py`` writes, for tests."""

import base64
import io
import re
from html.parser import HTMLParser
from pathlib import Path

from PIL import Image


class Page(HTMLParser):
    """The pictures and all text of a page; fails at whatever it would load from elsewhere."""

    def __init__(self, path: Path):
        super().__init__()
        self.pictures: list[Image.Image] = []
        self.text: list[str] = []
        self.tags: list[str] = []
        self.feed(path.read_text())

    def handle_starttag(self, tag: str, attrs: list) -> None:
        values = dict(attrs)
        self.tags.append(tag)
        assert "href" not in values and tag not in ("link", "iframe")
        if tag == "script":
            assert "src" not in values
        if tag == "img":
            kind, data = re.fullmatch(r"data:image/(png|jpeg);base64,(.*)", values["src"]).groups()
            content = base64.b64decode(data, validate=True)
            picture = Image.open(io.BytesIO(content))
            picture.load()
            assert picture.format == kind.upper()
            assert picture.size == (int(values["width"]), int(values["height"]))
            self.pictures.append(picture)

    def handle_data(self, data: str) -> None:
        self.text.append(data)
