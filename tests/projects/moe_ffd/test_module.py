from pathlib import Path

import pytest
import torch
import yaml
from helpers.forgery_layouts import write_reference
from torch.nn import functional as F

from projects.moe_ffd.cli import main
from projects.moe_ffd.maps import attention_map, map_sheet
from projects.moe_ffd.model import count_parameters
from projects.moe_ffd.module import FaceForgeryDetection
from projects.moe_ffd.reproduction import routing, worlds
from projects.moe_ffd.tasks import usage_by_kind
from shared.forgery.data import ForgeryData
from shared.forgery.detection import fit_detector, score
from shared.forgery.faces import faces

PROJECT = Path(__file__).parents[3] / "projects" / "moe_ffd"
SMALL = {"ranks": [1, 2], "kinds": ["cv", "rd"], "bottleneck": 4, "self_index": 4}


def small(**options):
    return FaceForgeryDetection(**(SMALL | options))


def test_gates_have_their_own_learning_rate():
    groups = small(lr=1e-3, lr_gate=1e-4).configure_optimizers()["optimizer"].param_groups
    assert [group["lr"] for group in groups] == [1e-3, 1e-4]
    assert [group["lr"] for group in small(lr=1e-3, lr_gate=None).configure_optimizers()["optimizer"].param_groups] == [1e-3, 1e-3]
    gates = {id(parameter) for name, parameter in small().net.named_parameters() if "w_gate" in name or "w_noise" in name}
    assert len(groups[1]["params"]) == len(gates) == 12, "two tensors, two mixtures, three blocks"
    assert len(small(adaptation="probe").configure_optimizers()["optimizer"].param_groups) == 1


def test_the_published_schedule_halves_every_five_epochs():
    made = small().configure_optimizers()
    rates = []
    for _ in range(11):
        rates.append(made["optimizer"].param_groups[0]["lr"])
        made["optimizer"].step()
        made["lr_scheduler"].step()
    assert rates == pytest.approx([3e-5] * 5 + [1.5e-5] * 5 + [0.75e-5])


def test_the_loss_is_that_of_section_3(monkeypatch):
    module, logged = small(balance_lora=2.0, balance_adapter=3.0), {}
    monkeypatch.setattr(module, "log", lambda *_, **__: None)
    monkeypatch.setattr(module, "log_dict", lambda values, **_: logged.update(values))
    images = faces("train", 8, "swap")
    batch = images.__getitems__(range(8))
    torch.manual_seed(0)
    loss = module.training_step(batch, 0)
    torch.manual_seed(0)
    logits = module.net(batch["image"])
    balances = module.net.balance_losses()
    expected = F.cross_entropy(logits, batch["label"]) + 2 * balances["lora"] + 3 * balances["adapter"]
    torch.testing.assert_close(loss, expected)
    assert set(logged) == {"train/loss", "train/cross_entropy", "train/balance_lora", "train/balance_adapter"}


def test_gates_of_another_process_have_noise_of_their_own(monkeypatch):
    module, drawn = small(), {}
    for rank in (0, 1, 2, 1):
        monkeypatch.setattr(FaceForgeryDetection, "global_rank", rank)
        torch.manual_seed(0)
        module.on_train_batch_start({}, 0)
        noise = torch.randn(3)
        assert torch.equal(drawn.setdefault(rank, noise), noise)
    assert len({tuple(noise.tolist()) for noise in drawn.values()}) == 3
    torch.manual_seed(0)
    assert torch.equal(torch.randn(3), drawn[0]), "one process draws as ever"


@pytest.mark.parametrize("adaptation", ["probe", "full", "lora", "adapter", "layernorm", "bitfit", "effort"])
def test_other_adaptations_train(adaptation):
    data = ForgeryData(length=32, test_sets=["swap"], test_length=8)
    module = fit_detector(FaceForgeryDetection(adaptation=adaptation, lr=1e-2, rank=2), data, 1)
    assert score(module, data.test_sets[0]).scores.isfinite().all()
    before = FaceForgeryDetection(adaptation=adaptation, rank=2, seed=0).state_dict()
    moved = {name for name, weight in module.state_dict().items() if not torch.equal(weight, before[name])}
    trainable = {f"net.{name}" for name in module.net.trainable_parameters()}
    assert moved <= trainable
    assert any("head" in name for name in moved)


def test_one_seed_gives_the_same_detector_and_leaves_the_global_generator_alone():
    torch.manual_seed(1)
    first = small(seed=3).state_dict()
    drawn = torch.rand(1)
    torch.manual_seed(1)
    assert torch.equal(drawn, torch.rand(1))
    assert all(torch.equal(weight, first[name]) for name, weight in small(seed=3).state_dict().items())


def test_the_small_configuration_trains_less_than_a_tenth():
    module = FaceForgeryDetection(**(worlds.COMMON | worlds.SMALL))
    assert worlds.trainable_share(module) <= 10


def test_the_task_teaches_weighted_gates_only():
    for router, teaches in (("reference", False), ("weighted", True)):
        module = small(lora_router=router, adapter_router=router)
        with torch.no_grad():  # mixtures begin with nothing, where no gate could matter
            for parameter in module.net.parameters():
                parameter.add_(0.01)
        gradients = routing.task_gradients(module, 0)
        assert all((value > 0) is teaches for value in gradients.values()), gradients


def test_attention_is_what_a_plain_computation_gives():
    module = small(adaptation="probe").eval()
    images = faces("test", 3, "swap").frames
    found = attention_map(module.net, images)
    assert found.shape == (3, 8, 8)
    attention = module.net.blocks()[-1].attn
    seen = []
    hook = attention.register_forward_hook(lambda layer, inputs, output: seen.append(inputs[0]))
    with torch.no_grad():
        module.net(images)
        hook.remove()
        query, key, _ = attention.qkv(seen[0]).chunk(3, dim=2)
        heads = [(q[:, :1] @ k.mT / q.shape[2] ** 0.5).softmax(-1)[:, 0] for q, k in zip(query.split(16, dim=2), key.split(16, dim=2), strict=True)]
    torch.testing.assert_close(found.flatten(1), torch.stack(heads).mean(0)[:, 1:], atol=1e-6, rtol=1e-5)


def test_maps_have_a_column_for_every_block():
    images = faces("test", 2, "swap").frames
    sheet = map_sheet(small().eval().net, images)
    assert sheet.shape == (3, 2 * (144 + 3) + 3, 5 * (144 + 3) + 3)
    assert map_sheet(small(adaptation="probe").eval().net, images).shape[2] == 2 * (144 + 3) + 3


def test_the_use_of_experts_by_a_kind_is_that_of_the_first_set_which_has_it():
    module, sets = small().eval(), [faces(split, 12, "swap") for split in ("test", "val")]
    for parameter in module.net.gate_parameters().values():
        torch.nn.init.normal_(parameter)
    first, second, both = (usage_by_kind(module, part) for part in (sets[:1], sets[1:], sets))
    for name in ("lora", "adapter"):
        assert torch.equal(both[name]["swap"], first[name]["swap"])
        assert not torch.equal(second[name]["swap"], first[name]["swap"])


@pytest.mark.slow
def test_the_papers_setting_takes_a_step(tmp_path):
    root = write_reference(tmp_path)
    options = [
        "--trainer.max_steps=1",
        "--trainer.limit_val_batches=1",
        "--trainer.limit_test_batches=1",
        "--trainer.accelerator=cpu",
        "--trainer.devices=1",
    ]
    options += ["--data.batch_size=2", "--data.train_frames=1", "--data.real_frames=1", "--data.test_frames=2", "--model.weights=null"]
    cli = main(["fit", "--config", "paper", *options, f"--data.root={root}"])
    assert cli.trainer.global_step == 1
    assert count_parameters(cli.model.net)["trainable"] == 15_510_722


def test_the_papers_setting_is_the_published_one():
    given = yaml.safe_load((PROJECT / "configs" / "paper.yaml").read_text())
    assert (given["model"]["lr"], given["model"]["lr_gate"], given["model"]["weight_decay"]) == (3e-5, 1e-4, 1e-5)
    assert (given["model"]["balance_lora"], given["model"]["balance_adapter"]) == (200, 1)
    assert (given["trainer"]["max_epochs"], given["data"]["batch_size"]) == (20, 32)
    assert (given["data"]["val_frames"], given["data"]["test_frames"]) == (20, 100)
