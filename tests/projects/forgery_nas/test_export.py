"""Networks as ONNX files: that these judge as the networks do, and what the latency table says."""

import csv
import json

import numpy as np
import onnxruntime
import pytest
import torch

from projects.forgery_nas.baselines import build_baseline
from projects.forgery_nas.export import COMPARED, TOLERANCE, FakeProbability, export
from projects.forgery_nas.genotype import RELEASED, random_genotype
from projects.forgery_nas.module import ForgeryNetTraining
from projects.forgery_nas.network import ForgeryNet
from projects.forgery_nas.norms import measure_norms
from projects.forgery_nas.operations import SPACE
from shared.cli import ProjectTrainer
from shared.export import export_onnx
from shared.quiet import silence


def ready(net, size):
    """Give the norms weights and statistics that matter, and a searched network's logits a mean of 0 and a spread of 1."""
    torch.manual_seed(3)
    images = torch.rand(16, 3, size, size)
    with torch.no_grad():
        if isinstance(net, ForgeryNet):
            for layer in net.modules():
                if isinstance(layer, torch.nn.BatchNorm2d):
                    layer.weight.uniform_(0.5, 1.5)
                    layer.bias.normal_(std=0.2)
        measure_norms(net, [images])
        if isinstance(net, ForgeryNet):
            net.head.linear.weight.div_(net.eval()(images).std(0).mean())
            net.head.linear.bias.sub_(net(images).mean(0))
    return net.eval()


def agrees(net, path, size, tolerance=1e-4):
    """Check the file by the network as it is trained, not as it is folded, on images that the exporter did not see."""
    images = torch.rand(8, 3, size, size)
    export_onnx(FakeProbability(net), path, {"images": images}, ["probability"], tolerance=tolerance)
    images = torch.rand(5, 3, size, size)
    (found,) = onnxruntime.InferenceSession(path).run(["probability"], {"images": images.numpy()})
    with torch.no_grad():
        expected = net(images).softmax(1)[:, 1].numpy()
    assert expected.std() > 3 * tolerance, "equal probabilities would show nothing"
    np.testing.assert_allclose(found, expected, atol=tolerance)


def test_a_network_can_be_exported(tmp_path):
    agrees(ready(ForgeryNet(RELEASED, 2, 2, reductions=[0]), 16), tmp_path / "detector.onnx", 16)


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize(("head", "size"), [("last", 16), ("pyramid", 19)])
def test_a_network_of_any_operations_can_be_exported(tmp_path, head, size, seed):
    genotype = random_genotype(SPACE, torch.Generator().manual_seed(seed))
    agrees(ready(ForgeryNet(genotype, 2, 3, head=head, reductions=[1]), size), tmp_path / "detector.onnx", size)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["meso4", "mesoinception4", *COMPARED, "legacy_xception"])
def test_hand_made_networks_can_be_exported(tmp_path, name):
    agrees(ready(build_baseline(name, 64), 64), tmp_path / "detector.onnx", 64, 1e-3)


@pytest.mark.slow
def test_the_paper_s_network_can_be_exported(tmp_path):
    agrees(ready(ForgeryNetTraining().net, 64), tmp_path / "detector.onnx", 64, TOLERANCE)


@pytest.mark.slow
def test_the_verb_leaves_a_file_and_a_table_beside_other_networks(tmp_path, capsys):
    module = ForgeryNetTraining(channels=2, layers=2, size=32)
    ready(module.net, 32)
    with silence():
        trainer = ProjectTrainer(accelerator="cpu", logger=False, default_root_dir=tmp_path)
    trainer.verb = "export"
    exported = export(trainer, module)
    folder = tmp_path / "artefacts" / "export"
    assert {path.name for path in folder.iterdir()} == {"detector.onnx", "latency.csv", "latency.json"}
    rows = list(csv.DictReader((folder / "latency.csv").open()))
    assert [(row["network"], row["batch"]) for row in rows] == [(name, batch) for name in ("searched", *COMPARED) for batch in ("1", "8")]
    assert all(float(row["milliseconds"]) > 0 for row in rows)
    assert int(rows[0]["parameters"]) == sum(parameter.numel() for parameter in module.net.parameters())
    assert 200 < float(rows[6]["macs"]) / 1e4 < 1000, "EfficientNet-B0 takes 390 million at 224 x 224, hence 8 million at 32 x 32"
    assert exported.summary["onnx/difference"] < 1e-4
    assert "(B, 3, 32, 32) float32 in [0, 1]" in capsys.readouterr().out
    session, images = onnxruntime.InferenceSession(folder / "detector.onnx"), torch.rand(4, 3, 32, 32)
    (probability,) = session.run(None, {"images": images.numpy()})
    with torch.no_grad():
        np.testing.assert_allclose(probability, module.eval()(images).numpy(), atol=1e-4)
    about = {name: json.loads(text) for name, text in session.get_modelmeta().custom_metadata_map.items() if text[0] in "[{"}
    assert (about["input_size"], about["normalisation"]["mean"], about["normalisation"]["std"]) == (["batch", 3, 32, 32], [0, 0, 0], [1, 1, 1])
    again = ForgeryNetTraining(**about["configuration"])
    assert (again.genotype, again.hparams.channels) == (module.genotype, 2), "the metadata are enough to build it again"
