"""docs/configuration.md is made of defaults.py and of the components, and is up to date."""

import pytest
import registries
from config_reference import PAGE, SOURCE, arguments_of, comment_of, comments, keys, reference


def test_page_is_up_to_date() -> None:
    current = reference(SOURCE.read_text())
    assert PAGE.read_text() == current, "run `python tools/config_reference.py`"
    for key in keys():
        assert f"| `{key.rpartition('.')[2]}` |" in current


def test_comments_of_a_source() -> None:
    first, second = "# why\n# so\nnode.A = 1\nnode.B = 2\n", "node.C = 3\n"
    known = comments(f"{first}\n{second}# a part\ncfg.X.Y = CN()\ncfg.X.Y.D = 4\n")
    assert known == {"A": "why so", "B": "why so", "C": "", "X.Y": "a part", "X.Y.D": "a part"}
    assert comment_of("MODEL.A", known) == "why so"
    assert comment_of("MODEL.X.Y.E.F", known) == "a part"  # that of the node it stands in
    assert comment_of("MODEL.C", known) == ""


def test_a_key_without_a_comment_is_an_error() -> None:
    source = SOURCE.read_text().replace("    # Number of foreground classes K.\n", "")
    with pytest.raises(ValueError, match="NUM_CLASSES has no comment in defaults.py"):
        reference(source)


def test_texts_of_arguments() -> None:
    class Base:
        def __init__(self, *, far: float = 1.0, wide: int = 2):
            """
            Args:
                far: from here: in pixels, or
                    in strides.

                wide, high: sides.

            Raises:
                ValueError: never.
            """

    class Own(Base):
        def __init__(self, *, wide: int = 3, **arguments: object):
            """Make one.

            Args:
                wide: its own.
            """

    texts = {"far": "from here: in pixels, or in strides.", "wide": "its own.", "high": "sides."}
    assert arguments_of(Own) == texts
    assert arguments_of(int) == {}


def test_an_argument_without_a_text_is_an_error() -> None:
    with registries.restored():

        @registries.REGISTRIES["MATCHER"].register()
        class Silent:
            def __init__(self, *, few: int = 7):
                pass

        with pytest.raises(ValueError, match="Silent: few has no text; add it to Args"):
            reference(SOURCE.read_text())
