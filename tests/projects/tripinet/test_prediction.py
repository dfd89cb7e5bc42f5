import csv
import errno
import json
import math

import numpy as np
import pytest
import torch
from helpers.runs import copied, runs_in
from PIL import Image

from projects.tripinet import prediction
from projects.tripinet.cli import main
from projects.tripinet.module import ManipulationLocalisation
from projects.tripinet.pairs import read_pixels
from projects.tripinet.prediction import describe, judge, method
from shared.checkpoints import load_checkpoint, weights_digest
from shared.data.files import BadFileError
from shared.data.inputs import find_pictures
from shared.results import LEFT_OUT

LOCAL = ["--model.streams=[rgb,srm]", "--model.fusion=concat", "--model.decoder=fpn", "--model.channels=8", "--model.width=8"]
SMALL = ["--data.length=16", "--data.test_length=8", "--data.test_sets=[noise]", "--data.kinds=[noise]", "--data.size=48", *LOCAL]
SMALL += ["--trainer.max_epochs=1", "--trainer.enable_model_summary=false", "--trainer.log_every_n_steps=1"]


def pixels(height, width, seed=0):
    """Return a picture of smooth colours, of which the left half is noisy, (H, W, 3) uint8."""
    chance = np.random.default_rng(seed)
    image = np.add.outer(np.arange(height), np.arange(width))[..., None] * [0.4, 0.3, 0.2] + chance.uniform(0, 60, 3)
    image[:, : width // 2] += chance.normal(0, 12, image[:, : width // 2].shape)
    return image.clip(0, 255).astype(np.uint8)


def save(path, array, **options):
    path.parent.mkdir(parents=True, exist_ok=True)
    (array if isinstance(array, Image.Image) else Image.fromarray(array)).save(path, **options)
    return path


def write_formats(root):
    """Write one picture of each kind; return the file and the displayed size (H, W) by name."""
    colour = pixels(40, 60)
    picture, grey = Image.fromarray(colour), colour[..., 0]
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned by a quarter clockwise
    save(root / "1.png", grey)
    save(root / "1.jpg", colour)
    save(root / "a/1.png", grey.astype(np.uint16) * 257)
    save(root / "b/1.png", picture.quantize(32))
    save(root / "b/alpha.png", picture.convert("RGBA"))
    save(root / "b/c/cmyk.jpg", picture.convert("CMYK"))
    save(root / "turned.jpg", colour, exif=exif, quality=95)
    save(root / "one.tiff", colour)
    save(root / "one.webp", colour, lossless=True)
    save(root / "odd.bmp", pixels(33, 57))
    save(root / "tiny.gif", picture.crop((0, 0, 20, 20)).quantize(16))
    files = {given.name: given.file for given in find_pictures(root)[0]}
    sizes = dict.fromkeys(files, (40, 60)) | {"turned.jpg": (60, 40), "odd.bmp": (33, 57), "tiny.gif": (20, 20)}
    return {name: (file, sizes[name]) for name, file in files.items()}


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A run folder of a short training whose decision splits the test's pictures; tests copy it."""
    with runs_in(tmp_path_factory.mktemp("trained")):
        cli = main(["fit", "--run", "tiny", *SMALL])
    file, module = cli.run.checkpoints / "best.ckpt", cli.model.eval()
    checkpoint = load_checkpoint(file)
    logits = module.judge(torch.from_numpy(pixels(40, 60)).permute(2, 0, 1)[None]).logits
    decided = {"temperature": 0.7, "threshold": float(logits.median()), "slope": 2.0, "intercept": -2 * float(logits.median())}
    for name, value in decided.items():
        checkpoint["state_dict"][f"decision.{name}"].fill_(value)
    torch.save(checkpoint, file)
    return cli.run.path


@pytest.fixture
def run(trained, run_folder):
    """The short training as this test's latest run."""
    return copied(trained, run_folder)


@pytest.fixture(scope="module")
def predicted(trained, tmp_path_factory):
    """What `predict` made of one picture of each kind: the pictures' files and sizes, the command line after it, and the folder of results."""
    root, runs = tmp_path_factory.mktemp("formats"), tmp_path_factory.mktemp("predicted")
    pictures = write_formats(root)
    run = copied(trained, runs)
    with runs_in(runs):
        cli = main(["predict", str(root)])
    return pictures, cli, run / "artefacts" / "predict"


def build(**options):
    torch.manual_seed(0)
    module = ManipulationLocalisation(["rgb", "srm"], channels=8, width=8, fusion="concat", decoder="fpn", **options)
    for layer in module.net.modules():
        if isinstance(layer, torch.nn.BatchNorm2d):
            layer.momentum = None  # the statistics of the picture alone, so that deep stages have a signal
    module.net(torch.from_numpy(pixels(128, 128)).permute(2, 0, 1)[None])
    return module.eval()


# ---- files


def test_every_picture_has_its_files_and_no_two_share_one(predicted):
    pictures, cli, folder = predicted
    assert len(cli.result.rows) == len(pictures) == 11
    files = sorted(path.relative_to(folder / "maps").as_posix() for path in (folder / "maps").rglob("*") if path.is_file())
    assert files == sorted(name + ending for name in pictures for ending in ("-map.png", "-mask.png", "-overlay.png", ".json"))
    rows = list(csv.DictReader((folder / "predictions.csv").open(encoding="utf-8")))
    assert [row["input"] for row in rows] == [row["input"] for row in json.loads((folder / "predictions.json").read_text())]
    assert (folder / "overview.png").is_file()


def test_a_map_has_the_size_of_its_picture_as_it_is_displayed(predicted):
    pictures, _, folder = predicted
    for name, (_, (height, width)) in pictures.items():
        for ending, mode in (("-map.png", "I;16"), ("-mask.png", "L"), ("-overlay.png", "RGB")):
            with Image.open(folder / "maps" / (name + ending)) as written:
                assert (written.size, written.mode) == ((width, height), mode), name


def test_maps_and_masks_are_what_the_network_says(predicted):
    pictures, cli, folder = predicted
    threshold = cli.model.decision.pixel_threshold
    for name, (file, _) in pictures.items():
        probability, raw = judge(cli.model, read_pixels(file), name)
        read = np.asarray(Image.open(folder / "maps" / f"{name}-map.png"))
        np.testing.assert_allclose(read / 65535, probability[0].numpy(), rtol=0, atol=0.51 / 65535)
        mask = np.asarray(Image.open(folder / "maps" / f"{name}-mask.png"))
        np.testing.assert_array_equal(mask, 255 * (probability[0].numpy() > threshold))
        said = json.loads((folder / "maps" / f"{name}.json").read_text())
        assert said["score"] == pytest.approx(1 / (1 + math.exp(-cli.model.decision.slope * raw - cli.model.decision.intercept)))
        assert said["verdict"] == ("manipulated" if said["score"] > 0.5 else "no trace found")
        assert said["area"] == pytest.approx((mask > 0).mean())
        assert (said["max"], said["mean"]) == pytest.approx((probability.max().item(), probability.mean().item()), rel=1e-4)
        assert (said["judged"], said["weights"]) == ({"tile": None, "mirrors": 1}, weights_digest(cli.model))
    assert 0.1 < said["area"] < 0.9


def test_a_turned_jpeg_is_judged_as_it_is_displayed(predicted):
    pictures, cli, folder = predicted
    stored = np.asarray(Image.open(pictures["turned.jpg"][0]))
    upright = torch.from_numpy(np.rot90(stored, -1).copy()).permute(2, 0, 1)
    expected, _ = judge(cli.model, upright, "")
    read = np.asarray(Image.open(folder / "maps" / "turned.jpg-map.png"))
    np.testing.assert_allclose(read / 65535, expected[0].numpy(), rtol=0, atol=1e-4)


def test_what_lies_in_another_format_is_judged_the_same(predicted):
    maps = [np.asarray(Image.open(predicted[2] / "maps" / f"{name}-map.png")) for name in ("1.png", "a/1.png", "one.tiff", "one.webp", "b/alpha.png")]
    assert (maps[0] == maps[1]).all()
    assert all((maps[2] == other).all() for other in maps[3:])


def test_flips_are_the_mean_of_four_maps_in_float32(run, tmp_path):
    file = save(tmp_path / "one.png", pixels(40, 61))
    cli = main(["predict", str(file), "--flips=true", "--maps=npy"])
    image = read_pixels(file)[None]
    with torch.no_grad():
        logits = [cli.model.net(image.flip(axes)).sides[0].flip(axes) for axes in ([], [3], [2], [2, 3])]
    expected = cli.model.decision.probabilities(torch.stack(logits).mean(0))[0, 0]
    written = np.load(run / "artefacts/predict/maps/one.png-map.npy", allow_pickle=False)
    assert written.dtype == np.float32
    np.testing.assert_allclose(written, expected.numpy(), rtol=0, atol=1e-5)
    assert json.loads((run / "artefacts/predict/maps/one.png.json").read_text())["judged"] == {"tile": None, "mirrors": 4}


def test_of_many_pictures_twenty_are_printed_and_the_highest_scores_are_shown(run, tmp_path, capsys, monkeypatch):
    for number in range(22):
        save(tmp_path / "many" / f"{number:02d}.png", pixels(32, 32 + number, number))
    shown, draw = [], prediction.draw_overview
    monkeypatch.setattr(prediction, "draw_overview", lambda thumbnails, total: shown.extend(thumbnails) or draw(thumbnails, total))
    cli = main(["predict", str(tmp_path / "many")])
    lines = capsys.readouterr().out.splitlines()
    assert sum(".png: " in line and ", score " in line for line in lines) == 20
    assert cli.model.decision.false_alarms() in lines
    assert any("evidence to look at, not proof" in line for line in lines)
    scores = [row["score"] for row in cli.result.rows]
    assert [one.row["score"] for one in shown] == sorted(scores, reverse=True)[:12]
    assert cli.result.summary == {"pictures": 22, "manipulated": sum(score > 0.5 for score in scores)}


def test_a_full_disk_is_named_and_leaves_what_was_written(run, tmp_path, capsys, monkeypatch):
    for name in "ab":
        save(tmp_path / "in" / f"{name}.png", pixels(40, 40))

    def fill(file, array, write=np.save):
        if ".b." in str(file):
            raise OSError(errno.ENOSPC, "No space left on device")
        write(file, array)

    monkeypatch.setattr(np, "save", fill)
    with pytest.raises(SystemExit) as stop:
        main(["predict", str(tmp_path / "in"), "--maps=npy"])
    assert stop.value.code == 1
    assert "b.png-map.npy: free some space" in capsys.readouterr().err
    names = sorted(path.name for path in (run / "artefacts/predict/maps").iterdir())
    assert names == ["a.png-map.npy", "a.png-mask.png", "a.png-overlay.png", "a.png.json"]


# ---- what cannot be read


def test_damaged_files_are_named_before_any_work(run, tmp_path, capsys):
    save(tmp_path / "in/a.png", pixels(40, 40))
    whole = save(tmp_path / "in/b.jpg", pixels(200, 200)).read_bytes()
    (tmp_path / "in/b.jpg").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(BadFileError, match=r"1 of 2 images cannot be read:\n.*b\.jpg"):
        find_pictures(tmp_path / "in")
    with pytest.raises(SystemExit) as stop:
        main(["predict", str(tmp_path / "in")])
    assert stop.value.code == 1
    assert "b.jpg" in capsys.readouterr().err
    assert not (run / "artefacts" / "predict").exists()
    assert main(["predict", str(tmp_path / "in"), "--data.on_bad_file=skip"]).exit_code == LEFT_OUT
    folder = run / "artefacts" / "predict"
    assert [row["input"] for row in csv.DictReader((folder / "predictions.csv").open())] == ["a.png"]
    assert [row["file"] for row in csv.DictReader((folder / "left_out.csv").open())] == ["b.jpg"]
    assert "1 files cannot be read and were left out" in capsys.readouterr().out
    (tmp_path / "in/b.jpg").unlink()
    assert main(["predict", str(tmp_path / "in"), "--data.on_bad_file=skip"]).exit_code == 0
    assert not list(folder.glob("left_out.*"))


# ---- what is said


def test_tiles_are_the_whole_picture_away_from_their_borders():
    module = build(tile=384, overlap=192)
    image = torch.from_numpy(pixels(96, 610)).permute(2, 0, 1)
    (whole, raw), (tiled, tiled_raw) = (judge(module, image, "", tiles) for tiles in ("never", "always"))
    assert whole.std() > 0.01
    alone = torch.ones(610, dtype=torch.bool)
    for start in (192, 384):
        alone[start + 48 : start + 144] = False  # where two tiles are blended; beyond it the tile's border is 144 pixels away
    assert (whole - tiled)[..., alone].abs().max() < 1e-3
    assert tiled_raw == pytest.approx(raw, abs=0.5)


def test_how_a_picture_is_judged_is_said():
    module = build(whole=10_000, tile=128, overlap=64)
    tiled, whole = {"tile": 128, "overlap": 64, "mirrors": 1}, {"tile": None, "mirrors": 4}
    assert method(module, (100, 100), "auto", True) == method(module, (500, 100), "never", True) == whole
    assert method(module, (100, 101), "auto", False) == method(module, (32, 32), "always", False) == tiled


@pytest.mark.parametrize(("height", "width"), [(20, 20), (1, 45), (50, 9)])
def test_pictures_below_the_least_side_are_mirrored(height, width):
    module, image = build(), torch.from_numpy(pixels(height, width)).permute(2, 0, 1)
    probability, raw = judge(module, image, "")
    rows, columns = (torch.tensor([min(i % (2 * side), 2 * side - 1 - i % (2 * side)) for i in range(max(32, side))]) for side in (height, width))
    expected = module.judge(image[:, rows][:, :, columns][None]).logits[0, :, :height, :width]
    torch.testing.assert_close(probability, expected.sigmoid())
    assert raw == pytest.approx(float(expected.max()))


def test_without_authentic_pictures_no_rank_is_said():
    found = describe(build(), torch.full((1, 40, 40), 0.25), -1.0)
    assert found["alarms_above"] is None
    assert (found["verdict"], found["score"], found["area"], found["mean"]) == ("no trace found", 0.5, 0.0, 0.25)
    row = found | {"input": "a.png"}
    assert prediction.sentence(row) == "a.png: no trace found, score 0.50, 0.0% of its pixels marked"
    assert "(2.0% of authentic validation pictures score as high)" in prediction.sentence(row | {"alarms_above": 0.02})


def test_what_cannot_be_judged_is_named(monkeypatch):
    module, image = build(), torch.from_numpy(pixels(40, 50)).permute(2, 0, 1)

    def fail(*arguments):
        raise torch.OutOfMemoryError("CUDA out of memory")

    with monkeypatch.context() as patch:
        patch.setattr(module, "judge", fail)
        with pytest.raises(ValueError, match=r"a\.png: its 40 x 50 pixels need more memory than there is; judge it in tiles"):
            judge(module, image, "a.png")
    module.net.heads[0].bias.data.fill_(torch.nan)
    with pytest.raises(ValueError, match=r"a\.png: the network's map is not finite"):
        judge(module, image, "a.png")
