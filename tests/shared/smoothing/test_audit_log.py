import dataclasses
import json

import pytest
import torch
from torch import nn

from shared.smoothing import Branch, Budget, CertificationLog, SmoothedClassifier, Smoothing, certify_dataset
from shared.smoothing.audit_log import audit_file
from shared.smoothing.log import read_rows

SETTINGS = {
    "one": (Smoothing((0.25,), alpha=0.01), {}),
    "joint": (Smoothing((0.2, 0.2), alpha=0.01), {}),
    "unequal": (Smoothing((0.2, 0.3), "main", alpha=0.01), {}),
    "runner_up": (Smoothing((0.25,), "runner_up", alpha=0.01), {}),
    "randomised": (Smoothing((0.2, 0.2), "main", alpha=0.01, randomised=True), {}),
    "four": (Smoothing((0.1,) * 4, "main", alpha=0.01), {}),
    "early": (Smoothing((0.25,), alpha=0.01), {"radii": (0.1,)}),
}


class Means(nn.Module):
    """Logits of three classes: how near the mean is to 0.2, 0.5 and 0.8."""

    def forward(self, x):
        return -((x.flatten(1).mean(1, keepdim=True) - torch.tensor([[0.2, 0.5, 0.8]])) ** 2)


def certified(folder, name):
    smoothing, early = SETTINGS[name]
    count = len(smoothing.sigmas)
    branches = [Branch(Means(), lambda x, start=start: x[..., start::count]) for start in range(count)]
    smoothed = SmoothedClassifier(branches, 3, smoothing, Budget(20, 400, **early), key=3)
    items = [(i, torch.full((1, 4, 4), level), 1) for i, level in enumerate((0.2, 0.34, 0.4, 0.5, 0.62, 0.9))]
    with CertificationLog(folder, smoothed.settings) as log:
        certify_dataset(smoothed, items, log)
        return log.merge()


def tamper(path, change, table=True):
    settings, rows = read_rows(path.with_suffix(".jsonl"))
    rows = [change(row) for row in rows]
    lines = [json.dumps({"settings": settings}), *(json.dumps(dataclasses.asdict(row)) for row in rows)]
    path.with_suffix(".jsonl").write_text("\n".join(lines) + "\n")
    if table:
        path.write_text("idx\tlabel\tpredict\tradius\tcorrect\ttime\n" + "\n".join(row.line() for row in rows) + "\n")
    return [finding.message for finding in audit_file(path).findings if finding.severity == "unsound"]


@pytest.mark.parametrize("name", SETTINGS)
def test_our_own_logs_are_sound_without_options(tmp_path, name):
    found = audit_file(certified(tmp_path, name))
    assert (found.is_ours, found.is_sound, found.images) == (True, True, 6)
    assert all(finding.severity == "note" for finding in found.findings), found.findings
    assert found.settings["draws"] == 400


@pytest.mark.parametrize("name", ["one", "unequal", "randomised"])
def test_radii_above_the_counts_are_found(tmp_path, name):
    path = certified(tmp_path, name)
    (message,) = tamper(path, lambda row: dataclasses.replace(row, radius=row.radius * (1 + 1e-5)))
    assert "radii of the log are above what their counts give" in message


def test_a_table_that_differs_from_its_log_is_found(tmp_path):
    path = certified(tmp_path, "one")
    text = path.read_text().splitlines()
    path.write_text("\n".join([*text[:1], *text[2:], "17\t1\t1\t0.1\t1\t0:00:01"]) + "\n")
    messages = [finding.message for finding in audit_file(path).findings]
    assert "1 images are in the table and not in the log" in messages
    assert "1 images of the log are not in the table" in messages


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"draws": 399}, "another number of draws"),
        ({"selection": [{"0": 1, "2": 19}]}, "not those that the selection draws chose"),
        ({"estimation": [{"1": 300, "invalid": 100}]}, "above what their counts give"),
    ],
)
def test_counts_that_do_not_go_together_are_found(tmp_path, changes, message):
    path = certified(tmp_path, "one")
    found = tamper(path, lambda row: dataclasses.replace(row, details=row.details | changes) if row.index == 3 else row)
    assert any(message in text for text in found), found


def test_settings_that_are_given_are_compared(tmp_path):
    path = certified(tmp_path, "joint")
    found = audit_file(path, sigma=0.2, draws=100_000)
    assert not found.is_sound
    assert "says draws = 400, not 100000" in found.findings[0].message


def test_settings_that_are_missing_are_asked_for(tmp_path):
    path = certified(tmp_path, "one")
    path.with_suffix(".jsonl").write_text("{}")
    with pytest.raises(ValueError, match="no log of ours"):
        audit_file(path)
    path.with_suffix(".jsonl").unlink()
    with pytest.raises(ValueError, match="give --draws, --alpha"):
        audit_file(path, sigma=0.25)
    found = audit_file(path, sigma=0.25, draws=400, alpha=0.01)
    assert (found.is_ours, found.is_sound, found.findings) == (False, True, [])
