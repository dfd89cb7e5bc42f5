import csv
import subprocess
import sys

import pytest
import torch

from shared.smoothing.__main__ import main
from shared.smoothing.bounds import clopper_pearson_lower, normal_quantile
from shared.smoothing.log import Row, table


@pytest.fixture
def files(tmp_path):
    hits = torch.tensor([990, 400, 800, 1000, 700, 999])
    for sigma in (0.25, 0.5):
        radii = sigma * normal_quantile(clopper_pearson_lower(hits, 1000, 0.001)).clamp_min(0)
        text = table([Row(20 * i, 1, 1 if r > 0 else -1, r, 15.3) for i, r in enumerate(radii.tolist())])
        (tmp_path / f"sigma_{sigma}").write_text(text)
    return [str(tmp_path / f"sigma_{sigma}") for sigma in (0.25, 0.5)]


def test_tables_are_analyzed(files, tmp_path, capsys):
    out = {name: tmp_path / "out" / f"found.{name}" for name in ("csv", "latex", "markdown")}
    options = [option for name, path in out.items() for option in (f"--{name}", str(path))]
    assert main(["analyze", *files, "--radii", "0", "0.5", "--plot", str(tmp_path / "out" / "curve.png"), *options]) == 0
    shown = capsys.readouterr().out
    assert "sigma_0.25" in shown
    assert "83.3 (" in shown
    rows = list(csv.DictReader(out["csv"].read_text().splitlines()))
    assert [row["table"] for row in rows] == ["sigma_0.25", "sigma_0.5", "envelope"]
    assert [float(row["r=0.5"]) for row in rows] == pytest.approx([2 / 6, 3 / 6, 3 / 6])
    lines = out["latex"].read_text().splitlines()
    assert lines[:3] == [r"\begin{tabular}{lrrrrr}", r"\toprule", r"table & images & abstention & ACR & r=0 & r=0.5 \\"]
    assert lines[4].startswith(r"sigma\_0.25 & 6 & 16.7 & ")
    assert "| envelope | 6 |  |  | 83.3 | 50.0 |" in out["markdown"].read_text()
    assert (tmp_path / "out" / "curve.png").stat().st_size > 5000


def test_audits_say_what_they_find(files, capsys):
    assert main(["audit", files[0], "--sigma", "0.25", "--draws", "1000", "--alpha", "0.001"]) == 0
    assert "Nothing contradicts these settings" in capsys.readouterr().out
    assert main(["audit", files[1], "--sigma", "0.25", "--draws", "1000", "--alpha", "0.001"]) == 1
    shown = capsys.readouterr().out
    assert "unsound: 3 radii lie above 0.6158" in shown
    assert "(idx 0, 60, 100)" in shown
    assert main(["audit", files[0], "--sigma", "0.25", "--draws", "1000", "--alpha", "0.001", "--branches", "2"]) in (0, 1)
    assert "give --rule" in capsys.readouterr().out


def test_what_is_missing_is_said(files, tmp_path, capsys):
    assert main(["audit", files[0]]) == 2
    assert "give --sigma, --draws, --alpha" in capsys.readouterr().err
    assert main(["analyze", str(tmp_path / "none")]) == 2
    assert main(["analyze", files[0], "--histogram", str(tmp_path / "h.png")]) == 2
    assert "certify.jsonl" in capsys.readouterr().err
    with pytest.raises(SystemExit) as stop:
        main(["audit"])
    assert stop.value.code == 2


def test_it_starts_without_lightning(files):
    code = f"import sys; from shared.smoothing.__main__ import main; main(['analyze', {files[0]!r}]); sys.exit('lightning' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True).returncode == 0
