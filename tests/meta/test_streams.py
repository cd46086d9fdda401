"""Which stream waits for which; there may be no CUDA device."""

from contextlib import contextmanager

import torch

from lightning_lopt.meta.engine import streams
from lightning_lopt.meta.engine.streams import side_by_side


def test_each_call_has_a_stream_of_its_own_between_two_waits(monkeypatch):
    events = []

    class Stream:
        def __init__(self, name):
            self.name = name

        def wait_stream(self, other):
            events.append(f"{self.name} waits for {other.name}")

    @contextmanager
    def current(stream):
        events.append(f"on {stream.name}")
        yield

    monkeypatch.setattr(torch.cuda, "current_stream", lambda device: Stream("main"))
    monkeypatch.setattr(torch.cuda, "stream", current)
    monkeypatch.setattr(streams, "_stream", lambda device, number: Stream(f"side {number}"))
    assert side_by_side([lambda: 1, lambda: 2], torch.device("cuda", 0)) == [1, 2]
    before = [event for number in (0, 1) for event in (f"side {number} waits for main", f"on side {number}")]
    assert events == [*before, "main waits for side 0", "main waits for side 1"]


def test_on_a_cpu_calls_are_made_one_after_the_other():
    made = []
    assert side_by_side([lambda: made.append(1), lambda: made.append(2)], torch.device("cpu")) == [None, None]
    assert made == [1, 2]
