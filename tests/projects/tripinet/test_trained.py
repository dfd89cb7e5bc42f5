"""Networks used with the settings that they were trained with, and trainings that begin with one."""

import pytest
import torch

from projects.tripinet.module import ManipulationLocalisation
from projects.tripinet.trained import begin_with, with_network


def small(**options):
    return ManipulationLocalisation(channels=8, width=8, **options)


def saved(module, folder):
    path = folder / "network.ckpt"
    torch.save({"state_dict": module.state_dict(), "hyper_parameters": dict(module.hparams)}, path)
    return str(path)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"streams": ["rgb", "srm", "fft"]}, r"model\.streams \['rgb', 'srm', 'fft'\], not \['rgb', 'srm', 'dct_corner'\]"),
        ({"alpha": 0.3, "sign": "plain"}, r"model\.alpha 0\.3, not 0\.1, model\.sign plain, not danet"),
        ({"scaling": "minmax"}, r"model\.scaling minmax, not fixed"),
        ({"pooled": 4}, r"model\.pooled 4, not 16"),
    ],
    ids=["streams", "alpha and sign", "scaling", "pooled"],
)
def test_weights_that_fit_but_compute_something_else_are_refused(tmp_path, options, message):
    path = saved(small(**options), tmp_path)
    for use in (with_network, begin_with):
        module = small()
        before = {name: value.clone() for name, value in module.state_dict().items()}
        with pytest.raises(ValueError, match=f"network.ckpt was trained with {message}"):
            use(module, path)
        assert all(torch.equal(value, before[name]) for name, value in module.state_dict().items() if value.isfinite().all())


def test_a_network_is_loaded_to_judge_or_to_begin_with(tmp_path):
    trained = small(seed=1)
    path = saved(trained, tmp_path)
    judging, beginning = with_network(small(streams=["rgb", "srm", "dct_corner"]), path), small()
    begin_with(beginning, path)
    assert not judging.training
    assert beginning.training
    for module in (judging, beginning):
        assert all(torch.equal(value, module.net.state_dict()[name]) for name, value in trained.net.state_dict().items())
    with pytest.raises(ValueError, match="do not fit the network"):
        begin_with(small(edge=True), path)
