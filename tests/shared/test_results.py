import json

import pytest

from shared.results import markdown, markers, shown, summarise, write_into_readme, write_results
from shared.runs import Run


def rows():
    return [
        {"model": m, "seed": s, "fd": v, "asr": a}
        for m, s, v, a in [("a", 0, 1.0, 0.5), ("b", 0, 3.0, None), ("a", 1, 2.0, 0.7), ("b", 1, 3.5, None)]
    ]


def test_means_and_spreads_over_seeds():
    first, second = summarise(rows(), by=("model",))
    assert first["fd"] == {"mean": 1.5, "std": pytest.approx(0.7071, abs=1e-4), "n": 2}
    assert second["asr"] is None


def test_tables_for_people():
    lines = markdown(summarise(rows(), by=("model",))).splitlines()
    assert lines[0] == "| model | fd | asr |"
    assert lines[2] == "| a | 1.50 ± 0.71 | 0.60 ± 0.14 |"
    assert lines[3] == "| b | 3.25 ± 0.35 |  |"


@pytest.mark.parametrize(
    ("mean", "std", "text"),
    [(0.0029, 0.0017, "0.0029 ± 0.0017"), (0.0, 0.0, "0.00 ± 0.00"), (0.044, 0.1, "0.044 ± 0.100"), (1.03, 0.018, "1.03 ± 0.02")],
)
def test_spreads_have_the_digits_of_means(mean, std, text):
    assert shown({"mean": mean, "std": std, "n": 3}) == text


def test_results_reach_the_readme(tmp_path):
    results = write_results(
        Run(tmp_path / "paper" / "x"), "t", "c", summarise(rows(), by=("model",)), [0, 1], 61, {"it works": True, "it flies": False}
    )
    assert json.loads((tmp_path / "paper" / "x" / "results.json").read_text())["minutes"] == 1.0
    readme, (begin, end), (others, _) = tmp_path / "README.md", markers("ours"), markers("another")
    readme.write_text(f"{others}before\n{begin}\nstale\n{end}\nafter\n")
    for _ in range(2):
        write_into_readme(readme, results, "reproduce", "ours")
    text = readme.read_text()
    assert text.startswith(f"{others}before\n")
    assert text.endswith(f"{end}\nafter\n")
    assert "stale" not in text
    assert text.count("| a | 1.50") == 1
    assert "- holds: it works" in text
    assert "- **does not hold**: it flies" in text
    readme.write_text("nothing")
    with pytest.raises(ValueError, match="has no place for results"):
        write_into_readme(readme, results, "reproduce")
