"""RCO: distil a network along the route that its teacher took, from easy states to the converged one."""

from __future__ import annotations

from collections.abc import Sequence
from types import MappingProxyType
from typing import TYPE_CHECKING, Literal

from projects.rco.data import DistillationData
from projects.rco.module import RouteDistillation
from shared.cli import ProjectCLI, ProjectTrainer, run

if TYPE_CHECKING:
    from projects.rco.diagnosing import Diagnosed
    from projects.rco.export import Exported
    from projects.rco.importing import Imported
    from projects.rco.prediction import Predicted
    from projects.rco.tasks import Taught, Tested


class Trainer(ProjectTrainer):
    """Lightning's trainer with this project's verbs."""

    makes_run = frozenset({"fit", "teach", "collect", "reproduce"})
    reads = frozenset({"path"})
    links = MappingProxyType({"data.shape": "model.shape", "data.classes": "model.classes"})
    resumable, unlinked = frozenset({"fit", "teach", "route", "predict", "reproduce"}), frozenset({"predict", "export"})
    follow_up = MappingProxyType(
        {"teach": "fit -c {config} --model.route {run}", "collect": "fit -c {config} --model.route {run}", "fit": "route", "test": "predict PATH"}
    )

    def teach(self, model: RouteDistillation, datamodule: DistillationData) -> Taught:
        """Train a teacher and record its route: its states on the way, which students are taught by.

        Args:
            model: supplied.
            datamodule: supplied.
        """
        from projects.rco.tasks import report_teacher, teach

        return report_teacher(self, teach(self, model, datamodule))

    def collect(
        self,
        model: RouteDistillation,
        datamodule: DistillationData,
        path: str,
        key: str | None = None,
        prefix: str = "",
        half: bool = False,
        counts_from: int | None = None,
    ) -> Imported:
        """Make a run with a route of checkpoints that another program left of its teacher, and judge them on samples held out of training.

        Args:
            model: supplied; model.teacher names the network.
            datamodule: supplied.
            path: a folder of checkpoints, whose copies (best, last, latest) are left out, or a pattern such as 'out/ckpt_epoch_*.pth'.
            key: entry of a checkpoint that holds the weights; null looks for the customary ones.
            prefix: of the weights' names, which is cut off, such as net. for a LightningModule's network.
            half: store in half precision.
            counts_from: number that the program gave its first epoch, 0 or 1; null knows Lightning, timm, torchvision and RepDistiller.
        """
        from projects.rco.importing import import_route
        from shared.distributed import in_one_process

        in_one_process(self)
        return import_route(self, model, datamodule, path, key, prefix, half, counts_from)

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
        from shared.checkpoints import load_checkpoint, with_weights

        if ckpt_path is not None:
            model.on_load_checkpoint(load_checkpoint(ckpt_path))  # the names of its classes
        return test(self, with_weights(model, ckpt_path), datamodule)

    def route(
        self, model: RouteDistillation, datamodule: DistillationData, candidates: int = 8, gap: bool = False, epochs: int | None = None
    ) -> Diagnosed:
        """Show a teacher's route, which of its states each choice would take, and how hard they are for a student (in the run, or of --model.route).

        Args:
            model: supplied.
            datamodule: supplied; with samples held out of training.
            candidates: stored states compared, at equal distances from the first to the final one.
            gap: trains a student on each of them alone, too: how near it comes to that state, and to the final one.
            epochs: of each student; null is trainer.max_epochs.
        """
        from projects.rco.diagnosing import diagnose

        return diagnose(self, model, datamodule, candidates, gap, epochs)

    def predict(self, model: RouteDistillation, datamodule: DistillationData, path: str, ckpt_path: str | None = None) -> Predicted:  # type: ignore[override]
        """Classify pictures or vectors, or tell which faces resemble each other; exit code 3 where files were left out (data.on_bad_file skip).

        Args:
            model: supplied.
            datamodule: supplied; its data are not needed.
            path: a picture, a folder with sub-folders, or a pattern such as 'inbox/*.jpg'; for networks of vectors .npy, .npz (array x) or .csv.
            ckpt_path: checkpoint; last (the default) or a file.
        """
        from projects.rco.prediction import names_of, predict
        from shared.checkpoints import with_weights
        from shared.distributed import in_one_process

        in_one_process(self)
        return predict(self, with_weights(model, ckpt_path), datamodule, path, names_of(model, ckpt_path))

    def export(self, model: RouteDistillation, datamodule: DistillationData, ckpt_path: str | None = None) -> Exported:
        """Write the student as student.onnx, checked and timed, with its plain weights and a description; needs the extra onnx.

        Args:
            model: supplied.
            datamodule: supplied; its data are not needed.
            ckpt_path: checkpoint; last (the default) or a file.
        """
        from projects.rco.export import export
        from projects.rco.prediction import names_of
        from shared.checkpoints import with_weights
        from shared.distributed import in_one_process

        in_one_process(self)
        return export(self, with_weights(model, ckpt_path), datamodule, names_of(model, ckpt_path))

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
