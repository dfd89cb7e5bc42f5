"""Checkpoints of DDIM's code."""

import pytest
import torch
from helpers.ddim import predicted, weights

from projects.diff_cleanse.cli import main
from projects.diff_cleanse.importing import convert
from shared.backbones.unets import load_pipeline


@pytest.mark.parametrize(("widths", "blocks", "attended"), [((32, 64), 1, (1,)), ((32, 32, 64), 2, (1,)), ((64, 64), 1, (0, 1))])
def test_the_network_predicts_what_it_did(tmp_path, widths, blocks, attended):
    found = weights(widths[0], widths, blocks, attended)
    torch.save(found, tmp_path / "ema.ckpt")
    unet = convert(tmp_path / "ema.ckpt", tmp_path / "pipeline")
    assert unet.config.sample_size == 16 * 2 ** attended[0]
    loaded, scheduler = load_pipeline(tmp_path / "pipeline")
    assert (scheduler["num_train_timesteps"], scheduler["beta_start"], scheduler["beta_end"], scheduler["beta_schedule"]) == (
        1000,
        1e-4,
        0.02,
        "linear",
    )
    x, t = torch.randn(2, 3, 16, 16), torch.tensor([3, 800])
    with torch.no_grad():
        torch.testing.assert_close(loaded(x, t).sample, predicted(found, x, t, len(widths), blocks, attended), rtol=1e-4, atol=1e-4)


def test_the_running_average_of_a_training_is_taken_without_words_before_its_names(tmp_path):
    last, averaged = weights(), weights()
    state = {"state": {0: {"step": torch.tensor(5), "exp_avg": torch.zeros(2)}}, "param_groups": [{"lr": 2e-4}]}
    torch.save([{f"module.{name}": value for name, value in last.items()}, state, 3, 5000, averaged], tmp_path / "ckpt.pth")
    unet = convert(tmp_path / "ckpt.pth", tmp_path / "pipeline", size=16)
    assert unet.config.sample_size == 16
    assert torch.equal(unet.conv_in.weight, averaged["conv_in.weight"])
    torch.save([{f"module.{name}": value for name, value in last.items()}, state, 3, 5000], tmp_path / "ckpt.pth")
    assert torch.equal(convert(tmp_path / "ckpt.pth", tmp_path / "pipeline").conv_in.weight, last["conv_in.weight"])


def test_what_is_no_such_checkpoint_is_refused(tmp_path):
    given = tmp_path / "given.pth"
    for content, message in (
        ([1, 2], r"given\.pth holds no table of tensors; take a ckpt\.pth"),
        ({"conv1.weight": torch.zeros(2)}, r"no network of DDIM's code, but conv1\.weight"),
        ({**weights(attended=())}, r"no attention to tell the size of its pictures by: pass --size"),
        (
            {name: value for name, value in weights().items() if "downsample" not in name},
            r"(?s)convolutions between its levels.*missing +down_blocks\.0",
        ),
    ):
        torch.save(content, given)
        with pytest.raises(ValueError, match=message):
            convert(given, tmp_path / "pipeline")
    assert not (tmp_path / "pipeline").exists()


def test_the_verb_makes_a_run_that_others_work_in(tmp_path, run_folder, capsys):
    torch.save(weights(attended=(0, 1)), tmp_path / "ckpt.pth")
    main(["convert", str(tmp_path / "ckpt.pth")])
    assert "its pictures have 3 channels and 16 pixels: to predict or test, convert with" in capsys.readouterr().out
    main(["convert", str(tmp_path / "ckpt.pth"), "--run", "taken", "--config", "paper", "--data.source=shapes", "--data.size=16"])
    assert "its pictures" not in capsys.readouterr().out
    main(["predict", "--run", "taken", "--samples", "2", "--steps", "2"])
    assert len(list((run_folder / "diff_cleanse" / "taken").rglob("*.png"))) >= 2
