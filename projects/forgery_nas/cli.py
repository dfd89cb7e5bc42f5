"""Forgery search: find a small network that tells forged faces for your own data, and know whether the search was worth it."""

from __future__ import annotations

from collections.abc import Sequence
from types import MappingProxyType
from typing import TYPE_CHECKING, Literal

from projects.forgery_nas.data import SearchData
from projects.forgery_nas.module import ForgeryNetTraining
from shared.cli import ProjectCLI, run
from shared.forgery.trainer import ForgeryTrainer
from shared.trainer import at_best

if TYPE_CHECKING:
    from projects.forgery_nas.compare_task import Compared
    from projects.forgery_nas.search_task import Searched
    from shared.forgery.exporting import Exported


class Trainer(ForgeryTrainer):
    """Lightning's trainer with this project's verbs."""

    makes_run = frozenset({"fit", "search", "compare", "reproduce"})
    resumable = frozenset({"fit", "search", "compare", "reproduce"})
    follow_up = MappingProxyType({"fit": "predict FOLDER", "test": "robustness"})

    def search(
        self,
        model: ForgeryNetTraining,
        datamodule: SearchData,
        strategy: Literal["pruning", "pcdarts", "random", "evolution", "weight_sharing"] = "pruning",
    ) -> Searched:
        """Search for cells by the options model.search, in the training set, or across sets with data.architecture_sets.

        All strategies cost the same: as many images are learnt from.

        Args:
            model: supplied.
            datamodule: supplied.
            strategy: pruning (ours: candidates are dropped step by step), pcdarts (by alpha, at the end), random (cells trained one by one),
                evolution (regularised: the oldest dies), or weight_sharing (random cells scored inside of one supernet).
        """
        from projects.forgery_nas.search_task import search

        return search(self, model, datamodule, strategy)

    def fit(self, model: ForgeryNetTraining, datamodule: SearchData, ckpt_path: str | None = None) -> None:  # type: ignore[override]
        """Train a network of found cells, model.genotype, or a hand-made one, model.network, and test its best epoch on every test set.

        Args:
            model: supplied.
            datamodule: supplied.
            ckpt_path: checkpoint to go on from; --resume finds the last one by itself.
        """
        from projects.forgery_nas.inference import say_cost

        if self.is_global_zero:
            say_cost(model.net, model.hparams.size)
            self._keep_cells(model)
        super().fit(model, datamodule=datamodule, ckpt_path=ckpt_path)
        self.test(at_best(self, model), datamodule)

    def _keep_cells(self, model: ForgeryNetTraining) -> None:
        """Write the cells into the run's settings in place of the file that they were read from, which may change, move or go."""
        import yaml

        from projects.forgery_nas.genotype import BUILT_IN
        from shared.runs import write_text

        heading, _, text = self.run.config_file.read_text(encoding="utf-8").partition("\n")
        settings = yaml.safe_load(text)
        if model.genotype is not None and settings["model"]["genotype"] not in BUILT_IN:
            settings["model"]["genotype"] = model.hparams.genotype
            write_text(self.run.config_file, f"{heading}\n{yaml.safe_dump(settings, sort_keys=False, allow_unicode=True)}")

    def export(self, model: ForgeryNetTraining, datamodule: SearchData, ckpt_path: str | None = None) -> Exported:
        """Write the network as detector.onnx for other runtimes, check it against this software, and time it beside others; needs the extra onnx.

        Args:
            model: supplied.
            datamodule: supplied; its data are not needed.
            ckpt_path: checkpoint; best (the default), last or a file.
        """
        from projects.forgery_nas.export import export
        from shared.checkpoints import with_weights
        from shared.distributed import in_one_process

        in_one_process(self)
        return export(self, with_weights(model, ckpt_path))

    def compare(
        self,
        model: ForgeryNetTraining,
        datamodule: SearchData,
        cells: int = 8,
        trainings: int = 1,
        networks: list[str] | None = None,
    ) -> Compared:
        """Train model.genotype beside random cells, its own topology with ordinary convolutions, and hand-made networks: was the search worth it?

        Args:
            model: supplied.
            datamodule: supplied.
            cells: random cells of the search space.
            trainings: trainings of each network, with seeds from model.seed on.
            networks: hand-made networks, meso4, mesoinception4 or timm's names; meso4, mobilenetv3_small_100 and efficientnet_b0 by default.
        """
        from projects.forgery_nas.compare_task import HAND_MADE, compare

        return compare(self, model, datamodule, cells, trainings, HAND_MADE if networks is None else networks)

    def reproduce(
        self,
        model: ForgeryNetTraining,
        datamodule: SearchData,
        table: Literal["all", "operators", "search", "metric", "planted"] = "all",
        seeds: int | None = None,
        jobs: int | None = None,
        quick: bool = False,
        write: bool = False,
    ) -> None:
        """Reproduce the paper's claims on drawn faces over seeds.

        Args:
            model: supplied.
            datamodule: supplied.
            table: operators (plain and difference convolutions), search (found and random cells, in one set and across two), metric (do importances
                rank cells as training does), planted (searches whose answer is known), or all.
            seeds: number of seeds, from 0; five by default.
            jobs: computations at the same time, one thread each; the default is one a core, or one where there is a GPU.
            quick: one seed, little training and few rows, to see that everything runs.
            write: write the tables into the project's README.
        """
        from projects.forgery_nas.reproduction import TABLES
        from shared.tables import reproduce

        reproduce(self, __file__, TABLES, table, seeds, jobs, quick, write)


def main(args: Sequence[str] | None = None) -> ProjectCLI:
    """Run the command line with `args`, or with those of the process."""
    return run(ForgeryNetTraining, SearchData, Trainer, args)


if __name__ == "__main__":
    main()
