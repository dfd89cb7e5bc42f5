"""The readers of projects on records, sounds and fields, each with a writer of what it reads."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import numpy as np
import torch
from fuzz.withstanding import Reader
from helpers import party_sets, voices

# ---- cafe, vafl


def _schedules(ending: str):
    rounds = [[0, 3, 5], [1, 2, 4], [0, 2, 5]]

    def make(home: Path) -> None:
        file = home / f"rounds{ending}"
        if ending == ".npy":
            np.save(file, np.array(rounds))
        elif ending == ".json":
            file.write_text(json.dumps(rounds))
        else:
            file.write_text("\n".join(",".join(map(str, members)) for members in rounds) + "\n")

    return make


def _read_schedule(ending: str):
    from projects.cafe.schedule_files import read_schedule

    return lambda home: read_schedule(home / f"rounds{ending}")


def _read_linnaeus(home: Path) -> None:
    from projects.cafe.layouts import read_linnaeus

    read_linnaeus(home, "train", 8)


def _read_parties(home: Path) -> None:
    from projects.vafl.layouts import read_labels, read_party

    read_labels(home)
    read_party(home, 0)
    read_party(home, 1)


def _read_speech(home: Path) -> None:
    from projects.vafl.layouts import read_speech

    read_speech(home)


def _read_mimic3(home: Path) -> None:
    from projects.vafl.mimic3 import read_stays

    read_stays(home, "train")


def _trace(home: Path) -> None:
    (home / "trace.csv").write_text("client,seconds\n" + "".join(f"{row % 2},{row / 7}\n" for row in range(6)))


def _read_trace(home: Path) -> None:
    from projects.vafl.delays import DelaySource
    from projects.vafl.settings import Delays

    DelaySource(Delays(compute=f"trace:{home / 'trace.csv'}"), 2, 0)


def _message(home: Path) -> None:
    from projects.vafl.frames import Frame, encode

    (home / "message").write_bytes(encode(Frame("welcome", {"client": 1}, {"rows": torch.arange(6).reshape(2, 3).float()})))


def _decode_message(home: Path) -> None:
    from projects.vafl.frames import FrameError, decode

    try:
        decode(bytearray((home / "message").read_bytes()))
    except FrameError as error:
        raise ValueError(f"message: {error}") from error  # it has no file's name


def _journal(home: Path) -> None:
    (home / "released").write_bytes(np.arange(5, dtype="<i4").tobytes())


def _read_journal(home: Path) -> None:
    from projects.vafl.partaking import Journal

    assert Journal.read(home / "released", 5).shape == (5,)


# ---- rco


def _vectors(home: Path) -> None:
    draw = np.random.default_rng(0)
    np.savez(home / "set.npz", x_train=draw.normal(size=(8, 3)), y_train=np.arange(8) % 2, x_test=draw.normal(size=(4, 3)), y_test=np.arange(4) % 2)


def _read_vectors(home: Path) -> None:
    from projects.rco.layouts import read_vectors

    read_vectors(home / "set.npz")


def _rows(ending: str):
    def make(home: Path) -> None:
        rows = np.random.default_rng(0).normal(size=(4, 3))
        if ending == ".csv":
            with (home / "rows.csv").open("w", newline="") as file:
                csv.writer(file).writerows([["a", "b", "c"], *rows.tolist()])
        elif ending == ".npz":
            np.savez(home / "rows.npz", x=rows)
        else:
            np.save(home / "rows.npy", rows)

    return make


def _read_rows(ending: str):
    def read(home: Path) -> None:
        from projects.rco.prediction import read_vectors

        assert read_vectors(home / f"rows{ending}", 3).isfinite().all()

    return read


def _pairs(home: Path) -> None:
    folds = ["Ann\t1\t2", "Bob\t1\t3", "Ann\t1\tBob\t2", "Bob\t1\tCleo\t1"]
    (home / "pairs.txt").write_text("\n".join(["2\t2", *folds, *folds]) + "\n")


def _read_pairs(home: Path) -> None:
    from projects.rco.face_protocols import read_pairs

    read_pairs(home / "pairs.txt")


def _route(home: Path) -> None:
    from projects.rco.anchors import Route, State, store_state, write_route

    files = [store_state(home, epoch, {"weight": torch.full((2, 2), float(epoch))}) for epoch in (1, 2)]
    states = tuple(State(epoch, file, 0.1, {"val/accuracy": 0.5}) for epoch, file in zip((1, 2), files, strict=True))
    write_route(Route(home, {"network": "mlp_6"}, states, states, True))


def _read_route(home: Path) -> None:
    from projects.rco.anchors import Route

    route = Route.load(home)
    for epoch in route.epochs:
        route.tensors(epoch)
    route.accuracy()


def _foreign(home: Path) -> None:
    import argparse

    for epoch in (1, 2):
        content = {"epoch": epoch, "model": {"weight": torch.full((2, 2), float(epoch))}, "opt": argparse.Namespace(lr=0.05)}
        torch.save(content, home / f"ckpt_epoch_{epoch}.pth")


def _read_foreign(home: Path) -> None:
    from projects.rco.collecting import collect

    collect(sorted(home.glob("*.pth")), home.parent / "collected", {})


# ---- rsknet


def _sound(ending: str):
    return lambda home: voices.write_sound(home / f"a{ending}", 800)


def _read_sound(home: Path) -> None:
    from projects.rsknet.audio import find_audio, read

    for given in find_audio(home):
        assert read(given.file, 16000).isfinite().all()


def _trials(home: Path) -> None:
    (home / "trials.txt").write_text("1 a/1/1.wav a/2/1.wav\n0 a/1/1.wav b/1/1.wav\n0 b/1/1.wav a/2/1.wav\n")


def _read_trials(home: Path) -> None:
    from projects.rsknet.lists import read_trials

    read_trials(home / "trials.txt")


def _read_kaldi(home: Path) -> None:
    from projects.rsknet.lists import read_kaldi

    read_kaldi(home / "data", home)


def _read_sitw(home: Path) -> None:
    from projects.rsknet.layouts import sitw

    sitw(home, ("dev",), "assist-core")


def _scorer(home: Path) -> None:
    from projects.rsknet.scoring import Scorer

    draw = torch.Generator().manual_seed(0)
    vectors, speakers = torch.randn(24, 4, generator=draw, dtype=torch.float64), torch.arange(24) // 4
    Scorer.fit(vectors + speakers[:, None], speakers, "net", top=5).save(home / "scorer.safetensors")


def _read_scorer(home: Path) -> None:
    from projects.rsknet.scoring import Scorer

    Scorer.load(home / "scorer.safetensors")


def _voices(home: Path) -> None:
    from projects.rsknet.enrolling import Voices

    one = torch.ones(2, dtype=torch.float64)
    Voices(("Ann", "Bob"), one.repeat(3, 1).T.contiguous(), torch.zeros(2, 0).double(), torch.ones(2).long(), one, (("a",), ("b",)), "n", "c").save(
        home / "voices.safetensors"
    )


def _read_voices(home: Path) -> None:
    from projects.rsknet.enrolling import Voices

    Voices.load(home / "voices.safetensors")


# ---- s3rp


def _plumes(ending: str):
    def make(home: Path) -> None:
        from projects.s3rp.layouts import write_observations, write_truth
        from projects.s3rp.worlds import World, draw_plumes

        plumes = draw_plumes(World(size=8, frames=2, diffusivity=0.01), 1, "train")
        write_observations(home / f"train{ending}", plumes.observations)
        (home / "truth").mkdir()
        write_truth(home / "truth" / f"train{ending}", plumes.truth)

    return make


def _read_plumes(home: Path) -> None:
    from projects.s3rp.layouts import find_truth, read_split

    find_truth(home, "train", read_split(home, "train"))


def _netcdf(home: Path) -> None:
    from scipy.io import netcdf_file

    draw = np.random.default_rng(0)
    with netcdf_file(home / "plume.nc", "w") as file:
        for name, size, unit in (("time", 3, "seconds since 2020-01-01"), ("y", 4, "m"), ("x", 4, "m")):
            file.createDimension(name, size)
            one = file.createVariable(name, "f8", (name,))
            one[:], one.units, one.axis = np.arange(size) + 0.5, unit, name[0].upper()
        for name, standard in (("no2", ""), ("u", "eastward_wind"), ("v", "northward_wind")):
            one = file.createVariable(name, "f4", ("time", "y", "x"))
            one[:] = draw.uniform(0.1, 1, (3, 4, 4))
            one.units = "m s-1" if standard else "mol m-2"
            if standard:
                one.standard_name = standard


def _read_netcdf(home: Path) -> None:
    from projects.s3rp.assembling import Reading
    from projects.s3rp.layouts import read_observations

    read_observations(home / "plume.nc", Reading(factor=2, diffusivity=0.01))


RECORDS = [
    *(Reader(f"cafe-schedule{ending}", _schedules(ending), lambda home, e=ending: _read_schedule(e)(home)) for ending in (".csv", ".json", ".npy")),
    Reader("cafe-linnaeus", lambda home: party_sets.write_linnaeus(home, classes=("berry", "bird")), _read_linnaeus),
    Reader("rco-vectors", _vectors, _read_vectors),
    *(Reader(f"rco-rows{ending}", _rows(ending), _read_rows(ending)) for ending in (".csv", ".npy", ".npz")),
    Reader("rco-pairs", _pairs, _read_pairs),
    Reader("rco-route", _route, _read_route),
    Reader("rco-foreign", _foreign, _read_foreign),
    *(Reader(f"rsknet-sound{ending}", _sound(ending), _read_sound) for ending in (".wav", ".flac")),
    Reader("rsknet-trials", _trials, _read_trials),
    Reader("rsknet-kaldi", lambda home: voices.write_kaldi(home / "data", ["a", "b"], 1), _read_kaldi, "data/*"),
    Reader("rsknet-sitw", lambda home: voices.write_sitw(home, ("dev",)), _read_sitw, "**/*.lst"),
    Reader("rsknet-scorer", _scorer, _read_scorer),
    Reader("rsknet-voices", _voices, _read_voices),
    *(Reader(f"s3rp-plumes{ending}", _plumes(ending), _read_plumes) for ending in (".npz", ".zarr")),
    Reader("s3rp-netcdf", _netcdf, _read_netcdf),
    Reader("vafl-parties", lambda home: party_sets.write_parties(home, 8), _read_parties),
    Reader("vafl-speech", lambda home: party_sets.write_speech(home, 4), _read_speech),
    Reader("vafl-mimic3", lambda home: party_sets.write_mimic3(home, (("train", 2),)), _read_mimic3),
    Reader("vafl-trace", _trace, _read_trace),
    Reader("vafl-message", _message, _decode_message),
    Reader("vafl-journal", _journal, _read_journal),
]
