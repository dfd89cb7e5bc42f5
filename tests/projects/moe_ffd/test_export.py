import csv

import numpy as np
import onnxruntime
import pytest
import torch
from torch import nn

from projects.moe_ffd.backbones import TinyViT, build_vit
from projects.moe_ffd.cli import main
from projects.moe_ffd.experts import AdapterMixture, Beside, LoraMixture
from projects.moe_ffd.export import FakeProbability, merge
from projects.moe_ffd.model import build_detector
from projects.moe_ffd.module import FaceForgeryDetection
from projects.moe_ffd.routing import Router
from projects.moe_ffd.weights import save_delta
from shared.export import export_onnx

ROUTERS = [("reference", 1), ("reference", 2), ("weighted", 1), ("weighted", 2), ("soft", 1), ("uniform", 1), ("fixed:1", 1)]


def stir(module, std=0.3):
    """Give experts and gates values that matter."""
    torch.manual_seed(2)
    for name, parameter in module.named_parameters():
        if "mixture" in name:
            nn.init.normal_(parameter, std=std)
    return module.eval()


class Routers(nn.Module):
    """The gates of every router, the last two of which have logits that are equal, all or in part; and both mixtures."""

    def __init__(self):
        super().__init__()
        self.lora, self.adapter = LoraMixture(8, 24, (1, 2, 5), k=2), AdapterMixture(8, bottleneck=3, router="weighted", prefix=0, grid=(1, 13))
        self.routers = nn.ModuleList(Router(8, 5, *chosen) for chosen in [*ROUTERS, ("reference", 2), ("reference", 2)])
        torch.manual_seed(2)
        for parameter in self.parameters():
            nn.init.normal_(parameter)
        with torch.no_grad():
            self.routers[-2].w_gate.zero_()
            self.routers[-1].w_gate.zero_()[:, 3].normal_()

    def forward(self, tokens):
        rows = tokens.flatten(0, 1)
        gates = [router(rows).dense(5) for router in self.routers]
        return (*gates, self.lora(tokens, tokens.repeat(1, 1, 3)), self.adapter(tokens, tokens.clone()))


@pytest.mark.slow
def test_every_router_goes_the_same_way_in_the_file(tmp_path):
    torch.manual_seed(0)
    module, tokens = Routers().eval(), torch.randn(8, 13, 8)
    names = [f"{router} {k}" for router, k in ROUTERS] + ["equal", "partly equal", "lora", "adapter"]
    export_onnx(module, tmp_path / "routers.onnx", {"tokens": tokens}, names, tolerance=1e-4)
    session, tokens = onnxruntime.InferenceSession(tmp_path / "routers.onnx"), torch.randn(5, 13, 8)
    with torch.no_grad():
        expected, found = module(tokens), session.run(None, {"tokens": tokens.numpy()})
    for name, one, other in zip(names, expected, found, strict=True):
        np.testing.assert_allclose(other, one.numpy(), atol=1e-5, rtol=1e-5, err_msg=name)
    assert {tuple(row.nonzero()[0]) for row in found[names.index("equal")]} == {(0, 1)}, "the lowest numbers win among equals"
    assert {tuple(row.nonzero()[0]) for row in found[names.index("partly equal")]} == {(0, 3), (0, 1)}


@pytest.mark.parametrize(("router", "k"), ROUTERS)
def test_all_adapters_at_once_give_what_those_chosen_give(router, k):
    three = {"kinds": ("cv", "rd", "scd"), "self_index": 4}
    for options in ({}, {"kinds": ("ad",), "k": 1, "router": "reference"}, three | {"prefix": 2, "grid": (1, 11)}, {"prefix": 0, "grid": (1, 13)}):
        mixture = AdapterMixture(8, **({"bottleneck": 3, "router": router, "k": k, "grid": (3, 4)} | options))
        stir(Beside(nn.Identity(), mixture))
        tokens, base = torch.randn(6, 13, 8), torch.randn(6, 13, 8)
        with torch.no_grad():
            routing = mixture.router(tokens.mean(1))
            found = mixture._masked(tokens, base.clone(), routing)
            torch.testing.assert_close(found, mixture._selected(tokens, base.clone(), routing), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize(
    ("adaptation", "options", "remaining"),
    [
        ("moe", {"lora_router": "fixed:1", "ranks": (1, 2, 4)}, 0),
        ("moe", {"lora_router": "uniform", "ranks": (1, 2, 4)}, 0),
        ("lora", {"rank": 3}, 0),
        ("moe", {"lora_router": "soft", "ranks": (1, 2, 4)}, 2),
        ("adapter", {}, 0),
        ("probe", {}, 0),
    ],
)
def test_experts_that_are_the_same_for_all_tokens_are_merged(adaptation, options, remaining):
    detector = stir(build_detector(adaptation, TinyViT(depth=2), **options))
    merged, images = merge(detector), torch.rand(3, 3, 48, 48)
    assert sum(isinstance(part, LoraMixture) for part in merged.modules()) == remaining
    with torch.no_grad():
        torch.testing.assert_close(merged(images), detector(images), atol=1e-5, rtol=1e-5)
    if remaining:
        with pytest.raises(ValueError, match="router soft cannot be merged"):
            merged.mixtures("lora")[0].delta()


def agrees(detector, path, size=48):
    """Export, and compare with the detector itself on other images."""
    images = torch.rand(8, 3, size, size)
    export_onnx(FakeProbability(detector), path, {"images": images}, ["probability"], tolerance=1e-5)
    images = torch.rand(2, 3, size, size)
    (found,) = onnxruntime.InferenceSession(path).run(["probability"], {"images": images.numpy()})
    with torch.no_grad():
        np.testing.assert_allclose(found, detector(images).softmax(1)[:, 1].numpy(), atol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize(("router", "k"), ROUTERS)
def test_a_detector_with_any_router_can_be_exported(tmp_path, router, k):
    options = {"lora_router": router, "lora_k": k, "adapter_router": router, "adapter_k": k}
    agrees(stir(build_detector("moe", TinyViT(depth=2), **options)), tmp_path / "detector.onnx")


@pytest.mark.slow
@pytest.mark.parametrize("adaptation", ["moe", "lora", "adapter", "probe", "full", "layernorm", "bitfit", "effort"])
def test_every_adaptation_can_be_exported(tmp_path, adaptation):
    agrees(stir(build_detector(adaptation, build_vit("tiny", weights="pretrained"))), tmp_path / "detector.onnx")


@pytest.mark.slow
def test_the_paper_s_detector_can_be_exported(tmp_path):
    agrees(stir(build_detector("moe", build_vit("vit_base_patch16_224", 224)), 0.02), tmp_path / "detector.onnx", 224)


def test_the_verb_leaves_a_file_that_judges_as_the_run_does(run_folder, tmp_path, capsys):
    options = {"ranks": [1, 2], "kinds": ["cv", "rd"], "blocks": [1], "bottleneck": 4, "self_index": 4}
    module = FaceForgeryDetection(**options)
    stir(module.net, 0.1)
    save_delta(module.net, tmp_path / "delta.safetensors")
    main(["convert", str(tmp_path / "delta.safetensors"), "--run", "made", *(f"--model.{name}={value}" for name, value in options.items())])
    capsys.readouterr()
    result = main(["export", "--run", "made"]).result
    folder = run_folder / "moe_ffd" / "made" / "artefacts" / "export"
    assert {path.name for path in folder.iterdir()} == {"detector.onnx", "latency.csv", "latency.json"}
    assert [row["batch"] for row in csv.DictReader((folder / "latency.csv").open())] == ["1", "8"]
    assert result.summary["onnx/difference"] < 1e-5
    printed = capsys.readouterr().out
    assert "(B, 3, 48, 48) float32 in [0, 1]" in printed
    session, images = onnxruntime.InferenceSession(folder / "detector.onnx"), torch.rand(4, 3, 48, 48)
    (probability,) = session.run(None, {"images": images.numpy()})
    with torch.no_grad():
        np.testing.assert_allclose(probability, module.eval()(images).numpy(), atol=1e-5)
    about = session.get_modelmeta().custom_metadata_map
    assert (about["class_names"], about["input_size"], about["value_range"]) == ('["real", "fake"]', '["batch", 3, 48, 48]', "[0, 1]")
