"""Progress of long commands, on a terminal and elsewhere."""

import io

import pytest

from lightning_lopt import progress as module
from lightning_lopt.progress import Progress


class Terminal(io.StringIO):
    def isatty(self):
        return True


@pytest.fixture
def clock(monkeypatch):
    """Seconds that a test sets."""
    now = [0.0]
    monkeypatch.setattr(module.time, "monotonic", lambda: now[0])
    return now


def test_elsewhere_it_is_a_line_at_once_then_now_and_then_and_at_the_end(clock):
    stream = io.StringIO()
    with Progress("work", 100, "runs", stream=stream) as progress:
        assert stream.getvalue() == "work 0/100 runs [00:00<?]\n"
        for second in range(1, 41):
            clock[0] = second
            progress.doing(f"part {second}")
            progress.advance()
    lines = stream.getvalue().splitlines()
    assert lines[1:] == [
        "work: part 15 14/100 runs [00:15<01:32]",
        "work: part 30 29/100 runs [00:30<01:13]",
        "work: part 40 40/100 runs [00:40<01:00]",
    ]
    assert not {"\r", "\x1b", "█"} & {*stream.getvalue()}


def test_without_a_total_there_is_the_time(clock):
    stream = io.StringIO()
    progress = Progress("work", stream=stream)
    clock[0] = 3.0
    progress.line("reading")
    progress.to(1, 2, "later")
    progress.close()
    progress.close()
    assert stream.getvalue().splitlines() == [
        "work [00:00]",
        "work: reading [00:03]",
        "work: later 1/2 steps [00:03<00:03]",
    ]


def test_on_a_terminal_it_is_one_bar(monkeypatch):
    stream = Terminal()
    with Progress("work", 2, "runs", stream=stream) as progress:
        assert "work |" in stream.getvalue()
        assert "0/2 runs" in stream.getvalue()
        progress.doing("first")
        progress.advance(2)
    shown = stream.getvalue()
    assert "work: first |" in shown
    assert "2/2 runs" in shown
    assert shown.count("\n") == 1


def test_what_it_shows_commands_no_terminal():
    stream = io.StringIO()
    with Progress("a\x1b[2J", stream=stream) as progress:
        progress.line("b\x1b]0;evil\x07\r\n")
    assert "\x1b" not in stream.getvalue()
    assert "\r" not in stream.getvalue()
