"""The verb `predict`: what the network makes of a user's own coarse sequences, how sure it is, and what comes next."""

from __future__ import annotations

import hashlib
import json
import math
import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from projects.s3rp.arrays import library_for, write_arrays
from projects.s3rp.assembling import Reading
from projects.s3rp.layouts import NETCDF, READABLE, Coordinates, read_placed
from projects.s3rp.outlook import Outlook, can_tell_hidden, cautions, forecast_frames, growth, inflation_of, look_out, prior_of
from projects.s3rp.physics import together
from projects.s3rp.sets import Observations
from projects.s3rp.testing import check_members
from shared.checkpoints import weights_digest
from shared.data.files import BadFileError
from shared.data.inputs import Input, find_files, named
from shared.data.selection import evenly_spaced
from shared.loggers import artefact_folder, log_figure, log_table
from shared.messages import shown_path
from shared.pictures import shortened
from shared.runs import digest, remove, write_json

if TYPE_CHECKING:
    from projects.s3rp.fields import FieldPrior
    from projects.s3rp.module import PlumeSuperResolution
    from shared.cli import ProjectTrainer

PICTURED, PRINTED = 20, 20
"""Sequences that pictures are drawn of, and lines that are printed, at most."""
_NAME = re.compile(r"\w[\w .+-]{0,99}")  # of a sequence that can be a file's


@dataclass(frozen=True)
class Predicted:
    """What `predict` returns: a row a sequence, and the figures that head the run's page."""

    rows: list[dict[str, Any]]
    summary: dict[str, Any]


@dataclass(frozen=True)
class Wish:
    """What a user asks for.

    Attributes:
        horizon: frames to forecast.
        members: fields of an ensemble that tells the spread; 0 for none.
        calibrate: fits the ensemble's spread to observations that are hidden from the network for it, if it has learnt to fill gaps.
        keep_members: writes the members too.
        background: level of the air that flows in and lies around the plume, in the scalar's unit; is taken off before and added after.
    """

    horizon: int = 0
    members: int = 32
    calibrate: bool = True
    keep_members: bool = False
    background: float = 0.0

    def __post_init__(self) -> None:
        if self.horizon < 0:
            raise ValueError(f"horizon counts frames, 0 or more, got {self.horizon}")
        check_members(self.members)
        if self.keep_members and not self.members:
            raise ValueError("there are no members to keep: set members")
        if not math.isfinite(self.background):
            raise ValueError(f"background is a level in the scalar's unit, got {self.background}")


def predict(trainer: ProjectTrainer, module: PlumeSuperResolution, path: str, wish: Wish | None = None, reading: Reading | None = None) -> Predicted:
    """Super-resolve, fill and forecast a user's sequences, and write fields, pictures and a table; what an interrupted run made is not made again.

    Args:
        trainer: the trainer, with its device, precision and run.
        module: the network.
        path: a file, a folder or a pattern: of arrays as in `layouts` (.npz, .h5, .zarr), of netCDF, PDEBench or The Well.
        wish: what is asked for.
        reading: what the files do not say themselves.

    Raises:
        FileNotFoundError: if nothing is there.
        BadFileError: if a file cannot be used, does not go with the network, or makes it say what is not finite; of several files after the others.
    """
    wish, reading = wish or Wish(), reading or Reading()
    module.to(trainer.strategy.root_device).eval()
    inputs, folder = find_sequences(path), artefact_folder(trainer)
    stems = result_stems([given.name for given in inputs])
    settings = repr((weights_digest(module), sorted(module.hparams.items()), trainer.precision, wish, reading))
    if trainer.is_forced:
        remove(folder / "kept")  # what tells that results are done
    rows: list[dict[str, Any]] = []
    complaints: list[str] = []
    for given, stem in zip(inputs, stems, strict=True):
        try:
            rows += _file(trainer, module, given, stem, wish, reading, settings, len(inputs))
        except BadFileError as error:
            if len(inputs) == 1:
                raise
            print(f"  {error}", flush=True)
            complaints.append(str(error))
    _tell(trainer, rows, folder)
    if rows and wish.calibrate and wish.members and not can_tell_hidden(module):
        print("spreads are as drawn: this network has not learnt to fill gaps (model.hide)")
    if rows and module.is_stochastic and not wish.members:
        print("each field is a single draw of the network's distribution: --members 32 gives their mean and spread")
    if complaints:
        raise BadFileError(f"{len(inputs) - len(complaints)} of {len(inputs)} files were used; {complaints[0]}")
    frames = sum(row["frames"] for row in rows)
    return Predicted(rows, {"sequences": len(rows), "frames": frames, "forecast": wish.horizon})


def _tell(trainer: ProjectTrainer, rows: list[dict[str, Any]], folder: Path) -> None:
    """Write the table, and print what it says."""
    if not rows:
        return
    log_table(trainer, "sequences", [{name: row.get(name) for name in dict.fromkeys(name for one in rows for name in one)} for row in rows])
    for row in rows[:PRINTED]:
        print(f"  {sentence(row)}")
    if len(rows) > PRINTED:
        print(f"  ... and {len(rows) - PRINTED} more")
    print(f"{len(rows)} sequence{'' if len(rows) == 1 else 's'}; fields, pictures and the table sequences.csv are in {shown_path(folder)}")


def find_sequences(path: str) -> list[Input]:
    """Find the files that a user names; a zarr folder counts as a file, and files of truths, in `truth/` or named so, are left out.

    Raises:
        FileNotFoundError, ValueError: see `shared.data.inputs.find_files`.
    """
    root = Path(path).expanduser()
    if root.is_dir() and root.suffix.lower() == ".zarr":
        return [Input(root, root.name)]
    stores = sorted(root.rglob("*.zarr")) if root.is_dir() else []
    try:
        base, files = find_files(path, READABLE, "file", "sequences", "inbox/*.nc")
    except FileNotFoundError:
        if not stores:
            raise
        base, files = root, []
    found = [one for one in named([*files, *stores], base) if not {"truth"} & {Path(part).stem for part in Path(one.name).parts}]
    if not found:
        raise FileNotFoundError(f"{path} has files of truths alone: expected coarse sequences, in files ending in {', '.join(READABLE)}")
    return found


def result_stems(names: Sequence[str]) -> list[str]:
    """Return files' names without their endings, but for those that would be alike."""
    short = [str(Path(name).with_suffix("")) for name in names]
    return [own if short.count(own) == 1 else name for own, name in zip(short, names, strict=True)]


def sentence(row: dict[str, Any]) -> str:
    """Say in a line what a row of the table says."""
    spread = "" if row.get("mean_sd") is None else f", standard deviation {row['mean_sd']:.3g} in the mean"
    unit = f" {row['unit']}" if row["unit"] else ""
    kinds = {"observed": row["frames"] - row["forecast"] - row["filled"], "forecast": row["forecast"], "filled": row["filled"]}
    parts = ", ".join(f"{count} {kind}" for kind, count in kinds.items() if count)
    frames = f"{row['frames']} frame{'' if row['frames'] == 1 else 's'}" + ("" if kinds["observed"] == row["frames"] else f" ({parts})")
    return f"{row['sequence']}: {frames} of {row['height']} x {row['width']}, peak {row['peak']:.4g}{unit}{spread}"


# ---- one file


def _file(
    trainer: ProjectTrainer, module: PlumeSuperResolution, given: Input, stem: str, wish: Wish, reading: Reading, settings: str, files: int
) -> list[dict[str, Any]]:
    """Return the rows of a file's sequences; what the network cannot make of them is told with the file's name."""
    try:
        return _sequences(trainer, module, given, stem, wish, reading, settings, files)
    except BadFileError:
        raise
    except (ValueError, torch.linalg.LinAlgError) as error:
        raise BadFileError(f"cannot use {given.file}: {error}") from error


def _sequences(
    trainer: ProjectTrainer, module: PlumeSuperResolution, given: Input, stem: str, wish: Wish, reading: Reading, settings: str, files: int
) -> list[dict[str, Any]]:
    """Return the rows of a file's sequences, each made unless an earlier run of the same settings and content made it."""
    observations, places = _read(module, given, wish, reading)
    observations = replace(observations, physics=observations.physics.fixed(observations.wind))
    key = hashlib.sha256(f"{settings}{digest(given.file)}".encode("utf-8", "surrogateescape")).hexdigest()[:16]
    folder = artefact_folder(trainer)
    names = _result_names(stem, observations)
    done = {number: row for number, name in enumerate(names) if (row := _earlier(folder, key, name)) is not None}
    if done:
        print(f"{len(done)} of {len(names)} sequences of {given.name} were made already by an earlier run (--force makes them again)")
    todo = [number for number in range(len(names)) if number not in done]
    if not todo:
        return [done[number] for number in sorted(done)]
    kappa, remark = (
        inflation_of(trainer, module, observations, wish.members) if wish.calibrate and wish.members and can_tell_hidden(module) else (1.0, "")
    )
    prior = _prior(module, observations) if wish.members else None
    remarks = cautions(module, observations, wish.background) + [text for text in (remark,) if text]
    for text in remarks:
        print(f"{given.name}: {text}")
    pictured = set(evenly_spaced(len(names), max(1, PICTURED // files)))
    for number in todo:
        one = observations.select([number])
        outlook = look_out(trainer, module, one, prior, wish.members, kappa, key)
        further = growth(one, outlook)
        for text in further:
            print(f"{names[number]}: {text}")
        moving = replace(one, physics=module.learnt(one.physics))
        row = _row(names[number], moving, outlook, kappa if wish.members else None, remarks + further, wish.background)
        one, outlook = _lifted(one, outlook, wish.background)
        remove(_mark(folder, names[number]))
        row["results"] = _write(folder, names[number], given.file, one, outlook, places, wish.keep_members)
        if number in pictured:
            _draw(trainer, names[number], one, outlook, places)
        write_json(_mark(folder, names[number]), {"key": key, "row": row})
        done[number] = row
        print(f"  {names[number]}", flush=True)
    return [done[number] for number in sorted(done)]


def _read(module: PlumeSuperResolution, given: Input, wish: Wish, reading: Reading) -> tuple[Observations, Coordinates]:
    """Read a file, and refuse what the network cannot take."""
    observations, places = read_placed(given.file, replace(reading, factor=reading.factor or module.factor), wish.horizon)
    for name, have, takes in (
        ("factor", observations.factor, module.factor),
        ("boundary", observations.physics.boundary, module.hparams.boundary),
    ):
        if have != takes:
            raise BadFileError(f"cannot use {given.file}: its {name} is {have}, the network's {takes}; use another network, or set the option {name}")
    return replace(observations, coarse=(observations.coarse - wish.background) * observations.mask), places


def _prior(module: PlumeSuperResolution, observations: Observations) -> FieldPrior | None:
    try:
        return prior_of(module, observations)
    except ValueError as error:
        raise ValueError(f"{error}; --members 0 gives fields without a spread") from error


def _lifted(one: Observations, outlook: Outlook, background: float) -> tuple[Observations, Outlook]:
    """Add the background again."""
    members = None if outlook.members is None else outlook.members + background
    return replace(one, coarse=(one.coarse + background) * one.mask), replace(outlook, mean=outlook.mean + background, members=members)


def _result_names(stem: str, observations: Observations) -> list[str]:
    """Return the names of a file's results: the file's own, and below it those of its sequences where there are several."""
    if len(observations) == 1:
        return [stem]
    numbers = [f"{number:05d}" for number in range(len(observations))]
    names = [name if _NAME.fullmatch(name) else number for name, number in zip(observations.names, numbers, strict=True)]
    return [f"{stem}/{name}" for name in (names if len(set(names)) == len(names) else numbers)]


def _earlier(folder: Path, key: str, name: str) -> dict[str, Any] | None:
    """Return the row that an earlier run wrote, if what it made is still there."""
    try:
        kept = json.loads(_mark(folder, name).read_text(encoding="utf-8"))
        return kept["row"] if kept["key"] == key and (folder / kept["row"]["results"]).exists() else None
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _mark(folder: Path, name: str) -> Path:
    return folder / "kept" / f"{name}.json"


def _row(name: str, one: Observations, outlook: Outlook, kappa: float | None, remarks: Sequence[str], background: float) -> dict[str, Any]:
    """Measure a sequence, its background taken off; nothing here needs a truth."""
    from projects.s3rp.metrics import inconsistency, residual

    mean, area = outlook.mean + background, math.prod(one.physics.spacing)
    apart = inconsistency(outlook.mean, one.coarse, one.mask)
    moved = residual(outlook.mean, one.wind, one.physics, together(one.source, outlook.source)) if one.frames > 1 else torch.full((1, 1), torch.nan)
    ahead, empty = forecast_frames(one), int((~one.mask[0].flatten(1).any(1)).sum())
    return {
        "sequence": name,
        "frames": one.frames,
        "height": mean.shape[-2],
        "width": mean.shape[-1],
        "missing": round(1 - float(one.mask.float().mean()), 4),
        "forecast": ahead,
        "filled": empty - ahead,
        "mean": float(mean.mean()),
        "peak": float(mean.max()),
        "peak_frame": int(mean[0].flatten(1).amax(1).argmax()) + 1,
        "lowest": float(mean.min()),
        "mass_first": float(mean[0, 0].double().sum()) * area,
        "mass_last": float(mean[0, -1].double().sum()) * area,
        "lr_consistency": float(apart[apart.isfinite()].mean()),
        "physics_residual": _finite(float(moved.mean())),
        "diffusivity": one.physics.diffusivity,
        "mean_sd": None if outlook.deviation is None else float(outlook.deviation.mean()),
        "inflation": kappa,
        "released": None if outlook.source is None else float(outlook.source[0].double().sum()) * area,
        "unit": one.unit,
        "remarks": "; ".join(remarks),
    }


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None


# ---- what is written


def _write(folder: Path, name: str, source: Path, one: Observations, outlook: Outlook, places: Coordinates, keep_members: bool) -> str:
    """Write a sequence's fields in the format that it came in; returns the file's name."""
    suffix = source.suffix.lower()
    fields = {"mean": outlook.mean[0].numpy()}
    if outlook.deviation is not None:
        fields["sd"] = outlook.deviation[0].numpy()
    if keep_members and outlook.members is not None:
        fields["members"] = outlook.members[:, 0].numpy()
    if outlook.source is not None:
        fields["source"] = outlook.source[0, 0].numpy()
    if suffix in NETCDF:
        from projects.s3rp.netcdf import write_netcdf

        write_netcdf(folder / f"{name}{suffix}", fields, places, {"Conventions": "CF-1.8", "title": f"super-resolved from {source.name}"})
        return f"{name}{suffix}"
    library_for(source)
    coarse = one.coarse.masked_fill(~one.mask, torch.nan)[0].numpy()
    axes = {axis: np.asarray(values) for axis, values in zip(("time", "y", "x"), (places.time, places.y, places.x), strict=True)}
    write_arrays(folder / f"{name}{suffix}", fields | {"coarse": coarse, "unit": np.array(one.unit)} | axes)
    return f"{name}{suffix}"


def _draw(trainer: ProjectTrainer, name: str, one: Observations, outlook: Outlook, places: Coordinates) -> None:
    from projects.s3rp.animation import animate
    from projects.s3rp.classical import interpolated
    from projects.s3rp.figures import draw_fields

    deviation = None if outlook.deviation is None else outlook.deviation[0]
    fields = {"bicubic": interpolated(one)[0], "S3RP": outlook.mean[0]}
    unit = places.attributes.get(places.names[0], {}).get("units", "")
    short = [f"{value:.6g} {unit.partition(' since ')[0]}".strip() if unit else f"time {value:.6g}" for value in places.time]
    figure = draw_fields(one.coarse[0], fields, None, deviation, one.mask[0], one.wind.select(0), one.unit, shortened(name, 80), short)
    log_figure(trainer, name, figure)
    times = [f"time {value:g} {unit}".strip() for value in places.time]
    animate(artefact_folder(trainer) / f"{name}.gif", one.coarse[0], outlook.mean[0], deviation, None, one.mask[0], times, one.unit)
