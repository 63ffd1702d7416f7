"""What the user can put right, said in one line: what was given, what is allowed, where to set it."""

import difflib
from collections.abc import Iterable


class UserError(ValueError):
    """A wrong argument, option or file; the tools print its message alone and exit with status 2."""


def nearest(name: object, allowed: Iterable[str], cutoff: float = 0.6) -> str:
    """The part of a message that offers the nearest allowed name, or nothing where none is near.

    Args:
        name (object): What was given for the name; others than strings have no near one.
        allowed (Iterable[str]): The names that would have been right.
        cutoff (float): How alike the two must be, from 0 to 1; see :func:`difflib.get_close_matches`.

    Returns:
        str: ``" (did you mean 'b12'?)"`` or an empty string.
    """
    match = difflib.get_close_matches(str(name), list(allowed), n=1, cutoff=cutoff)
    return f' (did you mean {match[0]!r}?)' if match else ''
