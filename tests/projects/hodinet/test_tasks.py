"""What `test` writes, sheets of pictures, and what is remarked."""

import csv
import json
import re
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image
from torch.nn import functional as F

from projects.hodinet import tasks
from projects.hodinet.cli import main
from projects.hodinet.data import SaliencyData
from projects.hodinet.metrics import PROTOCOLS, SaliencyMetrics
from projects.hodinet.module import SaliencyDetection
from projects.hodinet.tables import HEADINGS
from projects.hodinet.tasks import SHOWN, examples, picture_name, remarks, trained_on
from shared.data.selection import evenly_spaced

SCENES = {"length": 4, "test_length": 9, "size": 32}


def small(**options):
    return SaliencyDetection(**({"widths": [8, 12, 16, 20], "size": 32} | options))


def data(**options):
    made = SaliencyData(**(SCENES | options))
    made.setup()
    return made


def rows_of(path):
    return list(csv.DictReader(path.open()))


def judged_apart(module, image, depth, size):
    """The map of a picture, (H, W, 3) uint8 and (H, W) in [0, 1], at some size, without the module's own way there."""
    layers = (torch.from_numpy(image.copy()).permute(2, 0, 1)[None].float(), torch.from_numpy(depth.copy())[None, None])
    square = [F.interpolate(one, (64, 64), mode="bilinear", antialias=True) for one in layers]
    with torch.no_grad():
        return F.interpolate(module.net.eval()(*square)[0], size, mode="bilinear")[0].sigmoid()


def measures_apart(module, pictures):
    """The measures under both protocols, and those of each picture, of (image, depth, mask)."""
    apart = {protocol: SaliencyMetrics(protocol) for protocol in PROTOCOLS}
    by_picture = []
    for image, depth, mask in pictures:
        marked = torch.from_numpy(mask)[None]
        by_picture.append(apart["pysod"].update(judged_apart(module, image, depth, mask.shape), marked))
        apart["group256"].update(judged_apart(module, image, depth, (256, 256)), marked)
    return {protocol: metrics.compute() for protocol, metrics in apart.items()}, by_picture


def agree(row, measures):
    assert {name: float(row[name]) for name in measures} == pytest.approx(measures, abs=2e-4), "a level of 255 may differ by rounding"


# ---- what `test` writes


def test_measures_of_scenes_are_those_of_maps_computed_apart(trained):
    module = SaliencyDetection.load_from_checkpoint(trained / "checkpoints" / "best.ckpt", weights_only=True)
    scenes = [data(test_length=8, size=64).test_pictures[0][place] for place in range(8)]
    pictures = [(one["image"].permute(1, 2, 0).numpy(), one["depth"][0].numpy(), one["mask"][0].numpy() > 0) for one in scenes]
    expected, by_picture = measures_apart(module, pictures)
    rows = {row["protocol"]: row for row in rows_of(trained / "artefacts" / "fit" / "sets.csv")}
    assert {(row["set"], row["pictures"]) for row in rows.values()} == {("default", "8")}
    for protocol in PROTOCOLS:
        agree(rows[protocol], expected[protocol])
    listed = rows_of(trained / "artefacts" / "fit" / "pictures.csv")
    assert [row["picture"] for row in listed] == [str(place) for place in range(8)]
    for row, measures in zip(listed, by_picture, strict=True):
        agree(row, measures)
    curves = rows_of(trained / "artefacts" / "fit" / "curves_default.csv")
    assert len(curves) == 256
    assert max(float(line["f"]) for line in curves) == pytest.approx(float(rows["pysod"]["f_max"]))
    headline = json.loads((trained / "manifest.json").read_text())["stages"][0]["summary"]
    assert headline["test/mae"] == pytest.approx(float(rows["pysod"]["mae"]), abs=1e-4)


def read(root, name, stem):
    image, depth, mask = (np.asarray(Image.open(root / name / folder / f"{stem}.png")) for folder in ("RGB", "depth", "GT"))
    return image, (depth == 200).astype(np.float32), mask > 128


def test_files_of_several_sizes_are_tested_with_the_weights_of_scenes(run, spnet, monkeypatch, capsys):
    shown, sheet = [], tasks.examples
    monkeypatch.setattr(tasks, "examples", lambda module, own, places: (shown.append(list(places)), sheet(module, own, places))[1])
    cli = main(["test", "--data.source=spnet", f"--data.root={spnet}", "--data.test_sets=[my_set,NJU2K]"])
    stems, expected, worst = {"my_set": ["10", "9"], "NJU2K": ["a", "b", "c"]}, {}, []
    for name, own in stems.items():
        expected[name], by_picture = measures_apart(cli.model, [read(spnet / "TestDataset", name, stem) for stem in own])
        worst.append(sorted(range(len(own)), key=lambda place: by_picture[place]["s_measure"]))
    rows = rows_of(run / "artefacts" / "test" / "sets.csv")
    assert [(row["set"], row["protocol"], row["pictures"]) for row in rows] == [
        (name, protocol, str(len(own))) for name, own in stems.items() for protocol in PROTOCOLS
    ]
    for row in rows:
        agree(row, expected[row["set"]][row["protocol"]])
    listed = rows_of(run / "artefacts" / "test" / "pictures.csv")
    assert [(row["set"], row["picture"]) for row in listed] == [(name, stem) for name, own in stems.items() for stem in own]
    assert shown == [[0, 1], worst[0], [0, 1, 2], worst[1]], "examples of each set in order, and its worst pictures first"
    mean = np.mean([float(row["s_measure"]) for row in rows if row["protocol"] == "pysod"])
    assert cli.result.summary["test/s_measure"] == pytest.approx(mean, abs=1e-4)
    check_latex((run / "artefacts" / "test" / "tables.tex").read_text(), [r"my\_set", "NJU2K"], "default")
    assert "| my_set | 2 |" in capsys.readouterr().out


def check_latex(text, sets, learnt):
    """Two tables, balanced, with the sets in their first column, and as many cells in every line as columns."""
    tables = re.findall(r"\\begin\{table\}.*?\\end\{table\}", text, re.DOTALL)
    assert [re.search(r"\\caption\{(.*)\}", table)[1] for table in tables] == [f"Protocol {name}; trained on {learnt}." for name in PROTOCOLS]
    assert [re.search(r"\\label\{(.*)\}", table)[1] for table in tables] == [f"tab:{name}" for name in PROTOCOLS]
    for table in tables:
        begun, ended = (re.findall(rf"\\{word}\{{(\w+)\}}", table) for word in ("begin", "end"))
        assert begun == ended[::-1] == ["table", "tabular"]
        assert table.count("{") == table.count("}")
        assert table.count("$") % 2 == 0
        columns = re.search(r"\\begin\{tabular\}\{(\w+)\}", table)[1]
        lines = [line for line in table.splitlines() if line.endswith(r"\\")]
        assert len(columns) == 2 + len(HEADINGS)
        assert {line.count(" & ") for line in lines} == {len(columns) - 1}
        assert [line.split(" & ")[0] for line in lines] == ["set", *sets]
        assert not re.search(r"(?<!\\)[%#_](?![a-z{\\])", table.split(r"\midrule", 1)[1]), "escaped"


def test_what_a_run_has_learnt_is_named_whatever_it_is_tested_on(tmp_path):
    now = SimpleNamespace(train_names=["NJU2K", "NLPR"])
    stages = {"stages": [{"verb": "fit", "summary": {"trained_on": "default"}}, {"verb": "test", "summary": {"trained_on": "none"}}]}
    assert trained_on(SimpleNamespace(verb="fit", run=None), now) == "NJU2K, NLPR"
    tested = SimpleNamespace(verb="test", run=SimpleNamespace(manifest=lambda: stages, checkpoints=tmp_path / "checkpoints"))
    assert trained_on(tested, now) == trained_on(tested, now, str(tmp_path / "checkpoints" / "best.ckpt")) == "default"
    assert trained_on(tested, now, str(tmp_path / "of another.ckpt")) == "", "nobody knows what other weights have learnt"
    assert trained_on(SimpleNamespace(verb="test", run=SimpleNamespace(manifest=lambda: {"stages": []})), now) == ""


# ---- sheets


def test_places_are_spread_over_a_set():
    assert evenly_spaced(3, SHOWN) == [0, 1, 2]
    assert evenly_spaced(0, SHOWN) == []
    assert evenly_spaced(600, SHOWN) == [0, 100, 200, 300, 400, 500]
    for count in range(1, 30):
        assert len(set(evenly_spaced(count, SHOWN))) == min(SHOWN, count)
        assert 0 <= evenly_spaced(count, SHOWN)[0] <= evenly_spaced(count, SHOWN)[-1] < count


def test_a_sheet_shows_picture_depth_mask_and_map(monkeypatch):
    module, pictures, rows = small(), data().test_pictures[0], []
    monkeypatch.setattr(tasks, "sheet", lambda given: rows.extend(given) or torch.zeros(3, 1, 1))
    examples(module, pictures, [4, 0])
    for number, place in enumerate([4, 0]):
        one = pictures[place]
        torch.testing.assert_close(rows[0][number], one["image"] / 255)
        torch.testing.assert_close(rows[1][number], one["depth"])
        assert torch.equal(rows[2][number], one["mask"].float())
        found = module(one["image"][None], one["depth"][None])[0]
        torch.testing.assert_close(rows[3][number], tasks.heat(found[0]))


def test_sheets_of_pictures_of_any_size(spnet):
    own = data(source="spnet", root=str(spnet)).test_pictures[0]
    found = examples(small(), own, range(3))
    assert found.ndim == 3
    assert found.shape[0] == 3
    assert 0 <= float(found.min()) <= float(found.max()) <= 1
    assert [picture_name(own, place) for place in range(3)] == ["a", "b", "c"]
    assert picture_name(data().test_pictures[0], 7) == "7"


# ---- what is remarked


def test_what_is_seldom_meant_is_remarked():
    assert remarks(small(), SaliencyData(**SCENES)) == []
    assert remarks(small(size=None), SaliencyData(size=64)) == []
    [other] = remarks(small(size=64), SaliencyData(**SCENES))
    assert "training squares have 32 pixels a side, but pictures are judged at model.size 64" in other
    said = remarks(small(rgb="pvt_v2_b0", depth="pvt_v2_b0"), SaliencyData(**SCENES))
    assert [re.search(r"model\.(\w+)$", one)[1] for one in said] == ["rgb_weights", "depth_weights"]
    assert remarks(small(rgb="pvt_v2_b0", streams=["depth"]), SaliencyData(**SCENES)) == []
