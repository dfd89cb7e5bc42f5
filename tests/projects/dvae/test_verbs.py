import csv
import json
import re

import numpy as np
import pytest
import torch
from helpers.runs import copied, made_once
from PIL import Image

from projects.dvae import workshop
from projects.dvae.cli import main
from projects.dvae.data import PurificationData
from projects.dvae.fitting import Settings
from projects.dvae.module import Purifier
from projects.dvae.poisons import make_pattern
from projects.dvae.sets import StoredPerturbations, read_manifest, read_poisoned, read_set
from projects.dvae.training import Recipe
from shared.checkpoints import load_checkpoint

DATA = ["--data.source=textures", "--data.length=300"]
SMALL = ["--model.width=4", "--model.epochs=[2,1]", "--trainer.max_epochs=3", "--trainer.enable_model_summary=false", "--data.batch_size=64", *DATA]


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A run folder of a short training; tests copy it."""
    return made_once(tmp_path_factory, main, ["fit", "--run", "short", *SMALL])


@pytest.fixture
def run(trained, run_folder):
    """The short training as this test's latest run."""
    return copied(trained, run_folder)


def expected_products(run):
    data = PurificationData("textures", size=8, length=300, poison="lsp", poison_radius=0.652)
    data.setup()
    module = Purifier(classes=10, size=8, width=4, rates=[4.0, 20.0], epochs=[2, 1], energy_floor=0.01).eval()
    module.load_state_dict(load_checkpoint(run / "checkpoints" / "last.ckpt")["state_dict"])
    batch = data.train_set.__getitems__(list(range(len(data.train_set))))
    return data, module.purify(batch).named()


@pytest.mark.parametrize("form", ["png", "npy"])
def test_purify_writes_every_product(run, tmp_path, form, capsys):
    wanted = ["--products=[x3,p1]"] if form == "png" else []
    result = main(["purify", f"--format={form}", "--out", str(tmp_path / "clean"), *wanted]).result
    data, expected = expected_products(run)
    assert set(result.folders) == ({"x3", "p1"} if wanted else {"x1", "x2", "x3", "p1", "p2"})
    for name in ("x3",) if wanted else ("x1", "x2", "x3"):
        stored = read_set(run / "artefacts" / "purify" / name).load()
        assert torch.equal(stored.labels, data.train_set.labels)
        assert (stored.images.float() / 255 - expected[name]).abs().max() <= 1.01 / 255
    last = read_set(tmp_path / "clean").load()
    assert torch.equal(last.images, read_set(run / "artefacts" / "purify" / "x3").load().images)
    assert read_poisoned(tmp_path / "clean").all()
    p1 = StoredPerturbations(run / "artefacts" / "purify" / "p1").read(range(50))
    held = expected["p1"][:50].clamp(-128 / 255, 127 / 255) if form == "png" else expected["p1"][:50]
    assert (p1 - held).abs().max() <= (0.51 / 255 if form == "png" else 1e-3)
    manifest = read_manifest(tmp_path / "clean")
    assert manifest["origin"]["source"] == "textures"
    assert manifest["product"] == "x3"
    rows = list(csv.DictReader((run / "artefacts" / "purify" / "changes.csv").open()))
    assert len(rows) == len(data.train_set)
    shown = np.array(Image.open(run / "artefacts" / "purify" / "purified.png"))[3 + 3 * 67 : 3 + 3 * 67 + 64 : 8, 3 : 3 + 64 : 8]
    assert np.abs(shown.astype(int) - last.images[0].permute(1, 2, 0).numpy()).max() <= 1, "the picture shows what the files hold"
    told = capsys.readouterr().out
    assert "done already" not in told
    assert "cli.py train x2 --run short" in told, "train alone would train on the set as it is"


def test_purify_goes_on_where_it_stopped(run):
    main(["purify", "--products=[x1]"])
    folder = run / "artefacts" / "purify" / "x1"
    manifest = json.loads((folder / "manifest.json").read_text())
    (folder / "manifest.json").write_text(json.dumps(manifest | {"complete": False}))
    files = sorted(folder.rglob("*.png"))
    before = {path: path.read_bytes() for path in files}
    kept = {path: path.stat().st_mtime_ns for path in folder.rglob("*.png") if int(path.stem) >= 150}
    for path in set(files) - set(kept):
        path.unlink()
    main(["purify", "--products=[x1]", "--resume", "--run", "short", "--force"])
    assert {path: path.read_bytes() for path in sorted(folder.rglob("*.png"))} == before
    assert {path: path.stat().st_mtime_ns for path in kept if int(path.stem) >= 192} == {p: t for p, t in kept.items() if int(p.stem) >= 192}


def test_another_set_of_the_same_form_is_purified_with_a_warning(run, caplog):
    main(["purify", "--products=[x1]"])
    assert "trained on another set" not in caplog.text
    main(["purify", "--products=[x1]", "--data.poison=ops", "--data.poison_radius=null"])
    assert "trained on another set" in caplog.text


def test_a_users_folder_is_purified_under_its_names(run_folder, tmp_path, capsys):
    random = np.random.default_rng(0)
    for label, name in enumerate(("cat", "dog", "owl")):
        for number in range(24):
            path = tmp_path / "given" / name / f"picture {number}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            pixels = random.integers(0, 200, (12, 10, 3)) + 20 * label
            Image.fromarray(pixels.astype(np.uint8)).save(path)
    options = ["--config", "folder", "--model.width=4", "--model.epochs=[1,1]", "--trainer.max_epochs=2", "--data.batch_size=24", "--run", "own"]
    main(["purify", str(tmp_path / "given"), "--out", str(tmp_path / "out"), *options])
    found = sorted(path.relative_to(tmp_path / "out").as_posix() for path in (tmp_path / "out").rglob("*.png"))
    assert found == sorted(path.relative_to(tmp_path / "given").as_posix() for path in (tmp_path / "given").rglob("*.png"))
    assert Image.open(tmp_path / "out" / "owl" / "picture 3.png").size == (10, 12)
    capsys.readouterr()
    main(["purify", "--run", "own", "--products=[x2]", "--force"])
    assert read_set(run_folder / "dvae" / "own" / "artefacts" / "purify" / "x2").class_names == ["cat", "dog", "owl"]


def test_poison_train_and_a_stored_set(run_folder, tmp_path, capsys, caplog):
    result = main(["poison", "ops", "--out", str(tmp_path / "set"), "--rate=0.5", *DATA]).result
    manifest = read_manifest(tmp_path / "set")
    assert manifest["measured"]["l0_max"] == 1
    assert manifest["origin"]["poison"] == "none"
    assert read_poisoned(tmp_path / "set").float().mean() == pytest.approx(0.5, abs=0.01)
    assert result.summary["attack"] == "ops"
    data = ["--data.source=stored", f"--data.root={tmp_path / 'set'}", "--data.poison=none"]
    main(["fit", *SMALL, *data, "--run", "stored"])
    main(["purify", "--products=[x1]", "--format=npy"])
    trained = main(["train", "x1", "--epochs=2"]).result
    assert len(trained.outcome.curve) == 2
    assert trained.outcome.peak >= trained.outcome.last
    assert "may hold clean test images" not in caplog.text
    main(["train", str(tmp_path / "set"), "--epochs=1", "--data.source=textures", "--data.root=null", "--data.length=310"])
    assert "may hold clean test images" in caplog.text
    capsys.readouterr()
    with pytest.raises(SystemExit):
        main(["train", "x7"])
    assert "x7 is neither a folder nor a product of" in capsys.readouterr().err


def test_another_bound_is_another_set(run_folder, tmp_path):
    for number, radius in enumerate((0.5, 1.0)):
        main(["poison", "lsp", "--out", str(tmp_path / "set"), f"--radius={radius}", "--run", f"set{number}", *DATA])
        stored = read_set(tmp_path / "set").load()
        data = PurificationData("textures", size=8, length=300)
        data.setup()
        norms = (stored.images.float() - data.train_set.read(range(len(stored))).float()).flatten(1).norm(dim=1) / 255
        assert norms.max() <= radius + 1e-6
        assert norms.mean() > 0.9 * radius
        assert read_manifest(tmp_path / "set")["radius"] == radius


def test_a_training_that_stopped_purifies_nothing_and_is_judged_with_a_note(run_folder, capsys):
    main(["fit", *SMALL, "--trainer.max_steps=3", "--run", "stopped"])
    with pytest.raises(SystemExit):
        main(["purify"])
    assert "error: " in (said := capsys.readouterr().err)
    assert "its last stage is not trained" in said
    main(["test"])
    assert "note: " in (said := capsys.readouterr().err)
    assert "of random weights" in said


def test_a_stored_set_that_lost_files_is_mended(run):
    main(["purify", "--products=[x1]"])
    lost = sorted((run / "artefacts" / "purify" / "x1").rglob("*.png"))[100:110]
    before = [path.read_bytes() for path in lost]
    for path in lost:
        path.unlink()
    main(["purify", "--products=[x1]", "--force"])
    assert [path.read_bytes() for path in lost] == before


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--data.channels=1"], "the data's images are"),
        (["--data.source=folder", "--data.root=/nowhere"], "say --data.poison none"),
    ],
)
def test_another_set_is_refused(run, capsys, options, message):
    with pytest.raises(SystemExit):
        main(["purify", *options])
    assert message in capsys.readouterr().err


def test_verbs_may_be_repeated(run, tmp_path):
    for _ in range(2):
        main(["purify", "--format=npy", "--force"])
        main(["poison", "lsp", "--out", str(tmp_path / "set"), "--run", "again", "--force", *DATA])
        (run.parent / "latest").write_text("short\n")
    rows = list(csv.DictReader((run / "artefacts" / "purify" / "changes.csv").open()))
    assert len(rows) == 300
    assert {"psnr_x1", "psnr_x2", "psnr_x3"} <= rows[0].keys()


def test_a_small_bench_is_kept(run_folder):
    options = ["--attacks=[given,ops]", "--defences=[grey,dvae:x1]", "--seeds=1", "--jobs=1", "--data.length=200"]
    small = ["--data.source=textures", "--data.size=8", "--model.width=4", "--model.epochs=[1,1]", "--trainer.max_epochs=2", "--data.batch_size=64"]
    main(["bench", *options, *small, "--data.poison=ops", "--data.poison_radius=2", "--run", "bench"])
    folder = run_folder / "dvae" / "bench" / "artefacts" / "bench"
    rows = list(csv.DictReader((folder / "bench.csv").open()))
    assert [(row["attack"], row["defence"]) for row in rows] == [(attack, defence) for attack in ("given", "ops") for defence in ("grey", "dvae:x1")]
    assert all(0 <= float(row["last"]) <= float(row["peak"]) <= 1 for row in rows)
    assert all(float(row["defence_s"]) >= 0 for row in rows)
    assert float(rows[1]["defence_s"]) > 0
    data = PurificationData("textures", size=8, length=200, poison="ops", poison_radius=2)
    data.setup()
    for attack in ("given", "ops"):  # by name, too, an attack has the bound of the data's options
        [kept] = (folder / "kept").glob(f"{attack}-*.npz")
        assert np.array_equal(np.load(kept)["images"], data.train_set.read(list(range(200))).numpy())


@pytest.mark.parametrize(("effort", "expected"), [("quick", "cnn"), ("paper", "resnet18")])
def test_published_attacks_look_through_a_resnet_whatever_the_victim(tmp_path, monkeypatch, effort, expected):
    built = []
    monkeypatch.setattr(workshop, "build_victim", lambda name, *_: built.append(name))

    def make(*given, build, recipe):
        build(0)
        return make_pattern("lsp", *given[1:5])

    monkeypatch.setattr(workshop, "make_pattern", make)
    shop = workshop.Workshop(tmp_path, {"source": "textures", "size": 8, "length": 100}, Settings(), Recipe.quick(), attack_recipe=effort)
    shop.poisoned("em", 0)
    assert built == [expected]


@pytest.mark.parametrize(
    ("classes", "each", "message"),
    [(60, 2, "60 classes .* name clean images of the kind with --reference"), (6, 2, "12 images are too few .* its 6 classes"), (6, 10, None)],
)
def test_the_threshold_is_for_few_classes_of_enough_images(tmp_path, run_folder, monkeypatch, capsys, classes, each, message):
    from projects.dvae import detection

    for number, image in enumerate(np.random.default_rng(0).integers(0, 256, (each * classes, 8, 8, 3), dtype=np.uint8)):
        (tmp_path / str(number % classes)).mkdir(exist_ok=True)
        Image.fromarray(image).save(tmp_path / str(number % classes) / f"{number}.png")
    monkeypatch.setattr(detection, "score_set", lambda *_: detection.Scores(0.1, *[0.2] * 5, classes, 0.1))
    data = ["--data.source=folder", f"--data.root={tmp_path}", "--data.poison=none", f"--model.classes={classes}"]
    if message is not None:
        with pytest.raises(SystemExit):
            main(["detect", *data])
        assert re.search(message, capsys.readouterr().err)
        data += ["--reference", str(tmp_path)]
    assert not main(["detect", *data]).result.verdict.is_poisoned
    assert ("; 60 images were looked at" in capsys.readouterr().out) == (message is None)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["bench", "--attacks=[sharp]"], "--attacks sharp: choose among clean, given, em"),
        (["bench", "--attacks=[given]", "--data.poison=none"], "give the poison with --data.perturbation FILE"),
        (["bench", "--defences=[dvae:x9]"], "the purifier's are dvae:x1"),
        (["bench", "--defences=[prayer]"], "no defence 'prayer'"),
        (["purify", "--products=[x9]"], "a model of 2 stage(s) makes x1, x2, x3, p1, p2"),
        (["purify", "/nowhere/at/all", "--config", "folder"], "/nowhere/at/all"),
        (["purify", "/nowhere/at/all"], "add --config folder"),
        (["train", "--victim=perceptron"], "victim must be one of cnn"),
        (["train", "--defence=jpeg:0"], "quality"),
        (["detect", "--reference", "/nowhere/at/all"], "neither a folder nor a product"),
    ],
)
def test_what_is_wrong_is_named_before_any_work(run, capsys, arguments, message):
    with pytest.raises(SystemExit) as stop:
        main(arguments)
    assert stop.value.code == 1
    captured = capsys.readouterr()
    assert message in captured.err
    assert "Traceback" not in captured.err


@pytest.mark.slow
def test_detect_tells_a_poisoned_set_from_its_clean_one(run, run_folder, capsys):
    digits = ["--data.source=digits", "--data.size=16"]  # what the threshold was set on
    main(["poison", "random", "--radius=1", "--out", str(run_folder / "reference"), *digits])
    (run_folder / "dvae" / "latest").write_text("short\n")
    result = main(["detect", "--reference", str(run_folder / "reference"), *digits]).result
    assert result.verdict.is_poisoned
    assert result.exit_code == 1
    assert result.verdict.reference.separability < result.verdict.scores.separability
    clean = main(["detect", str(run_folder / "reference"), "--force", *digits]).result
    assert not clean.verdict.is_poisoned
    assert capsys.readouterr().out.count("name clean images of the kind with --reference") == 1
