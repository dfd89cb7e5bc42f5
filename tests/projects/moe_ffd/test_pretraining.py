import inspect

import pytest
import torch
from torch.nn import functional as F

from projects.moe_ffd.backbones import build_vit
from projects.moe_ffd.cli import Trainer, main
from projects.moe_ffd.pretraining import PatchPretraining, pretrain, pretraining_data
from projects.moe_ffd.scenes import scenes
from shared.checkpoints import load_tensors
from shared.data.memory import to_unit


def test_every_patch_has_its_own_logits():
    module = PatchPretraining().eval()
    images = torch.rand(2, 3, 48, 48)
    logits = module(images)
    assert logits.shape == (2, 5, 8, 8)
    tokens = module.backbone.forward_features(2 * images - 1)
    torch.testing.assert_close(logits[1, :, 2, 5], module.head(tokens[1, 1 + 2 * 8 + 5]))


def test_weights_are_a_function_of_the_seed_and_leave_the_global_generator_alone():
    state = torch.get_rng_state()
    first, again, other = PatchPretraining(seed=1), PatchPretraining(seed=1), PatchPretraining(seed=2)
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.equal(first.head.weight, again.head.weight)
    assert not torch.equal(first.head.weight, other.head.weight)


def test_pretraining_is_done_once_and_its_weights_build_a_backbone(tmp_path):
    path = pretrain(tmp_path, seed=1, epochs=1, count=32)
    written = path.stat().st_mtime_ns
    assert pretrain(tmp_path, seed=1, epochs=1, count=32) == path
    assert path.stat().st_mtime_ns == written
    assert pretrain(tmp_path, seed=2, epochs=1, count=32) != path
    tensors = load_tensors(path)
    assert {tensor.dtype for tensor in tensors.values()} == {torch.float16}
    net = build_vit("tiny", weights=path)
    assert net(torch.rand(1, 3, 48, 48)).isfinite().all()
    torch.testing.assert_close(net.pos_embed, tensors["pos_embed"].float())


def test_the_verb_pretrains_as_its_own_options_say(run_folder):
    """The name of the file tells the arguments; the number of epochs of `fit` is none of them."""
    main(["pretrain", "--scenes=8", "--epochs=1", "--run=made"])
    [path] = (run_folder / "moe_ffd" / "made" / "artefacts" / "pretrain").glob("*.safetensors")
    assert pretrain(path.parent, epochs=1, count=8) == path
    options, function = (inspect.signature(which).parameters for which in (Trainer.pretrain, pretrain))
    assert options["epochs"].default == function["epochs"].default, "the weights at hand are made anew"


def test_scenes_to_validate_on_are_others():
    data = pretraining_data(seed=0, count=14)
    assert len(data.test) == 2
    assert not torch.equal(data.test.images, data.train.images[:2])


@pytest.mark.parametrize(("weights", "least", "most"), [("pretrained", 0.6, 1.0), (None, 0.0, 0.5)])
def test_the_weights_at_hand_tell_degradations_apart(weights, least, most):
    """A linear map of the tokens, fitted in closed form on some scenes, names the degradation of patches of others."""
    net = build_vit("tiny", weights=weights).eval()
    with torch.no_grad():
        parts = []
        for split, count in (("train", 250), ("test", 100)):
            made = scenes(count, seed=7, split=split)
            parts.append((net.forward_features(2 * to_unit(made.images) - 1)[:, 1:].flatten(0, 1), made.labels.flatten()))
    (features, labels), (held_out, truth) = parts
    biased = [F.pad(rows.double(), (0, 1), value=1.0) for rows in (features, held_out)]
    solution = torch.linalg.lstsq(biased[0], F.one_hot(labels, 5).double()).solution
    accuracy = float(((biased[1] @ solution).argmax(1) == truth).double().mean())
    assert least <= accuracy <= most
