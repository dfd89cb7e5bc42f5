"""That the attacker is shown what the server sees and nothing else."""

from dataclasses import fields

import pytest
import torch
from torch import Tensor

from projects.cafe.federation import Federation, observe
from projects.cafe.horizontal import observe_horizontal
from projects.cafe.nets import ServerNet, conv_bottom
from projects.cafe.schedules import uniform

RECORDS, CLASSES = 12, 3
SCHEDULE = uniform(RECORDS, 4, 6, 0)


def case(parties):
    """Draw blocks and labels, and build a federation."""
    blocks = [torch.rand(RECORDS, 1, 4, 4, generator=torch.Generator().manual_seed(party)) for party in range(parties)]
    bottoms = [conv_bottom(1, 4, (3, 4), 6, 5, party) for party in range(parties)]
    return blocks, torch.arange(RECORDS) % CLASSES, Federation(bottoms, ServerNet(parties, 5, CLASSES, 0))


def tensors(value):
    """Walk through everything that an object holds, modules and their attributes too, and return the tensors."""
    if isinstance(value, Tensor):
        return [value]
    if isinstance(value, dict):
        return [found for inner in value.values() for found in tensors(inner)]
    if isinstance(value, (list, tuple)):
        return [found for inner in value for found in tensors(inner)]
    return tensors(vars(value)) if hasattr(value, "__dict__") and not isinstance(value, type) else []


@pytest.mark.parametrize("trained", [False, True])
@pytest.mark.parametrize("horizontal", [False, True])
def test_the_view_holds_no_data(horizontal, trained):
    """No tensor in it leads to a graph, lies in the memory of the parties' data, or has a row a record but for the schedule."""
    blocks, labels, federation = case(1 if horizontal else 4)
    optimiser = torch.optim.SGD(federation.parameters(), 0.1) if trained else None

    def leaky(gradients, number, party):
        return {name: gradient.clone().requires_grad_() * 1 for name, gradient in gradients.items()}

    if horizontal:
        (view,) = observe_horizontal(federation, blocks, [labels], [SCHEDULE], optimiser, defence=leaky)
    else:
        view = observe(federation, blocks, labels, SCHEDULE, optimiser, defence=leaky)
    assert {field.name for field in fields(view)} == {"bottoms", "server", "schedule", "gradients", "shapes", "labels", "reference_loss"}
    assert view.labels is None
    held = tensors(vars(view))
    assert len(held) > 80
    private = {block.untyped_storage().data_ptr() for block in [*blocks, labels]}
    for tensor in held:
        assert tensor.grad_fn is None
        assert tensor.grad is None
        assert tensor.untyped_storage().data_ptr() not in private
        assert RECORDS not in tensor.shape or tensor is view.schedule
    assert view.shapes == [tuple(block.shape[1:]) for block in blocks]


def test_labels_are_shown_only_if_they_are_known():
    blocks, labels, federation = case(4)
    assert torch.equal(observe(federation, blocks, labels, SCHEDULE, known_labels=True).labels, labels)
