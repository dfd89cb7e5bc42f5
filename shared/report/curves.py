"""Curves as inline SVG: one small plot for each family of metrics."""

from __future__ import annotations

import io
import re
from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from markupsafe import Markup

from shared.report.reading import Series
from shared.report.values import number

if TYPE_CHECKING:
    import numpy as np
    from matplotlib.axes import Axes

POINTS = 600  # drawn points of one line, at most
MANY = 120  # points from which on a line is smoothed
DECADES = 2.0  # a positive metric that spans more is drawn on a logarithmic axis
COLOURS = 8  # the page's style defines --series-0 to --series-7
INK, RULE = "#010101", "#020202"  # stand for the page's colours of text and rules
STYLE: dict[Any, Any] = {
    "svg.fonttype": "none",
    "font.size": 8,
    "text.color": INK,
    "axes.edgecolor": RULE,
    "axes.grid": True,
    "axes.axisbelow": True,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.labelcolor": INK,
    "axes.formatter.useoffset": False,
    "axes.formatter.limits": (-4, 6),
    "axes.xmargin": 0.02,
    "grid.color": RULE,
    "grid.linewidth": 0.6,
    "xtick.color": RULE,
    "ytick.color": RULE,
    "xtick.labelcolor": INK,
    "ytick.labelcolor": INK,
    "xtick.minor.size": 0,
    "ytick.minor.size": 0,
}


@dataclass(frozen=True)
class Line:
    """Legend of one curve: its label, which of the colours it has, whether it is dashed, and its last value."""

    label: str
    colour: int
    dashed: bool
    last: str


@dataclass(frozen=True)
class Plot:
    """One drawing with its legend; `svg` holds no text but the numbers of the axes."""

    title: str
    svg: Markup
    lines: list[Line]
    is_logarithmic: bool


def families(series: Iterable[Series]) -> dict[str, list[Series]]:
    """Group metrics that share axes: by what follows the first slash, without Lightning's `_step` and `_epoch`."""
    groups: dict[str, list[Series]] = {}
    for one in series:
        stage, _, quantity = one.name.partition("/")
        groups.setdefault((quantity or stage).removesuffix("_step").removesuffix("_epoch"), []).append(one)
    return groups


def draw(title: str, curves: dict[str, Series]) -> Plot | None:
    """Draw curves over steps.

    Args:
        title: heading of the plot.
        curves: series by label.

    Returns:
        The plot, or None if no curve has two finite values.
    """
    from matplotlib import rc_context
    from matplotlib.figure import Figure

    if all(len(series.finite) < 2 for series in curves.values()):
        return None
    values = [value for series in curves.values() for _, value in series.finite]
    is_logarithmic = min(values) > 0 and max(values) / min(values) > 10**DECADES
    with rc_context({**STYLE, "svg.hashsalt": ascii(title)}):
        figure = Figure(figsize=(4.4, 2.3), layout="constrained")
        axes = figure.add_subplot()
        for index, series in enumerate(curves.values()):
            _draw_line(axes, series, index)
        _scale(axes, is_logarithmic)
        buffer = io.StringIO()
        figure.savefig(buffer, format="svg", transparent=True, metadata=dict.fromkeys(("Creator", "Date", "Format", "Type")))
    lasts = [number(series.values[-1]) if series.values else "-" for series in curves.values()]
    lines = [Line(label, i % COLOURS, i // COLOURS % 2 == 1, last) for i, (label, last) in enumerate(zip(curves, lasts, strict=True))]
    return Plot(title, _inline(buffer.getvalue()), lines, is_logarithmic)


def _draw_line(axes: Axes, series: Series, index: int) -> None:
    import numpy as np

    if not series.finite:
        return
    steps, values = np.asarray(series.finite, dtype=float).T
    colour, dash = f"#0300{index % COLOURS:02d}", "--" if index // COLOURS % 2 else "-"
    if len(values) > MANY:
        axes.plot(*thin(steps, values), color=colour, alpha=0.3, linewidth=0.6)
        kept = np.linspace(0, len(values) - 1, min(len(values), POINTS)).round().astype(int)
        axes.plot(steps[kept], smooth(values, max(5, len(values) // 40))[kept], color=colour, linewidth=1.4, linestyle=dash)
    else:
        axes.plot(steps, values, color=colour, linewidth=1.4, linestyle=dash, marker="o" if len(values) <= 30 else "", markersize=2.5)


def _scale(axes: Axes, is_logarithmic: bool) -> None:
    from matplotlib.ticker import EngFormatter, FuncFormatter, MaxNLocator, NullFormatter

    axes.xaxis.set_major_locator(MaxNLocator(6, steps=[1, 2, 5, 10], integer=True))
    axes.xaxis.set_major_formatter(EngFormatter(sep=""))
    axes.set_xlabel("step")
    axes.tick_params(length=0)
    axes.xaxis.grid(False)
    if is_logarithmic:
        axes.set_yscale("log")
        axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: number(value)))
        axes.yaxis.set_minor_formatter(NullFormatter())
    else:
        axes.yaxis.set_major_locator(MaxNLocator(5))


def smooth(values: np.ndarray, window: int) -> np.ndarray:
    """Average (N,) values over `window` neighbours, centred; at the ends over those there are. `window` is at most N."""
    import numpy as np

    kernel = np.ones(window)
    return np.convolve(values, kernel, "same") / np.convolve(np.ones_like(values), kernel, "same")


def thin(steps: np.ndarray, values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Reduce (N,) points to at most `POINTS`, keeping the lowest and the highest of each stretch, so that no spike is lost."""
    import numpy as np

    if len(values) <= POINTS:
        return steps, values
    stretches = np.array_split(np.arange(len(values)), POINTS // 2)
    kept = np.array([index for part in stretches for index in sorted((part[values[part].argmin()], part[values[part].argmax()]))])
    return steps[kept], values[kept]


def _inline(svg: str) -> Markup:
    """Cut matplotlib's SVG down to what an HTML page needs, with the page's colours in place of the stand-ins."""
    svg = svg[svg.index("<svg") :]
    svg = re.sub(r"<style.*?</style>", "", svg, flags=re.DOTALL)
    svg = re.sub(r'<g id="[^"]*">', "<g>", svg)
    svg = re.sub(r'<svg [^>]*viewBox="([^"]*)"[^>]*>', r'<svg viewBox="\1">', svg).replace("xlink:href", "href")
    svg = re.sub(r"#0300(\d\d)", lambda found: f"var(--series-{int(found[1])})", svg)
    svg = svg.replace(INK, "var(--muted)").replace(RULE, "var(--rule)")
    return Markup(re.sub(r"\s*\n\s*", "\n", svg))  # drawn from numbers alone: nothing in it comes from a file's text
