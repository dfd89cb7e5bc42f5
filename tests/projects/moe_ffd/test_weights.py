import pytest
import timm
import torch

from projects.moe_ffd.model import build_detector
from projects.moe_ffd.weights import frozen_digest, load_delta, load_released, read_header, save_delta
from shared.checkpoints import load_tensors


def detector(adaptation="moe", seed=0, **options):
    torch.manual_seed(seed)
    backbone = timm.models.VisionTransformer(img_size=24, patch_size=6, embed_dim=16, depth=2, num_heads=2, num_classes=0)
    defaults = {"ranks": (1, 2, 4), "bottleneck": 4} if adaptation == "moe" else {}
    return build_detector(adaptation, backbone, **(defaults | options))


def stir(net):
    torch.manual_seed(9)
    for parameter in net.trainable_parameters().values():
        torch.nn.init.normal_(parameter, std=0.3)
    return net


IMAGES = torch.rand(5, 3, 24, 24, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("adaptation", ["moe", "lora", "adapter", "probe", "layernorm", "bitfit", "effort", "full"])
def test_delta_gives_identical_logits(adaptation, tmp_path):
    net, path = stir(detector(adaptation)).eval(), tmp_path / "delta.safetensors"
    save_delta(net, path)
    assert load_tensors(path).keys() == net.trainable_parameters().keys()
    again = detector(adaptation).eval()
    load_delta(again, path)
    assert torch.equal(again(IMAGES), net(IMAGES))


def test_delta_is_as_large_as_what_trains(tmp_path):
    net = detector()
    save_delta(net, tmp_path / "delta.safetensors")
    numbers = 4 * sum(parameter.numel() for parameter in net.trainable_parameters().values())
    assert numbers < (tmp_path / "delta.safetensors").stat().st_size < numbers + 10_000
    digest, configuration = read_header(tmp_path / "delta.safetensors")
    assert digest == frozen_digest(net)
    assert configuration["ranks"] == [1, 2, 4]


def test_mismatches_are_named(tmp_path):
    net, path = detector(), tmp_path / "delta.safetensors"
    save_delta(net, path)
    before = {name: parameter.clone() for name, parameter in detector(seed=1).trainable_parameters().items()}
    other = detector(seed=1)
    for refused, message in ((other, "another backbone"), (detector(ranks=(1, 2)), "ranks: \\[1, 2, 4\\] in the file, \\[1, 2\\] here")):
        with pytest.raises(ValueError, match=message):
            load_delta(refused, path)
    assert all(torch.equal(parameter, before[name]) for name, parameter in other.trainable_parameters().items())
    with pytest.raises(FileNotFoundError, match="no delta checkpoint"):
        load_delta(net, tmp_path / "none.safetensors")
    path.write_bytes(b"nonsense")
    with pytest.raises(ValueError, match="damaged"):
        load_delta(net, path)
    from safetensors.torch import save_file

    save_file({"head.bias": torch.zeros(2)}, path)
    with pytest.raises(ValueError, match="no delta checkpoint of this project"):
        load_delta(net, path)


def released(net, prefix=""):
    """The detector's weights under the authors' names."""
    table = {}
    for name, tensor in net.state_dict().items():
        short = name.removeprefix("backbone.").replace(".module.", ".")
        block = short.rpartition(".attn.qkv.mixture.")[0] or short.rpartition(".mlp.mixture.")[0]
        if ".mixture.router." in name:
            place = "attn.LoRA_MoE" if ".attn." in name else "adapter_MoE"
            table[f"{block}.{place}.{short.rpartition('.')[2]}"] = tensor
            table[f"{block}.{place}.mean"], table[f"{block}.{place}.std"] = torch.zeros(1), torch.ones(1)
        elif ".attn.qkv.mixture." in name:
            for number, part in enumerate(tensor.split([1, 2, 4])):
                letter, weight = ("a", part) if name.endswith("down") else ("b", part.T)
                table[f"{block}.attn.LoRA_MoE.Lora_{letter}_experts.{number}.weight"] = weight
        elif ".mlp.mixture." in name:
            part, kind = short.rpartition(".")[2].split("_")
            for number, weight in enumerate(tensor):
                table[f"{block}.adapter_MoE.adapter_experts.{number}.adapter_{part}.{kind}"] = weight
        else:
            table[short] = tensor
    return {prefix + name: tensor.clone() for name, tensor in table.items()}


@pytest.mark.parametrize("form", ["bare", "training", "parallel"])
def test_released_names(form, tmp_path):
    net = stir(detector()).eval()
    table = released(net, "module." if form == "parallel" else "")
    torch.save(table if form == "bare" else {"model_state_dict": table, "epoch": 3}, tmp_path / "released.tar")
    again = detector(seed=1).eval()
    load_released(again, tmp_path / "released.tar")
    assert torch.equal(again(IMAGES), net(IMAGES))


def test_idle_gates_are_reported(tmp_path):
    torch.save(released(detector()), tmp_path / "released.tar")
    with pytest.warns(UserWarning, match="next to zero"):
        load_released(detector(), tmp_path / "released.tar")


def test_other_networks_are_refused(tmp_path):
    torch.save(released(detector()), tmp_path / "released.tar")
    with pytest.raises(ValueError, match=r"shape +backbone.blocks.0.attn.qkv.mixture.down: the network has \(3, 16\), the file \(7, 16\)"):
        load_released(detector(ranks=(1, 2)), tmp_path / "released.tar")
    torch.save({"epoch": 3}, tmp_path / "empty.tar")
    with pytest.raises(ValueError, match="holds no network"):
        load_released(detector(), tmp_path / "empty.tar")
