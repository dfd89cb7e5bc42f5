"""S3RP: super-resolve and forecast plumes from coarse frames and winds, without ever having seen high resolution."""

from __future__ import annotations

from collections.abc import Sequence
from types import MappingProxyType
from typing import TYPE_CHECKING, Literal

from projects.s3rp.data import PlumeData
from projects.s3rp.module import PlumeSuperResolution
from shared.cli import ProjectCLI, ProjectTrainer, run

if TYPE_CHECKING:
    from projects.s3rp.physics import Boundary
    from projects.s3rp.prediction import Predicted
    from projects.s3rp.simulation import Simulated
    from projects.s3rp.testing import Tested


class Trainer(ProjectTrainer):
    """Lightning's trainer with this project's verbs."""

    reads = frozenset({"path"})
    begins = frozenset({"simulate"})
    links = MappingProxyType({"data.factor": "model.factor", "data.boundary": "model.boundary"})
    unlinked = frozenset({"predict"})
    independent = frozenset({"simulate"})
    resumable = frozenset({"fit", "simulate", "predict", "reproduce"})
    follow_up = MappingProxyType({"fit": "predict FILE", "test": "predict FILE"})

    def fit(  # type: ignore[override]
        self, model: PlumeSuperResolution, datamodule: PlumeData, members: int = 32, ckpt_path: str | None = None
    ) -> Tested:
        """Train on coarse frames and winds, and test against the truth, if there is one.

        Args:
            model: supplied.
            datamodule: supplied.
            members: fields of the ensembles that the test judges; 0 for none.
            ckpt_path: checkpoint to go on from; --resume finds the last one by itself.
        """
        from projects.s3rp.tasks import train
        from projects.s3rp.testing import check_members, test

        check_members(members)
        train(self, model, datamodule, ckpt_path)
        return test(self, model, datamodule, members)

    def test(  # type: ignore[override]
        self, model: PlumeSuperResolution, datamodule: PlumeData, members: int = 32, ckpt_path: str | None = None
    ) -> Tested:
        """Test against the truth beside interpolations: errors by frame, spectra, and how well the spread tells the error.

        Args:
            model: supplied.
            datamodule: supplied.
            members: fields of the ensembles that are judged; 0 for none.
            ckpt_path: checkpoint; best (the default), last or a file.
        """
        from projects.s3rp.tasks import loaded
        from projects.s3rp.testing import test

        return test(self, loaded(model, ckpt_path), datamodule, members)

    def simulate(
        self,
        model: PlumeSuperResolution,
        datamodule: PlumeData,
        path: str,
        train: int | None = None,
        val: int | None = None,
        test: int | None = None,
        format: Literal["npz", "h5", "zarr"] = "npz",  # noqa: A002 - it is the option's name
    ) -> Simulated:
        """Write drawn plumes, with winds and, apart, their truth, as files to train on and to try the other verbs on.

        Args:
            model: supplied; not used.
            datamodule: supplied; data.world tells what is drawn.
            path: folder, absent or empty.
            train: sequences to train on; null takes data.train, as for the other two.
            val: sequences to validate on.
            test: sequences to test on.
            format: npz, h5 or zarr; the latter two need the extra fields.
        """
        from projects.s3rp.simulation import simulate

        return simulate(self, model, datamodule, path, train, val, test, format)

    def predict(  # type: ignore[override]
        self,
        model: PlumeSuperResolution,
        datamodule: PlumeData,
        path: str,
        horizon: int = 0,
        members: int = 32,
        calibrate: bool = True,
        keep_members: bool = False,
        background: float = 0.0,
        clean_wind: bool = False,
        diffusivity: float | None = None,
        interval: float | None = None,
        sigma: float | None = None,
        boundary: Boundary | None = None,
        scalar: str | None = None,
        wind_u: str | None = None,
        wind_v: str | None = None,
        ckpt_path: str | None = None,
    ) -> Predicted:
        """Super-resolve, fill and forecast sequences of your own: fields and their spread, pictures, animations and a table.

        Args:
            model: supplied.
            datamodule: supplied; its data are not needed.
            path: an .npz, .h5, .zarr or .nc file, a folder of them, or a pattern.
            horizon: frames to forecast beyond the last one; winds are those of the file, or the last ones held.
            members: fields of the ensemble that tells the spread; 0 for none.
            calibrate: fits the spread to observations that are hidden for it, of a network that has learnt to fill gaps (model.hide).
            keep_members: writes the members too.
            background: level of the air that flows in and lies around the plume, in the scalar's unit; is taken off before and added after.
            clean_wind: makes the winds free of divergence.
            diffusivity: D, in units of length squared by time; null takes what the file says.
            interval: time between two frames; null takes what the file says.
            sigma: standard deviation of the frames' noise; null takes what the file says.
            boundary: periodic or open; null takes what the file says.
            scalar: name of the scalar in a netCDF file; null finds it.
            wind_u: name of the wind along x in a netCDF file; null finds it.
            wind_v: name of the wind along y in a netCDF file; null finds it.
            ckpt_path: checkpoint; best (the default), last or a file.
        """
        from projects.s3rp.assembling import Reading
        from projects.s3rp.prediction import Wish, predict
        from projects.s3rp.tasks import loaded
        from shared.distributed import in_one_process

        in_one_process(self)
        reading = Reading(model.factor, clean_wind, diffusivity, interval, sigma, boundary, scalar, wind_u, wind_v)
        return predict(self, loaded(model, ckpt_path), path, Wish(horizon, members, calibrate, keep_members, background), reading)

    def reproduce(
        self,
        model: PlumeSuperResolution,
        datamodule: PlumeData,
        table: Literal["all", "resolution", "rivals", "oracles", "uncertainty", "forecast", "solver"] = "all",
        seeds: int | None = None,
        jobs: int | None = None,
        quick: bool = False,
        write: bool = False,
    ) -> None:
        """Reproduce the paper's claims on drawn plumes over seeds.

        Args:
            model: supplied.
            datamodule: supplied.
            table: resolution (against interpolation, with controls), rivals (kriging, assimilation, other networks), oracles (what physics tells at
                all), uncertainty (spread and coverage), forecast (beyond the last observation), solver (order and conservation), or all.
            seeds: number of seeds, from 0; null is the customary number.
            jobs: computations at the same time, one thread each; null is one a core, or one where there is a GPU.
            quick: one seed, little training and few rows, to see that everything runs.
            write: write the tables into the project's README.
        """
        from projects.s3rp.reproduction import TABLES
        from shared.tables import reproduce

        reproduce(self, __file__, TABLES, table, seeds, jobs, quick, write)


def main(args: Sequence[str] | None = None) -> ProjectCLI:
    """Run the command line with `args`, or with those of the process."""
    return run(PlumeSuperResolution, PlumeData, Trainer, args)


if __name__ == "__main__":
    main()
