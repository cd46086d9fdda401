"""Argument parsers and error handling of all commands: a help text ends in an example, an error is one sentence."""

from __future__ import annotations

import argparse
import os
import sys
import textwrap
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NoReturn

from lightning_lopt.terminal import complain

FAILED, BAD_INPUT, STOPPED = 1, 2, 130
"""Exit statuses: the machine lacks something (a package, disk space); the call is wrong; the user pressed Ctrl-C."""
_WIDTH = 100  # columns of a help text

Command = Callable[[Sequence[str]], int]


class CommandError(Exception):
    """An error in one sentence for the shell.

    Args:
        sentence: what is wrong, what arrived and what to do.
        status: exit status of the command.
    """

    def __init__(self, sentence: str, status: int = FAILED) -> None:
        super().__init__(sentence)
        self.status = status


def whole_number(text: str) -> int:
    """The whole number in the text of an argument, which must be at least 1.

    Raises:
        argparse.ArgumentTypeError: if the text is not a whole number of at least 1.

    >>> whole_number("3")
    3
    """
    if not text.isascii() or not text.isdigit() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"must be a whole number of at least 1, got {text!r}")
    return int(text)


def writable_folder(folder: Path, option: str) -> Path:
    """Make a folder for results, and return it; commands call this function before they begin to work.

    Args:
        folder: the folder.
        option: the option that names the folder, or a file in the folder.

    Raises:
        CommandError: if no file can be written to the folder.
    """
    from lightning_lopt.errors import cause
    from lightning_lopt.io.whole import draft_folder

    try:
        folder.mkdir(parents=True, exist_ok=True)
        with draft_folder(folder):
            pass
    except OSError as error:
        reason = error.strerror or cause(error)
        raise CommandError(f"nothing can be written to {folder} ({reason}); give another {option}.") from error
    return folder


class CommandParser(argparse.ArgumentParser):
    """The arguments of one command; its help ends in an example, and the error of a wrong argument is one sentence.

    Args:
        command: name of the command, without ``lightning-lopt``.
        description: purpose of the command, in sentences.
        example: a whole command line.
        notes: texts between the options and the example; lines are wrapped only in a text without line breaks.

    >>> CommandParser("info", "Show a rule.", example="lightning-lopt info base").format_help().splitlines()[-1]
    'example: lightning-lopt info base'
    """

    def __init__(self, command: str, description: str, *, example: str, notes: Sequence[str] = ()) -> None:
        texts = [note if "\n" in note else textwrap.fill(note, _WIDTH) for note in (*notes, f"example: {example}")]
        super().__init__(
            f"lightning-lopt {command}",
            description=textwrap.fill(description, _WIDTH),
            epilog="\n\n".join(texts),
            formatter_class=argparse.RawDescriptionHelpFormatter,
        )

    def error(self, message: str) -> NoReturn:
        """End the process with one sentence and the status of bad input."""
        complain(f"{self.prog}: {message.rstrip('.')}; '{self.prog} --help' shows all arguments.")
        sys.exit(BAD_INPUT)


def run(command: Command, arguments: Sequence[str], *, traceback: bool = False) -> int:
    """Run a command, and return the exit status.

    An exception becomes one sentence on standard error. A ``ValueError`` means bad input (status 2). An ``ImportError``
    or ``OSError`` means that the machine lacks something (status 1). Other exceptions are errors of this package, and
    are not caught.

    Args:
        command: function that takes the arguments and returns a status.
        arguments: arguments from the shell.
        traceback: whether to let all exceptions pass.

    >>> run(lambda arguments: len(arguments), ["a", "b", "c"])
    3
    """
    try:
        return command(arguments)
    except KeyboardInterrupt:
        if traceback:
            raise
        complain("lightning-lopt: stopped.")
        return STOPPED
    except BrokenPipeError:  # the reading process closed the pipe, as in "lightning-lopt info base | head"
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return FAILED
    except (CommandError, ValueError, ImportError, OSError) as error:
        if traceback:
            raise
        text = " ".join(str(error).split())
        text = f"a file could not be read or written ({text.rstrip('.')})." if isinstance(error, OSError) else text
        complain(f"lightning-lopt: {text}")
        if isinstance(error, CommandError):
            return error.status
        return BAD_INPUT if isinstance(error, ValueError) else FAILED
