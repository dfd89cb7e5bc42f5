"""Writers of miniatures of real data sets, as their archives unpack."""

from __future__ import annotations

import gzip
import pickle
import struct

import numpy as np
from PIL import Image

CLASSES = ("berry", "bird", "dog", "flower", "other")


def idx(array):
    return struct.pack(f">BBBB{array.ndim}I", 0, 0, 8, array.ndim, *array.shape) + array.tobytes()


def write_mnist(raw, count=6, pack=True):
    """Write a miniature MNIST; returns the arrays by the beginning of the file names."""
    raw.mkdir(parents=True)
    draw, arrays = np.random.default_rng(0), {}
    for name, number in (("train", count), ("t10k", count - 2)):
        arrays[name] = draw.integers(0, 256, (number, 28, 28), dtype=np.uint8), draw.permutation(10)[:number].astype(np.uint8)
        for array, kind in zip(arrays[name], ("images-idx3", "labels-idx1"), strict=True):
            file = raw / f"{name}-{kind}-ubyte"
            file.write_bytes(idx(array))
            if pack:
                file.with_name(file.name + ".gz").write_bytes(gzip.compress(file.read_bytes()))
                file.unlink()
    return arrays


def write_linnaeus(root, size=(8, 8), classes=CLASSES, splits=("train", "test")):
    """Write pictures whose colour tells split and class."""
    for number, split in enumerate(splits):
        for label, name in enumerate(classes):
            folder = root / split / name
            folder.mkdir(parents=True)
            for index in range(2):
                Image.new("RGB", size, (40 * label, 100 * number, 90)).save(folder / f"{index + 1}_{size[0]}.jpg", quality=100)


def write_cifar10(root, count=2):
    """Write a miniature CIFAR-10 with the labels 3 and 9 in turn; returns the rows of pixels by file."""
    folder, draw = root / "cifar-10-batches-py", np.random.default_rng(0)
    folder.mkdir(parents=True)
    stored = {name: draw.integers(0, 256, (count, 3072), dtype=np.uint8) for name in [*(f"data_batch_{i}" for i in range(1, 6)), "test_batch"]}
    for name, rows in stored.items():
        content = {b"data": rows, b"labels": [9 if row % 2 else 3 for row in range(count)]}
        (folder / name).write_bytes(pickle.dumps(content, protocol=2))
    (folder / "batches.meta").write_bytes(pickle.dumps({b"label_names": [f"name {i}".encode() for i in range(10)]}, protocol=2))
    return stored


def write_speech(folder, subjects=12, header_lines=2, features=752):
    """Write a miniature of pd_speech_features.csv: three recordings a subject, every third subject healthy; returns the values, (N, 1 + features)."""
    draw = np.random.default_rng(0)
    names = ["id", "gender", *(f"feature_{number}" for number in range(features)), "class"]
    groups = ["", "", "Baseline Features", *([""] * (features - 1)), ""]
    values = draw.normal(size=(3 * subjects, 1 + features)).round(4)
    values[:, 0] = np.arange(3 * subjects) // 3 % 2
    rows = [[str(n // 3), f"{row[0]:.0f}", *map(repr, row[1:].tolist()), str(int(n // 3 % 3 > 0))] for n, row in enumerate(values)]
    folder.mkdir(parents=True, exist_ok=True)
    lines = [*([groups, names] if header_lines == 2 else [names]), *rows]
    (folder / "pd_speech_features.csv").write_text("\n".join(map(",".join, lines)) + "\n")
    return values


def write_views(root, classes=("airplane", "night_stand"), counts=(("train", 2), ("test", 1)), size=(20, 20)):
    """Write a miniature of ModelNet40's views, whose grey level is 20 times the class and object plus 10 times the view."""
    for label, name in enumerate(classes):
        number = 0
        for split, count in counts:
            folder = root / "modelnet40v1" / name / split
            folder.mkdir(parents=True)
            for _ in range(count):
                number += 1
                for view in range(1, 13):
                    grey = 60 * label + 20 * number + 10 * view
                    Image.new("L", size, grey).save(folder / f"{name}_{number:04d}_{view:03d}.jpg", quality=100)


STAY_HEADER = [
    "Hours", "Capillary refill rate", "Diastolic blood pressure", "Fraction inspired oxygen", "Glascow coma scale eye opening",
    "Glascow coma scale motor response", "Glascow coma scale total", "Glascow coma scale verbal response", "Glucose", "Heart Rate", "Height",
    "Mean blood pressure", "Oxygen saturation", "Respiratory rate", "Systolic blood pressure", "Temperature", "Weight", "pH",
]  # fmt: skip


def write_stay(path, rows):
    """Write one file of the benchmark's measurements: `rows` are (hours, {variable: value})."""
    lines = [STAY_HEADER, *([str(hours), *(str(values.get(name, "")) for name in STAY_HEADER[1:])] for hours, values in rows)]
    path.write_text("\n".join(map(",".join, lines)) + "\n")


def write_mimic3(root, counts=(("train", 6), ("test", 3))):
    """Write a miniature of the benchmark's in-hospital mortality, with the odd cases: full hours, late rows, 15.0 for 15."""
    draw, subject = np.random.default_rng(0), 100
    for split, count in counts:
        folder = root / "in-hospital-mortality" / split
        folder.mkdir(parents=True)
        listed = ["stay,y_true"]
        for number in range(count):
            subject += 1
            rate = [(float(hours), {"Heart Rate": round(80 + 10 * draw.normal(), 1)}) for hours in np.sort(draw.uniform(0, 52, 9))]
            eyes = [(52.5, {"Glascow coma scale eye opening": "None", "Glascow coma scale total": "15.0"})]
            write_stay(folder / f"{subject}_episode1_timeseries.csv", rate + eyes)
            listed.append(f"{subject}_episode1_timeseries.csv,{number % 2}")
        (folder / "listfile.csv").write_text("\n".join(listed) + "\n")


def write_parties(folder, count=60, widths=(3, 2)):
    """Write the files of real parties, each in an order of its own; returns the values of each party and the labels by id."""
    draw = np.random.default_rng(0)
    folder.mkdir(parents=True, exist_ok=True)
    ids = [f"p{number:03d}" for number in range(count)]
    labels = {name: "yes" if place % 3 else "no" for place, name in enumerate(ids)}
    tables = [dict(zip(ids, draw.normal(5, 3, (count, width)), strict=True)) for width in widths]
    (folder / "labels.csv").write_text("id,label\n" + "".join(f"{name},{label}\n" for name, label in labels.items()))
    for party, table in enumerate(tables):
        header = ",".join(["id", *(f"x{party}{column}" for column in range(widths[party]))])
        rows = [",".join([ids[place], *map(repr, table[ids[place]].tolist())]) for place in draw.permutation(count)]
        (folder / f"party-{party}.csv").write_text("\n".join([header, *rows]) + "\n")
    return tables, labels
