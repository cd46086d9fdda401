"""Calls of one function in several processes with one thread each."""

from __future__ import annotations

import multiprocessing
import pickle
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, ProcessPoolExecutor, wait
from pathlib import Path
from typing import Any, TypeVar

import torch

from lightning_lopt.user_files import import_again, imported_files

_Input = TypeVar("_Input")
_Output = TypeVar("_Output")


def call_in_processes(
    function: Callable[[_Input], _Output], inputs: Sequence[_Input], workers: int
) -> Iterator[tuple[_Input, _Output]]:
    """Each input with the result of ``function``, in the order in which the calls finish.

    The function and its captured objects are sent to each process once.

    Args:
        function: a function or a method that can be pickled; its objects may have classes from the user's files.
        inputs: inputs in the order in which the calls begin.
        workers: number of processes, >= 1.

    Raises:
        BrokenExecutor: if a process was killed.
    """
    context = multiprocessing.get_context("spawn")  # torch's threads hang after a fork
    initargs = (imported_files(), pickle.dumps(function))
    with ProcessPoolExecutor(workers, mp_context=context, initializer=_set_up_process, initargs=initargs) as pool:
        waiting = {pool.submit(_call, value): value for value in inputs}
        try:
            while waiting:
                finished, _ = wait(waiting, return_when=FIRST_COMPLETED)
                for future in finished:
                    yield waiting.pop(future), future.result()
        finally:
            pool.shutdown(wait=True, cancel_futures=True)


_function: Callable[[Any], Any] | None = None


def _set_up_process(files: Mapping[str, Path], function: bytes) -> None:
    """Unpickle the function in a new process, after the import of the user's files, which may define its classes."""
    global _function
    torch.set_num_threads(1)
    import_again(files)
    _function = pickle.loads(function)


def _call(value: Any) -> Any:
    assert _function is not None
    return _function(value)
