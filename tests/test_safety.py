"""Nothing read from outside can run code, and nothing reaches for the network unasked: read off the sources, and watched while they run."""

import ast
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
SOURCES = sorted(path for part in ("shared", "projects") for path in (ROOT / part).rglob("*.py"))
PROJECTS = sorted(path.parent.name for path in (ROOT / "projects").glob("*/cli.py"))
FASTEST = ("rco", "umed")

UNPICKLERS = {"cloudpickle", "dill", "joblib", "jsonpickle", "marshal", "pickle5", "shelve"}
NETWORK = {"aiohttp", "asyncio", "ftplib", "http", "httpx", "huggingface_hub", "paramiko", "requests", "smtplib", "socket", "ssl", "urllib", "xmlrpc"}
HARMLESS = {"huggingface_hub.errors", "urllib.parse"}
MARKUP = {"defusedxml", "lxml", "xml", "xmltodict"}

ALLOWED = {
    ("shared/data/pickles.py", "unpickles"): "its reader refuses every global but those of numpy's arrays, and builds none of them",
    ("shared/launch/running.py", "runs code"): "the launcher runs the command line that it is given",
    (
        "shared/backbones/factory.py",
        "downloads",
    ): "timm reads the user's file, or fetches its weights where they are asked for by the word pretrained",
    ("projects/cafe/foreign.py", "runs code"): "a net of the user's own, named on the command line as file.py:function",
    ("projects/vafl/processes.py", "unpickles"): "its own parent's, through the pipe by which multiprocessing itself sends pickles",
    ("projects/vafl/joining.py", "network"): "the address at which a party of the user's federation listens",
    ("projects/vafl/links.py", "network"): "what server and clients of the user's federation send each other",
}


class Findings(ast.NodeVisitor):
    """Collects what a source does that could run foreign code or reach the network, as pairs of line and kind; names are followed through imports."""

    def __init__(self, source):
        self.found, self.names = [], {}
        tree = ast.parse(source)
        for node in ast.walk(tree):
            if isinstance(node, ast.Import):
                self.names |= {
                    alias.asname or alias.name.split(".")[0]: alias.name if alias.asname else alias.name.split(".")[0] for alias in node.names
                }
            elif isinstance(node, ast.ImportFrom):
                self.names |= {alias.asname or alias.name: f"{node.module}.{alias.name}" for alias in node.names}
        self.visit(tree)

    def add(self, node, kind):
        self.found.append((node.lineno, kind))

    def full(self, node):
        """Return the dotted name behind an expression, through the imports."""
        parts: list[str] = []
        while isinstance(node, ast.Attribute):
            parts.insert(0, node.attr)
            node = node.value
        return ".".join([self.names.get(node.id, node.id) if isinstance(node, ast.Name) else "", *parts])

    def visit_Import(self, node):
        for alias in node.names:
            self.judge_module(node, alias.name)

    def visit_ImportFrom(self, node):
        for alias in node.names:
            self.judge_module(node, f"{node.module}.{alias.name}")
            self.judge_name(node, f"{node.module}.{alias.name}")

    def judge_module(self, node, name):
        top = name.split(".")[0]
        if top in UNPICKLERS:
            self.add(node, "unpickles")
        if top in NETWORK and not any(f"{name}.".startswith(f"{harmless}.") for harmless in HARMLESS):
            self.add(node, "network")
        if top in MARKUP:
            self.add(node, "expands entities")

    def judge_name(self, node, name):
        if name in {"pickle.load", "pickle.loads", "pickle.Unpickler", "_pickle.Unpickler", "pandas.read_pickle", "torch.package.PackageImporter"}:
            self.add(node, "unpickles")
        if name in {"os.system", "os.popen"} or name.startswith(("os.exec", "os.spawn", "os.posix_spawn")):
            self.add(node, "runs code")
        if name.split(".")[0] in {"imp", "runpy"} or name.startswith(("importlib.import_module", "importlib.util.spec_from", "importlib.machinery")):
            self.add(node, "runs code")
        if name.startswith(("torch.hub.", "torch.utils.model_zoo.", "skimage.data.download")) or name.startswith("sklearn.datasets.fetch_"):
            self.add(node, "downloads")

    def visit_Attribute(self, node):
        self.judge_name(node, self.full(node))
        self.generic_visit(node)

    def visit_Call(self, node):
        name, last = self.full(node.func), self.full(node.func).rpartition(".")[2]
        given = {keyword.arg: keyword.value.value if isinstance(keyword.value, ast.Constant) else keyword.value for keyword in node.keywords}
        if name in {"eval", "exec", "compile", "__import__"} or given.get("shell", False) is not False:
            self.add(node, "runs code")
        if name == "torch.load" and given.get("weights_only") is not True:
            self.add(node, "unpickles")
        if last == "load_from_checkpoint" and given.get("weights_only", True) is not True:
            self.add(node, "unpickles")
        if given.get("allow_pickle", False) is not False or given.get("weights_only", True) is False:
            self.add(node, "unpickles")
        if given.get("trust_remote_code", False) is not False:
            self.add(node, "runs code")
        if (
            name.startswith("yaml.")
            and ("load" in last and not last.startswith("safe_load"))
            and self.loader(node) not in {"SafeLoader", "CSafeLoader"}
        ):
            self.add(node, "runs code")
        if last in {"from_pretrained", "snapshot_download", "hf_hub_download"} and given.get("local_files_only") is not True:
            self.add(node, "downloads")
        if given.get("pretrained", False) not in (False, None) or given.get("download", False) is not False:
            self.add(node, "downloads")
        if name.startswith("torchvision.models") and given.get("weights") is not None:
            self.add(node, "downloads")
        self.generic_visit(node)

    def loader(self, node):
        given = [keyword.value for keyword in node.keywords if keyword.arg == "Loader"] + node.args[1:2]
        return self.full(given[0]).rpartition(".")[2] if given else None


UNSAFE = {
    "unpickles": [
        "import pickle\npickle.loads(content)",
        "from pickle import Unpickler as U",
        "import pickle as p\nclass Own(p.Unpickler): ...",
        "import dill",
        "from joblib import load",
        "import torch\ntorch.load(path)",
        "from torch import load\nload(path, weights_only=flag)",
        "import numpy as np\nnp.load(path, allow_pickle=True)",
        "import numpy as np\nnp.load(path, allow_pickle=wanted)",
        "Module.load_from_checkpoint(path, weights_only=False)",
    ],
    "runs code": [
        "eval(text)",
        "__import__(name)",
        "import importlib\nimportlib.import_module(name)",
        "from importlib.util import spec_from_file_location",
        "import subprocess\nsubprocess.run(text, shell=True)",
        "import os\nos.system(text)",
        "import yaml\nyaml.load(text)",
        "import yaml\nyaml.load(text, Loader=yaml.Loader)",
        "import yaml\nyaml.unsafe_load(text)",
        "Pipeline.from_pretrained(path, local_files_only=True, trust_remote_code=True)",
    ],
    "network": ["import socket", "from urllib.request import urlopen", "import requests as r", "import huggingface_hub", "from http import client"],
    "downloads": [
        "import torch\ntorch.hub.load(name, model)",
        "import timm\ntimm.create_model(name, pretrained=True)",
        "import timm\ntimm.create_model(name, pretrained=wanted)",
        "from torchvision.models import resnet18\nresnet18(weights='DEFAULT')",
        "from torchvision.datasets import MNIST\nMNIST(root, download=True)",
        "Pipeline.from_pretrained(name)",
        "from sklearn.datasets import fetch_openml",
    ],
    "expands entities": ["from lxml import etree", "import xml.etree.ElementTree as ET"],
}
SAFE = """
import importlib.metadata, json, pickle, subprocess, torch, yaml
from importlib.util import find_spec
from urllib.parse import urlparse
import numpy as np, timm, torchvision
try:
    torch.load(path, map_location="cpu", weights_only=True)
except pickle.UnpicklingError: ...
np.load(path), np.load(path, allow_pickle=False), json.load(file), net.load(path), re.compile(text)
yaml.safe_load(text), yaml.load(text, Loader=yaml.SafeLoader), yaml.load(text, yaml.CSafeLoader)
subprocess.run([program], check=True), timm.create_model(name, pretrained=False), torchvision.models.resnet18(weights=None)
Pipeline.from_pretrained(folder, local_files_only=True)
"""


@pytest.mark.parametrize(("kind", "source"), [(kind, source) for kind, sources in UNSAFE.items() for source in sources])
def test_what_is_unsafe_is_seen(kind, source):
    assert {found for _, found in Findings(source).found} == {kind}


def test_what_is_safe_is_let_through():
    assert Findings(SAFE).found == []


def test_no_source_unpickles_runs_foreign_code_or_reaches_the_network():
    found = {}
    for file in SOURCES:
        for line, kind in Findings(file.read_text(encoding="utf-8")).found:
            found.setdefault((file.relative_to(ROOT).as_posix(), kind), []).append(line)
    forbidden = [f"{place}, lines {lines}: {kind}" for (place, kind), lines in found.items() if (place, kind) not in ALLOWED]
    assert not forbidden, "\n".join(forbidden)
    assert not ALLOWED.keys() - found.keys(), "these are allowed what they do not do any more"


GUARD = """
import importlib, os, runpy, sys
from pathlib import Path

FORBIDDEN = {"pickle.find_class", "socket.connect", "socket.getaddrinfo", "socket.sendto", "os.system"}

def refuse(event, details):
    if event in FORBIDDEN:
        print("FORBIDDEN", event, details, file=sys.stderr, flush=True)
        raise PermissionError(f"{event} {details}")

sys.addaudithook(refuse)
sys.path.insert(0, os.getcwd())
"""
IMPORT_ALL = """
for part in ("shared", "projects"):
    for file in sorted(Path(part).rglob("*.py")):
        if file.name not in ("__main__.py", "cli.py"):
            importlib.import_module(".".join(file.with_suffix("").parts).removesuffix(".__init__"))
print("imported", sum(name.split(".")[0] in ("shared", "projects") for name in sys.modules))
"""
FIT = """
sys.argv = [f"projects/{project}/cli.py", "fit", "--trainer.max_steps", "2", "--trainer.enable_progress_bar", "false"]
runpy.run_path(sys.argv[0], run_name="__main__")
"""
HOSTILE = """
import pickle, socket
for attempt in (lambda: pickle.loads(b"cos\\nsystem\\n."), lambda: socket.create_connection(("192.0.2.1", 80)), lambda: os.system("true")):
    try:
        attempt()
    except PermissionError:
        print("refused")
"""


def guarded(script, folder, **variables):
    """Run a script in a process where pickles find no class and nothing is connected to."""
    given = "".join(f"{name} = {value!r}\n" for name, value in variables.items())
    environment = {name: value for name, value in os.environ.items() if name not in ("HF_HUB_OFFLINE", "PYTHONPATH")}
    environment |= {"TOUCHSTONE_RUNS": str(folder), "WANDB_MODE": "disabled", "OMP_NUM_THREADS": "1"}
    done = subprocess.run([sys.executable, "-c", GUARD + given + script], cwd=ROOT, env=environment, capture_output=True, text=True, timeout=500)
    assert "FORBIDDEN" not in done.stderr or script is HOSTILE, done.stderr[-3000:]
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout


def test_the_guard_refuses_what_it_is_there_for(tmp_path):
    assert guarded(HOSTILE, tmp_path).split() == ["refused"] * 3


def test_importing_every_module_neither_unpickles_nor_connects(tmp_path):
    count = sum(file.name not in ("__main__.py", "cli.py") for file in SOURCES)
    assert int(guarded(IMPORT_ALL, tmp_path).split()[-1]) >= count


@pytest.mark.parametrize("project", FASTEST)
def test_training_neither_unpickles_nor_connects(tmp_path, project):
    guarded(FIT, tmp_path, project=project)
    assert list(tmp_path.glob(f"{project}/*/checkpoints/last.ckpt"))


@pytest.mark.slow
@pytest.mark.parametrize("project", [project for project in PROJECTS if project not in FASTEST])
def test_training_of_every_project_neither_unpickles_nor_connects(tmp_path, project):
    guarded(FIT, tmp_path, project=project)
    assert list(tmp_path.glob(f"{project}/*/*"))
