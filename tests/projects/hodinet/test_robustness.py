"""That what `robustness` says of corrupted depth is what comes of judging it picture by picture."""

import csv
import json
import math
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image

from projects.hodinet.cli import main
from projects.hodinet.corruption import CORRUPTIONS, corrupt
from projects.hodinet.data import SaliencyData
from projects.hodinet.depth import polarity
from projects.hodinet.metrics import SaliencyMetrics
from projects.hodinet.module import SaliencyDetection
from projects.hodinet.quality import depth_quality
from projects.hodinet.robustness import (
    UNTOUCHED,
    Setting,
    draw_curves,
    draw_examples,
    expand,
    measure_set,
    partner,
    robustness,
    tabulate,
    tell_polarity,
)
from shared.data.selection import evenly_spaced

SHOWN = ("s_measure", "f_max", "e_max", "mae")


class Echo:
    """Takes depth for the map, and remembers how many pictures it was given at once."""

    def __init__(self, size=None):
        self.hparams, self.batches = SimpleNamespace(size=size), []

    def __call__(self, images, depth):
        assert images.shape[2:] == depth.shape[2:]
        assert len(images) == len(depth)
        self.batches.append(len(depth))
        return depth


def by_hand(module, pictures, change):
    """Measure maps of a set one by one, with changed depth: `change(depth, index)`."""
    metrics, qualities = SaliencyMetrics(), []
    for index in range(len(pictures)):
        one = pictures[index]
        depth = change(one["depth"], index)
        metrics.update(module(one["image"][None], depth[None])[0], one["mask"])
        qualities.append(depth_quality(one["image"], depth))
    return {name: value for name, value in metrics.compute().items() if name in SHOWN} | {"quality": np.mean(qualities)}


def write_files(root, sizes):
    for number, (height, width) in enumerate(sizes):
        chance = np.random.default_rng(number)
        marked = np.zeros((height, width), bool)
        marked[8:24, 10:30] = True
        layers = {
            "RGB": chance.integers(0, 256, (height, width, 3)),
            "depth": 40 + 120 * marked + chance.integers(0, 60, (height, width)),
            "GT": 255 * marked,
        }
        for name, layer in layers.items():
            (root / name).mkdir(parents=True, exist_ok=True)
            Image.fromarray(layer.astype(np.uint8)).save(root / name / f"{number}.png")


def test_measures_are_those_of_corrupted_pictures_one_by_one(run, capsys):
    cli = main(["robustness", "--corruptions=[inverted,shuffled,missing,grain,levels]"])
    module, pictures, rows, printed = cli.model, cli.datamodule.test_pictures[0], cli.result.rows, capsys.readouterr().out
    settings = [UNTOUCHED, *map(Setting, ("inverted", "shuffled", "missing")), *(Setting("grain", strength) for strength in (0.05, 0.1, 0.2, 0.4))]
    settings += [Setting("levels", strength) for strength in (16, 8, 4, 2)]
    assert [(row["corruption"], row["strength"]) for row in rows] == settings
    changes = {
        UNTOUCHED: lambda depth, index: depth,
        Setting("inverted"): lambda depth, index: torch.where(depth > 0, 1 - depth, 0),
        Setting("shuffled"): lambda depth, index: pictures[partner(index, 8, 0)]["depth"],
        Setting("missing"): lambda depth, index: 0 * depth,
        Setting("grain", 0.2): lambda depth, index: corrupt(depth, "grain", 0.2, index),
        Setting("levels", 2): lambda depth, index: (depth > 0.5).float(),
    }
    for setting, change in changes.items():
        found, expected = rows[settings.index(setting)], by_hand(module, pictures, change)
        assert {name: found[name] for name in expected} == pytest.approx(expected, abs=2e-3), setting
        assert found["change"] == pytest.approx(found["s_measure"] - rows[0]["s_measure"])
    assert rows[3]["quality"] == 0
    assert len({row["mae"] for row in rows}) == len(rows), "every corruption changes something"
    (tested,) = (row for row in main(["test"]).result.rows if row["protocol"] == "pysod")
    assert {name: rows[0][name] for name in SHOWN} == pytest.approx({name: tested[name] for name in SHOWN}, abs=1e-4), "all pictures are chosen"

    by_name = [[row["change"] for row in rows[1:] if row["corruption"] == name] for name in ("inverted", "shuffled", "missing", "grain", "levels")]
    expected = {"robustness/s_measure": rows[0]["s_measure"], "robustness/mean_change": np.mean([np.mean(own) for own in by_name])}
    assert cli.result.summary == pytest.approx(expected, abs=1e-4)
    table = [[cell.strip() for cell in line.split("|")[1:-1]] for line in printed.splitlines() if line.startswith("|")]
    assert table[0] == ["corruption", "strength", "S", "max F", "MAE", "depth quality", "change of S"]
    assert [line[0] for line in table[2:]] == [setting.corruption for setting in settings]
    assert table[8][1:3] == ["0.2 (standard deviation)", f"{rows[6]['s_measure']:.3f}"]
    folder = run / "artefacts" / "robustness"
    assert {path.name for path in folder.iterdir()} == {
        *(f"{name}.{ending}" for name in ("robustness", "polarity") for ending in ("csv", "json")),
        "robustness.png",
        "examples.png",
    }
    with (folder / "robustness.csv").open() as file:
        written = list(csv.DictReader(file))
    assert [float(row["s_measure"]) for row in written] == [row["s_measure"] for row in rows]
    assert json.loads((folder / "robustness.json").read_text()) == rows

    (told,) = cli.result.polarity
    known = [polarity(one["depth"], one["mask"]) for one in pictures]
    assert (told["pictures"], told["correlation"]) == (8, pytest.approx(np.mean(known)))
    assert (told["s_measure"], told["s_inverted"]) == (rows[0]["s_measure"], rows[1]["s_measure"])
    assert f"default: {told['verdict']}" in printed.splitlines()


def test_a_set_that_is_the_other_way_round_is_told(run, capsys, caplog):
    given = ["--data.test_sets=[default,inverted]", "--data.normalise=false", "--corruptions=[inverted]", "--pictures=4"]
    cli = main(["stress", *given])  # its former name
    default, inverted, mean, *others = cli.result.rows
    assert [row["set"] for row in cli.result.rows] == ["default", "inverted", "mean"] * 2
    for name in SHOWN:
        assert others[1][name] == pytest.approx(default[name], abs=2e-3), "inverted twice"
        assert others[0][name] == pytest.approx(inverted[name], abs=2e-3)
        assert mean[name] == pytest.approx((default[name] + inverted[name]) / 2)
    right, wrong = capsys.readouterr().out.split("\n\n")[-1].splitlines()[:2]
    assert right.startswith("default: depth looks the right way round (what is salient is nearer in 100% of 4 pictures")
    assert wrong.startswith("inverted: depth looks the wrong way round (what is salient is nearer in 0% of 4 pictures; S is ")
    assert wrong.endswith("add the set to data.invert, or remove it from there")
    assert "inverted: what is salient is farther than the rest in 4 of 4 pictures" in caplog.text


def test_pictures_of_any_size_are_judged_one_by_one(tmp_path):
    write_files(tmp_path, [(40, 50), (64, 48), (40, 50)])
    data = SaliencyData(source="folder", root=str(tmp_path), batch_size=4)
    data.prepare_data()
    settings, module = expand(["shuffled", "holes"]), Echo()
    values, correlations = measure_set(module, data.test_pictures[0], [0, 1, 2], settings, data)
    assert module.batches == [1] * 3 * len(settings)

    def other(depth, index):
        found = data.test_pictures[0][partner(index, 3, 0)]["depth"]
        return torch.nn.functional.interpolate(found[None], depth.shape[1:], mode="bilinear", antialias=True)[0].clamp(0, 1)

    for setting, change in {
        UNTOUCHED: lambda depth, index: depth,
        Setting("shuffled"): other,
        Setting("holes", 0.5): lambda depth, index: corrupt(depth, "holes", 0.5, index),
    }.items():
        expected = by_hand(Echo(), data.test_pictures[0], change)
        assert {name: values[setting][name] for name in expected} == pytest.approx(expected), setting
    assert min(correlations) > 0.5
    together = Echo(size=64)
    again, _ = measure_set(together, data.test_pictures[0], [0, 1, 2], settings, data)
    assert together.batches == [4, 2] * 3
    assert again == values


def test_a_set_without_a_setting_is_left_out_of_its_mean():
    shuffled, inverted = Setting("shuffled"), Setting("inverted")
    scores = {"single": {UNTOUCHED: 0.8, inverted: 0.4}, "many": {UNTOUCHED: 0.6, shuffled: 0.2, inverted: 0.4}}
    values = {name: {key: dict.fromkeys((*SHOWN, "quality"), value) for key, value in own.items()} for name, own in scores.items()}
    rows = tabulate(values, [UNTOUCHED, shuffled, inverted])
    found = [(row["set"], row["corruption"], row["s_measure"]) for row in rows]
    assert found[:2] == [("single", "untouched", 0.8), ("many", "untouched", 0.6)]
    assert found[2] == ("mean", "untouched", pytest.approx(0.7))
    assert found[3:5] == [("many", "shuffled", 0.2), ("mean", "shuffled", 0.2)]
    assert [row["change"] for row in rows if row["set"] == "many"] == pytest.approx([0, -0.4, -0.2])
    assert rows[4]["change"] == pytest.approx(-0.4), "of the sets that have it"
    assert {row["set"] for row in tabulate({"many": values["many"]}, [UNTOUCHED, inverted])} == {"many"}


def test_nothing_is_measured_of_what_does_not_fit():
    with pytest.raises(ValueError, match="corruptions holds fog, rain: choose of inverted, noise, shuffled"):
        expand(["grain", "rain", "fog"])
    with pytest.raises(ValueError, match="corruptions holds nothing: choose of inverted"):
        expand([])
    assert expand(None) == [UNTOUCHED, *(Setting(name, strength) for name, one in CORRUPTIONS.items() for strength in one.strengths or (None,))]
    assert expand(["blur", "blur"]) == [UNTOUCHED, *(Setting("blur", strength) for strength in CORRUPTIONS["blur"].strengths)]
    module = SaliencyDetection(widths=[8, 8, 8, 8], streams=["rgb"])
    with pytest.raises(ValueError, match=r"the network does not look at depth, .* model.streams"):
        robustness(SimpleNamespace(), module, SaliencyData(), None, 100)


def test_too_few_pictures_are_refused(tmp_path):
    write_files(tmp_path, [(40, 50)])
    data = SaliencyData(source="folder", root=str(tmp_path))
    module = SaliencyDetection(widths=[8, 8, 8, 8])
    with pytest.raises(ValueError, match=r"no test set in .* has 2 or more pictures, which shuffled need"):
        robustness(SimpleNamespace(), module, data, ["shuffled"], 100)
    data.test_names, data.test_pictures = [], []
    with pytest.raises(ValueError, match=r"no test set in .* has 1 or more pictures, which inverted, noise"):
        robustness(SimpleNamespace(), module, data, None, 100)


def test_no_pictures_are_refused(run, capsys):
    with pytest.raises(SystemExit) as stop:
        main(["robustness", "--pictures=0"])
    assert stop.value.code == 1
    assert "pictures, of each test set, must be at least 1, got 0" in capsys.readouterr().err
    assert not (run / "artefacts" / "robustness").exists()


def test_pictures_are_spread_and_never_their_own_partners():
    assert evenly_spaced(10, 4) == [0, 2, 5, 7]
    assert evenly_spaced(3, 100) == [0, 1, 2]
    for length in (2, 3, 8):
        partners = {index: {partner(index, length, seed) for seed in range(60)} for index in range(length)}
        assert all(found == set(range(length)) - {index} for index, found in partners.items())
    assert partner(0, 1, 0) == 0


def test_verdicts():
    table = [
        {"set": name, "pictures": count, "nearer": part} for name, count, part in [("a", 10, 0.9), ("b", 10, 0.9), ("c", 10, 0.2), ("d", 0, math.nan)]
    ]
    scores = {"a": (0.8, 0.5), "b": (0.5, 0.8), "c": (0.5, 0.8), "d": (0.5, 0.5)}
    values = {name: {UNTOUCHED: {"s_measure": one}, Setting("inverted"): {"s_measure": other}} for name, (one, other) in scores.items()}
    a, b, c, d = (row["verdict"] for row in tell_polarity(table, values))
    assert a == "depth looks the right way round (what is salient is nearer in 90% of 10 pictures; S is 0.800, and 0.500 with depth inverted): " + (
        "leave data.invert as it is"
    )
    assert b.endswith("yet S is 0.500, and 0.800 with depth inverted: check data.invert of the training sets")
    assert c.startswith("depth looks the wrong way round")
    assert d.startswith("nothing tells")
    (row,) = tell_polarity(table[:1], {"a": {UNTOUCHED: {"s_measure": 0.722}, Setting("inverted"): {"s_measure": 0.725}}})
    assert row["verdict"].endswith("leave data.invert as it is"), "a network that leaves depth aside tells nothing"
    (row,) = tell_polarity(table[:1], {"a": {UNTOUCHED: {"s_measure": 0.8}}})
    assert (row["s_inverted"], "with depth inverted" in row["verdict"]) == (None, False)


def test_figures_show_every_setting():
    data = SaliencyData(length=2, test_length=2, size=32)
    data.setup()
    figure = draw_examples(Echo(), data.test_pictures[0], 0, expand(["inverted", "grain", "shift"]), 0)
    titles = [axes.get_title() for axes in figure.axes if axes.get_title()]
    assert titles == ["picture, mask", "untouched", "inverted", "grain 0.4", "shift 0.2"]
    row = {"corruption": "untouched", "strength": None, "unit": "", "s_measure": 0.8}
    rows = [
        row | {"corruption": name, "strength": strength, "s_measure": 0.5} for name, strength in [("inverted", None), ("grain", 0.1), ("grain", 0.2)]
    ]
    panels = draw_curves(row, rows).axes
    assert [panel.get_xlabel().split("\n")[0] for panel in panels] == ["the whole map", "grain"]
    assert [label.get_text() for label in panels[0].get_xticklabels()] == ["inverted"]
    assert [len(panel.lines[-1].get_xdata()) for panel in panels] == [1, 2]
