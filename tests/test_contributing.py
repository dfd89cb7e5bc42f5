"""CONTRIBUTING.md tells how to add a paper: this adds it in an empty folder, word for word, and runs it."""

import importlib
import re
import sys
from pathlib import Path

import pytest

TEXT = (Path(__file__).parent.parent / "CONTRIBUTING.md").read_text(encoding="utf-8")


@pytest.fixture
def main(tmp_path, monkeypatch):
    folder = tmp_path / "digit_paper"
    (folder / "configs").mkdir(parents=True)
    (folder / "__init__.py").touch()
    blocks = re.findall(r"```(?:python|yaml)\n# file: (\S+)\n(.*?)```", TEXT, re.DOTALL)
    assert [name for name, _ in blocks] == ["module.py", "data.py", "cli.py", "configs/tiny.yaml"]
    for name, code in blocks:
        (folder / name).write_text(code)
    monkeypatch.syspath_prepend(str(tmp_path))
    yield importlib.import_module("digit_paper.cli").main
    for name in [name for name in sys.modules if name.startswith("digit_paper")]:
        del sys.modules[name]


@pytest.mark.reports
def test_the_added_paper_runs(main, run_folder, capsys):
    trained = main(["fit", "--run", "first"])
    assert trained.trainer.callback_metrics["val/accuracy"] > 0.9
    assert main(["test"]).trainer.callback_metrics["test/accuracy"] == trained.trainer.checkpoint_callback.best_model_score
    assert len(main(["weakest", "--count", "4"]).result) == 4
    assert (run_folder / "digit_paper" / "first" / "report.html").is_file()
    assert "weakest digits:" in capsys.readouterr().out
