"""Mistakes of a user: one sentence that names the thing, its value and the remedy."""

import contextlib
import difflib
from collections.abc import Iterable, Iterator


class UserError(Exception):
    """A mistake outside the program: the message names the thing, its value and the remedy."""


def did_you_mean(name: object, names: Iterable[str], likely: Iterable[str] = ()) -> str:
    """End of a sentence about an unknown ``name``: all of ``names`` if few, and the most alike.

    Args:
        likely: those of ``names`` that go before others as alike and with the same last part.
    """
    known = sorted(set(names))
    by_lower = {other.lower(): other for other in known}
    lower = str(name).lower()
    tail = lower.rpartition(".")[2]
    elsewhere = [key for key in by_lower if key.rpartition(".")[2] == tail]  # below other nodes
    alike = difflib.get_close_matches(lower, elsewhere, n=1, cutoff=0)
    preferred = [key.lower() for key in likely if key.lower() in elsewhere]
    if preferred:
        limit = difflib.SequenceMatcher(None, alike[0], lower).ratio() - 0.1
        alike = difflib.get_close_matches(lower, preferred, n=1, cutoff=max(limit, 0)) or alike
    alike = alike or difflib.get_close_matches(lower, by_lower, n=1, cutoff=0.5)
    hint = f"did you mean {name if name in known else by_lower[alike[0]]!r}?" if alike else ""
    if 0 < len(known) <= 12:
        shown = ", ".join(other or "''" for other in known)
        return f"one of: {shown} ({hint})" if hint else f"one of: {shown}"
    return hint or "there is nothing like it"


@contextlib.contextmanager
def as_user_error(
    kinds: type[BaseException] | tuple[type[BaseException], ...], message: str
) -> Iterator[None]:
    """Within the block, errors of these kinds become ``UserError``.

    Args:
        kinds: error types that only the user's input can cause there.
        message: its sentence; ``{}`` stands for what the error says.
    """
    try:
        yield
    except kinds as error:
        raise UserError(message.replace("{}", first_line(error))) from error


def first_line(error: BaseException) -> str:
    """The first line of an error's message."""
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    text = str(error.args[0]) if isinstance(error, KeyError) and error.args else str(error)
    return (text.strip().splitlines() or [type(error).__name__])[0]
