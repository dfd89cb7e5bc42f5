import json
from copy import deepcopy

import pytest
import timm
import torch
from safetensors import safe_open
from torch import nn
from torch.nn import functional as F

from shared.pruning import Budget, GroupIndex, Plan, apply, import_history, load, magnitude, random, save, select


def pruned(model, inputs, steps=1, **options):
    index = GroupIndex.build(model, inputs)
    for seed in range(steps):
        index = apply(model, select(index, random(index, seed), Budget(channels=0.25), **options))
    return model


def test_defect_8_a_pruned_unet_comes_back_bit_for_bit_without_pickle_or_tracing(attention_unet, make, tmp_path, monkeypatch):
    pruned(attention_unet, make.unet_inputs, steps=2, norm="regroup")
    save(attention_unet, tmp_path / "pruned")
    assert {file.name for file in (tmp_path / "pruned").iterdir()} == {"model.safetensors", "structure.json"}
    with safe_open(tmp_path / "pruned" / "model.safetensors", "pt") as file:
        assert len(file.keys()) > 50
    monkeypatch.setattr("shared.pruning.tracing.trace", None)
    monkeypatch.setattr(torch, "load", None)
    again = load(tmp_path / "pruned")
    x, t = torch.randn(2, 1, 16, 16), torch.tensor([3, 80])
    assert torch.equal(again(x, t).sample, attention_unet(x, t).sample)
    assert again.pruned_structure.to_json() == attention_unet.pruned_structure.to_json()
    attributes = {name: value for name, value in vars(attention_unet.down_blocks[0].attentions[0]).items() if isinstance(value, (int, float))}
    assert {name: vars(again.down_blocks[0].attentions[0])[name] for name in attributes} | {"training": False} == attributes


@pytest.mark.parametrize("name", ["resnet10t", "test_vit"])
def test_timms_networks_come_back(name, make, tmp_path):
    size = 32 if name == "test_vit" else 64
    model = make.stir(timm.create_model(name, num_classes=5, in_chans=1, **({"img_size": 32} if size == 32 else {})))
    pruned(model, torch.zeros(1, 1, size, size))
    save(model, tmp_path / "pruned")
    again, x = load(tmp_path / "pruned"), torch.randn(2, 1, size, size)
    assert torch.equal(again(x), model(x))
    assert again.num_features == model.num_features == model.get_classifier().in_features


def test_other_networks_need_a_factory(net, index, digits, make, tmp_path):
    apply(net, select(index, magnitude(index, net), Budget(channels=0.4)))
    save(net, tmp_path)
    with pytest.raises(ValueError, match="give load\\(\\) a factory that makes it"):
        load(tmp_path)
    assert torch.equal(load(tmp_path, make.convolutions)(digits[2]), net(digits[2]))
    with pytest.raises(ValueError, match=r"not the one that was pruned: conv\.weight had the shape \(16, 1, 3, 3\) there and is \(8, 1, 3, 3\) here"):
        load(tmp_path, lambda: make.convolutions(8))


def test_resumed_training_is_as_if_never_saved(net, index, digits, make, tmp_path):
    optimizer = torch.optim.Adam(net.parameters(), 1e-3)

    def step(model, optimizer, i):
        optimizer.zero_grad()
        loss = F.cross_entropy(model(digits[0][32 * i : 32 * i + 32]), digits[1][32 * i : 32 * i + 32])
        loss.backward()
        optimizer.step()
        return loss.item()

    net.train()
    step(net, optimizer, 0)
    apply(net, select(index, random(index), Budget(channels=0.3)), [optimizer])
    step(net, optimizer, 1)
    save(net, tmp_path / "pruned")
    torch.save(optimizer.state_dict(), tmp_path / "optimizer.pt")
    again = load(tmp_path / "pruned", make.convolutions).train()
    resumed = torch.optim.Adam(again.parameters(), 1e-3)
    resumed.load_state_dict(torch.load(tmp_path / "optimizer.pt", weights_only=True))
    assert [step(again, resumed, i) for i in (2, 3)] == [step(net, optimizer, i) for i in (2, 3)]


def test_successive_prunings_compose(net, index, digits):
    original = deepcopy(net)
    after = apply(net, Plan.of(index, {"block.conv1": [0, 5], "down": [3]}))
    apply(net, Plan.of(after, {"block.conv1": [0, 3], "down": [3, 30]}))
    kept = net.pruned_structure.kept
    assert kept["block.conv1.weight"][0].tolist() == [i for i in range(16) if i not in (0, 5, 1, 4)]
    assert kept["down.weight"][0].tolist() == [i for i in range(32) if i not in (3, 4, 31)]
    at_once = deepcopy(original)
    apply(at_once, Plan.of(index, {"block.conv1": [0, 1, 4, 5], "down": [3, 4, 31]}))
    assert torch.equal(at_once(digits[2]), net(digits[2]))
    assert len(net.pruned_structure.history) == 2


def test_shared_tensors_are_written_once_and_stay_shared(tmp_path):
    def make():
        model = nn.Sequential(nn.Linear(6, 6), nn.ReLU(), nn.Linear(6, 6), nn.ReLU(), nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 2))
        model[2].weight = model[0].weight
        return model

    model = make()
    index = GroupIndex.build(model, torch.zeros(1, 6))
    apply(model, Plan.of(index, {"4": [1]}))
    save(model, tmp_path)
    again = load(tmp_path, make)
    assert again[0].weight is again[2].weight
    assert torch.equal(again(torch.ones(1, 6)), model(torch.ones(1, 6)))


def test_buffers_that_are_not_saved_are_made_anew(tmp_path):
    class Positions(nn.Module):
        def __init__(self):
            super().__init__()
            self.one, self.two = nn.Linear(3, 6), nn.Linear(6, 2)
            self.register_buffer("scale", torch.linspace(1, 2, 3), persistent=False)

        def forward(self, x):
            return self.two(self.one(x * self.scale))

    model = Positions()
    apply(model, Plan.of(GroupIndex.build(model, torch.zeros(1, 3)), {"one": [2]}))
    save(model, tmp_path)
    assert torch.equal(load(tmp_path, Positions)(torch.ones(1, 3)), model(torch.ones(1, 3)))


def test_histories_of_torch_pruning_are_imported(unet, make):
    import torch_pruning as tp

    ours = deepcopy(unet)
    index = GroupIndex.build(ours, make.unet_inputs)
    inputs = {name: value.clone() for name, value in make.unet_inputs.items()}
    pruner = tp.pruner.MagnitudePruner(
        unet, inputs, importance=tp.importance.MagnitudeImportance(), pruning_ratio=0.4, iterative_steps=2, ignored_layers=[unet.conv_out]
    )
    for _ in range(2):
        pruner.step()
    for module in unet.modules():  # what its users have to do by hand
        if type(module).__name__ in ("Upsample2D", "Downsample2D"):
            module.channels = module.conv.in_channels
    apply(ours, import_history(index, pruner.DG.pruning_history()))
    x, t = torch.randn(2, 1, 16, 16), torch.tensor([4, 44])
    assert sum(p.numel() for p in ours.parameters()) == sum(p.numel() for p in unet.parameters()) < 159_697
    torch.testing.assert_close(ours(x, t).sample, unet.eval()(x, t).sample, rtol=1e-5, atol=1e-6)
    with pytest.raises(ValueError, match="the history prunes 'nothing', which is no prunable layer"):
        import_history(index, [("nothing", True, [0])])
    with pytest.raises(ValueError, match="position 16 of conv_in, which has 16 left then"):
        import_history(index, [("conv_in", True, [16])])


def test_damaged_folders_are_described(net, index, make, tmp_path):
    with pytest.raises(FileNotFoundError, match=r"model\.safetensors is missing; expected model\.safetensors and structure\.json"):
        load(tmp_path)
    apply(net, Plan.of(index, {"down": [0]}))
    save(net, tmp_path / "a")
    content = json.loads((tmp_path / "a" / "structure.json").read_text())
    for change, message in (
        ({"version": 9}, "has version 9; this code reads version 1"),
        ({"attributes": {"down": {"forward": 3.0, "weight": 1}}}, r"down\.\w+ is no plain number of a layer"),
        ({"base": {"library": "diffusers", "class": "os"}, "use": None}, "diffusers has no network class 'os'"),
    ):
        (tmp_path / "a" / "structure.json").write_text(json.dumps(content | change))
        with pytest.raises(ValueError, match=message):
            load(tmp_path / "a", None if "use" in change else make.convolutions)
    (tmp_path / "a" / "structure.json").write_text("{")
    with pytest.raises(ValueError, match=r"structure\.json is not JSON"):
        load(tmp_path / "a", make.convolutions)
    (tmp_path / "a" / "structure.json").write_text(json.dumps(content | {"kept": {}, "original_shapes": {}, "attributes": {}}))
    with pytest.raises(ValueError, match=r"does not fit its structure: .*in the file"):
        load(tmp_path / "a", make.convolutions)
