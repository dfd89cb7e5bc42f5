"""The federation under Lightning: its nets, the centralised baseline's steps, its metrics, and what users get wrong."""

import copy

import numpy as np
import pytest
import torch
from helpers.vafl_reference import drawn, played, simulator
from sklearn.metrics import accuracy_score, log_loss, roc_auc_score

from projects.vafl.module import VerticalFederation, build_model
from projects.vafl.settings import Protection, Protocol
from projects.vafl.uploads import Passes


def build(features=(3, 4, 5), classes=3, **options):
    return VerticalFederation([[width] for width in features], classes, **options)


def drawn_batch(classes, records=60):
    blocks, _ = drawn(records)
    return {"blocks": blocks, "label": torch.arange(records) % classes, "index": torch.arange(records)}


def spread(module):
    """Give a module weights and a mean embedding that are not zero."""
    draw = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in module.model.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=draw))
    module.absent.copy_(torch.randn(module.absent.shape, generator=draw))
    return module


def judged(module, batch, parts=1):
    """Return what a test logs, of a batch cut into parts."""
    logged, sizes = {}, []

    def log(name, value, batch_size, **_):
        logged.setdefault(name, []).append(value)
        sizes.append(batch_size)

    module.log, module.log_dict = log, lambda values, **_: logged.update(values)
    for rows in torch.arange(len(batch["label"])).chunk(parts):
        module.test_step({"blocks": [block[rows] for block in batch["blocks"]], "label": batch["label"][rows]}, 0)
    loss = float(np.average([value.item() for value in logged.pop("test/loss")], weights=sizes))
    return {"test/loss": loss, **{name: float(metric.compute()) for name, metric in logged.items()}}


# ---- nets


@pytest.mark.parametrize(
    ("shapes", "classes", "options", "kinds", "parameters"),
    [
        ([[112]] * 7, 10, {}, ("LinearBottom", "SumHead"), 784 * 10 + 10),
        ([[384]] * 8, 10, {}, ("LinearBottom", "SumHead"), 3072 * 10 + 10),
        ([[251], [251], [250]], 2, {}, ("LinearBottom", "SumHead"), 752 * 2 + 2),
        ([[10]] * 3, 2, {"hidden": [32]}, ("MlpBottom", "ConcatHead"), 3 * (10 * 32 + 32 + 32 * 16 + 16) + 48 * 2 + 2),
        ([[10]] * 3, 2, {"embedding": 4, "head": "concat"}, ("LinearBottom", "ConcatHead"), 3 * 10 * 4 + 12 * 2 + 2),
    ],
    ids=["mnist", "cifar10", "parkinson", "mlp", "concat"],
)
def test_nets_that_nobody_names_follow_the_blocks(shapes, classes, options, kinds, parameters):
    model = VerticalFederation(shapes, classes, **options).model
    assert {type(bottom).__name__ for bottom in model.bottoms} == {kinds[0]}
    assert type(model.head).__name__ == kinds[1]
    assert sum(parameter.numel() for parameter in model.parameters()) == parameters


def test_views_are_summed_and_series_are_put_side_by_side():
    views = build_model([[3, 1, 16, 16]] * 4, 8, "auto", 32, [4, 8], "auto", None, None, 0)
    assert type(views.head).__name__ == "WeightedHead"
    assert views.head.widths == [96] * 4
    assert torch.equal(views.head.weights.detach(), torch.full((12,), 1 / 12))
    assert views([torch.zeros(2, 3, 1, 16, 16)] * 4).shape == (2, 8)
    series = build_model([[24, 5], [24, 4]], 2, "auto", None, None, "auto", None, None, 0)
    assert series.head.widths == [16, 16]
    assert series([torch.zeros(2, 24, 5), torch.zeros(2, 24, 4)]).shape == (2, 2)


def test_the_seed_draws_each_clients_own_weights():
    one, same, other = (build(hidden=[6], features=(4, 4), seed=seed).model for seed in (0, 0, 1))
    assert all(torch.equal(*pair) for pair in zip(one.parameters(), same.parameters(), strict=True))
    weights = [next(net.parameters()) for net in (*one.bottoms, *other.bottoms)]
    assert len({tuple(weight.flatten().tolist()) for weight in weights}) == 4


# ---- the centralised baseline


def test_the_cap_of_a_rule_is_a_step_size_of_the_centralised_baseline_too():
    module = build(lr=0.4, server_lr=0.1, step_rule="sqrt:total=4,cap=0.15", protocol=Protocol("centralised"))
    optimiser = module.configure_optimizers()["optimizer"]
    assert [group["lr"] for group in optimiser.param_groups] == pytest.approx([0.15, 0.05])


def test_each_process_of_the_centralised_baseline_has_noise_of_its_own(monkeypatch):
    module = build(protection=Protection(std=1.0), protocol=Protocol("centralised"))
    first = module._noises("train", 3)
    assert first == module._noises("train", 3)
    monkeypatch.setattr(VerticalFederation, "global_rank", 1)
    assert all(one.seed != other.seed for one, other in zip(first, module._noises("train", 3), strict=True))


@pytest.mark.parametrize("step_rule", ["constant", "decay:offset=7"])
def test_the_centralised_baseline_takes_the_steps_of_synchronous_clients(step_rule):
    ours = simulator("mlp", algorithm="sync", uploads="batch", lr=0.3, l2=0.02, step_rule=step_rule)
    module = build(hidden=[6], lr=0.3, l2=0.02, step_rule=step_rule, protocol=Protocol("centralised"))
    module.model.load_state_dict(copy.deepcopy(ours.model.state_dict()))
    module.log = lambda *_, **__: None
    chosen = module.configure_optimizers()
    (blocks, labels), batches = drawn(), Passes(40, 4, 3, "batch", "shared")
    for number in range(20):
        rows = batches.part(number)
        chosen["optimizer"].zero_grad()
        module.training_step({"blocks": [block[rows] for block in blocks], "label": labels[rows]}, number).backward()
        chosen["optimizer"].step()
        chosen["lr_scheduler"]["scheduler"].step()
    played(ours, 20)
    for mine, theirs in zip(ours.model.parameters(), module.model.parameters(), strict=True):
        torch.testing.assert_close(mine, theirs, atol=1e-5, rtol=1e-5)


# ---- metrics


@pytest.mark.parametrize("classes", [2, 3])
def test_metrics_are_those_of_scikit_learn(classes):
    module, batch = spread(build(classes=classes)), drawn_batch(classes)
    found, truth = judged(module, batch, parts=7), batch["label"].numpy()
    with torch.no_grad():
        embeddings = module.model.embed(batch["blocks"])
    for name, missing in (("test/", None), *((f"test/without_{party}_", party) for party in range(3))):
        used = embeddings.clone()
        if missing is not None:
            columns = slice(missing * classes, (missing + 1) * classes)
            used[:, columns] = module.absent[columns]
        chances = module.model.head(used).detach().double().softmax(1).numpy()
        assert found[f"{name}accuracy"] == pytest.approx(accuracy_score(truth, chances.argmax(1)), abs=1e-6)
        if classes == 2:
            assert found[f"{name}auroc"] == pytest.approx(roc_auc_score(truth, chances[:, 1]), abs=1e-6)
        if missing is None:
            assert found["test/loss"] == pytest.approx(log_loss(truth, chances), abs=1e-5)
    assert "test/noisy_accuracy" not in found
    assert len({found[f"test/without_{party}_accuracy"] for party in range(3)}) > 1


def test_a_private_deployment_is_judged_with_its_noise_too():
    batch = drawn_batch(3)
    found = judged(spread(build(protection=Protection(std=50.0))), batch)
    assert found["test/accuracy"] == judged(spread(build()), batch)["test/accuracy"]
    assert found["test/noisy_accuracy"] != found["test/accuracy"]


def test_a_missing_client_is_stood_in_for_by_its_mean_embedding():
    module = spread(build())
    blocks, _ = drawn(records=2500)  # more than are embedded at once
    module.keep_absent(blocks)
    with torch.no_grad():
        torch.testing.assert_close(module.absent, module.model.embed(blocks).mean(0), atol=1e-5, rtol=1e-4)


def test_predicted_probabilities_sum_to_one():
    module, batch = spread(build()), drawn_batch(3)
    found = module.predict_step(batch, 0)
    torch.testing.assert_close(found["probabilities"].sum(1), torch.ones(60))
    assert torch.equal(found["probabilities"].argmax(1), module(batch["blocks"]).argmax(1))
    assert torch.equal(found["index"], batch["index"])


# ---- what users get wrong


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"lr": 0.0}, "model.lr must be positive, got 0.0"),
        ({"every": -1.0}, "model.every must be positive"),
        ({"seconds": 0.0}, "model.seconds must be positive, got 0.0: leave it null to train until trainer.max_steps"),
        ({"l2": -1.0}, "model.l2 must be 0 or more"),
        ({"embedding": 5}, "embeddings of .*5.* entries do not sum up to 3 logits"),
        ({"head_hidden": [4]}, "a head that sums the embeddings has no hidden widths"),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else None,
)
def test_options_that_will_not_do_are_named(options, message):
    with pytest.raises(ValueError, match=message):
        build(**options)


def test_a_budget_of_uploads_is_for_those_who_upload():
    own = Protection(std=1.0, clip=1.0, epsilon=4.0)
    with pytest.raises(ValueError, match="a budget of uploads, of which centralised training has none: leave it null"):
        VerticalFederation([[5], [4]], 2, protocol=Protocol("centralised"), protection=own)
    assert VerticalFederation([[5], [4]], 2, protection=own).protection == own
