import re
import shutil
import subprocess

import pytest

from projects.hodinet.tables import HEADINGS, set_rows, to_latex, to_markdown

RESULTS = {
    "ours": {"NLPR": {"s_measure": 0.9321, "mae": 0.0214}, "SIP": {"s_measure": 0.8912, "mae": 0.0391}},
    "add_matched": {"NLPR": {"s_measure": 0.9268, "mae": 0.0206}, "SIP": {"s_measure": 0.8908, "mae": 0.0447}, "SSD": {"s_measure": 0.5, "mae": 0.1}},
}
ROWS = set_rows(RESULTS, ("s_measure", "mae"))


def test_rows_of_a_set_stand_together():
    assert [(row["set"], row["method"]) for row in ROWS] == [
        ("NLPR", "ours"),
        ("NLPR", "add_matched"),
        ("SIP", "ours"),
        ("SIP", "add_matched"),
        ("SSD", "add_matched"),
    ]
    assert list(ROWS[0]) == ["set", "method", "s_measure", "mae"]


def test_markdown_has_the_best_of_each_set_in_bold():
    assert to_markdown(ROWS).splitlines() == [
        "| set | method | S ↑ | MAE ↓ |",
        "|---|---|---:|---:|",
        "| NLPR | ours | **0.932** | **0.021** |",
        "| NLPR | add_matched | 0.927 | **0.021** |",  # equal in the digits shown
        "| SIP | ours | **0.891** | **0.039** |",
        "| SIP | add_matched | **0.891** | 0.045 |",
        "| SSD | add_matched | 0.500 | 0.100 |",  # alone: nothing to be better than
    ]
    assert "| NLPR | add_matched | 0.9268 | **0.0206** |" in to_markdown(ROWS, digits=4)


def test_latex_is_a_table_of_booktabs():
    assert to_latex(ROWS[:3]).splitlines() == [
        r"\begin{tabular}{llrr}",
        r"\toprule",
        r"set & method & $S_\alpha$$\uparrow$ & MAE$\downarrow$ \\",
        r"\midrule",
        r"NLPR & ours & \textbf{0.932} & \textbf{0.021} \\",
        r"NLPR & add\_matched & 0.927 & \textbf{0.021} \\",
        r"\midrule",
        r"SIP & ours & 0.891 & 0.039 \\",
        r"\bottomrule",
        r"\end{tabular}",
    ]


def test_captions_are_escaped_and_labels_are_kept():
    found = to_latex(ROWS, caption=r"5 % of {A_1} & B~C^2 \ #1 $x$", label="tab:sets")
    assert r"\caption{5 \% of \{A\_1\} \& B\textasciitilde{}C\textasciicircum{}2 \textbackslash{} \#1 \$x\$}" in found
    assert r"\label{tab:sets}" in found
    assert found.startswith("\\begin{table}\n\\centering\n")
    assert found.endswith("\\end{tabular}\n\\end{table}\n")


def test_means_of_several_seeds_have_their_spread():
    several = {"mean": 0.9, "std": 0.0123, "n": 3}
    rows = [{"set": "drawn", "f_max": several}, {"set": "drawn", "f_max": {"mean": 0.8, "std": 0.0, "n": 1}}, {"set": "drawn", "f_max": None}]
    assert to_markdown(rows).splitlines()[2:] == ["| drawn | **0.900 ± 0.012** |", "| drawn | 0.800 |", "| drawn |  |"]
    assert r"drawn & \textbf{0.900 $\pm$ 0.012} \\" in to_latex(rows)


def test_bars_in_names_do_not_end_a_cell_of_markdown():
    assert to_markdown([{"set": "a|b", "mae": 0.1}]).splitlines()[2] == r"| a\|b | 0.100 |"


@pytest.mark.skipif(shutil.which("pdflatex") is None, reason="needs pdflatex")
def test_latex_compiles(tmp_path):
    row = {"set": "NLPR", "method": "a_b"} | dict.fromkeys(HEADINGS, 0.5)
    table = to_latex([row, row | {"mae": 0.1}], caption="5 % & more", label="tab:a")
    (tmp_path / "a.tex").write_text(f"\\documentclass{{article}}\\usepackage{{booktabs}}\\begin{{document}}{table}\\end{{document}}")
    subprocess.run(["pdflatex", "-interaction=nonstopmode", "-halt-on-error", "a.tex"], cwd=tmp_path, check=True, capture_output=True)


def test_every_measure_has_its_headings():
    lines = to_latex([{"set": "a"} | dict.fromkeys(HEADINGS, 0.5)]).splitlines()
    assert len(re.findall(r"\\uparrow|\\downarrow", lines[2])) == len(HEADINGS) == 9
