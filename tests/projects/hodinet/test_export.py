import csv
import json
from types import SimpleNamespace

import numpy as np
import onnxruntime
import pytest
import torch

from projects.hodinet import readout
from projects.hodinet.cli import main
from projects.hodinet.export import BATCHES, SaliencyMap, export, relation_bytes, scene_examples
from projects.hodinet.module import SaliencyDetection
from projects.hodinet.scenes import draw_scene
from shared.checkpoints import weights_digest
from shared.export import export_onnx

NARROW = [8, 8, 8, 8]


def scenes(height, width, count=3):
    """Return pictures and depth that the export has not seen."""
    drawn = [draw_scene("val", index, size=max(height, width)) for index in range(count)]
    return tuple(torch.stack([getattr(scene, name) for scene in drawn])[:, :, :height, :width] for name in ("image", "depth"))


def stirred(**options):
    """Return a module whose maps differ from pixel to pixel: its norms have seen pictures, and its logits are spread."""
    module = SaliencyDetection(**{"widths": NARROW, "size": None} | options)
    images, depth = scenes(96, 96, 4)
    with torch.no_grad():
        module.net.train()
        for _ in range(10):
            module.net(images, depth)
        module.net.eval()
        last = module.net.heads[0].layers[-1]
        last.weight *= 2 / module.net(images, depth, sides=False)[0].std()
        last.bias -= module.net(images, depth, sides=False)[0].median()
    return module.eval()


def agrees(module, path, height, width):
    """Compare a file with the module itself."""
    images, depth = scenes(height, width)
    session = onnxruntime.InferenceSession(path)
    given = {"images": images.numpy().astype(np.float32), "depth": depth.numpy()}
    (found,) = session.run(["probability"], {entry.name: given[entry.name] for entry in session.get_inputs()})
    expected = module(images, depth)
    assert found.shape == (3, 1, height, width)
    np.testing.assert_allclose(found, expected.numpy(), atol=1e-3)
    return expected


@pytest.mark.slow
def test_the_verb_leaves_a_file_that_judges_as_the_run_does(run, capsys):
    cli = main(["export"])
    folder = run / "artefacts" / "export"
    assert {path.name for path in folder.iterdir()} == {"saliency.onnx", "latency.csv", "latency.json"}
    agrees(cli.model, folder / "saliency.onnx", 64, 64)
    assert cli.result.summary["onnx/difference"] < 1e-4
    with (folder / "latency.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [(row["runtime"], row["height"]) for row in rows] == [("ONNX Runtime", "64"), ("torch", "64")]
    printed = capsys.readouterr().out
    assert "images = ...  # (B, 3, 64, 64) float32 from 0 to 255, RGB" in printed
    assert 'session.run(None, {"images": images, "depth": depth})' in printed
    session = onnxruntime.InferenceSession(folder / "saliency.onnx")
    about = session.get_modelmeta().custom_metadata_map
    assert list(json.loads(about["inputs"])) == [entry.name for entry in session.get_inputs()] == ["images", "depth"]
    assert json.loads(about["inputs"])["depth"]["near"] == 1
    assert json.loads(about["input_size"]) == [64, 64]
    assert json.loads(about["configuration"])["fusion"] == "high_order"


@pytest.mark.slow
@pytest.mark.parametrize(
    ("options", "size"),
    [
        ({"placement": "CSSC", "pool": 2, "order": 3}, (64, 96)),
        ({"signed": True, "literal": True, "decoder": "fpn", "aspp": True}, (50, 75)),
        ({"fusion": "add", "rgb": "tiny_cnn", "depth": "tiny_transformer"}, (64, 64)),
        ({"fusion": "concat"}, (33, 64)),
        ({"streams": ["rgb"]}, (64, 48)),
        ({"streams": ["depth"]}, (64, 64)),
        ({"rgb": "pvt_v2_b0", "depth": "resnet50", "placement": "SSCC"}, (96, 96)),
    ],
    ids=lambda value: "-".join(map(str, value.values() if isinstance(value, dict) else value)),
)
def test_any_network_can_be_exported(tmp_path, options, size):
    module, path = stirred(**options), tmp_path / "saliency.onnx"
    export_onnx(SaliencyMap(module), path, scene_examples(module, *size), ["probability"], batches=BATCHES, tolerance=1e-3)
    assert agrees(module, path, *size).std() > 0.05, "maps differ from pixel to pixel"


def test_what_is_exported_computes_what_the_module_does_and_leaves_it_as_it_is():
    module, (images, depth) = stirred(), scenes(64, 48)
    before = weights_digest(module)
    with torch.no_grad():
        found = SaliencyMap(module)(images.float(), depth)
    torch.testing.assert_close(found, module(images, depth), atol=1e-5, rtol=0)
    assert found.std() > 0.05
    assert weights_digest(module) == before


def test_a_network_of_one_stream_takes_that_one_only():
    images, depth = scenes(64, 48)
    for name, layer in (("rgb", images), ("depth", depth)):
        module = stirred(streams=[name])
        assert list(scene_examples(module, 40, 64)) == ["images" if name == "rgb" else "depth"]
        with torch.no_grad():
            torch.testing.assert_close(SaliencyMap(module)(layer.float()), module(images, depth), atol=1e-5, rtol=0)


@pytest.mark.parametrize("size", [(40, 90), (150, 64)])
def test_examples_are_scenes_as_the_file_takes_them(size):
    examples = scene_examples(SaliencyDetection(widths=NARROW), *size)
    assert {name: (tuple(layers.shape), layers.dtype) for name, layers in examples.items()} == {
        "images": ((max(BATCHES), 3, *size), torch.float32),
        "depth": ((max(BATCHES), 1, *size), torch.float32),
    }
    scene = draw_scene("test", 1, size=max(size))
    assert torch.equal(examples["images"][1], scene.image[:, : size[0], : size[1]].float())
    assert torch.equal(examples["depth"][1], scene.depth[:, : size[0], : size[1]])


@pytest.mark.parametrize("options", [{}, {"pool": 3}, {"placement": "CSCC"}, {"placement": "CCCC"}, {"fusion": "add"}])
def test_the_size_of_the_relation_is_that_of_what_is_stored(monkeypatch, options):
    module, (images, depth), stored = SaliencyDetection(widths=NARROW, chunk=0, size=None, **options), scenes(70, 100, 1), [0]
    literal = readout.relation_readout_literal

    def counted(r, d, values):
        stored.append(4 * r.shape[2] * d.shape[2])
        return literal(r, d, values)

    monkeypatch.setattr(readout, "relation_readout_literal", counted)
    module(images, depth)
    assert relation_bytes(module, 70, 100) == max(stored)


def refused(tmp_path, message, height, width, **options):
    trainer = SimpleNamespace(default_root_dir=str(tmp_path), verb="export", loggers=[])
    with pytest.raises(ValueError, match=message):
        export(trainer, SaliencyDetection(widths=NARROW, **options), height, width)
    assert not list(tmp_path.rglob("*.onnx"))


def test_what_does_not_fit_is_refused_before_any_work(tmp_path, monkeypatch):
    refused(tmp_path, "height and width must be at least 32 pixels, got 31 and 64", 31, None, size=64)
    refused(
        tmp_path, r"that of 640 x 480 pixels takes 1\.4 GB a picture: take a smaller height and width, or train with a larger model\.pool", 640, 480
    )
    monkeypatch.setattr("shared.export.find_spec", lambda name: None)
    refused(tmp_path, "ONNX files need onnx: install the extra with `uv sync --extra onnx`", None, 64, size=None, pool=4)
