"""A function is compiled once for each set of shapes, or called itself with the reason given once."""

import logging
import warnings

import pytest
import torch
from torch._dynamo.testing import CompileCounter

from lightning_lopt.compiling import CompiledFunction, signature_of


@pytest.fixture(autouse=True)
def nothing_compiled_yet():
    torch._dynamo.reset()


def called(compiled, values):
    return compiled(values, signature=signature_of({"values": values}), label="steps")


def test_compiled_once_for_each_set_of_shapes_and_the_time_is_logged(caplog):
    counter = CompileCounter()
    compiled = CompiledFunction(lambda values: 2 * values, backend=counter)
    with caplog.at_level(logging.INFO, logger="lightning_lopt"):
        for size in (3, 4, 3, 4):
            assert torch.equal(called(compiled, torch.ones(size)), torch.full((size,), 2.0))
    assert counter.frame_count == 2
    assert [record.message.split(" in ")[0] for record in caplog.records] == ["steps: compiled"] * 2


def test_a_function_that_cannot_be_traced_is_called_itself_also_where_it_writes_in_place():
    def double(values):
        values *= 2
        torch._dynamo.graph_break()
        return values

    compiled, values = CompiledFunction(double, backend="eager"), torch.ones(3)
    with pytest.warns(UserWarning, match="steps: not compiled"):
        called(compiled, values)
    assert torch.equal(values, torch.full((3,), 2.0))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        called(compiled, values)
    assert torch.equal(values, torch.full((3,), 4.0))
    assert list(compiled.uncompiled) == [signature_of({"values": values})]


def test_an_error_of_the_function_is_raised():
    def broken(values):
        raise KeyError("no such parameter")

    with pytest.raises(KeyError, match="no such parameter"), pytest.warns(UserWarning, match="not compiled"):
        called(CompiledFunction(broken, backend="eager"), torch.ones(3))
