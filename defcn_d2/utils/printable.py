"""Text from files and data sets, made harmless for terminals and logs."""

import logging
import re

# Colours, which Detectron2 puts into its own messages, can do no harm.
_KEPT = re.compile(r"(\x1b\[[0-9;]*m|[\n\t])")


def printable(text: object) -> str:
    """The text with control characters as escapes, on one line.

    A name that holds them could move the cursor, hide what was printed before, or look like
    another line.
    """
    return "".join(
        character if character.isprintable() else character.encode("unicode_escape").decode()
        for character in str(text)
    )


def printable_lines(text: object) -> str:
    """The text of ``printable`` with lines, tabs and colours kept: for messages with names."""
    parts = _KEPT.split(str(text))
    return "".join(part if i % 2 else printable(part) for i, part in enumerate(parts))


def escape_controls(record: logging.LogRecord) -> bool:
    """Pass a log record through ``printable_lines``: a filter for log handlers."""
    record.msg, record.args = printable_lines(record.getMessage()), None
    return True
