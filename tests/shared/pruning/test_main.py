import json

import pytest
import timm
import torch
from timm.models._hub import save_for_hf

from shared.pruning import load
from shared.pruning.__main__ import main


@pytest.fixture
def pipeline(unet, tmp_path):
    from diffusers import DDPMPipeline, DDPMScheduler

    DDPMPipeline(unet, DDPMScheduler(100)).save_pretrained(tmp_path / "pipeline")
    return tmp_path / "pipeline"


def test_report_writes_nothing_but_what_was_asked_for(pipeline, tmp_path, capsys):
    before = sorted(path.stat().st_mtime_ns for path in pipeline.rglob("*"))
    assert main(["report", str(pipeline), "--flops", "0.3", "--protect", "conv_in", "--json", str(tmp_path / "report.json")]) == 0
    text = capsys.readouterr().out
    assert "stays: conv_in is protected" in text
    totals = json.loads((tmp_path / "report.json").read_text())["totals"]
    assert 1 - totals["flops"]["after"] / totals["flops"]["before"] == pytest.approx(0.3, abs=0.03)
    assert sorted(path.stat().st_mtime_ns for path in pipeline.rglob("*")) == before


@pytest.mark.parametrize("part", ["", "unet"])
def test_a_pipeline_is_cut_and_loaded_again(part, pipeline, tmp_path, capsys):
    assert main(["apply", str(pipeline / part), "--channels", "0.25", "--out", str(tmp_path / "out"), "--norm", "whole_group"]) == 0
    assert "the pruned network differs from the masked one by" in capsys.readouterr().out
    model = load(tmp_path / "out")
    assert sum(p.numel() for p in model.parameters()) < 159_697
    assert model(torch.zeros(1, 1, 16, 16), torch.tensor([3])).sample.shape == (1, 1, 16, 16)
    assert main(["apply", str(tmp_path / "out"), "--channels", "0.1", "--out", str(tmp_path / "twice")]) == 0, "a result can be pruned again"
    assert len(load(tmp_path / "twice").pruned_structure.history) == 2


def test_a_pipeline_with_a_cut_network_is_read(pipeline, tmp_path, capsys):
    assert main(["apply", str(pipeline), "--latency", "0.2", "--out", str(tmp_path / "pipe" / "unet")]) == 0
    assert main(["report", str(tmp_path / "pipe"), "--channels", "0.1"]) == 0
    assert "channels" in capsys.readouterr().out


def test_a_mask_keeps_the_precision_of_the_file(pipeline, tmp_path):
    from safetensors.torch import load_file, save_file

    weights = pipeline / "unet" / "diffusion_pytorch_model.safetensors"
    save_file({name: tensor.bfloat16() for name, tensor in load_file(weights).items()}, weights, {"format": "pt"})
    assert main(["apply", str(pipeline), "--channels", "0.1", "--mode", "mask", "--out", str(tmp_path / "out")]) == 0
    assert {t.dtype for t in load_file(tmp_path / "out" / "unet" / weights.name).values()} == {torch.bfloat16}


def test_a_masked_pipeline_loads_in_stock_diffusers(pipeline, tmp_path):
    from diffusers import DDPMPipeline

    assert main(["apply", str(pipeline), "--channels", "0.1", "--mode", "mask", "--out", str(tmp_path / "out"), "--criterion", "random"]) == 0
    masked = DDPMPipeline.from_pretrained(tmp_path / "out").unet
    zeros = sum(int(weight.flatten(1).eq(0).all(1).sum()) for name, weight in masked.state_dict().items() if name.endswith("conv1.weight"))
    assert zeros > 5


@pytest.mark.parametrize("name", ["resnet10t", "test_vit"])
def test_timms_folders(name, tmp_path, make):
    size = {"img_size": 32} if name == "test_vit" else {}
    model = make.stir(timm.create_model(name, num_classes=3, in_chans=1, **size))
    save_for_hf(model, tmp_path / "model", safe_serialization=True)
    assert main(["apply", str(tmp_path / "model"), "--parameters", "0.3", "--out", str(tmp_path / "out"), "--round-to", "4"]) == 0
    pruned = load(tmp_path / "out")
    share = sum(p.numel() for p in pruned.parameters()) / sum(p.numel() for p in model.parameters())
    assert share == pytest.approx(0.7, abs=0.03)
    assert pruned(torch.zeros(2, 1, 32, 32)).shape == (2, 3)


def test_requests_that_cannot_be_met_are_explained(pipeline, tmp_path, capsys):
    for arguments, message in (
        ([str(tmp_path / "none"), "--channels", "0.1"], "holds no network: expected config.json"),
        ([str(pipeline), "--channels", "1.1"], "a budget is the share to remove, in [0, 1), got channels=1.1"),
        ([str(pipeline), "--channels", "0.1", "--protect", "nothing"], "no layer is called 'nothing'"),
        ([str(pipeline), "--channels", "0.1", "--input", "sample=axb"], "is not of the form sample=1x3x32x32"),
    ):
        assert main(["report", *arguments]) == 1
        error = capsys.readouterr().err
        assert error.startswith("error: ")
        assert message in error
    assert main(["apply", str(pipeline), "--channels", "0.1", "--out", str(pipeline)]) == 1
    assert "is, holds or lies in the folder that is read" in capsys.readouterr().err
    (tmp_path / "letters").mkdir()
    (tmp_path / "letters" / "letter.txt").write_text("dear")
    for out, message in ((tmp_path / "letters", "is not empty and no earlier result"), (pipeline / "unet", "is, holds or lies in")):
        assert main(["apply", str(pipeline), "--channels", "0.1", "--out", str(out)]) == 1
        assert message in capsys.readouterr().err
    assert (tmp_path / "letters" / "letter.txt").read_text() == "dear"
    assert main(["report", str(pipeline), "--channels", "0.1", "--input", "sample=1x1x7x7", "timestep=int:1"]) == 1
    assert "cannot be called with these inputs" in capsys.readouterr().err
    (pipeline / "unet" / "config.json").write_text("{")
    assert main(["report", str(pipeline), "--channels", "0.1"]) == 1
    assert "is not JSON" in capsys.readouterr().err
    with pytest.raises(SystemExit) as stopped:
        main(["report", str(pipeline)])
    assert stopped.value.code == 2
