"""RCO: distil a network along the route that its teacher took, from easy states to the converged one."""

from __future__ import annotations

from collections.abc import Sequence
from types import MappingProxyType
from typing import TYPE_CHECKING, Literal

from projects.rco.data import DistillationData
from projects.rco.module import RouteDistillation
from shared.cli import ProjectCLI, ProjectTrainer, run

if TYPE_CHECKING:
    from projects.rco.tasks import Taught, Tested


class Trainer(ProjectTrainer):
    """Lightning's trainer with this project's verbs."""

    makes_run = frozenset({"fit", "teach", "collect", "reproduce"})
    reads = frozenset({"path"})
    links = MappingProxyType({"data.shape": "model.shape", "data.classes": "model.classes"})
    resumable = frozenset({"fit", "teach", "predict", "reproduce"})
    follow_up = MappingProxyType({"teach": "fit --model.route latest", "collect": "fit --model.route latest", "fit": "route", "test": "predict PATH"})

    def teach(self, model: RouteDistillation, datamodule: DistillationData) -> Taught:
        """Train a teacher and record its route: its states on the way, which students are taught by.

        Args:
            model: supplied.
            datamodule: supplied.
        """
        from projects.rco.tasks import report_teacher, teach

        return report_teacher(self, teach(self, model, datamodule))

    def fit(self, model: RouteDistillation, datamodule: DistillationData) -> Tested:  # type: ignore[override]
        """Train a student along a route, after a teacher if there is no route yet, and test it.

        Args:
            model: supplied.
            datamodule: supplied.
        """
        from projects.rco.tasks import distil

        return distil(self, model, datamodule)

    def test(self, model: RouteDistillation, datamodule: DistillationData, ckpt_path: str | None = None) -> Tested:  # type: ignore[override]
        """Test a student: accuracy, or verification and identification of faces, and how far it is from its converged teacher.

        Args:
            model: supplied.
            datamodule: supplied.
            ckpt_path: checkpoint; last (the default) or a file.
        """
        from projects.rco.tasks import test
        from shared.checkpoints import with_weights

        return test(self, with_weights(model, ckpt_path), datamodule)

    def reproduce(
        self,
        model: RouteDistillation,
        datamodule: DistillationData,
        table: Literal["all", "parity", "settings", "anchors", "budgets", "losses", "tiles", "digits"] = "all",
        seeds: int | None = None,
        jobs: int | None = None,
        quick: bool = False,
        write: bool = False,
    ) -> None:
        """Reproduce the paper's claims on small worlds over seeds.

        Args:
            model: supplied.
            datamodule: supplied.
            table: parity (students who fail without a route), settings (an early jump, and no gap), anchors (how many), budgets (mirror and
                restart), losses (with and without a route), tiles (through images), digits (no effect), or all.
            seeds: number of seeds, from 0; null is the customary number.
            jobs: computations at the same time, one thread each; null is one a core, or one where there is a GPU.
            quick: one seed, little training and few rows, to see that everything runs.
            write: write the tables into the project's README.
        """
        from projects.rco.reproduction import TABLES
        from shared.tables import reproduce

        reproduce(self, __file__, TABLES, table, seeds, jobs, quick, write)


def main(args: Sequence[str] | None = None) -> ProjectCLI:
    """Run the command line with `args`, or with those of the process."""
    return run(RouteDistillation, DistillationData, Trainer, args)


if __name__ == "__main__":
    main()
