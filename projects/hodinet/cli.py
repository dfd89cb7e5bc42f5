"""HODINet: mark what catches the eye in a picture with its depth."""

from __future__ import annotations

from collections.abc import Sequence
from types import MappingProxyType
from typing import TYPE_CHECKING, Literal

from projects.hodinet.data import SaliencyData
from projects.hodinet.module import SaliencyDetection
from shared.cli import ProjectCLI, ProjectTrainer, run
from shared.trainer import at_best

if TYPE_CHECKING:
    from projects.hodinet.export import Exported
    from projects.hodinet.prediction import Predicted
    from projects.hodinet.robustness import Measured
    from projects.hodinet.tasks import Tested


class Trainer(ProjectTrainer):
    """Lightning's trainer with this project's verbs."""

    reads = frozenset({"path", "depth"})
    resumable = frozenset({"fit", "predict", "reproduce"})
    follow_up = MappingProxyType({"fit": "robustness", "test": "robustness"})
    aliases = MappingProxyType({"stress": ("robustness", ())})

    def fit(self, model: SaliencyDetection, datamodule: SaliencyData, ckpt_path: str | None = None) -> Tested:  # type: ignore[override]
        """Train the network, and test its best epoch on every test set.

        Args:
            model: supplied.
            datamodule: supplied.
            ckpt_path: checkpoint to go on from; --resume finds the last one by itself.
        """
        from projects.hodinet.tasks import Examples, remarks

        if ckpt_path is None:
            model.check_weights()
        if self.is_global_zero:
            for remark in remarks(model, datamodule):
                print(remark)
        self.callbacks.append(Examples())  # type: ignore[attr-defined]
        super().fit(model, datamodule=datamodule, ckpt_path=ckpt_path)
        return self.test(at_best(self, model), datamodule)

    def test(self, model: SaliencyDetection, datamodule: SaliencyData, ckpt_path: str | None = None) -> Tested:  # type: ignore[override]
        """Test on every test set: S, F, E, weighted F and MAE under two protocols, as CSV, LaTeX and curves, with the worst pictures.

        Args:
            model: supplied.
            datamodule: supplied.
            ckpt_path: checkpoint; best (the default), last or a file.
        """
        from projects.hodinet.tasks import report_test
        from shared.checkpoints import with_weights

        datamodule.is_learning = False
        super().test(with_weights(model, ckpt_path), datamodule=datamodule, verbose=False)
        return report_test(self, model, datamodule, ckpt_path)

    def predict(  # type: ignore[override]
        self,
        model: SaliencyDetection,
        datamodule: SaliencyData,
        path: str,
        depth: str | None = None,
        invert: bool | None = None,
        bits: Literal[8, 16] = 8,
        cutout: float | None = None,
        missing_depth: Literal["refuse", "zeros"] = "refuse",
        explain: bool = False,
        ckpt_path: str | None = None,
    ) -> Predicted:
        """Mark what is salient in pictures: for each one a map, a cut-out, an overlay and a JSON file, and a table of all.

        Pictures that an interrupted run of the same settings has finished are not done again.

        Args:
            model: supplied.
            datamodule: supplied; its data are not needed, but data.normalise, data.modality and data.invert say how depth is read,
                and data.on_bad_file whether pictures that cannot be used are left out (exit code 3).
            path: a picture, a folder with sub-folders, a pattern such as 'inbox/*.jpg', or a folder with RGB/ and depth/ as data sets have them.
            depth: depth map of the picture, or folder of maps of the same names; PNG of 8 or 16 bits, or NPY of numbers.
            invert: the depth has far = 1; null follows data.invert: all, the sets it names, or, if that is null, the layout group.
            bits: of maps, which are PNG: 8 or 16.
            cutout: probability above which a pixel is kept in the cut-out; null takes the map as its alpha.
            missing_depth: refuses pictures without a depth map, or takes zeros for it.
            explain: draws the gates of the high-order fusion at each stage, and what they weigh, a figure a picture.
            ckpt_path: checkpoint; best (the default), last or a file.
        """
        from projects.hodinet.prediction import Options, predict
        from shared.checkpoints import with_weights
        from shared.distributed import in_one_process

        in_one_process(self)
        options = Options(invert, bits, cutout, missing_depth, explain)
        return predict(self, with_weights(model, ckpt_path), datamodule.reading, path, depth, options, datamodule.options.on_bad_file)

    def robustness(
        self,
        model: SaliencyDetection,
        datamodule: SaliencyData,
        corruptions: list[str] | None = None,
        pictures: int = 100,
        ckpt_path: str | None = None,
    ) -> Measured:
        """Measure maps of test pictures whose depth is corrupted, draw S over the strength, and tell whether near and far are mixed up in a set.

        Args:
            model: supplied.
            datamodule: supplied.
            corruptions: any of inverted, noise, shuffled, missing, grain, holes, blur, shift and levels; null is all.
            pictures: pictures of each test set, evenly spread over it.
            ckpt_path: checkpoint; best (the default), last or a file.
        """
        from projects.hodinet.robustness import robustness
        from shared.checkpoints import with_weights
        from shared.distributed import in_one_process

        in_one_process(self)
        datamodule.is_learning = False
        return robustness(self, with_weights(model, ckpt_path), datamodule, corruptions, pictures)

    def export(
        self,
        model: SaliencyDetection,
        datamodule: SaliencyData,
        height: int | None = None,
        width: int | None = None,
        ckpt_path: str | None = None,
    ) -> Exported:
        """Write the network as saliency.onnx for other runtimes, check it against this software, and time it on the CPU; needs the extra onnx.

        Args:
            model: supplied.
            datamodule: supplied; its data are not needed.
            height: height of the pictures it takes and judges, in pixels; null is model.size, or 256 without one.
            width: width of them, in pixels; null is the same.
            ckpt_path: checkpoint; best (the default), last or a file.
        """
        from projects.hodinet.export import export
        from shared.checkpoints import with_weights
        from shared.distributed import in_one_process

        in_one_process(self)
        return export(self, with_weights(model, ckpt_path), height, width)

    def reproduce(
        self,
        model: SaliencyDetection,
        datamodule: SaliencyData,
        table: Literal["all", "modality", "fusion", "encoders", "placement", "decoder", "noise"] = "all",
        seeds: int | None = None,
        jobs: int | None = None,
        quick: bool = False,
        write: bool = False,
    ) -> None:
        """Reproduce the paper's claims on drawn scenes over seeds.

        Args:
            model: supplied.
            datamodule: supplied.
            table: modality (what depth adds), fusion (high-order beside others), encoders (pairs), placement, decoder (and losses), noise (depth
                that is none), or all.
            seeds: number of seeds, from 0; null is the customary number.
            jobs: computations at the same time, one thread each; null is one a core, or one where there is a GPU.
            quick: one seed, little training and few rows, to see that everything runs.
            write: write the tables into the project's README.
        """
        from projects.hodinet.reproduction import TABLES
        from shared.tables import reproduce

        reproduce(self, __file__, TABLES, table, seeds, jobs, quick, write)


def main(args: Sequence[str] | None = None) -> ProjectCLI:
    """Run the command line with `args`, or with those of the process."""
    return run(SaliencyDetection, SaliencyData, Trainer, args)


if __name__ == "__main__":
    main()
