import csv
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from helpers.runs import copied, runs_in
from sklearn.metrics import f1_score, roc_auc_score

from projects.tripinet.cli import main
from projects.tripinet.metrics import LocalisationMetrics
from projects.tripinet.module import Judged
from projects.tripinet.robustness import DEGRADATIONS, degrade
from projects.tripinet.robustness_task import BATCH, UNTOUCHED, Setting, batches, choose, expand, judge_degraded, tabulate
from shared.checkpoints import load_checkpoint

SMALL = ["--data.length=16", "--data.test_length=8", "--data.test_sets=[noise,control]", "--data.size=48", "--trainer.max_epochs=1"]
SMALL += ["--model.channels=8", "--model.width=8", "--model.streams=[rgb,srm]", "--trainer.enable_model_summary=false"]


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A run folder of a short training, whose maps call some pixels manipulated and others not; tests copy it."""
    with runs_in(tmp_path_factory.mktemp("trained")):
        cli = main(["fit", "--run", "tiny", *SMALL])
    logits = torch.cat([cli.model.judge(one["image"][None]).logits for one in cli.datamodule.test_pictures[0]])
    path = cli.run.checkpoints / "best.ckpt"
    checkpoint = load_checkpoint(path)
    checkpoint["state_dict"]["net.heads.0.bias"] -= logits.median()
    checkpoint["state_dict"]["decision.temperature"].fill_(2.0)
    torch.save(checkpoint, path)
    return cli.run.path


@pytest.fixture
def run(trained, run_folder):
    """The short training as this test's latest run."""
    return copied(trained, run_folder)


def by_hand(module, pictures, seed, name, strength):
    """Measure a set picture by picture with scikit-learn."""
    f1s, areas, scores, labels = [], [], [], []
    for index, one in enumerate(pictures):
        image = one["image"] if name == "none" else degrade(one["image"], name, strength, index, seed)
        judged = module.judge(image[None])
        logits = F.interpolate(judged.logits, size=one["mask"].shape[1:], mode="bilinear", align_corners=False)
        probability, mask = logits.flatten().sigmoid().numpy(), one["mask"].flatten().numpy()
        scores.append(float(judged.raw))
        labels.append(one["label"])
        if one["label"]:
            f1s.append(f1_score(mask, probability > 0.5))
            areas.append(roc_auc_score(mask, probability))
    return {"pixel_f1": np.mean(f1s), "pixel_auc": np.mean(areas), "image_auc": roc_auc_score(labels, scores)}


def test_measures_are_those_of_degraded_pictures_one_by_one(run, capsys):
    cli = main(["robustness", "--degradations=[jpeg,noise_variance,resize]"])
    data, rows, printed = cli.datamodule, cli.result.rows, capsys.readouterr().out
    settings = [("none", None), *((name, level) for name in ("jpeg", "noise_variance") for level in DEGRADATIONS[name].strengths), ("resize", 0.78)]
    assert [(row["degradation"], row["strength"]) for row in rows] == [setting for setting in settings for _ in range(3)]
    assert "resize 0.25 is left out: it makes pictures of 12 x 12, and they need 32 x 32 pixels" in printed
    assert sum(line.startswith(("jpeg (", "noise_variance (", "resize (")) for line in printed.splitlines()) == 3
    for name, strength in (settings[0], ("jpeg", 50), ("noise_variance", 23.0), ("resize", 0.78)):
        noise, _control, mean = (row for row in rows if (row["degradation"], row["strength"]) == (name, strength))
        expected = by_hand(cli.model, data.test_pictures[0], data.seed, name, strength)
        assert {key: noise[key] for key in expected} == pytest.approx(expected, abs=1e-3), (name, strength)
        assert {key: mean[key] for key in expected} == {key: noise[key] for key in expected}, "control is none of the mean"
    assert len({row["pixel_auc"] for row in rows if row["set"] == "noise"}) == len(settings), "every setting changes something"
    mild = [row["pixel_auc"] for row in rows if row["set"] == "noise" and row["strength"] in (None, 100)]
    assert mild[1] == pytest.approx(mild[0], abs=0.05)
    drops = [rows[2]["pixel_f1"] - row["pixel_f1"] for row in rows[3:] if row["set"] == "mean"]
    expected = np.mean([np.mean(drops[:6]), np.mean(drops[6:12]), drops[12]])
    assert cli.result.summary == pytest.approx({"robustness/pixel_f1": rows[2]["pixel_f1"], "robustness/mean_drop": expected}, abs=1e-4)

    folder = run / "artefacts" / "robustness"
    assert {path.name for path in folder.iterdir()} == {"robustness.csv", "robustness.json", "robustness.png"}
    with (folder / "robustness.csv").open() as file:
        written = list(csv.DictReader(file))
    assert (written[0]["strength"], written[3]["unit"], float(written[3]["strength"])) == ("", "quality", 100)
    assert [float(row["pixel_f1"]) for row in written] == [row["pixel_f1"] for row in rows]
    for one, other in zip(main(["test"]).result.rows, rows[:2], strict=True):
        undegraded = {key: one[key] for key in ("set", "pixel_f1", "pixel_auc", "image_auc")}
        assert {key: other[key] for key in undegraded} == pytest.approx(undegraded, abs=1e-6), "all pictures of the set are chosen"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--degradations=[jpeg,fog,rain]"], "degradations holds fog, rain: choose of jpeg, blur, noise_variance, noise_deviation, resize"),
        (["--degradations=[]"], "degradations holds nothing: choose of jpeg"),
        (["--pictures=0"], "pictures, of each test set, must be at least 1, got 0"),
    ],
)
def test_what_does_not_fit_is_named(run, capsys, options, message):
    with pytest.raises(SystemExit) as stop:
        main(["robustness", *options])
    assert stop.value.code == 1
    assert message in capsys.readouterr().err
    assert not (run / "artefacts" / "robustness").exists()


def test_the_map_of_a_resized_picture_lies_where_its_region_lies():
    def judge(images):
        logits = images.float().mean(1, keepdim=True) / 16 - 8
        return Judged(logits, logits.flatten(1).amax(1))

    decision = SimpleNamespace(temperature=torch.tensor(2.0), probabilities=lambda logits: (logits / 2).sigmoid())
    image, mask = torch.zeros(2, 3, 96, 140, dtype=torch.uint8), torch.zeros(2, 1, 96, 140, dtype=torch.uint8)
    for number, (top, left) in enumerate([(5, 90), (60, 8)]):
        image[number, :, top : top + 28, left : left + 40], mask[number, :, top : top + 28, left : left + 40] = 255, 1
    batch = {"mask": mask, "kind": torch.tensor([1, 1]), "format": ["png", "png"]}
    for factor in (1.0, 0.78, 0.4):
        degraded, metrics = torch.stack([degrade(one, "resize", factor, 0) for one in image]), LocalisationMetrics()
        judge_degraded(SimpleNamespace(judge=judge, decision=decision), degraded, batch, metrics)
        measures = metrics.compute()
        assert measures["pixel_f1"] > (0.999 if factor == 1 else 0.96)
        assert measures["pixel_auc"] > 0.999


def test_manipulated_and_authentic_pictures_are_spread_over_the_set():
    kinds = ["authentic" if index % 4 == 3 else "splice" for index in range(100)]
    places = choose(kinds, 10)
    assert places == sorted(set(places))
    manipulated, authentic = ([place for place in places if (place % 4 == 3) == is_authentic] for is_authentic in (False, True))
    assert (len(manipulated), len(authentic)) == (10, 10)
    for part in (manipulated, authentic):
        assert np.diff([*part, 100 + part[0]]).max() <= 14
    assert len(choose(kinds, 30)) == 30 + 25
    assert choose(kinds, 1000) == list(range(100))
    assert choose(["splice"] * 3, 2) == [0, 1]


def test_neighbours_of_one_size_are_read_once_and_judged_together():
    sizes = [(40, 50)] * 20 + [(50, 40)] * 3 + [(40, 50)] * 2 + [(90, 90)] * 2

    class Pictures:
        def __init__(self):
            self.read = []

        def __getitem__(self, index):
            self.read.append(index)
            return {"mask": torch.zeros(1, *sizes[index]), "index": index}

    pictures = Pictures()
    found = [batch["index"].tolist() for batch in batches(pictures, range(len(sizes)), 40_000)]
    assert [len(batch) for batch in found] == [BATCH, 4, 3, 2, 2]
    assert [index for batch in found for index in batch] == pictures.read == list(range(len(sizes)))
    assert [len(batch["index"]) for batch in batches(pictures, range(len(sizes)), 7_000)] == [3, 3, 3, 3, 3, 3, 2, 3, 2, 1, 1]


def test_the_mean_leaves_out_control_and_what_is_undefined():
    blur, nan = Setting("blur", 3), float("nan")
    measures = {
        "columbia": {UNTOUCHED: {"pixel_f1": 0.8, "pixel_auc": 0.9, "image_auc": nan}, blur: {"pixel_f1": 0.4, "pixel_auc": 0.7, "image_auc": nan}},
        "casia": {UNTOUCHED: {"pixel_f1": 0.6, "pixel_auc": 0.7, "image_auc": 0.9}, blur: {"pixel_f1": 0.2, "pixel_auc": 0.5, "image_auc": 0.5}},
        "control": {UNTOUCHED: {"pixel_f1": 0.1, "pixel_auc": 0.5, "image_auc": 0.5}, blur: {}},
    }
    rows = tabulate(measures, [UNTOUCHED, blur])
    assert [row["set"] for row in rows] == ["columbia", "casia", "control", "mean"] * 2
    assert [rows[3][key] for key in ("pixel_f1", "pixel_auc", "image_auc")] == pytest.approx([0.7, 0.8, 0.9])
    assert [rows[7][key] for key in ("pixel_f1", "pixel_auc", "image_auc")] == pytest.approx([0.3, 0.6, 0.5])
    assert np.isnan(rows[6]["pixel_f1"])
    only = tabulate({"control": measures["control"]}, [UNTOUCHED])
    assert [row["pixel_f1"] for row in only] == [0.1, 0.1], "where there is nothing else, it is the mean"


def test_all_degradations_are_taken_unless_some_are_named():
    assert expand(None) == [UNTOUCHED, *(Setting(name, strength) for name, one in DEGRADATIONS.items() for strength in one.strengths)]
    assert expand(["resize", "resize"]) == [UNTOUCHED, Setting("resize", 0.78), Setting("resize", 0.25)]
