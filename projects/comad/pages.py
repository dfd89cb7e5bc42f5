"""Pages of what an inspector learnt: one of the product, and one of each component; each is a file that needs no other, and runs no scripts."""

from __future__ import annotations

import base64
import io
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from projects.comad.data import Pictures
from projects.comad.distributions import HEIGHT, WIDTH, Distribution
from projects.comad.figures import Examples, component_rows, legend
from projects.comad.inspector import Inspector
from projects.comad.measures import unpack
from projects.comad.naming import Rule, check_rules, name_anomalies, sentence
from shared.report.values import Table, make_table, text
from shared.runs import write_text

if TYPE_CHECKING:
    from jinja2 import Environment

INDEX = "index.html"
ODD = 5
"""Training pictures that are shown since they look least like the others."""
NOISY = 0.02
"""Part of a component's pieces that fit no size class from which on the page says what may be done."""
OWN_FORMS = (
    ("component.{k}.weight=0", "how much a component counts; 0 silences it"),
    ("component.{k}.name=NAME", "what texts call it"),
    ("rule={k}:number:{number}:{number}", "interval of a measure, component:measure:least:most; rule=none takes all away"),
)
FORMS = (
    *OWN_FORMS,
    ("background.weight=0", "whether what is no component counts"),
    ("quantile=0.99", "part of the good validation pictures that do not alarm"),
    ("parts=logical,patches", "scores that are fused"),
    ("fusion=max", "how: sum, zscore, trimmed-z, max or rank"),
)
"""Changes that there are, and what they mean: those of a component, and all."""
_DIMMED = 0.4


@dataclass(frozen=True)
class Adjusted:
    """What was adjusted: the file that was written, what is different, before and after, and the command to use it."""

    file: str
    compared: list[dict[str, Any]]
    command: str


@dataclass(frozen=True)
class Content:
    """What pages are made of.

    Attributes:
        inspector: the inspector.
        pictures: the training pictures.
        examples: some of them.
        measured: distributions of all components' measures.
        adjusted: what was changed just now, if anything.
        command: that changes something, but for what.
    """

    inspector: Inspector
    pictures: Pictures
    examples: Examples
    measured: list[Distribution]
    adjusted: Adjusted | None
    command: str


def write_pages(folder: Path, content: Content) -> None:
    """Write `index.html`, and `component_<k>.html` of each component; pages of other components, of an earlier inspector, are removed."""
    components, common = _components(content.inspector), {"width": WIDTH, "height": HEIGHT, "command": content.command}
    for earlier in folder.glob("component_*.html"):
        if earlier.name not in [component["page"] for component in components]:
            earlier.unlink()
    pages = {component["page"]: ("component.html.jinja", _component(content, place, components)) for place, component in enumerate(components)}
    pages[INDEX] = ("inspection.html.jinja", _index(content, components))
    for name, (template, values) in pages.items():
        page = _environment().get_template(template).render(common | values)
        write_text(folder / name, page.encode("utf-8", "replace").decode("utf-8"))  # names of files need not be UTF-8


def _components(inspector: Inspector) -> list[dict[str, Any]]:
    """Return the table's rows, each with its page, its colour, what it is called, and how many pieces a picture has."""
    colours, pictures = [colour for colour, _ in legend(inspector)], len(inspector.scorer.training)
    rows = []
    for row in component_rows(inspector):
        k = row["component"]
        added = {
            "page": f"component_{k}.html",
            "swatch": colours[k],
            "called": inspector.judgement.called(k),
            "pieces each": row["pieces"] / pictures,
        }
        rows.append(row | added)
    return rows


def _index(content: Content, components: list[dict[str, Any]]) -> dict[str, Any]:
    inspector, examples, judgement = content.inspector, content.examples, content.inspector.judgement
    facts = {
        "Training pictures": len(content.pictures),
        "Validation pictures": inspector.about.get("validation", "-"),
        "Fused scores": ", ".join(judgement.parts),
        "Fusion": judgement.fusion,
        "Threshold": text(inspector.threshold),
        "Quantile of validation": text(judgement.quantile),
        "Weight of the background": text(judgement.background),
        "Features": inspector.features.name,
    }
    shown = zip(examples.names, examples.images, examples.coloured, strict=True)
    adjusted = content.adjusted
    compared = make_table(["", "before", "after"], [list(row.values()) for row in adjusted.compared]) if adjusted else None
    compared = compared and replace(compared, aligned=[False] * 3)
    return {
        "product": inspector.about.get("product", "product"),
        "facts": facts,
        "components": components,
        "examples": [(name, _embedded(image), _embedded(coloured)) for name, image, coloured in shown],
        "legend": legend(inspector),
        "rules": _rules(inspector, judgement.rules),
        "changes": judgement.changes,
        "adjusted": adjusted,
        "compared": compared,
        "forms": _forms(inspector, 0, FORMS),
        "odd": _odd(content),
    }


def _odd(content: Content) -> list[tuple[str, str, str, str]]:
    """Return name, picture, leave-one-out score and words of the training pictures that look least like the others, the oddest first."""
    scorer, weights = content.inspector.scorer, content.inspector.weights
    if len(scorer.training) < 2:
        return []
    scores = scorer.training_scores(weights).logical
    findings = name_anomalies(scorer.training, scorer.training, weights, leave_out=True)
    names, pictures = content.inspector.judgement.names, content.pictures
    places: list[int] = scores.argsort(descending=True)[:ODD].tolist()
    return [(pictures.name(k), _embedded(pictures[k]["image"]), text(float(scores[k])), sentence(findings[k], names)) for k in places]


def _component(content: Content, place: int, components: list[dict[str, Any]]) -> dict[str, Any]:
    inspector, examples, own = content.inspector, content.examples, components[place]
    training, report = inspector.scorer.training, inspector.metrology.report()[place]
    facts = {
        "Weight": text(own["weight"]),
        "Mean area": f"{text(report['area'])} px, {own['area %']:.3g} % of the picture",
        "Pieces a picture": f"{own['pieces each']:.3g}",
        "Multiplier of Otsu's threshold": text(own["offset"]),
    }
    masks = training.unpacked(examples.places)[:, place]
    classes = [[size, found["pieces"], found["from"], found["to"]] for size, found in enumerate(report["classes"])]
    return {
        "product": inspector.about.get("product", "product"),
        "own": own,
        "others": components,
        "facts": facts,
        "cut_outs": [(name, _embedded(_cut_out(image, mask))) for name, image, mask in zip(examples.names, examples.images, masks, strict=True)],
        "presence": _embedded(_presence(inspector, place)),
        "measures": [(one, one.row, one.chart()) for one in content.measured if one.component == own["component"]],
        "forms": _forms(inspector, place, OWN_FORMS),
        "classes": make_table(["size", "training pieces", "from, pixels", "to, pixels"], classes) if classes else None,
        "noise": report["noise"],
        "is_noisy": report["noise"] >= NOISY or len(report["classes"]) > 1,
        "is_split": inspector.metrology.settings.split,
        "rules": _rules(inspector, [rule for rule in inspector.judgement.rules if rule.component == own["component"]]),
    }


def _rules(inspector: Inspector, rules: Sequence[Rule]) -> Table | None:
    """Make a table of rules, with the training pictures that break each: these are good ones."""
    if not rules:
        return None
    broken = [violation.rule for found in check_rules(inspector.scorer.training, rules) for violation in found]
    rows = [[inspector.judgement.called(rule.component), rule.measure, rule.low, rule.high, broken.count(rule)] for rule in rules]
    return make_table(["of", "measure", "least", "most", "training pictures that break it"], rows)


def _forms(inspector: Inspector, place: int, forms: Sequence[tuple[str, str]]) -> Table:
    """Make a table of changes, those of components for one of them."""
    training = inspector.scorer.training
    values = {"k": training.components[place], "number": int(training.number[:, place].median())}
    return make_table(["change", ""], [[form.format(**values), what] for form, what in forms])


def _cut_out(image: Tensor, mask: Tensor) -> Tensor:
    """Show where a component is: the rest of the picture, (3, H, W) uint8, in dimmed grey."""
    dimmed = (_DIMMED * image.float().mean(0, keepdim=True)).byte()
    return torch.where(mask, image, dimmed)


def _presence(inspector: Inspector, place: int) -> Tensor:
    """Return how often each pixel belongs to a component, from black for never to pale yellow for always, (3, H, W) uint8."""
    from shared.pictures import heat

    training = inspector.scorer.training
    return (heat(unpack(training.masks[:, place], training.size).float().mean(0)) * 255).byte()


def _embedded(image: Tensor) -> str:
    """Return a picture, (3, H, W) uint8, as the address of a PNG."""
    from torchvision.transforms.functional import to_pil_image

    buffer = io.BytesIO()
    to_pil_image(image.cpu()).save(buffer, "PNG")
    return f"data:image/png;base64,{base64.b64encode(buffer.getvalue()).decode()}"


@cache
def _environment() -> Environment:
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    import shared.report

    folders = [Path(__file__).parent, Path(shared.report.__file__).parent]
    environment = Environment(loader=FileSystemLoader(folders), autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    environment.filters |= {"text": text}
    return environment
