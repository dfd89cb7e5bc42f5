import copy

import pytest
import timm
import torch
from torch.nn import functional as F

from projects.moe_ffd.backbones import TinyViT
from projects.moe_ffd.losses import detection_loss
from projects.moe_ffd.model import MoEViT, build_detector, count_parameters
from projects.moe_ffd.residual import ResidualLinear


def vit(**options):
    torch.manual_seed(0)
    made = timm.models.VisionTransformer(
        **({"img_size": 24, "patch_size": 6, "embed_dim": 16, "depth": 2, "num_heads": 2, "num_classes": 7} | options)
    )
    for block in made.blocks:  # so that tokens differ
        torch.nn.init.normal_(block.attn.qkv.weight, std=0.3)
    return made


def detector(adaptation="moe", backbone=None, **options):
    defaults = {"ranks": (1, 2, 4), "bottleneck": 4} if adaptation == "moe" else {}
    return build_detector(adaptation, backbone or vit(), **(defaults | options))


def images(count=6, size=24):
    return torch.randint(0, 256, (count, 3, size, size), dtype=torch.uint8, generator=torch.Generator().manual_seed(1))


def stir(net, std=0.3):
    """Give experts and gates values that matter."""
    torch.manual_seed(2)
    for name, parameter in net.trainable_parameters().items():
        if ".mixture." in name:
            torch.nn.init.normal_(parameter, std=std)
    return net


def test_table_of_section_2_6():
    with torch.device("meta"):
        net = MoEViT(timm.create_model("vit_base_patch16_224", pretrained=False))
        backbone = timm.create_model("vit_base_patch16_224", pretrained=False, num_classes=0)
    assert sum(p.numel() for p in backbone.parameters()) == 85_798_656
    assert count_parameters(net) == {
        "lora": 14_579_712,
        "adapter": 911_040,
        "norm1": 18_432,
        "head": 1_538,
        "other": 0,
        "trainable": 15_510_722,
        "frozen": 85_780_224,
        "total": 101_290_946,
    }


def test_small_configuration_trains_less_than_a_tenth():
    counts = count_parameters(build_detector("moe", TinyViT(), ranks=(1, 2, 4), bottleneck=4))
    assert counts["lora"] == 3 * (7 * 4 * 64 + 2 * 64 * 3)
    assert counts["trainable"] / (counts["total"] - counts["lora"] - counts["adapter"]) < 0.1


def test_reference_gates_learn_nothing_from_the_task():
    labels = torch.tensor([0, 1] * 3)
    for router, reaches in (("reference", False), ("weighted", True)):
        net = stir(detector(lora_router=router, adapter_router=router)).train()
        losses = detection_loss(net(images()), labels, net.balance_losses())
        gates = list(net.gate_parameters().values())
        assert len(gates) == 2 * 2 * 2  # gate and noise, two mixtures, two blocks
        by_task = torch.autograd.grad(losses["cross_entropy"], gates, allow_unused=True, retain_graph=True)
        assert all((gradient is not None and bool(gradient.abs().max() > 0)) == reaches for gradient in by_task)
        by_balance = torch.autograd.grad(losses["balance_lora"] + losses["balance_adapter"], gates)
        assert all(gradient.abs().max() > 0 for gradient in by_balance)


def test_start_is_the_backbone():
    backbone = vit(num_classes=0)
    plain, net = copy.deepcopy(backbone).eval(), detector(backbone=backbone).eval()
    with torch.no_grad():
        features = plain(images() / 255 * 2 - 1)
        torch.testing.assert_close(net(images()), F.linear(features, net.head.weight, net.head.bias), rtol=1e-5, atol=1e-6)
        torch.testing.assert_close(net(images()), net(images() / 255))


def test_block_is_that_of_section_2_1():
    net = stir(detector()).eval().double()
    block = net.blocks()[0]
    x = torch.randn(2, 17, 16, dtype=torch.float64)
    with torch.no_grad():
        found = block(x)
        h = block.norm1(x)
        qkv = block.attn.qkv.module(h) + block.attn.qkv.mixture(h, torch.zeros(2, 17, 48, dtype=torch.float64))
        q, k, v = qkv.view(2, 17, 3, 2, 8).permute(2, 0, 3, 1, 4)
        attended = ((q @ k.transpose(2, 3)) / 8**0.5).softmax(3) @ v
        x = x + block.attn.proj(attended.transpose(1, 2).reshape(2, 17, 16))
        h2 = block.norm2(x)
        expected = x + block.mlp.module(h2) + block.mlp.mixture(h2, torch.zeros_like(h2))
    torch.testing.assert_close(found, expected)


@pytest.mark.parametrize(
    "options",
    [
        {"embed_dim": 24, "depth": 3, "num_heads": 3},
        {"img_size": 32, "patch_size": 8},
        {"img_size": (24, 36)},
        {"reg_tokens": 3, "class_token": False, "global_pool": "avg"},
        {"init_values": 0.1, "global_pool": "avg"},
    ],
)
def test_any_backbone(options):
    net = stir(detector(backbone=vit(**options)))
    size = options.get("img_size", 24)
    assert net(images(2, 40)[:, :, : size if isinstance(size, int) else 24, : size if isinstance(size, int) else 36]).shape == (2, 2)


def test_distilled_tokens_and_other_sizes():
    net = stir(detector(backbone=timm.create_model("deit_tiny_distilled_patch16_224", img_size=32, depth=1)))
    assert net(images(2, 32)).shape == (2, 2)
    assert net.blocks()[0].mlp.mixture.prefix == 2
    dynamic = stir(detector(backbone=vit(dynamic_img_size=True))).eval()
    assert dynamic(images(2, 24)).shape == dynamic(images(2, 36)[:, :, :, :30]).shape == (2, 2)
    assert dynamic.expert_maps().shape == (2, 2, 6, 5)
    backbone = vit()
    backbone.set_input_size(img_size=36)
    assert detector(backbone=backbone)(images(1, 36)).shape == (1, 2)
    with pytest.raises(ValueError, match="24 x 24 pixels, not 36 x 36"):
        detector()(images(1, 36))
    with pytest.raises(ValueError, match="shape"):
        detector()(images(1, 24)[:, :1])


def test_frozen_part_stays_in_evaluation_mode():
    net = detector(backbone=vit(proj_drop_rate=0.5, drop_path_rate=0.5)).train()
    modes = {name: module.training for name, module in net.backbone.named_modules()}
    assert {name for name, mode in modes.items() if mode} == {name for name in modes if ".mixture" in name}
    assert not any(module.training for module in net.eval().modules())
    assert all(module.training for module in detector("full").train().modules())
    trained = net.trainable_parameters()
    assert all(".mixture." in name or ".norm1." in name or name.startswith("head.") for name in trained)


def test_training_changes_what_trains_only():
    net = stir(detector(), 0.05).train()
    before = {name: tensor.clone() for name, tensor in net.state_dict().items()}
    optimizer = torch.optim.Adam(net.trainable_parameters().values(), lr=1e-2)
    labels, losses = torch.tensor([0, 1] * 3), []
    for _ in range(15):
        loss = detection_loss(net(images()), labels, net.balance_losses(), 0.01, 0.01)["loss"]
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    changed = {name for name, tensor in net.state_dict().items() if not torch.equal(tensor, before[name])}
    assert changed == set(net.trainable_parameters())
    assert losses[-1] < 0.7 * losses[0]


def test_usage_and_maps():
    net = stir(detector()).eval()
    with pytest.raises(ValueError, match="no batch has been routed"):
        net.usage()
    net(images())
    usage = net.usage()
    assert usage["lora"].shape == (2, 6, 3)
    assert usage["adapter"].shape == (2, 6, 5)
    torch.testing.assert_close(usage["lora"].sum(2), torch.ones(2, 6))
    maps = net.expert_maps()
    assert maps.shape == (2, 6, 4, 4)
    chosen = net.blocks()[1].attn.qkv.mixture.routing.experts.view(6, 17)
    assert torch.equal(maps[1].flatten(1), chosen[:, 1:])
    assert net.balance_losses() == {}  # off in evaluation
    net.train()(images())
    mixtures = net.mixtures("lora")
    torch.testing.assert_close(net.balance_losses()["lora"], (mixtures[0].routing.balance + mixtures[1].routing.balance) / 2)


def test_loss_is_the_weighted_sum():
    logits, labels = torch.randn(4, 2), torch.tensor([0, 1, 1, 0])
    found = detection_loss(logits, labels, {"lora": torch.tensor(0.5), "adapter": torch.tensor(2.0)})
    task = -logits.log_softmax(1)[torch.arange(4), labels].mean()
    torch.testing.assert_close(found["loss"], task + 200 * 0.5 + 2.0)
    assert detection_loss(logits, labels)["loss"] == found["cross_entropy"]


def test_random_numbers_are_those_of_the_global_generator():
    net, other = stir(detector()).train(), stir(detector()).train()
    torch.manual_seed(5)
    first = net(images())
    torch.manual_seed(5)
    assert torch.equal(first, other(images()))
    assert not torch.equal(first, other(images()))


@pytest.mark.parametrize(
    ("adaptation", "options", "expected"),
    [
        ("probe", {}, 0),
        ("lora", {"rank": 8}, 2 * 8 * (16 + 48)),
        ("adapter", {"kind": "rd"}, 2 * (2 * 16 * 8 + 8 + 16 + 9 * 64 + 8)),
        ("layernorm", {}, 5 * 32),
        ("bitfit", {}, 16 + 2 * (2 * 16 + 48 + 16 + 64 + 16) + 16),
        ("effort", {}, 2 * 4 * (16 + 1 + 16)),
        ("full", {}, sum(p.numel() for p in vit(num_classes=0).parameters())),
    ],
)
def test_baselines(adaptation, options, expected):
    net = detector(adaptation, **options)
    assert count_parameters(net)["trainable"] == expected + 34
    net.train()(images()).sum().backward()
    assert all(parameter.grad is not None for parameter in net.trainable_parameters().values())
    probe = detector("probe").eval()
    probe.head.load_state_dict(net.head.state_dict())
    torch.testing.assert_close(net.eval()(images()), probe(images()), rtol=1e-4, atol=1e-5)  # all start as the backbone
    again = build_detector(backbone=vit(), **net.configuration)
    assert again.trainable_parameters().keys() == net.trainable_parameters().keys()


def test_residual_trains_the_smallest_components():
    torch.manual_seed(0)
    linear = torch.nn.Linear(6, 12).double()
    residual = ResidualLinear(linear, parts=2, rank=2)
    for part, weight in enumerate(linear.weight.detach().unflatten(0, (2, 6))):
        assert torch.linalg.matrix_rank(residual.main.unflatten(0, (2, 6))[part], atol=1e-9) == 4
        torch.testing.assert_close(residual.values[part], torch.linalg.svdvals(weight)[-2:])
    with pytest.raises(ValueError, match="rank"):
        ResidualLinear(linear, rank=9)


def test_placements():
    net = detector(blocks=[1], kinds=[])
    assert len(net.mixtures("lora")) == 1
    assert net.mixtures("adapter") == []
    assert net.blocks()[0].norm1.weight.requires_grad
    assert not detector(trains_norm1=False).blocks()[0].norm1.weight.requires_grad
    for options, message in (({"blocks": [2]}, "blocks 0 to 1, not \\[2\\]"), ({"ranks": [], "kinds": []}, "no expert")):
        with pytest.raises(ValueError, match=message):
            detector(**options)
    with pytest.raises(ValueError, match="choose moe, lora"):
        detector("prompt")


def test_small_precisions():
    net = stir(detector()).train()
    with torch.autocast("cpu", torch.bfloat16):
        logits = net(images())
    detection_loss(logits.float(), torch.tensor([0, 1] * 3), net.balance_losses())["loss"].backward()
    assert all(parameter.grad is not None and parameter.grad.isfinite().all() for parameter in net.trainable_parameters().values())
    assert net.bfloat16().eval()(images()).dtype == torch.bfloat16
