"""TriPINet: find where a picture was manipulated, pixel by pixel, and say how sure that is."""

from __future__ import annotations

from collections.abc import Sequence
from types import MappingProxyType
from typing import TYPE_CHECKING, Literal

from projects.tripinet.data import ManipulationData
from projects.tripinet.module import ManipulationLocalisation, Tiles
from shared.cli import ProjectCLI, ProjectTrainer, run
from shared.trainer import at_best

if TYPE_CHECKING:
    from projects.tripinet.export import Exported
    from projects.tripinet.prediction import Predicted
    from projects.tripinet.robustness_task import Measured
    from projects.tripinet.tasks import Tested


class Trainer(ProjectTrainer):
    """Lightning's trainer with this project's verbs."""

    reads = frozenset({"path", "begin_with"})
    resumable = frozenset({"fit", "reproduce"})
    follow_up = MappingProxyType({"fit": "predict FOLDER", "test": "robustness"})

    def fit(  # type: ignore[override]
        self, model: ManipulationLocalisation, datamodule: ManipulationData, begin_with: str | None = None, ckpt_path: str | None = None
    ) -> Tested:
        """Train the network, decide on validation pictures how its maps are read, and test the best epoch on every test set.

        Args:
            model: supplied.
            datamodule: supplied.
            begin_with: checkpoint whose network a new training begins with, to tune it to other pictures; null begins with random weights.
            ckpt_path: checkpoint to go on from, with its optimiser, schedule and epochs; --resume finds the last one by itself.
        """
        from projects.tripinet import trained
        from projects.tripinet.tasks import Examples, remarks

        if begin_with is not None and ckpt_path is None:
            trained.begin_with(model, begin_with)
        if ckpt_path is None:
            model.check_weights()
        if self.is_global_zero:
            for remark in remarks(model, datamodule):
                print(remark)
        self.callbacks.append(Examples())  # type: ignore[attr-defined]
        super().fit(model, datamodule=datamodule, ckpt_path=ckpt_path)
        best = getattr(self.checkpoint_callback, "best_model_score", None)
        if self.is_global_zero and best is not None and float(best) == 0:
            print("val/pixel_f1 was 0 in every epoch, and the first one is kept: train longer, or with a higher model.lr")
        return self.test(at_best(self, model), datamodule)

    def test(  # type: ignore[override]
        self, model: ManipulationLocalisation, datamodule: ManipulationData, trufor: bool = False, ckpt_path: str | None = None
    ) -> Tested:
        """Test on every test set: measures of pixels and of pictures, by kind of manipulation, size of the region and format of the file.

        Args:
            model: supplied.
            datamodule: supplied.
            trufor: measures TruFor's variant of the F1 too, under its own name.
            ckpt_path: checkpoint; best (the default), last or a file.
        """
        from projects.tripinet.tasks import report_test
        from projects.tripinet.trained import with_network

        model.with_trufor = trufor
        super().test(with_network(model, ckpt_path), datamodule=datamodule, verbose=False)
        return report_test(self, model, datamodule)

    def predict(  # type: ignore[override]
        self,
        model: ManipulationLocalisation,
        datamodule: ManipulationData,
        path: str,
        tiles: Tiles = "auto",
        flips: bool = False,
        maps: Literal["png", "npy"] = "png",
        ckpt_path: str | None = None,
    ) -> Predicted:
        """Say where pictures were manipulated: for each one a map, a mask, an overlay and a JSON file, and a table of all.

        Args:
            model: supplied.
            datamodule: supplied; its data are not needed, but data.on_bad_file says whether files that cannot be read are left out (exit code 3).
            path: a picture, a folder with sub-folders, or a pattern such as 'inbox/*.jpg'.
            tiles: judges pictures in overlapping tiles: those of more than model.whole pixels (auto), none (never) or all (always).
            flips: judges each picture mirrored as well and takes the mean: four times the work.
            maps: maps as PNG of 16 bits, or as NPY of float32.
            ckpt_path: checkpoint; best (the default), last or a file.
        """
        from projects.tripinet.prediction import predict
        from projects.tripinet.trained import with_network
        from shared.distributed import in_one_process

        in_one_process(self)
        return predict(self, with_network(model, ckpt_path), path, tiles, flips, maps, datamodule.options.on_bad_file)

    def robustness(
        self,
        model: ManipulationLocalisation,
        datamodule: ManipulationData,
        degradations: list[str] | None = None,
        pictures: int = 100,
        ckpt_path: str | None = None,
    ) -> Measured:
        """Measure maps of degraded test pictures, and draw the F1 over the strength of each degradation.

        Args:
            model: supplied.
            datamodule: supplied.
            degradations: any of jpeg, blur, noise_variance, noise_deviation and resize; null is all.
            pictures: manipulated pictures of each test set that are degraded, evenly spread over it, and as many authentic ones.
            ckpt_path: checkpoint; best (the default), last or a file.
        """
        from projects.tripinet.robustness_task import robustness
        from projects.tripinet.trained import with_network
        from shared.distributed import in_one_process

        in_one_process(self)
        return robustness(self, with_network(model, ckpt_path), datamodule, degradations, pictures)

    def export(
        self, model: ManipulationLocalisation, datamodule: ManipulationData, height: int = 512, width: int = 512, ckpt_path: str | None = None
    ) -> Exported:
        """Write the network as localiser.onnx for other runtimes, check it against this software, and time it on the CPU; needs the extra onnx.

        The stream block_dct cannot be exported: it rounds coefficients that other runtimes compute a little differently.

        Args:
            model: supplied.
            datamodule: supplied; its data are not needed.
            height: height of the pictures it takes, in pixels.
            width: width of the pictures it takes, in pixels.
            ckpt_path: checkpoint; best (the default), last or a file.
        """
        from projects.tripinet.export import export
        from projects.tripinet.trained import with_network
        from shared.distributed import in_one_process

        in_one_process(self)
        return export(self, with_network(model, ckpt_path), height, width)

    def reproduce(
        self,
        model: ManipulationLocalisation,
        datamodule: ManipulationData,
        table: Literal["all", "streams", "fusion", "decoder", "jpeg"] = "all",
        seeds: int | None = None,
        jobs: int | None = None,
        quick: bool = False,
        write: bool = False,
    ) -> None:
        """Reproduce the paper's claims on forged photographs over seeds.

        Args:
            model: supplied.
            datamodule: supplied.
            table: streams (which clues find which traces), fusion, decoder (the paper's beside others), jpeg (compressed pictures), or all.
            seeds: number of seeds, from 0; null is the customary number.
            jobs: computations at the same time, one thread each; null is one a core, or one where there is a GPU.
            quick: one seed, little training and few rows, to see that everything runs.
            write: write the tables into the project's README.
        """
        from projects.tripinet.reproduction import TABLES
        from shared.tables import reproduce

        reproduce(self, __file__, TABLES, table, seeds, jobs, quick, write)


def main(args: Sequence[str] | None = None) -> ProjectCLI:
    """Run the command line with `args`, or with those of the process."""
    return run(ManipulationLocalisation, ManipulationData, Trainer, args)


if __name__ == "__main__":
    main()
