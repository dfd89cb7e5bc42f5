"""An attack from a model and its records to an outcome, as the verbs and the tables run it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from types import MappingProxyType
from typing import cast

import torch

from projects.cafe.data import FederatedRecords
from projects.cafe.defences import FakeGradients
from projects.cafe.federation import AttackerView, Federation
from projects.cafe.judging import Outcome, judge
from projects.cafe.online import follow
from projects.cafe.protection import Protection
from projects.cafe.ranks import adapted
from projects.cafe.recovery import Cafe, Clock, Keep, Recovery, UnrecoverableError, recover, unkept
from projects.cafe.rivals.onview import RIVALS, Rival, aligned, rival
from projects.cafe.watching import FIRST, Watch, Watched, watch

METHODS: Mapping[str, str] = MappingProxyType(
    {
        "cafe": "CAFE: index alignment and the representation of records, over rounds whose members are known (Jin et al. 2021)",
        "aligned": "gradient matching over rounds whose members are known, without the representation (ablation of CAFE)",
        **RIVALS,
    }
)
"""What each attack is, in a line."""
SURROGATES = 400
"""Records of the attacker's own at most, with which the rank attacker computes gradients."""


@dataclass(frozen=True)
class Campaign:
    """An attack on a federation.

    Args:
        method: one of `METHODS`; cafe and aligned find all records, the others those of one round.
        watch: the rounds that the server records.
        cafe: settings of CAFE.
        steps: iterations of the other methods; None takes their own number.
        number: which recorded round the attacks on one round take, from 0.
        restarts: their runs, of which the one with the lowest objective is kept.
        variation: their weight of the total variation.
        adaptive: whether the attacker first undoes fake gradients by their ranks, see `RankAttacker`.
        seed: of the dummies.

    Raises:
        ValueError: if the method is unknown.
    """

    method: str = "cafe"
    watch: Watch = field(default_factory=Watch)
    cafe: Cafe = field(default_factory=Cafe)
    steps: int | None = None
    number: int = 0
    restarts: int = 1
    variation: float = 0.2
    adaptive: bool = False
    seed: int = 0

    def __post_init__(self) -> None:
        if self.method not in METHODS:
            raise ValueError(f"unknown attack {self.method!r}: choose one of {', '.join(METHODS)}")
        if self.adaptive and self.watch.workers > 1:
            raise ValueError("the adaptive attacker is for vertical learning: set adaptive=false, or workers=1")

    def run(self, federation: Federation, data: FederatedRecords, protection: Protection | None = None, keep: Keep | None = None) -> Outcome:
        """Play the rounds, attack what the server sees of them, and judge that.

        Args:
            federation: model at the first round; it is not changed.
            data: records under attack.
            protection: what the parties do to their gradients.
            keep: see `recover`.

        Raises:
            ValueError: see `watch`, `recover` and `rival`, or if the adaptive attacker meets a defence that is no fake gradient.
        """
        return judge(self.recoveries(federation, data, protection, keep), data)

    def recoveries(
        self, federation: Federation, data: FederatedRecords, protection: Protection | None = None, keep: Keep | None = None
    ) -> list[tuple[Watched, Recovery]]:
        """Return each view and what was made of it, see `run`."""
        protection = protection or Protection()
        if self.method == "cafe" and self.cafe.is_online:
            if self.adaptive:
                raise ValueError("the adaptive attacker undoes recorded gradients, which the single loop does not keep: take solver=closed_form")
            return [follow(federation, data.attacked, data.blocks, self.watch, self.cafe, protection, keep or unkept)]
        needs_all = self.method != "cafe" or self.adaptive or self.cafe.data == "reference"
        rounds = self.watch.rounds if self.method in ("cafe", "aligned") else self.number + 1
        how = replace(self.watch, rounds=rounds)
        watched = watch(federation, data.attacked, data.blocks, how, protection, None if needs_all else FIRST)
        found, refusals = [], []
        for one in watched:
            view = self.undone(one.view, data, protection) if self.adaptive else one.view
            try:
                found.append((one, self._attack(view, keep)))
            except UnrecoverableError as refused:
                refusals.append(refused)
                found.append((one, _nothing(view, str(refused))))
        if len(refusals) == len(found):
            raise refusals[0]
        return found

    def _attack(self, view: AttackerView, keep: Keep | None) -> Recovery:
        if self.method == "cafe":
            return recover(view, self.cafe, keep)
        clock = Clock()
        with clock(self.method):
            if self.method == "aligned":
                found, rows = aligned(view, self.steps or 600, seed=self.seed), torch.arange(view.schedule.shape[1])
            else:
                name = cast("Rival", self.method)
                found = rival(name, view, self.number, self.steps, self.seed, self.variation, self.restarts)
                rows = view.schedule[self.number].nonzero().flatten()
        labels = None if view.labels is not None else found.labels
        return Recovery(rows, found.blocks, labels, self.method == "aligned", seconds=clock.seconds)

    def undone(self, view: AttackerView, data: FederatedRecords, protection: Protection) -> AttackerView:
        """Return a view whose fake gradients are undone by their ranks, with records that are not under attack, see `RankAttacker`.

        Raises:
            ValueError: if the defence is no fake gradient.
        """
        if not isinstance(protection.rule, FakeGradients):
            raise ValueError(f"the adaptive attacker undoes fake gradients, not the defence {protection.text!r}: set adaptive=false")
        rest = torch.ones(len(data.train_records), dtype=torch.bool).index_fill(0, data.chosen, False).nonzero().flatten()
        batch = int(view.schedule.sum(1).max())
        own = data.train_records.take(rest[:SURROGATES]) if len(rest) >= batch else data.test_records
        device = view.gradients[0].server["top.bias"].device
        blocks = [block.to(device) for block in data.blocks(own.values())]
        rule = protection.rule
        return adapted(view, blocks, own.labels.to(device), batch, scope=rule.scope, zeros=rule.zeros, seed=self.seed)


def _nothing(view: AttackerView, reason: str) -> Recovery:
    """Return a recovery of no record."""
    records = view.schedule.shape[1]
    blocks = [torch.full((records, *shape), torch.nan) for shape in view.shapes]
    labels = None if view.labels is not None else torch.full((records, len(view.server[0].top.bias)), torch.nan)
    return Recovery(torch.arange(records), blocks, labels, True, reasons=dict.fromkeys(range(records), reason))
