import csv
import errno
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from projects.hodinet import prediction, results
from projects.hodinet.cli import main
from projects.hodinet.depth import nearness, polarity
from projects.hodinet.gates import draw_gates, energy, interactions
from projects.hodinet.module import SaliencyDetection
from projects.hodinet.prediction import Options, describe, judge, predict, row, sentence
from projects.hodinet.samples import Reading
from projects.hodinet.scenes import draw_scene, motorcycle_example
from shared.data.files import read_levels

TINY = {"size": 32, "widths": [8, 8, 8, 8]}


def save_scenes(root, count, size=48):
    """Write drawn scenes as `RGB/<number>.jpg` and `depth/<number>.png` of 16 bits; return the folder."""
    for number in range(count):
        scene = draw_scene("test", number, size=size)
        for name, pixels in (("RGB", scene.image.permute(1, 2, 0).numpy()), ("depth", (scene.depth[0] * 65535).round().numpy().astype(np.uint16))):
            file = root / name / f"{number}.{'jpg' if name == 'RGB' else 'png'}"
            file.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(pixels).save(file)
    return root


class Plain:
    """What `predict` needs of a trainer."""

    precision, is_forced, verb, loggers = "32-true", False, "predict", ()

    def __init__(self, folder):
        from contextlib import nullcontext
        from types import SimpleNamespace

        self.default_root_dir = folder
        self.strategy = SimpleNamespace(root_device=torch.device("cpu"))
        self.precision_plugin = SimpleNamespace(forward_context=nullcontext)


@pytest.fixture(scope="module")
def module():
    return SaliencyDetection(**TINY).eval()


@pytest.fixture(scope="module")
def predicted(module, tmp_path_factory):
    """What `predict` made of a photograph with depth and of two scenes, and its folder."""
    root, runs = tmp_path_factory.mktemp("pictures"), tmp_path_factory.mktemp("results")
    motorcycle_example(save_scenes(root, 2))
    found = predict(Plain(runs), module, Reading(), str(root), options=Options(bits=16, explain=True))
    return root, found, runs / "artefacts" / "predict"


# ---- files


def test_every_picture_has_its_files_and_its_row(predicted):
    _, found, folder = predicted
    names = ("RGB/0.jpg", "RGB/1.jpg", "RGB/motorcycle.png")
    files = sorted(path.relative_to(folder / "maps").as_posix() for path in (folder / "maps").rglob("*") if path.is_file())
    endings = ("-cutout.png", "-gates.png", "-map.png", "-overlay.png", ".json")
    assert files == sorted(name + ending for name in names for ending in endings)
    assert [one["input"] for one in found.rows] == list(names)
    assert [one["input"] for one in csv.DictReader((folder / "predictions.csv").open(encoding="utf-8"))] == list(names)
    assert json.loads((folder / "predictions.json").read_text()) == found.rows
    assert all((folder / one["map"]).is_file() for one in found.rows)
    assert (folder / "overview.png").is_file()


def test_a_map_has_the_size_of_its_picture_and_is_not_stretched(predicted, module):
    root, _, folder = predicted
    for name, size in (("0.jpg", (48, 48)), ("motorcycle.png", (500, 741))):
        image = read_levels(root / "RGB" / name)
        levels = np.asarray(Image.open((root / "depth" / name).with_suffix(".png"))).astype(np.float32)
        probability = judge(module, image, nearness(torch.from_numpy(levels)[None]), name)[0].numpy()
        written = np.asarray(Image.open(folder / "maps" / "RGB" / f"{name}-map.png"))
        assert (written.dtype, written.shape) == (np.uint16, size)
        np.testing.assert_allclose(written / 65535, probability, rtol=0, atol=1e-5)
        cut = np.asarray(Image.open(folder / "maps" / "RGB" / f"{name}-cutout.png"))
        np.testing.assert_array_equal(cut[..., :3], image.permute(1, 2, 0))
        np.testing.assert_array_equal(cut[..., 3], np.rint(probability * np.float32(255)))
        assert Image.open(folder / "maps" / "RGB" / f"{name}-overlay.png").size == size[::-1]


def test_what_is_said_is_what_the_map_shows(predicted):
    _, found, folder = predicted
    for one in found.rows:
        said = json.loads((folder / "maps" / f"{one['input']}.json").read_text())
        level = np.asarray(Image.open(folder / one["map"])) / 65535
        assert said["salient"] == pytest.approx((level > 0.5).mean(), abs=1e-3)
        assert said["confidence"] == pytest.approx(np.maximum(level, 1 - level).mean(), abs=1e-4)
        assert said["objects"] == one["objects"] >= len(said["largest"]) * (said["objects"] <= 20)
        assert 0 < said["depth_quality"] < 1
        assert (said["invert"], Path(said["depth"]).name) == (False, Path(one["input"]).with_suffix(".png").name)
        assert said["files"]["gates"] == Path(one["input"]).name + "-gates.png"


def test_what_lies_finished_is_not_done_again(module, tmp_path, capsys, monkeypatch):
    root, runs, judged = save_scenes(tmp_path / "in", 3, 40), tmp_path / "runs", []
    examine = prediction.examine
    monkeypatch.setattr(prediction, "examine", lambda *given: judged.append(given[1].given.name) or examine(*given))
    write = results.write_json

    def fill(path, content):
        if path.name == "2.jpg.json":
            raise OSError(errno.ENOSPC, "No space left on device")
        write(path, content)

    def again(options=None):
        judged.clear()
        rows = predict(Plain(runs), module, Reading(), str(root), options=options).rows
        return rows, [Path(name).stem for name in judged]

    with monkeypatch.context() as patch:
        patch.setattr(results, "write_json", fill)
        with pytest.raises(OSError, match="No space left"):
            again()
    rows, done = again()
    assert done == ["2"]
    assert "2 of 3 pictures were done already" in capsys.readouterr().out
    assert [Path(one["input"]).stem for one in rows] == ["0", "1", "2"]
    assert again() == (rows, [])
    Image.fromarray(np.zeros((40, 40), np.uint16)).save(root / "depth/0.png")
    (runs / "artefacts/predict/maps/RGB/1.jpg-cutout.png").unlink()
    (runs / "artefacts/predict/maps/RGB/2.jpg.json").write_text("{")
    assert again()[1] == ["0", "1", "2"]
    assert again(Options(cutout=0.5))[1] == ["0", "1", "2"]
    cut = np.asarray(Image.open(runs / "artefacts/predict/maps/RGB/1.jpg-cutout.png"))[..., 3]
    level = np.asarray(Image.open(runs / "artefacts/predict/maps/RGB/1.jpg-map.png"))
    np.testing.assert_array_equal(cut[level != 128], 255 * (level[level != 128] > 128))


def test_the_verb_judges_a_picture_in_the_run_that_fit_left(run, tmp_path, capsys):
    picture, depth = (save_scenes(tmp_path, 1, 64) / name for name in ("RGB/0.jpg", "depth/0.png"))
    found = main(["predict", str(picture), "--depth", str(depth), "--data.invert=all", "--bits=16", "--cutout=0.5"]).result
    assert (run / "artefacts/predict/maps/0.jpg-map.png").is_file()
    assert found.rows[0]["invert"] is True, "as training had it"
    assert found.summary == {"pictures": 1, "with objects": int(found.rows[0]["objects"] > 0)}
    assert "0.jpg: " in capsys.readouterr().out
    for options, message in (([], "have no depth map"), (["--depth", str(depth), "--cutout=1.5"], "--cutout is a probability from 0 to below 1")):
        with pytest.raises(SystemExit) as stop:
            main(["predict", str(picture), *options])
        assert stop.value.code == 1
        assert message in capsys.readouterr().err


# ---- networks without depth, and pictures without


def test_a_network_of_colour_needs_no_depth_and_one_of_depth_no_colour(tmp_path, capsys):
    root = save_scenes(tmp_path / "in", 1)
    colour = SaliencyDetection(streams=["rgb"], **TINY).eval()
    found = predict(Plain(tmp_path / "a"), colour, Reading(), str(root / "RGB"))
    assert [found.rows[0][name] for name in ("depth", "invert", "depth_quality", "polarity")] == ["none", None, None, None]
    assert "quality" not in capsys.readouterr().out
    found = predict(Plain(tmp_path / "b"), SaliencyDetection(streams=["depth"], **TINY).eval(), Reading(), str(root))
    assert found.rows[0]["depth_quality"] > 0
    with pytest.raises(ValueError, match="gates of the fusion high_order of both streams, but the network has one stream only, rgb"):
        predict(Plain(tmp_path / "c"), colour, Reading(), str(root), options=Options(explain=True))
    with pytest.raises(ValueError, match="has the fusion concat"):
        predict(Plain(tmp_path / "c"), SaliencyDetection(fusion="concat", **TINY), Reading(), str(root), options=Options(explain=True))


def test_zeros_for_missing_depth_are_said(module, tmp_path, capsys):
    root = save_scenes(tmp_path / "in", 1)
    found = predict(Plain(tmp_path), module, Reading(), str(root / "RGB"), options=Options(missing_depth="zeros"))
    assert [found.rows[0][name] for name in ("depth", "invert", "depth_quality")] == ["zeros", None, None]
    assert "; no depth, 0 everywhere" in capsys.readouterr().out
    image = read_levels(root / "RGB/0.jpg")
    expected = judge(module, image, torch.zeros(1, 48, 48), "")[0].numpy()
    np.testing.assert_allclose(np.asarray(Image.open(tmp_path / "artefacts/predict/maps/0.jpg-map.png")) / 255, expected, rtol=0, atol=0.51 / 255)


# ---- what is said


def test_objects_shares_and_polarity_are_those_of_the_map():
    probability = torch.full((1, 60, 100), 0.1)
    probability[:, 10:20, 10:40], probability[:, 40:50, 60:70], probability[:, 0, 0] = 0.9, 0.8, 0.6  # the last is below 0.02 %
    depth = probability.clone()
    image = (255 * depth).byte().expand(3, -1, -1)
    found = describe(image, probability, depth)
    assert (found["objects"], found["salient"]) == (2, pytest.approx(401 / 6000))
    assert found["largest"][0] == {"left": 10, "top": 10, "right": 40, "bottom": 20, "pixels": 300, "mean": pytest.approx(0.9)}
    assert found["confidence"] == pytest.approx((300 * 0.9 + 100 * 0.8 + 0.6 + 5599 * 0.9) / 6000)
    assert found["polarity"] == pytest.approx(polarity(depth, probability)) == pytest.approx(1)
    content = {"file": "a.png", "depth": "a_d.png", "invert": False, "milliseconds": 1.0, "files": {"map": "a.png-map.png"}}
    assert sentence(content | found) == f"a.png: 2 objects, 6.7% of its pixels; depth quality {found['depth_quality']:.2f}"
    assert row(content | found | {"file": "b/a.png"})["map"] == "maps/b/a.png-map.png"
    turned = describe(image, probability, 1 - depth)
    assert sentence(content | turned).endswith("; what is found is farther than the rest: try --invert true")
    assert sentence(content | turned | {"invert": True}).endswith("try --invert false")
    assert describe(image, probability, 1 - depth, thermal=True)["polarity"] is None
    assert sentence(content | describe(image, probability * 0, depth)).startswith("a.png: nothing salient; ")
    assert "--invert" not in sentence(content | describe(image, probability / 2, 1 - depth)), "nothing is found that could be farther"


def test_what_cannot_be_judged_is_named(monkeypatch):
    module, image = SaliencyDetection(**TINY).eval(), torch.zeros(3, 40, 50, dtype=torch.uint8)

    def judged_with(error):
        def fail(*given):
            raise error

        with monkeypatch.context() as patch:
            patch.setattr(module, "forward", fail)
            judge(module, image, torch.zeros(1, 40, 50), "a.png")

    for error in (torch.OutOfMemoryError("CUDA out of memory"), RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried"), MemoryError()):
        with pytest.raises(ValueError, match=r"a\.png: its 40 x 50 pixels need more memory than there is"):
            judged_with(error)
    with pytest.raises(RuntimeError, match="a bug"):
        judged_with(RuntimeError("a bug"))
    next(module.net.heads[0].parameters()).data.fill_(torch.nan)
    with pytest.raises(ValueError, match=r"a\.png: the network's map is not finite"):
        judge(module, image, torch.zeros(1, 40, 50), "a.png")


def test_gates_are_those_of_the_fusion(module):
    scene = draw_scene("test", 0, size=64)
    stages = interactions(module, scene.image, scene.depth)
    assert [tuple(stage.gate.shape[1:]) for stage in stages] == [(1, 8, 8), (1, 4, 4), (8, 1, 1), (8, 1, 1)]
    gated = stages[0].gated[0].numpy()
    np.testing.assert_allclose(energy(stages[0].gated).numpy(), np.sqrt((gated**2).mean(0)), rtol=1e-5)
    figure = draw_gates(scene.image, scene.depth, stages, "SSCC")
    titles = [axis.get_title() for axis in figure.axes if "gate" in axis.get_title()]
    assert titles == [f"stage {number}: gate of {what}" for number, what in ((1, "places"), (2, "places"), (3, "channels"), (4, "channels"))]
    np.testing.assert_array_equal(figure.axes[1].images[0].get_array(), stages[0].gate[0, 0])


def test_gates_end_where_the_picture_does():
    module = SaliencyDetection(**TINY | {"size": None}).eval()
    stages = interactions(module, torch.zeros(3, 36, 70, dtype=torch.uint8), torch.rand(1, 36, 70))
    assert [tuple(stage.gated.shape[2:]) for stage in stages] == [(9, 18), (5, 9), (3, 5), (2, 3)], "of 64 x 96 pixels that are computed"
    assert [tuple(stage.gate.shape[2:]) for stage in stages] == [(9, 18), (5, 9), (1, 1), (1, 1)]
