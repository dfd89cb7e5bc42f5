from copy import deepcopy

import pytest
import timm
import torch
from torch import nn
from torch.nn import functional as F
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from shared.pruning import Budget, GroupIndex, Plan, apply, hold, magnitude, masked, random, select, verify
from shared.pruning.masks import LearnableMasks


@pytest.mark.parametrize("heads", ["within", "whole"])
@pytest.mark.parametrize("norm", ["per_offset", "whole_group", "regroup"])
def test_masks_with_emulated_norms_equal_removal_in_unets(norm, heads, attention_unet, make):
    index = GroupIndex.build(attention_unet, make.unet_inputs)
    plan = select(index, random(index, 1), Budget(channels=0.3), norm=norm, heads=heads)
    inputs = {"sample": torch.randn(3, 1, 16, 16), "timestep": torch.tensor([5, 40, 90])}
    assert verify(attention_unet, plan, inputs) < 1e-5


@pytest.mark.parametrize("name", ["resnet10t", "test_vit", "test_convnext", "test_efficientnet", "resnext26ts"])
def test_masks_equal_removal_in_timms_networks(name, make):
    torch.manual_seed(0)
    size = 32 if name == "test_vit" else 64
    model = make.stir(timm.create_model(name, num_classes=5, **({"img_size": 32} if size == 32 else {})))
    index = GroupIndex.build(model, torch.zeros(1, 3, size, size))
    plan = select(index, random(index), Budget(channels=0.4), heads="within" if name != "test_vit" else "whole")
    assert verify(model, plan, torch.randn(2, 3, size, size)) < 1e-5


def test_masks_equal_removal_in_other_networks_of_diffusers():
    from diffusers import AutoencoderKL, UNet2DConditionModel

    torch.manual_seed(0)
    down, up = ("CrossAttnDownBlock2D", "DownBlock2D"), ("UpBlock2D", "CrossAttnUpBlock2D")
    sizes = {"block_out_channels": (16, 32), "layers_per_block": 1, "norm_num_groups": 8, "down_block_types": down, "up_block_types": up}
    conditional = UNet2DConditionModel(8, 4, 4, cross_attention_dim=12, attention_head_dim=4, **sizes).eval()
    sizes |= {"down_block_types": ("DownEncoderBlock2D",) * 2, "up_block_types": ("UpDecoderBlock2D",) * 2}
    coder = AutoencoderKL(**sizes, sample_size=16).eval()
    text = {"timestep": torch.tensor([1]), "encoder_hidden_states": torch.randn(1, 5, 12)}
    for model, inputs in ((conditional, {"sample": torch.randn(1, 4, 8, 8), **text}), (coder, {"sample": torch.randn(1, 3, 16, 16)})):
        index = GroupIndex.build(model, inputs)
        plan = select(index, random(index), Budget(channels=0.3))
        assert plan.channels > 50
        assert verify(model, plan, inputs) < 1e-5


def test_plain_masks_equal_removal_where_no_statistic_mixes_channels(net, index, digits):
    plan = select(index, magnitude(index, net), Budget(channels=0.4))
    with torch.no_grad(), masked(net, plan):
        expected = net(digits[2])
    pruned = deepcopy(net)
    apply(pruned, plan)
    torch.testing.assert_close(pruned(digits[2]), expected, rtol=0, atol=1e-5)
    held = deepcopy(net)
    hold(held, plan)
    torch.testing.assert_close(held(digits[2]), expected, rtol=0, atol=1e-5)
    with torch.no_grad(), masked(net, plan, emulate_norm=True):
        torch.testing.assert_close(net(digits[2]), expected, rtol=0, atol=1e-6)


def test_group_normalisation_equals_an_independently_pruned_one():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(2, 12, 3), nn.GroupNorm(3, 12), nn.SiLU(), nn.Conv2d(12, 2, 3))
    nn.init.normal_(model[1].weight)
    reference, x = deepcopy(model), torch.randn(2, 2, 9, 9)
    index = GroupIndex.build(model, x)
    apply(model, Plan.of(index, {"0": [1, 5, 9]}))
    kept = [0, 2, 3, 4, 6, 7, 8, 10, 11]
    hidden = F.conv2d(x, reference[0].weight[kept], reference[0].bias[kept])
    groups = hidden.view(2, 3, 3, 7, 7)  # three groups of the three channels that each keeps
    mean, variance = groups.mean((2, 3, 4), keepdim=True), groups.var((2, 3, 4), keepdim=True, correction=0)
    hidden = ((groups - mean) / (variance + 1e-5).sqrt()).view(2, 9, 7, 7)
    hidden = F.silu(hidden * reference[1].weight[kept].view(1, -1, 1, 1) + reference[1].bias[kept].view(1, -1, 1, 1))
    expected = F.conv2d(hidden, reference[3].weight[:, kept], reference[3].bias)
    torch.testing.assert_close(model(x), expected, rtol=0, atol=1e-6)
    assert (model[0].out_channels, model[1].num_channels, model[1].num_groups, model[3].in_channels) == (9, 9, 3, 9)


@pytest.mark.parametrize("preset", ["tiny", "attention"])
def test_defect_7_pruned_unets_run_and_train(preset, unet, attention_unet, make):
    model = unet if preset == "tiny" else attention_unet
    index = GroupIndex.build(model, make.unet_inputs, protected=["conv_out"])
    apply(model, select(index, random(index), Budget(channels=0.3)))
    model.train()
    optimizer = torch.optim.Adam(model.parameters(), 1e-3)
    x, t = torch.randn(8, 1, 16, 16), torch.randint(100, (8,))
    losses = []
    for _ in range(5):
        optimizer.zero_grad()
        loss = (model(x, t).sample - x).square().mean()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < losses[0]
    for module in model.modules():
        if type(module).__name__ in ("Upsample2D", "Downsample2D") and isinstance(getattr(module, "conv", None), nn.Conv2d):
            assert module.channels == module.conv.in_channels
        if type(module).__name__ == "ResnetBlock2D":
            assert (module.in_channels, module.out_channels) == (module.conv1.in_channels, module.conv2.out_channels)
        if type(module).__name__ == "Attention":
            assert module.inner_dim == module.to_q.out_features == module.to_k.out_features == module.to_out[0].in_features
            assert module.inner_dim % module.heads == 0
            assert module.scale == (module.inner_dim // module.heads) ** -0.5


def test_defect_7_the_whole_cifar10_unet(make):
    from shared.backbones.unets import build_unet

    torch.manual_seed(0)
    model = build_unet("cifar10", 32, 3).eval()
    inputs = {"sample": torch.randn(1, 3, 32, 32), "timestep": torch.tensor([1])}
    index = GroupIndex.build(model, inputs, protected=["conv_out"])
    before = sum(parameter.numel() for parameter in model.parameters())
    assert before == 35_746_307
    after = apply(model, select(index, magnitude(index, model), Budget(parameters=0.4)))
    with torch.no_grad():
        assert model(**inputs).sample.shape == (1, 3, 32, 32)
    assert 1 - sum(parameter.numel() for parameter in model.parameters()) / before == pytest.approx(0.4, abs=0.01)
    after.check(model)


def step(model, optimizer, digits, rows, average=None):
    optimizer.zero_grad()
    F.cross_entropy(model(digits[0][rows]), digits[1][rows]).backward()
    optimizer.step()
    if average is not None:
        average.update_parameters(model)


@pytest.mark.parametrize("kind", ["adam", "momentum"])
def test_optimisers_averages_and_gradients_are_cut_along(kind, net, index, digits):
    def optimiser(parameters):
        return torch.optim.AdamW(parameters, 1e-3) if kind == "adam" else torch.optim.SGD(parameters, 1e-2, momentum=0.9, weight_decay=1e-3)

    optimizer, average = optimiser(net.parameters()), AveragedModel(net, multi_avg_fn=get_ema_multi_avg_fn(0.5))
    by_name = {name: tensor.clone() for name, tensor in net.state_dict().items()}
    step(net, optimizer, digits, slice(0, 32), average)
    old_state = {name: {k: v.clone() for k, v in optimizer.state[p].items()} for name, p in net.named_parameters()}
    old_grad = net.block.conv1.weight.grad.clone()
    plan = Plan.of(index, {"conv": [1, 2], "block.conv1": [0, 15]})
    apply(net, plan, [optimizer], [average, by_name])
    keep = list(range(1, 15)), [0, *range(3, 16)]
    key = "exp_avg" if kind == "adam" else "momentum_buffer"
    new = net.block.conv1.weight
    torch.testing.assert_close(optimizer.state[new][key], old_state["block.conv1.weight"][key][keep[0]][:, keep[1]])
    torch.testing.assert_close(new.grad, old_grad[keep[0]][:, keep[1]])
    assert (
        {id(p) for p in net.parameters()} == {id(p) for group in optimizer.param_groups for p in group["params"]} == {id(p) for p in optimizer.state}
    )
    assert average.module.block.conv1.weight.shape == new.shape == by_name["block.conv1.weight"].shape
    assert average.module.block.bn1.num_features == 14
    assert by_name["block.bn1.running_var"].shape == (14,)
    step(net, optimizer, digits, slice(32, 64), average)
    average(digits[2])


def test_training_goes_on_as_a_masked_networks_does(net, index, digits):
    """After cutting dead channels, optimiser state and all, the next steps give the same weights as without the cut."""
    plan = Plan.of(index, {"block.conv1": [3, 7]})
    net.train()
    hold(net, plan)
    other = deepcopy(net)
    optimizers = [torch.optim.Adam(model.parameters(), 1e-3) for model in (net, other)]
    held = hold(net, plan, [optimizers[0]])
    for i in range(3):
        step(net, optimizers[0], digits, slice(32 * i, 32 * i + 32))
        step(other, optimizers[1], digits, slice(32 * i, 32 * i + 32))
        if i == 0:
            hold(other, plan)
            apply(other, plan, [optimizers[1]])
    keep = [i for i in range(16) if i not in (3, 7)]
    torch.testing.assert_close(other.block.conv1.weight, net.block.conv1.weight[keep], rtol=1e-4, atol=1e-6)
    torch.testing.assert_close(other.fc.weight, net.fc.weight, rtol=1e-4, atol=1e-6)
    held.release()


def test_held_slices_stay_zero_against_momentum_decay_and_averaging(unet, make):
    index = GroupIndex.build(unet, make.unet_inputs, protected=["conv_in", "conv_out"])
    plan = select(index, random(index), Budget(channels=0.06), scope="local", at_least=1, mode="mask")
    average = AveragedModel(unet, multi_avg_fn=get_ema_multi_avg_fn(0.9))
    optimizer = torch.optim.AdamW(unet.parameters(), 1e-2, weight_decay=0.1)
    x, t = torch.randn(4, 1, 16, 16), torch.randint(100, (4,))
    unet(x, t).sample.square().mean().backward()
    optimizer.step()  # momentum from before
    held = hold(unet, plan, [optimizer], [average])
    for _ in range(2):
        (unet(x, t).sample - x).square().mean().backward()
        optimizer.step()
        average.update_parameters(unet)
    for model in (unet, average.module):
        tensors = dict(model.named_parameters())
        for name, channels in plan.dropped.items():
            for item in index.groups[name].items:
                lost = item.idx[torch.isin(item.root, channels)]
                assert tensors[item.name].index_select(item.dim, lost).eq(0).all(), item.name
    conv = unet.mid_block.resnets[0].conv1
    held.release()
    (unet(x, t).sample - x).square().mean().backward()
    optimizer.step()
    assert conv.weight[plan.dropped["mid_block.resnets.0.conv1"]].ne(0).any()


def test_held_unets_load_in_stock_diffusers(unet, make, tmp_path):
    from diffusers import UNet2DModel

    index = GroupIndex.build(unet, make.unet_inputs)
    hold(unet, select(index, random(index), Budget(channels=0.1), mode="mask"))
    unet.save_pretrained(tmp_path)
    x, t = torch.randn(2, 1, 16, 16), torch.tensor([3, 9])
    assert torch.equal(UNet2DModel.from_pretrained(tmp_path).eval()(x, t).sample, unet(x, t).sample)


def test_masks_go_away_and_have_strength(net, index, digits):
    plan = Plan.of(index, {"down": list(range(8))})
    before = net(digits[2])
    outputs = []
    for strength in (0.0, 0.5, 1.0):
        with masked(net, plan, strength):
            outputs.append(net(digits[2]))
    assert torch.equal(outputs[0], before)
    assert (outputs[1] - before).norm() < (outputs[2] - before).norm()
    with pytest.raises(RuntimeError), masked(net, plan):
        net(torch.zeros(1, 7, 8, 8))
    assert torch.equal(net(digits[2]), before)
    with pytest.raises(ValueError, match=r"strength must lie in \[0, 1\]"), masked(net, plan, 1.2):
        pass


def test_masks_restore_parameters_outside_layers():
    model = timm.create_model("test_vit", num_classes=5, img_size=32).eval()
    nn.init.normal_(model.pos_embed)
    index, before = GroupIndex.build(model, torch.zeros(1, 3, 32, 32)), model.pos_embed.detach().clone()
    with masked(model, Plan.of(index, {"patch_embed.proj": [5]})):
        assert model.pos_embed[..., 5].eq(0).all()
    assert torch.equal(model.pos_embed, before)


def test_learnable_masks_start_as_nothing_and_learn(net, index, digits):
    masks = LearnableMasks(index)
    before = net(digits[2])
    with masks.attached(net):
        torch.testing.assert_close(net(digits[2]), before)
        F.cross_entropy(net(digits[0][:32]), digits[1][:32]).backward()
        assert all(mask.grad.abs().sum() > 0 for mask in masks.parameters())
        with torch.no_grad():
            masks.masks[masks.names.index("down")][[2, 3]] = 0
        gated = net(digits[2])
    with masked(net, Plan.of(index, {"down": [2, 3]})):
        torch.testing.assert_close(net(digits[2]), gated, rtol=1e-4, atol=1e-5)
    plan = select(index, masks.scores(), Budget(channels=2 / 64))
    assert plan.dropped["down"].tolist() == [2, 3]


def test_grouped_convolutions_are_held_in_their_own_inputs():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(2, 8, 3), nn.ReLU(), nn.Conv2d(8, 8, 3, groups=2), nn.ReLU(), nn.Conv2d(8, 2, 3))
    index, x = GroupIndex.build(model, torch.zeros(1, 2, 9, 9)), torch.randn(2, 2, 9, 9)
    plan = Plan.of(index, {"0": [6]}, mode="mask")
    with masked(model, plan):
        expected = model(x)
    weight = model[2].weight.detach().clone()
    hold(model, plan)
    torch.testing.assert_close(model(x), expected)
    assert model[2].weight[4:, 2].eq(0).all()
    assert torch.equal(model[2].weight[:4], weight[:4])


def test_wrong_cuts_are_refused_and_change_nothing(net, index, unet, make):
    before = deepcopy(net.state_dict())
    with pytest.raises(ValueError, match="the plan was made for masks"):
        apply(net, select(index, random(index), Budget(channels=0.1), mode="mask"))
    short = {name: tensor for name, tensor in net.state_dict().items() if name != "down.weight"}
    with pytest.raises(ValueError, match=r"the running average does not fit the network: down\.weight is missing there"):
        apply(net, Plan.of(index, {"down": [0]}), ema=[short])
    optimizer = torch.optim.Adafactor(net.parameters())
    net(torch.rand(2, 1, 8, 8)).sum().backward()
    optimizer.step()
    before = deepcopy(net.state_dict())
    with pytest.raises(ValueError, match=r"Adafactor keeps .* which cannot be cut: make a new optimiser"):
        apply(net, Plan.of(index, {"down": [0]}), [optimizer])
    assert all(torch.equal(value, before[name]) for name, value in net.state_dict().items())
    apply(net, Plan.of(index, {"down": [0]}))
    with pytest.raises(ValueError, match=r"take the index that apply\(\) returned"):
        apply(net, Plan.of(index, {"down": [0]}))
    unet_index = GroupIndex.build(unet, make.unet_inputs)
    with pytest.raises(ValueError, match="do not divide into its 4 groups; select with norm='regroup'"):
        apply(unet, Plan.of(unet_index, {"mid_block.resnets.0.conv1": [0]}))


def test_shared_tensors_stay_shared_or_are_refused():
    class Tied(nn.Module):
        def __init__(self):
            super().__init__()
            self.one, self.two, self.out = nn.Linear(6, 6), nn.Linear(6, 6), nn.Linear(6, 2)
            self.two.weight = self.one.weight

        def forward(self, x):
            return self.out(F.relu(self.two(F.relu(self.one(x)))))

    model = Tied()
    index = GroupIndex.build(model, torch.zeros(1, 6))
    with pytest.raises(ValueError, match="shares its tensor with another layer that would lose other channels"):
        apply(model, Plan.of(index, {"one": [2]}))
    assert model.one.weight is model.two.weight
    assert model.one.weight.shape == (6, 6)


def test_a_cut_that_breaks_the_network_is_found_beforehand():
    class Fixed(nn.Module):
        def __init__(self):
            super().__init__()
            self.one, self.two = nn.Linear(3, 8), nn.Linear(8, 2)

        def forward(self, x):
            hidden = self.one(x)
            if hidden.shape[1] != 8:
                raise AssertionError("eight wanted")
            return self.two(hidden)

    model = Fixed()
    index = GroupIndex.build(model, torch.zeros(1, 3))
    with pytest.raises(ValueError, match="the pruned network does not run: AssertionError: eight wanted; protect the layers"):
        verify(model, Plan.of(index, {"one": [0]}), torch.zeros(1, 3))
    assert model.one.out_features == 8
