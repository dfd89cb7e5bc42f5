"""The authors' single loop: a step of I, of II and of III in every round, under the model of that round, which may train meanwhile."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from copy import deepcopy
from typing import get_args

import torch
from torch import Tensor

from projects.cafe.checks import check_rounds
from projects.cafe.federation import AttackerView, Federation, Gradients, adam, update, uploads
from projects.cafe.inversion import DataDescent
from projects.cafe.middle import Middle, MiddleDescent
from projects.cafe.nets import BottomNet
from projects.cafe.protection import Protection
from projects.cafe.recovery import Cafe, Clock, Keep, Recovery, descended, unkept
from projects.cafe.schedule_files import Drawn, make_schedule
from projects.cafe.watching import Watch, Watched
from shared.seeding import derive_seed
from shared.vertical.records import Records

PARTS = 5
"""In so many parts the rounds are kept, to go on from; at least `LEAST` rounds each."""
LEAST = 500


class SingleLoop:
    """An attacker who takes a step of I, II and III in each round, and keeps nothing of the rounds.

    Args:
        bottoms: the parties' nets, for the sizes of h and u.
        classes: number of classes.
        shapes: shape of a record's block at each party.
        records: N.
        batch: K.
        cafe: settings; `solver` and `data` say what this class is.
        labels: (N,) where the attacker knows them.
        reference_loss: see `Federation`.
        device: of all that is sought.
    """

    def __init__(
        self,
        bottoms: Sequence[BottomNet],
        classes: int,
        shapes: Sequence[Sequence[int]],
        records: int,
        batch: int,
        cafe: Cafe,
        labels: Tensor | None = None,
        reference_loss: bool = False,
        device: torch.device | str = "cpu",
    ) -> None:
        lr_outputs = cafe.lr_outputs or 1 / (2 * batch)
        self.middles = [
            MiddleDescent(records, _widths(bottom), lr_outputs, cafe.lr_inputs, cafe.parity, derive_seed(cafe.seed, party), device=device)
            for party, bottom in enumerate(bottoms)
        ]
        self.data = DataDescent(records, shapes, classes, labels, cafe.weights, cafe.lr, cafe.parity, reference_loss, cafe.seed, device)

    def step(self, federation: Federation, members: Tensor, upload: Gradients, scale: float = 1.0) -> None:
        """Take the three steps of a round, before the model is updated.

        Args:
            federation: model of the round.
            members: (K,) indices of its records.
            upload: gradients that the server holds of it.
            scale: K over the mean of all K, as a mean over a larger batch counts each record less.
        """
        for middle, own in zip(self.middles, upload.parties, strict=True):
            middle.step_outputs(members, own["first.bias"] * scale)
            middle.step_inputs(members, own["first.weight"] * scale)
        self.data.step(federation.bottoms, federation.server, members, upload, [middle.inputs for middle in self.middles])

    def tensors(self) -> dict[str, Tensor]:
        """Return all that changes from round to round, by name."""
        found = {f"data.{name}": value for name, value in self.data.tensors().items()}
        return found | {f"{m}.{name}": value for m, middle in enumerate(self.middles) for name, value in middle.tensors().items()}


def follow(
    federation: Federation,
    records: Records,
    split: Callable[[Tensor], Sequence[Tensor]],
    how: Watch,
    cafe: Cafe,
    protection: Protection | None = None,
    keep: Keep = unkept,
) -> tuple[Watched, Recovery]:
    """Attack `cafe.steps` rounds as they are played; those of a schedule with fewer rounds come again and again.

    Args:
        federation: model at the first round; it is not changed.
        records: those under attack.
        split: splits features into one block a party.
        how: the rounds; `rounds` None draws a new batch each, or takes all of a file.
        cafe: settings.
        protection: what the parties do to their gradients.
        keep: see `Keep`.

    Returns:
        The last model and the schedule as a view without gradients, and what was recovered.

    Raises:
        ValueError: see `observe`, or if there are workers or a window, which this loop has not.
    """
    if how.workers > 1 or how.window is not None:
        raise ValueError("the single loop with step III is for vertical learning and all rounds: leave workers and window out, or take closed_form")
    protection, federation, clock = protection or Protection(), deepcopy(federation), Clock()
    device = next(federation.parameters()).device
    blocks, labels = [block.to(device) for block in split(records.values())], records.labels.to(device)
    drawn = cafe.steps if how.schedule in get_args(Drawn) else None
    schedule = make_schedule(how.schedule, len(records), how.batch, how.rounds or drawn, how.seed)
    mean = float(schedule.sum(1).double().mean())
    optimiser = adam(federation, how.lr) if how.lr else None
    check_rounds(federation, blocks, labels, schedule, optimiser)
    shapes, told = [tuple(block.shape[1:]) for block in blocks], labels if how.known_labels else None
    nets: list[BottomNet] = list(federation.bottoms)  # type: ignore[arg-type]
    batch = int(schedule.sum(1).max())
    loop = SingleLoop(nets, len(federation.server.top.bias), shapes, len(records), batch, cafe, told, federation.reference_loss, device)
    members = [row.nonzero().flatten() for row in schedule.to(device)]

    def play(start: int, stop: int) -> dict[str, Tensor]:
        for number in range(start, stop):
            chosen = members[number % len(members)]
            uploaded = uploads(federation, [block[chosen] for block in blocks], labels[chosen], number, protection.defence, protection.local)
            loop.step(federation, chosen, uploaded, len(chosen) / mean)
            if optimiser is not None:
                update(federation, optimiser, uploaded)
        return loop.tensors() | _of_the_model(federation, optimiser)

    length = max(LEAST, -(-cafe.steps // PARTS))
    with clock("single loop"):
        for start in range(0, cafe.steps, length):
            stop = min(start + length, cafe.steps)
            _restore(keep(f"rounds-{stop}", lambda start=start, stop=stop: play(start, stop)), loop, federation, optimiser)  # type: ignore[misc]
    view = AttackerView([federation.bottoms], [federation.server], schedule, [], shapes, told, federation.reference_loss)
    middle = [Middle(own.outputs, own.inputs, None) for own in loop.middles]
    return Watched(view, torch.arange(len(records))), descended(view, loop.data, middle, clock)


def _of_the_model(federation: Federation, optimiser: torch.optim.Optimizer | None) -> dict[str, Tensor]:
    """Return the parameters and the state of Adam, by name, if the model trains."""
    if optimiser is None:
        return {}
    state = optimiser.state_dict()["state"]
    found = {f"model.{name}": value.detach() for name, value in federation.named_parameters()}
    return found | {f"adam.{number}.{name}": value for number, own in state.items() for name, value in own.items()}


@torch.no_grad()
def _restore(kept: dict[str, Tensor], loop: SingleLoop, federation: Federation, optimiser: torch.optim.Optimizer | None) -> None:
    """Bring all that changes to what was kept."""
    for name, value in loop.tensors().items():
        value.copy_(kept[name])
    if optimiser is None:
        return
    for name, parameter in federation.named_parameters():
        parameter.copy_(kept[f"model.{name}"])
    state: dict[int, dict[str, Tensor]] = {}
    for name, value in kept.items():
        if name.startswith("adam."):
            _, number, part = name.split(".")
            state.setdefault(int(number), {})[part] = value.clone()
    optimiser.load_state_dict({"state": state, "param_groups": optimiser.state_dict()["param_groups"]})


def _widths(bottom: BottomNet) -> tuple[int, int]:
    """Return d1 and d2."""
    return bottom.first.in_features, bottom.first.out_features
