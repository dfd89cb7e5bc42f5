"""The model that clients and server hold in parts."""

import pytest
import torch
from helpers.vafl_reference import drawn, simulator

from projects.vafl.perturbed import Noise


def test_embeddings_lie_side_by_side_in_the_order_of_the_clients():
    model, (blocks, _) = simulator("mlp").model, drawn()
    parts = [bottom(block) for bottom, block in zip(model.bottoms, blocks, strict=True)]
    assert torch.equal(model.embed(blocks), torch.cat(parts, 1))
    assert torch.equal(model(blocks), model.head(torch.cat(parts, 1)))
    assert model(blocks).shape == (40, 3)


def test_each_client_has_its_own_noise_or_none():
    model, (blocks, _) = simulator().model, drawn()
    noises = model.embed(blocks, [Noise(1, 1.0), None, Noise(2, 1.0)]) - model.embed(blocks)
    assert noises[:, 3:6].abs().max() == 0
    assert not torch.allclose(noises[:, :3], noises[:, 6:])
    assert noises[:, :3].std().item() == pytest.approx(1.0, rel=0.2)


def test_a_model_of_other_parties_is_refused():
    with pytest.raises(ValueError, match="zip"):
        simulator().model(drawn()[0][:2])
