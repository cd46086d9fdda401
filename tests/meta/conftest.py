import pytest
import torch


@pytest.fixture
def one_thread():
    """For tests that fork: the threads of OpenMP do not live on in the child, which would wait for them for ever."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)
