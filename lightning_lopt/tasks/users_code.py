"""Errors of the user's code as messages of one sentence."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

LONGEST = 300  # largest number of characters of an error's text


class UsersCodeError(ValueError):
    """An error in the user's module or data; the message names the called code, the type of the error and its text."""


@contextmanager
def users_code(label: str, advice: str = "") -> Iterator[None]:
    """Turn errors of the user's code in this context into a :class:`UsersCodeError`.

    Args:
        label: name of the called code, for instance ``"Model.setup"``.
        advice: what the user can do about the error.

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
        raise UsersCodeError(f"{label} fails ({named(error)}){'; ' if advice else ''}{advice}.") from error


def named(error: BaseException) -> str:
    """Type and text of an error, on one line."""
    text = " ".join(str(error).split())
    if len(text) > LONGEST:
        text = text[:LONGEST] + "..."
    return f"{type(error).__name__}: {text}" if text else type(error).__name__
