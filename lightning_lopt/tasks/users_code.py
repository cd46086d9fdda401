"""Errors of somebody else's code, said in one sentence."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

LONGEST = 300  # characters of a foreign error's text


class UsersCodeError(ValueError):
    """Somebody's module or data raised; the message names what was called, the type of the error and its text."""


@contextmanager
def users_code(what: str, advice: str = "") -> Iterator[None]:
    """Errors that somebody's code raises inside become a :class:`UsersCodeError`.

    Args:
        what: what is called, as ``"Model.setup"``.
        advice: what to do about it.

    Raises:
        UsersCodeError: in place of any ``Exception``.

    Example:
        >>> with users_code("Model.setup"):
        ...     1 / 0
        Traceback (most recent call last):
        ...
        lightning_lopt.tasks.users_code.UsersCodeError: Model.setup fails (ZeroDivisionError: division by zero).
    """
    try:
        yield
    except UsersCodeError:
        raise
    except Exception as error:
        raise UsersCodeError(f"{what} fails ({named(error)}){'; ' if advice else ''}{advice}.") from error


def named(error: BaseException) -> str:
    """Type and text of an error, on one line."""
    text = " ".join(str(error).split())
    if len(text) > LONGEST:
        text = text[:LONGEST] + "..."
    return f"{type(error).__name__}: {text}" if text else type(error).__name__
