"""``run_page.py``: a page's commands are run, and what they gave stands in it."""

from pathlib import Path

import cv2
import numpy as np
import pytest
import run_page

PAGE = """# A page

```bash
printf '| a |\\n|---|\\n' > table.md
```

```bash no-run: needs photographs
printf '| 1 |\\n' >> table.md
```

```bash
# for a reader
exit 3
```

<!-- file: table.md -->
<!-- end -->

What stays.

<!-- file: table.md -->
old
<!-- end -->

<!-- picture: drawn.png -->
![Drawn](images/drawn.jpg)
"""


@pytest.fixture
def page(tmp_path: Path) -> Path:
    (tmp_path / "images").mkdir()
    path = tmp_path / "page.md"
    path.write_text(PAGE)
    cv2.imwrite(str(tmp_path / "drawn.png"), np.full((300, 2000, 3), 200, np.uint8))
    return path


def test_a_page_is_run_and_filled(page: Path) -> None:
    arguments = [str(page), "--folder", str(page.parent)]
    assert run_page.main(arguments) == 0
    text = page.read_text()
    assert "<!-- file: table.md -->\n\n| a |\n|---|\n| 1 |\n\n<!-- end -->" in text
    assert text.count("| 1 |\n\n<!-- end -->\n\n") == 2 and "\nWhat stays.\n" in text
    assert "old" not in text and text.count("```") == 6
    assert cv2.imread(str(page.parent / "images" / "drawn.jpg")).shape == (150, 1000, 3)
    (page.parent / "table.md").write_text("| b |\n")
    assert run_page.main([*arguments, "--fill"]) == 0
    assert "-->\n\n| b |\n\n<!-- end" in page.read_text()
    assert run_page.main([*arguments, "--from-block", "2"]) == 0
    assert "| b |\n| 1 |" in page.read_text()


def test_a_failed_block_ends_it_and_the_page_stays(page: Path) -> None:
    page.write_text(PAGE.replace(">> table.md", ">> table.md; false; true"))
    before = page.read_text()
    with pytest.raises(SystemExit, match="a block ended with status 1: printf '| 1 |"):
        run_page.main([str(page), "--folder", str(page.parent)])
    assert page.read_text() == before


@pytest.mark.parametrize("name", ["drawn.png", "table.md"])
def test_what_was_not_made_is_named(page: Path, name: str) -> None:
    page.write_text(PAGE.replace("> table.md", "> other.md"))
    (page.parent / "table.md").write_text("x")
    (page.parent / name).unlink()
    before = page.read_text()
    with pytest.raises(SystemExit, match=name):
        run_page.main([str(page), "--folder", str(page.parent)])
    assert page.read_text() == before
