import json
from copy import deepcopy

import pytest
import torch
from diffusers import DDPMPipeline, DDPMScheduler, UNet2DModel
from safetensors.torch import load_file, save_file
from torch import nn

from shared.backbones.factory import build_backbone
from shared.backbones.unets import PRESETS, build_unet, load_pipeline, replace_unet, save_pipeline
from shared.pruning.__main__ import main as prune


@pytest.mark.parametrize(
    ("preset", "size", "channels", "parameters"), [("tiny", 16, 1, 159_697), ("cifar10", 32, 3, 35_746_307), ("celebahq256", 256, 3, 113_673_219)]
)
def test_presets_have_the_published_sizes(preset, size, channels, parameters):
    with torch.device("meta"):
        assert sum(weight.numel() for weight in build_unet(preset, size, channels).parameters()) == parameters


def test_wrong_presets_and_sizes():
    with pytest.raises(ValueError, match="no U-Net preset 'big'; there are: tiny"):
        build_unet("big", 16, 1)
    with pytest.raises(ValueError, match="must be a multiple of 8, got 30"):
        build_unet("cifar10", 30, 3)
    assert all(len(settings["down_block_types"]) == len(settings["block_out_channels"]) for settings in PRESETS.values())


@pytest.fixture
def folder(tmp_path):
    return save_pipeline(build_unet("tiny", 16, 1), DDPMScheduler(num_train_timesteps=100, clip_sample=False), tmp_path / "pipeline")


def test_stock_diffusers_loads_what_we_write_bit_for_bit(folder):
    ours, config = load_pipeline(folder)
    stock = DDPMPipeline.from_pretrained(folder).unet.eval()
    x, t = torch.randn(2, 1, 16, 16), torch.tensor([3, 90])
    assert torch.equal(ours(x, t).sample, stock(x, t).sample)
    assert (config["num_train_timesteps"], config["clip_sample"]) == (100, False)


def test_we_load_what_stock_diffusers_writes(tmp_path):
    net = build_unet("tiny", 16, 3)
    DDPMPipeline(unet=net, scheduler=DDPMScheduler()).save_pretrained(tmp_path, variant="fp16")
    assert torch.equal(load_pipeline(tmp_path)[0].conv_in.weight, net.conv_in.weight)


def age(folder):
    """Make a pipeline look as the earliest ones do: old names in its attention layers, and all files in one folder."""
    for file in (folder / "unet" / "config.json", folder / "scheduler" / "scheduler_config.json"):
        file.rename(folder / file.name)
    tensors, weights = {}, folder / "unet" / "diffusion_pytorch_model.safetensors"
    for name, tensor in load_file(weights).items():
        for today, old in {"to_q": "query", "to_k": "key", "to_v": "value", "to_out.0": "proj_attn"}.items():
            name = name.replace(f".{today}.", f".{old}.")
        tensors[name] = tensor
    assert sum(".query." in name for name in tensors) == 8
    save_file(tensors, folder / weights.name, {"format": "pt"})
    weights.unlink()
    (folder / "unet").rmdir()
    (folder / "scheduler").rmdir()
    return folder


def test_the_earliest_pipelines_are_read_and_replaced_as_stock_diffusers_reads_them(tmp_path):
    attentive = {"down_block_types": ("DownBlock2D", "AttnDownBlock2D"), "up_block_types": ("AttnUpBlock2D", "UpBlock2D"), "add_attention": True}
    net = UNet2DModel(sample_size=16, in_channels=1, out_channels=1, **PRESETS["tiny"] | attentive)
    folder = age(save_pipeline(net, DDPMScheduler(num_train_timesteps=100), tmp_path / "old"))
    ours, config = load_pipeline(folder)
    stock = DDPMPipeline.from_pretrained(folder)
    x, t = torch.randn(2, 1, 16, 16), torch.tensor([3, 90])
    assert torch.equal(ours(x, t).sample, stock.unet.eval()(x, t).sample)
    assert config["num_train_timesteps"] == stock.scheduler.config.num_train_timesteps == 100
    replaced = DDPMPipeline.from_pretrained(replace_unet(folder, ours, tmp_path / "new"))
    assert torch.equal(ours(x, t).sample, replaced.unet.eval()(x, t).sample)
    assert replaced.scheduler.config == stock.scheduler.config
    assert prune(["apply", str(folder), "--channels", "0.1", "--mode", "mask", "--out", str(tmp_path / "pruned")]) == 0
    assert torch.equal(load_pipeline(tmp_path / "pruned")[0](x, t).sample, DDPMPipeline.from_pretrained(tmp_path / "pruned").unet.eval()(x, t).sample)


def damage_config(folder):
    (folder / "unet" / "config.json").write_text("{")


def change_width(folder):
    file = folder / "unet" / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"block_out_channels": [16, 64]}))


def change_class(folder):
    (folder / "unet" / "config.json").write_text('{"_class_name": "UNet2DConditionModel"}')


def pickle_weights(folder):
    (folder / "unet" / "diffusion_pytorch_model.safetensors").rename(folder / "unet" / "diffusion_pytorch_model.bin")


def several_weights(folder):
    weights = folder / "unet" / "diffusion_pytorch_model.safetensors"
    save_file({"a": torch.zeros(1)}, folder / "unet" / "diffusion_pytorch_model.fp16.safetensors")
    weights.rename(folder / "unet" / "diffusion_pytorch_model.bf16.safetensors")


def shard_weights(folder):
    unet = load_pipeline(folder)[0]
    (folder / "unet" / "diffusion_pytorch_model.safetensors").unlink()
    unet.save_pretrained(folder / "unet", max_shard_size="50KB")


def add_decoder(folder):
    index = json.loads((folder / "model_index.json").read_text())
    (folder / "model_index.json").write_text(json.dumps(index | {"vqvae": ["diffusers", "VQModel"]}))


@pytest.mark.parametrize(
    ("harm", "error", "message"),
    [
        (damage_config, ValueError, "config.json is not JSON"),
        (change_width, ValueError, r"do not fit the network(?s:.*)the network has"),
        (change_class, ValueError, "describes a UNet2DConditionModel: only unconditional"),
        (pickle_weights, ValueError, "is a pickle and is not read.*safe_serialization"),
        (several_weights, ValueError, "holds several weights"),
        (shard_weights, ValueError, "are sharded .* write them again with save_pretrained"),
        (add_decoder, ValueError, "holds a pipeline with vqvae beside its U-Net: only pipelines of a U-Net and a scheduler"),
        (lambda folder: (folder / "unet" / "diffusion_pytorch_model.safetensors").unlink(), FileNotFoundError, "no weights in"),
        (
            lambda folder: (folder / "scheduler" / "scheduler_config.json").unlink(),
            FileNotFoundError,
            "scheduler/scheduler_config.json missing; expected",
        ),
    ],
)
def test_bad_folders_are_explained(folder, harm, error, message):
    harm(folder)
    with pytest.raises(error, match=message):
        load_pipeline(folder)


def test_a_variant_keeps_its_name_and_precision(folder, tmp_path):
    unet = load_pipeline(folder)[0]
    (folder / "unet" / "diffusion_pytorch_model.safetensors").unlink()
    nn.Module.to(deepcopy(unet), torch.float16).save_pretrained(folder / "unet", variant="fp16")
    replace_unet(folder, load_pipeline(folder)[0], tmp_path / "new")
    assert [path.name for path in (tmp_path / "new" / "unet").glob("*.safetensors")] == ["diffusion_pytorch_model.fp16.safetensors"]
    assert DDPMPipeline.from_pretrained(tmp_path / "new", variant="fp16", torch_dtype=torch.float16).unet.dtype == torch.float16


def test_timm_networks_by_name_and_local_weights(tmp_path):
    net = build_backbone("resnet10t", num_classes=10)
    save_file(net.state_dict(), tmp_path / "w.safetensors")
    torch.save(net.state_dict(), tmp_path / "w.pth")
    x = torch.randn(1, 3, 64, 64)
    for name in ("w.safetensors", "w.pth"):
        features = build_backbone("resnet10t", str(tmp_path / name), features_only=True).eval()
        torch.testing.assert_close(features(x)[-1], net.eval().forward_features(x))
    with pytest.raises(ValueError, match="do not fit resnet18"):
        build_backbone("resnet18", str(tmp_path / "w.safetensors"))
    with pytest.raises(ValueError, match=r"timm has no model 'resnet10tt'; did you mean resnet10t"):
        build_backbone("resnet10tt")
    with pytest.raises(FileNotFoundError, match=r"no backbone weights gone.pth: give a local"):
        build_backbone("resnet10t", "gone.pth")


def test_no_network_is_said(monkeypatch, tmp_path):
    import huggingface_hub.constants

    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(FileNotFoundError, match=r"resnet10t are neither cached nor can they be fetched: download model.safetensors"):
        build_backbone("resnet10t", "pretrained")
