import copy
import sys
import warnings

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from torch import nn

from shared.export import OPSET, beside_torch, both_runtimes, export_onnx, latency


class Pair(nn.Module):
    """Two inputs, two outputs, and layers that differ between training and evaluation."""

    def __init__(self):
        super().__init__()
        self.conv, self.norm, self.drop = nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Dropout(0.5)

    def forward(self, images, scales):
        features = self.drop(self.norm(self.conv(images)))
        return features, features.mean((1, 2, 3)) * scales


class Sorted(nn.Module):
    """Both stable sorts along both dimensions."""

    def forward(self, values):
        return tuple(part for dim in (1, 2) for down in (False, True) for part in values.sort(dim=dim, descending=down, stable=True))


class Other(nn.Module):
    """Computes something else in the file, or does not come to its end."""

    def __init__(self, error=None):
        super().__init__()
        self.error = error

    def forward(self, values):
        if torch.compiler.is_exporting():
            if self.error is not None:
                raise self.error
            return values + 0.01
        return values / values.new_ones(values.shape)


class Hole(nn.Module):
    """NaN for the first row only."""

    def forward(self, values):
        return values / (values - values)


def examples(count=8):
    torch.manual_seed(0)
    return {"images": torch.rand(count, 3, 6, 5), "scales": torch.randn(count)}


@pytest.fixture(scope="module")
def exported(tmp_path_factory):
    """A network in training mode and bfloat16, its file, and the difference."""
    torch.manual_seed(1)
    module, path = Pair(), tmp_path_factory.mktemp("exported") / "deep" / "pair.onnx"
    module(*examples().values())  # so that the norm has statistics
    module.bfloat16()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        difference = export_onnx(module, path, examples(), ["features", "score"], {"class_names": ["a", "b"], "note": "as text"})
    return module, path, difference


def test_the_file_computes_the_same_for_any_batch(exported):
    module, path, difference = exported
    assert (module.training, module.conv.weight.dtype) == (True, torch.bfloat16)
    assert difference < 1e-5
    session, network = onnxruntime.InferenceSession(path), copy.deepcopy(module).float().eval()
    for count in (1, 5, 11):
        given = {name: tensor + 1 for name, tensor in examples(count).items()}
        found = session.run(["features", "score"], {name: tensor.numpy() for name, tensor in given.items()})
        with torch.no_grad():
            for one, other in zip(network(*given.values()), found, strict=True):
                np.testing.assert_allclose(other, one.numpy(), rtol=1e-4, atol=1e-5)


def test_the_file_says_what_it_is_and_nothing_about_the_machine(exported):
    path = exported[1]
    model = onnx.load(path)
    assert {entry.key: entry.value for entry in model.metadata_props} == {"class_names": '["a", "b"]', "note": "as text"}
    assert [opset.version for opset in model.opset_import if not opset.domain] == [OPSET]
    assert [value.name for value in (*model.graph.input, *model.graph.output)] == ["images", "scales", "features", "score"]
    assert {value.type.tensor_type.shape.dim[0].dim_param for value in (*model.graph.input, *model.graph.output)} == {"batch"}
    assert b".py" not in path.read_bytes()
    assert [file.name for file in path.parent.iterdir()] == ["pair.onnx"]


def test_latency_has_a_row_a_batch(exported, tmp_path):
    rows = latency(exported[1], examples(6), (1, 6), runs=3, threads=1)
    assert [(row["batch"], row["threads"]) for row in rows] == [(1, 1), (6, 1)]
    for row in rows:
        assert row["inputs_per_second"] == pytest.approx(1000 * row["batch"] / row["milliseconds"])
    with pytest.raises(ValueError, match="a batch of 8 needs as many examples, not 6"):
        latency(exported[1], examples(6))


def test_a_picture_is_timed_in_both_runtimes(tmp_path):
    class Mean(nn.Module):
        def forward(self, images, depth):
            return images.mean(1) + depth[:, 0]

    module, pictures, batches = Mean(), {"images": torch.rand(2, 3, 20, 30), "depth": torch.rand(2, 1, 20, 30)}, []
    export_onnx(module, tmp_path / "mean.onnx", pictures, ["result"], batches=(1, 2))
    module.register_forward_pre_hook(lambda module, given: batches.append([len(layers) for layers in given]))
    rows = beside_torch(module, tmp_path / "mean.onnx", pictures, runs=3)
    assert batches == [[1, 1]] * 4, "one call to warm up"
    assert [(row["runtime"], row["height"], row["width"], row["batch"]) for row in rows] == [("ONNX Runtime", 20, 30, 1), ("torch", 20, 30, 1)]
    for row in rows:
        assert row["megapixels_per_second"] * row["milliseconds"] == pytest.approx(20 * 30 / 1000)


def test_equals_are_sorted_as_torch_does_without_a_word(tmp_path, capfd):
    values = torch.randint(0, 3, (8, 6, 9)).float()
    assert export_onnx(Sorted(), tmp_path / "sorted.onnx", {"values": values}, list("abcdefgh")) == 0
    assert capfd.readouterr() == ("", "")
    found = onnxruntime.InferenceSession(tmp_path / "sorted.onnx").run(None, {"values": values.numpy()})
    for one, other in zip(Sorted()(values), found, strict=True):
        np.testing.assert_array_equal(other, one.numpy())


@pytest.mark.parametrize(
    ("module", "error", "message", "earlier"),
    [
        (Other(), ValueError, r"file.onnx was not kept: .* by up to 1.0e-02, more than 1e-04", True),
        (Hole(), ValueError, "by up to nan", False),
        (Other(KeyboardInterrupt("stopped")), KeyboardInterrupt, "stopped", True),
    ],
)
def test_what_differs_or_is_interrupted_leaves_no_file(tmp_path, module, error, message, earlier):
    if earlier:
        (tmp_path / "file.onnx").write_text("earlier")
    with pytest.raises(error, match=message):
        export_onnx(module, tmp_path / "file.onnx", {"values": torch.rand(8, 2)}, ["result"])
    assert [file.read_text() for file in tmp_path.iterdir()] == ["earlier"] * earlier


@pytest.mark.parametrize("name", ["onnx", "onnxruntime", "onnxscript"])
def test_the_missing_extra_is_named(tmp_path, monkeypatch, name):
    monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(ValueError, match=f"need {name}: install the extra with `uv sync --extra onnx`"):
        export_onnx(Pair(), tmp_path / "pair.onnx", examples(), ["features", "score"])
    with pytest.raises(ValueError, match="uv sync --extra onnx"):
        latency(tmp_path / "pair.onnx", examples())
    assert not list(tmp_path.iterdir())


def test_what_is_too_large_is_refused(tmp_path):
    with torch.device("meta"):
        large = nn.Linear(30_000, 30_000)
    with pytest.raises(ValueError, match=r"3\.4 GB of weights, but one \.onnx file holds at most 2 GB"):
        export_onnx(large, tmp_path / "large.onnx", {"values": torch.rand(8, 30_000)}, ["result"])
    assert not list(tmp_path.iterdir())


class Steps(nn.Module):
    """Differences over a length that may vary, of two inputs that have it in different places."""

    def forward(self, waves, weights):
        return nn.functional.avg_pool1d(waves[:, None], 4, 3)[:, 0] + weights.mean((1, 2))[:, None]


def test_named_dimensions_are_of_any_size_from_their_least_on(tmp_path):
    path, sizes = tmp_path / "steps.onnx", (20, 33, 57)
    drawn = [{"waves": torch.randn(4, size), "weights": torch.randn(4, 2, size)} for size in sizes]
    dynamic = {"waves": {1: ("samples", 8)}, "weights": {2: ("samples", 8)}}
    assert export_onnx(Steps(), path, drawn[0], ["steps"], batches=(1, 4), dynamic=dynamic, further=drawn[1:]) < 1e-5
    session = onnxruntime.InferenceSession(path)
    assert [each.shape for each in session.get_inputs()] == [["batch", "samples"], ["batch", 2, "samples"]]
    for size in (8, 41):
        given = {"waves": torch.randn(3, size), "weights": torch.randn(3, 2, size)}
        (found,) = session.run(None, {name: tensor.numpy() for name, tensor in given.items()})
        np.testing.assert_allclose(found, Steps()(*given.values()).numpy(), atol=1e-5)


def test_examples_of_other_sizes_are_compared_too(tmp_path):
    class Short(nn.Module):
        """Differs only for what is longer than the example."""

        def forward(self, values):
            return values + 0.01 if not torch.compiler.is_exporting() and values.shape[1] > 10 else values * 1

    dynamic, further = {"values": {1: ("length", 2)}}, [{"values": torch.rand(1, 20)}]
    with pytest.raises(ValueError, match=r"by up to 1\.0e-02"):
        export_onnx(Short(), tmp_path / "short.onnx", {"values": torch.rand(8, 5)}, ["result"], dynamic=dynamic, further=further)
    assert not list(tmp_path.iterdir())


def test_runtimes_are_timed_on_any_example(tmp_path):
    examples = {"waves": torch.randn(4, 20), "weights": torch.randn(4, 2, 20)}
    export_onnx(Steps(), tmp_path / "steps.onnx", examples, ["steps"], batches=(4,))
    rows = both_runtimes(Steps(), tmp_path / "steps.onnx", examples, runs=2)
    assert [(row["runtime"], row["batch"], set(row)) for row in rows] == [
        (name, 1, {"runtime", "batch", "threads", "milliseconds"}) for name in ("ONNX Runtime", "torch")
    ]
    assert all(row["milliseconds"] > 0 for row in rows)
