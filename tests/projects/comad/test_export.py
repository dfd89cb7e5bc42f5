import numpy as np
import onnxruntime
import pytest
import torch

from projects.comad.cli import main
from projects.comad.export import NetworkPart
from projects.comad.features import build_features
from projects.comad.inspector import Inspector, Recipe
from projects.comad.light import LightSegmenter
from projects.comad.segmentation import hard_maps
from projects.comad.traysim import draw_tray
from shared.export import export_onnx


@pytest.fixture(scope="module")
def trays():
    return torch.stack([draw_tray("test", number).image for number in range(4)])


@pytest.mark.slow
def test_the_file_cuts_pictures_into_the_same_components(run, trays):
    cli = main(["export"])
    session = onnxruntime.InferenceSession(run / "artefacts" / "export" / "features.onnx")
    features, components = session.run(None, {"images": trays.numpy().astype(np.float32)})
    inspector = cli.model.inspector
    np.testing.assert_allclose(features, inspector.features(trays).numpy(), atol=0.02)
    same = torch.from_numpy(components).argmax(1) == hard_maps(inspector.segment(trays))
    assert float(same.double().mean()) > 0.999
    assert cli.result.summary["onnx/difference"] < 1e-3


@pytest.mark.slow
@pytest.mark.parametrize("output", ["tokens", "keys"])
def test_a_transformer_is_exported_too(tmp_path, trays, output):
    features = build_features("vit_tiny_patch16_224", 128, output=output)
    inspector = Inspector(features, Recipe(k=4, fraction=0.1, crf=False, structural=False))
    inspector.learn_vocabulary(inspector.sample(features(trays), 0))
    network = NetworkPart(inspector).eval()
    assert export_onnx(network, tmp_path / "vit.onnx", {"images": trays.float()}, network.outputs, batches=(1, 2), tolerance=1e-3) < 1e-3


@pytest.mark.slow
def test_a_light_network_is_exported_by_itself(tmp_path, trays):
    inspector = Inspector(build_features("offline"), Recipe(k=4))
    inspector.light = LightSegmenter(4).eval()
    network = NetworkPart(inspector).eval()
    assert network.outputs == ["components"]
    assert export_onnx(network, tmp_path / "light.onnx", {"images": trays.float()}, network.outputs, batches=(1, 2), tolerance=1e-3) < 1e-3
