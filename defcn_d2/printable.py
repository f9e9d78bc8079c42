"""Text from files and data sets, made harmless for terminals and logs."""


def printable(text: object) -> str:
    """The text with control characters as escapes, on one line.

    A name that holds them could move the cursor, hide what was printed before, or look like
    another line.
    """
    return "".join(
        character if character.isprintable() else character.encode("unicode_escape").decode()
        for character in str(text)
    )
