r"""Tables of measures for papers and READMEs, a row a method and set: LaTeX with the package booktabs, and Markdown; the best of a set is bold."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

Row = Mapping[str, Any]

HEADINGS = {
    "s_measure": ("S", r"$S_\alpha$"),
    "f_max": ("max F", r"$F_\beta^{\max}$"),
    "f_mean": ("mean F", r"$F_\beta^{\mathrm{mean}}$"),
    "f_adaptive": ("adaptive F", r"$F_\beta^{\mathrm{adp}}$"),
    "f_weighted": ("weighted F", r"$F_\beta^{w}$"),
    "e_max": ("max E", r"$E_\xi^{\max}$"),
    "e_mean": ("mean E", r"$E_\xi^{\mathrm{mean}}$"),
    "e_adaptive": ("adaptive E", r"$E_\xi^{\mathrm{adp}}$"),
    "mae": ("MAE", "MAE"),
}
"""Measures in the order of tables, as Markdown and LaTeX write them. All but MAE are better the larger."""

_LATEX = {"\\": r"\textbackslash{}", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}"} | {letter: "\\" + letter for letter in "&%$#_{}"}


def set_rows(results: Mapping[str, Mapping[str, Mapping[str, float]]], measures: Sequence[str] = tuple(HEADINGS)) -> list[dict[str, Any]]:
    """Return a row a set and method, of `results[method][set]` as `SaliencyMetrics.compute` returns it; sets in order of first appearance.

    Args:
        results: measures by name, of each method on each set; a method need not have all sets.
        measures: those to keep, in this order.

    Returns:
        Rows of `set`, `method` and the measures, those of a set together.
    """
    sets = dict.fromkeys(name for of_method in results.values() for name in of_method)
    return [
        {"set": name, "method": method} | {measure: found[name][measure] for measure in measures}
        for name in sets
        for method, found in results.items()
        if name in found
    ]


def to_latex(rows: Sequence[Row], caption: str = "", label: str = "", by: str = "set", digits: int = 3) -> str:
    """Return rows as a LaTeX table; a float if it has a caption, else the tabular alone.

    Args:
        rows: at least one; the keys of the first are the columns. A cell is text, a number, None, or a `mean` with its `std` over `n` seeds.
        caption: plain text; what LaTeX would take for a command is escaped.
        label: for references, used with a caption.
        by: column within which the best are bold; rows of one value of it follow each other, and a rule parts them from the next.
        digits: after the point.
    """
    columns, cells = list(rows[0]), _cells(rows, by, digits)
    headings = [HEADINGS[name][1] + _arrow(name, r"$\uparrow$", r"$\downarrow$") if name in HEADINGS else _escaped(name) for name in columns]
    lines = [" & ".join(headings) + r" \\", r"\midrule"]
    for index, (row, of_row) in enumerate(zip(rows, cells, strict=True)):
        if index and row.get(by) != rows[index - 1].get(by):
            lines.append(r"\midrule")
        texts = [_escaped(text).replace("±", r"$\pm$") for text, _ in of_row]
        lines.append(" & ".join(rf"\textbf{{{text}}}" if best else text for text, (_, best) in zip(texts, of_row, strict=True)) + r" \\")
    alignment = "".join("r" if name in HEADINGS else "l" for name in columns)
    table = "\n".join([rf"\begin{{tabular}}{{{alignment}}}", r"\toprule", *lines, r"\bottomrule", r"\end{tabular}"])
    if not caption:
        return table + "\n"
    named = [rf"\caption{{{_escaped(caption)}}}", *([rf"\label{{{label}}}"] if label else [])]
    return "\n".join([r"\begin{table}", r"\centering", *named, table, r"\end{table}"]) + "\n"


def to_markdown(rows: Sequence[Row], by: str = "set", digits: int = 3) -> str:
    """Return rows, as for `to_latex`, as a Markdown table."""
    columns = [HEADINGS[name][0] + _arrow(name, " ↑", " ↓") if name in HEADINGS else name for name in rows[0]]
    rule = "|".join("---:" if name in HEADINGS else "---" for name in rows[0])
    lines = [" | ".join(f"**{text}**" if best else text.replace("|", r"\|") for text, best in of_row) for of_row in _cells(rows, by, digits)]
    return "\n".join([f"| {' | '.join(columns)} |", f"|{rule}|", *(f"| {line} |" for line in lines)])


def _cells(rows: Sequence[Row], by: str, digits: int) -> list[list[tuple[str, bool]]]:
    """Return the text of each cell, and whether it is the best of several rows that have one value of `by`, as far as digits show."""
    best: dict[tuple[Any, str], float] = {}
    sizes: dict[Any, int] = {}
    for row in rows:
        sizes[row.get(by)] = sizes.get(row.get(by), 0) + 1
        for name in HEADINGS.keys() & row.keys():
            if (value := _rank(name, row[name], digits)) is not None:
                best[row.get(by), name] = max(best.get((row.get(by), name), value), value)
    is_best = lambda row, name: sizes[row.get(by)] > 1 and _rank(name, row[name], digits) == best.get((row.get(by), name))  # noqa: E731
    return [[(_shown(row[name], digits), name in HEADINGS and row[name] is not None and is_best(row, name)) for name in rows[0]] for row in rows]


def _rank(name: str, value: Any, digits: int) -> float | None:
    """Return what is larger the better a measure is."""
    if value is None:
        return None
    return round(value["mean"] if isinstance(value, Mapping) else value, digits) * (-1 if name == "mae" else 1)


def _shown(value: Any, digits: int) -> str:
    if isinstance(value, Mapping):
        return f"{value['mean']:.{digits}f}" + (f" ± {value['std']:.{digits}f}" if value["n"] > 1 else "")
    return "" if value is None else f"{value:.{digits}f}" if isinstance(value, float) else str(value)


def _arrow(name: str, up: str, down: str) -> str:
    return down if name == "mae" else up


def _escaped(text: str) -> str:
    return re.sub(r"[\\~^&%$#_{}]", lambda found: _LATEX[found[0]], text)
