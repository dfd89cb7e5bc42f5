import pytest
import torch


@pytest.fixture(autouse=True, scope="module")
def one_thread():
    """Small networks run fastest on one thread, and other processes may use the second core; a module's own fixtures are made under it too."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)
