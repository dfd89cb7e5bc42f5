"""What the server of a federation sees, as the rivals take it."""

from __future__ import annotations

from torch import Tensor

from projects.cafe.federation import AttackerView
from projects.cafe.rivals.matching import Attacked


def attacked_at(view: AttackerView, number: int = -1) -> Attacked:
    """Return the model at a recorded round, and its parameters whose gradients were recorded: the parties' in order, then the server's."""
    federation, gradients = view.federation(number), view.gradients[number]
    owners = zip([*federation.bottoms, federation.server], [*gradients.parties, gradients.server], strict=True)
    parameters = [net.get_parameter(name) for net, own in owners for name in own]
    return Attacked(federation, parameters, federation.loss)


def observed_at(view: AttackerView, number: int = -1) -> list[Tensor]:
    """Return a recorded round's gradients in the order of `attacked_at`'s parameters."""
    gradients = view.gradients[number]
    return [gradient for own in [*gradients.parties, gradients.server] for gradient in own.values()]
