"""ComAD: tell good products from bad ones by their components, in words that an engineer can check."""

from __future__ import annotations

from collections.abc import Sequence
from types import MappingProxyType
from typing import TYPE_CHECKING, Literal

from projects.comad.data import InspectionData
from projects.comad.module import MODEL, ComponentInspection, check_precision, unused_options
from shared.cli import ProjectCLI, ProjectTrainer, run

if TYPE_CHECKING:
    from projects.comad.distilling import Distilled
    from projects.comad.export import Exported
    from projects.comad.inspection import Inspected
    from projects.comad.prediction import Predicted
    from projects.comad.tasks import Tested


class Trainer(ProjectTrainer):
    """Lightning's trainer with this project's verbs."""

    outside = frozenset({"inspector"})
    reads = frozenset({"path", "examples"})
    repeated = frozenset({"set"})
    resumable = frozenset({"fit", "predict", "distil", "reproduce"})
    follow_up = MappingProxyType({"fit": "inspect", "test": "inspect"})

    def fit(self, model: ComponentInspection, datamodule: InspectionData) -> Tested | None:  # type: ignore[override]
        """Learn a product from good pictures, write its inspector into one file, and test it if there are test pictures.

        Args:
            model: supplied.
            datamodule: supplied.
        """
        from projects.comad.figures import log_components
        from projects.comad.learning import learn

        check_precision(self.precision)
        learn(self, model, datamodule)
        log_components(self, model.inspector, datamodule)
        return self.test(model, datamodule) if len(datamodule.test_set) else None

    def test(  # type: ignore[override]
        self, model: ComponentInspection, datamodule: InspectionData, tiff: bool = False, inspector: str | None = None
    ) -> Tested:
        """Test: AUROC of logical and structural anomalies, areas under the sPRO curve, false alarms at the validation's quantile.

        Args:
            model: supplied.
            datamodule: supplied.
            tiff: writes anomaly maps at the size of the pictures, as MVTec's evaluation reads them.
            inspector: file of an inspector; null is that of the run.
        """
        from projects.comad.tasks import report_test

        self._load(model, datamodule, inspector)
        if tiff:
            model.maps_folder = self.run.artefacts("test") / "maps"
        super().test(model, datamodule=datamodule, verbose=False)
        return report_test(self, model, datamodule)

    def predict(  # type: ignore[override]
        self, model: ComponentInspection, datamodule: InspectionData, path: str, examples: str | None = None, inspector: str | None = None
    ) -> Predicted:
        """Inspect pictures: for each one a verdict, what is wrong in words, its components in colour, a heat map and a JSON file; a table of all.

        Args:
            model: supplied.
            datamodule: supplied; its data are not needed, but data.on_bad_file says whether files that cannot be read are left out (exit code 3).
            path: a picture, a folder with sub-folders, or a pattern such as 'line/*.jpg'.
            examples: folder of labelled anomalies, a sub-folder a kind: alarms are given the kind of the nearest one; null gives no kinds.
            inspector: file of an inspector; null is that of the run.
        """
        from projects.comad.prediction import predict
        from shared.distributed import in_one_process

        in_one_process(self)
        self._load(model, datamodule, inspector)
        return predict(self, model, path, examples, datamodule.options.on_bad_file)

    def inspect(
        self,
        model: ComponentInspection,
        datamodule: InspectionData,
        set: list[str] | None = None,  # noqa: A002 - as users read it: --set component.3.weight=0
        out: str | None = None,
        inspector: str | None = None,
    ) -> Inspected:
        """Show what was learnt, a page for each component; and write an adjusted inspector, its scales and threshold set anew.

        Args:
            model: supplied.
            datamodule: supplied; its pictures of training are shown, those of validation set the threshold.
            set: what is changed: component.3.weight=0, component.3.name=nuts, background.weight=0, quantile=0.99, fusion=max,
                parts=logical,patches, rule=3:number:2:2 or rule=none; may be given several times.
            out: file of the adjusted inspector; null is adjusted.safetensors in the run.
            inspector: file of an inspector; null is that of the run.
        """
        from projects.comad.inspection import inspect
        from shared.distributed import in_one_process

        in_one_process(self)
        self._load(model, datamodule, inspector)
        return inspect(self, model, datamodule, set or [], out, inspector)

    def distil(
        self,
        model: ComponentInspection,
        datamodule: InspectionData,
        epochs: int = 15,
        patches: bool = False,
        out: str | None = None,
        inspector: str | None = None,
    ) -> Distilled:
        """Train a small network to give the inspector's components, and write an inspector that needs neither transformer nor CRF.

        Its measures are learnt anew, and its scales and threshold set anew; components keep their numbers, names, weights and rules.

        Args:
            model: supplied.
            datamodule: supplied; the pictures that the inspector was fitted to.
            epochs: passes through the training pictures.
            patches: keeps the patch memory, whose features then have to be computed; without it what looks odd at one place is hardly noticed.
            out: file of the light inspector; null is light.safetensors in the run.
            inspector: file of an inspector; null is that of the run.
        """
        from projects.comad.distilling import distil
        from shared.distributed import in_one_process

        in_one_process(self)
        self._load(model, datamodule, inspector)
        return distil(self, model, datamodule, epochs, patches, out)

    def export(self, model: ComponentInspection, datamodule: InspectionData, inspector: str | None = None) -> Exported:
        """Write the network of the features as features.onnx for other runtimes, check it against this software, and time it; needs the extra onnx.

        Args:
            model: supplied.
            datamodule: supplied; its data are not needed.
            inspector: file of an inspector; null is that of the run.
        """
        from projects.comad.export import export
        from shared.distributed import in_one_process

        in_one_process(self)
        self._load(model, datamodule, inspector)
        return export(self, model)

    def reproduce(
        self,
        model: ComponentInspection,
        datamodule: InspectionData,
        table: Literal["all", "anomalies", "adjusting", "naming", "fusion", "vocabulary"] = "all",
        seeds: int | None = None,
        jobs: int | None = None,
        quick: bool = False,
        write: bool = False,
    ) -> None:
        """Reproduce the paper's claims on drawn trays over seeds.

        Args:
            model: supplied.
            datamodule: supplied.
            table: anomalies (who finds which), adjusting (a silenced component), naming, fusion (its five ways), vocabulary (how components are
                found), or all.
            seeds: number of seeds; null is the customary number.
            jobs: computations at the same time, one thread each; null is one a core, or one where there is a GPU.
            quick: one seed, few trays and few rows, to see that everything runs.
            write: write the tables into the project's README.
        """
        from projects.comad.reproduction import TABLES
        from shared.tables import reproduce

        reproduce(self, __file__, TABLES, table, seeds, jobs, quick, write)

    def _load(self, model: ComponentInspection, datamodule: InspectionData, inspector: str | None) -> None:
        """Take the inspector in a file, or that of the run unless it was fitted just now; pictures are brought to its size."""
        check_precision(self.precision)
        if inspector is not None or self.verb != "fit":
            model.load(inspector or self.run.path / MODEL)
            for note in unused_options(model, self.run.config_file) if inspector is None and self.is_global_zero else ():
                print(note, flush=True)
        model.to(self.strategy.root_device).eval()
        datamodule.size = model.inspector.size


def main(args: Sequence[str] | None = None) -> ProjectCLI:
    """Run the command line with `args`, or with those of the process."""
    return run(ComponentInspection, InspectionData, Trainer, args)


if __name__ == "__main__":
    main()
