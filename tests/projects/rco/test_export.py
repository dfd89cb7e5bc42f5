"""The exported student: what its file gives is what the module says, and its weights and description build it again."""

import json
from types import SimpleNamespace

import numpy as np
import onnxruntime
import pytest
import torch
from safetensors.torch import load_file

from projects.rco.data import DistillationData
from projects.rco.export import StudentFile, describe, export
from projects.rco.module import RouteDistillation
from projects.rco.networks import build_network
from projects.rco.objectives import Loss

NAMES = ["ant", "bee", "cat"]


def student(shape, name, **options):
    """Return a student whose norms have seen something."""
    module = RouteDistillation(list(shape), len(NAMES), student=name, **options)
    with torch.no_grad():
        module.student.train()(torch.randn(8, *shape, generator=torch.Generator().manual_seed(0)))
    return module.eval()


CASES = {
    "vectors": ((5,), "mlp_4", "parity", {}),
    "images": ((3, 12, 12), "cnn_2", "folder", {}),
    "grey": ((1, 8, 8), "cnn_2", "digits", {}),
    "faces": ((3, 12, 12), "cnn_2", "identities", {"embedding": 4, "loss": Loss(kind="mimic", ce=0.0)}),
}


def expected(case, module, data, inputs):
    """Return what a file should give, from numpy's own arithmetic, and what the plain weights want."""
    mean, std = (np.array(numbers)[:, None, None] for numbers in data.normalisation or ((0.0,), (1.0,)))
    normalised = inputs if data.normalisation is None else torch.from_numpy((inputs.double().numpy() - mean) / std).float()
    outputs = module(normalised).detach().double().numpy()
    if case == "faces":
        return outputs / np.linalg.norm(outputs, axis=1, keepdims=True), normalised
    return np.exp(outputs) / np.exp(outputs).sum(1, keepdims=True), normalised


def made(case):
    shape, name, source, options = CASES[case]
    data = DistillationData(source, root="/nowhere", size=shape[-1] if len(shape) == 3 else None)
    return student(shape, name, **options), data, torch.rand(3, *shape, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("case", CASES)
def test_a_file_takes_raw_inputs_and_gives_probabilities_or_embeddings_of_length_1(case):
    module, data, inputs = made(case)
    np.testing.assert_allclose(StudentFile(module, data)(inputs).detach(), expected(case, module, data, inputs)[0], atol=1e-5)
    about = describe(module, data, NAMES)
    assert about["classes"] == ([] if case == "faces" else NAMES)
    assert about["normalisation"] == (None if data.normalisation is None else dict(zip(("mean", "std"), map(list, data.normalisation), strict=True)))
    assert about["input"].get("channels") == {"vectors": None, "grey": "grey"}.get(case, "RGB")


@pytest.mark.parametrize("case", ["images", *(pytest.param(name, marks=pytest.mark.slow) for name in ("vectors", "grey", "faces"))])
def test_files_say_what_the_module_says_without_it(case, tmp_path, capsys):
    module, data, inputs = made(case)
    exported = export(SimpleNamespace(default_root_dir=tmp_path, verb="export", loggers=()), module, data, NAMES)
    folder = tmp_path / "artefacts" / "export"
    about = json.loads((folder / "student.json").read_text())
    session = onnxruntime.InferenceSession(folder / "student.onnx")
    (said,) = session.run([about["output"]["name"]], {about["input"]["name"]: inputs.numpy()})
    right, normalised = expected(case, module, data, inputs)
    np.testing.assert_allclose(said, right, atol=1e-5)
    rebuilt = build_network(about["network"], about["shape"], about["outputs"])
    rebuilt.load_state_dict(load_file(folder / "student.safetensors"))
    assert torch.equal(rebuilt.eval()(normalised), module(normalised))
    assert about == describe(module, data, NAMES)
    assert json.loads(session.get_modelmeta().custom_metadata_map["classes"]) == about["classes"]
    assert [row["runtime"] for row in exported.rows] == ["ONNX Runtime", "torch"]
    assert exported.summary["onnx/difference"] < 1e-5
    assert f'InferenceSession("{folder / "student.onnx"}")' in capsys.readouterr().out


def test_the_module_stays_as_it_is():
    module = student((3, 12, 12), "cnn_2")
    before = {name: tensor.clone() for name, tensor in module.state_dict().items()}
    network = StudentFile(module, DistillationData("folder", root="/nowhere", size=12))
    with torch.no_grad():
        network.student.output.bias += 1
    assert all(torch.equal(tensor, before[name]) for name, tensor in module.state_dict().items())
