import random
import subprocess
import sys

import numpy as np
import torch

from shared.seeding import derive_seed, generator, rng_state, set_rng_state


def test_seeds_depend_on_the_whole_key():
    keys = [(0,), (1,), (0, "a"), (0, "b"), ("0",), (0, 1), (1, 0), ("01",), (0, "a", 1)]
    assert len({derive_seed(*key) for key in keys}) == len(keys)
    assert all(0 <= derive_seed(*key) < 2**63 for key in keys)


def test_seeds_are_the_same_in_another_process():
    code = "from shared.seeding import derive_seed; print(derive_seed(3, 'flip', 7))"
    there = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert int(there) == derive_seed(3, "flip", 7)


def test_generators_do_not_touch_the_global_one():
    torch.manual_seed(0)
    expected = torch.rand(3)
    torch.manual_seed(0)
    first, second = torch.rand(5, generator=generator(1)), torch.rand(5, generator=generator(1))
    assert torch.equal(first, second)
    assert torch.equal(torch.rand(3), expected)


def test_states_come_back_through_a_safe_file(tmp_path):
    torch.save(rng_state(), tmp_path / "state")
    drawn = random.random(), np.random.rand(3), torch.rand(3)
    set_rng_state(torch.load(tmp_path / "state", weights_only=True))
    again = random.random(), np.random.rand(3), torch.rand(3)
    assert drawn[0] == again[0]
    assert (drawn[1] == again[1]).all()
    assert torch.equal(drawn[2], again[2])
