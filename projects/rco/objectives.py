"""What a student minimises against an anchor: its options, taps into the layers of both networks, and the terms with their adapters."""

from __future__ import annotations

import difflib
import weakref
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor, nn

from projects.rco import losses

KINDS = {"kd": (0.1, 0.9), "hint": (1.0, 200.0), "mimic": (0.0, 1.0), "dkd": (1.0, 1.0), "dist": (1.0, 1.0), "at": (1.0, 1000.0), "crd": (1.0, 0.8)}
"""The kinds of losses, each with its customary weight of the cross-entropy with the labels and of itself."""
CONTRAST_DIMENSIONS = 128


class Answer(NamedTuple):
    """What a network says about a batch: (B, K) or (B, d) outputs, and features by the name of their layer, see `Taps`."""

    outputs: Tensor
    features: dict[str, Tensor]


class _Tap:
    """A forward hook that keeps what a layer gives, or is given, while it is open. A copy of the network gets taps of its own, closed ones."""

    def __init__(self, is_input: bool) -> None:
        self.is_input, self.is_open = is_input, False
        self.found: list[object] = []

    def __call__(self, module: nn.Module, inputs: tuple[object, ...], output: object) -> None:
        if self.is_open:
            self.found.append(inputs[0] if self.is_input else output)


class Taps:
    """Runs a network and keeps features of some of its layers on the way, gradients and all.

    Layers are named as in `net.named_modules()`: `layer2` is what that layer gives, `fc:in` what goes into it. A layer that changes its input in
    place, such as nn.ReLU(inplace=True), also changes what was kept of the layer before. The hooks stay until `remove` is called or this object is
    gone. Under `net.compile()` tap first and compile then: a network that was compiled already does not see new hooks.

    Args:
        net: network, (B, ...) -> (B, K).
        layers: names of the layers, without repetition.

    Raises:
        ValueError: if there is no such layer.
    """

    def __init__(self, net: nn.Module, layers: Sequence[str]) -> None:
        self.net = net
        modules = dict(net.named_modules())
        for name in (layer.removesuffix(":in") for layer in layers):
            if name not in modules:
                close = difflib.get_close_matches(name, modules, n=4, cutoff=0.4)
                hint = f"did you mean {', '.join(close)}?" if close else f"its layers begin with {', '.join(list(modules)[1:6])}"
                raise ValueError(f"the {type(net).__name__} has no layer {name!r}: {hint}")
        self._taps = {layer: _Tap(layer.endswith(":in")) for layer in layers}
        handles = [modules[layer.removesuffix(":in")].register_forward_hook(tap) for layer, tap in self._taps.items()]
        self._finalizer = weakref.finalize(self, lambda: [handle.remove() for handle in handles])

    def __call__(self, inputs: Tensor) -> Answer:
        """Run the network.

        Raises:
            ValueError: if a layer was not run in the pass, was run several times, or gives something other than one tensor.
        """
        try:
            for tap in self._taps.values():
                tap.is_open = True
            outputs = self.net(inputs)
            return Answer(outputs, {layer: self._only(layer, tap.found) for layer, tap in self._taps.items()})
        finally:
            for tap in self._taps.values():
                tap.is_open, tap.found = False, []

    def _only(self, layer: str, found: list[object]) -> Tensor:
        if len(found) != 1:
            how = "was not run" if not found else f"was run {len(found)} times"
            raise ValueError(f"layer {layer!r} of the {type(self.net).__name__} {how} in one pass: tap a layer that is run once")
        if not isinstance(found[0], Tensor):
            raise ValueError(f"layer {layer!r} of the {type(self.net).__name__} gives a {type(found[0]).__name__}: tap a layer that gives one tensor")
        return found[0]

    def remove(self) -> None:
        """Take the hooks out of the network; taps that were removed find nothing."""
        self._finalizer()


@dataclass(frozen=True)
class Loss:
    """What the student minimises: a weighted sum of the cross-entropy with the labels and of one or more losses against the anchor.

    The plain form H + lambda tau^2 KL is `ce` 1 and `weights` {kd: lambda}; (1 - a) H + a tau^2 KL is `ce` 1 - a and {kd: a}.

    Args:
        kind: kd, hint, mimic, dkd, dist, at or crd, or several joined by + as in kd+hint.
        tau: temperature of kd, dkd and dist; null is the benchmarks' 4.
        ce: weight of the cross-entropy with the labels; 0 trains without labels. null is the kind's customary one: 0.1 for kd, 0 for mimic, 1 for the
            others; of several kinds the largest.
        weights: weight of each kind, as in {kd: 0.9}; kinds that are left out have their customary one: 0.9 for kd, 200 for hint (the benchmarks' 100
            for the mean squared error, of which the hint loss is half), 1000 for at, 0.8 for crd, 1 for mimic, dkd and dist.
        dkd_alpha: weight of the target's part of dkd.
        dkd_beta: weight of the other classes' part of dkd.
        dkd_warmup: epochs over which the weight of dkd grows linearly from 1 / dkd_warmup to 1; 0 starts with all of it.
        dist_beta: weight of the correlation over classes in dist.
        dist_gamma: weight of the correlation over samples in dist.
        normalise: bring the outputs of both networks to unit length before mimic compares them.
        hint_stage: stage of both networks that hint compares, 0 being the stem.
        student_layer: name of the student's layer for hint, instead of a stage; NAME:in is what goes into a layer.
        teacher_layer: name of the teacher's layer for hint, instead of a stage.
        regressor: of hint, for feature maps: bn_relu (1 x 1 convolution, batch normalisation, ReLU) or plain (the convolution alone). Vectors always
            have a linear layer.
        hint_epochs: number of first epochs that train by the hint alone, all others doing without it (the two phases of FitNets); 0 trains by all
            terms jointly.

    Raises:
        ValueError: for an unknown kind or an option out of range.
    """

    kind: str = "kd"
    tau: float | None = None
    ce: float | None = None
    weights: dict[str, float] | None = None
    dkd_alpha: float = 1.0
    dkd_beta: float = 8.0
    dkd_warmup: int = 20
    dist_beta: float = 2.0
    dist_gamma: float = 2.0
    normalise: bool = False
    hint_stage: int = 2
    student_layer: str | None = None
    teacher_layer: str | None = None
    regressor: str = "bn_relu"
    hint_epochs: int = 0

    def __post_init__(self) -> None:
        for kind in self.kinds:
            if kind not in KINDS:
                raise ValueError(f"loss.kind {self.kind!r} has an unknown part {kind!r}: choose of {', '.join(KINDS)}, several joined by +")
        if len(set(self.kinds)) < len(self.kinds):
            raise ValueError(f"loss.kind {self.kind!r} names a loss twice: name it once and give it a weight in loss.weights")
        if unused := set(self.weights or {}) - set(self.kinds):
            raise ValueError(f"loss.weights has {', '.join(sorted(unused))}, but loss.kind is {self.kind!r}: add it there or leave it out here")
        if self.tau is not None and not self.tau > 0:
            raise ValueError(f"loss.tau must be above 0, or null for 4, got {self.tau}")
        for name in ("dkd_alpha", "dkd_beta", "dkd_warmup", "dist_beta", "dist_gamma", "hint_stage", "hint_epochs"):
            if not getattr(self, name) >= 0:
                raise ValueError(f"loss.{name} must be 0 or more, got {getattr(self, name)}")
        if self.regressor not in ("plain", "bn_relu"):
            raise ValueError(f"loss.regressor must be plain or bn_relu, got {self.regressor!r}")
        self._check_weights()

    def _check_weights(self) -> None:
        weights = {"ce": self.ce_weight, **{kind: self.weight(kind) for kind in self.kinds}}
        for name, weight in weights.items():
            if not 0 <= weight < float("inf"):
                raise ValueError(f"loss.{name if name == 'ce' else f'weights.{name}'} must be 0 or more, and finite, got {weight}")
        if not any(weights.values()):
            raise ValueError("loss.ce and all of loss.weights are 0: nothing is left to train by; give one of them a weight")
        if self.hint_epochs and not weights.get("hint"):
            raise ValueError("loss.hint_epochs needs a hint to begin with: add +hint to loss.kind, with a weight above 0, or set it to 0")
        if self.hint_epochs and not any(weight for name, weight in weights.items() if name != "hint"):
            raise ValueError("loss.hint_epochs leaves nothing to train by after the hint: add kd+ to loss.kind or set loss.ce above 0")

    @property
    def kinds(self) -> list[str]:
        """The kinds in the order given."""
        return self.kind.split("+")

    @property
    def ce_weight(self) -> float:
        """Weight of the cross-entropy with the labels."""
        return max(KINDS[kind][0] for kind in self.kinds) if self.ce is None else self.ce

    @property
    def temperature(self) -> float:
        """Temperature of kd, dkd and dist."""
        return 4.0 if self.tau is None else self.tau

    def weight(self, kind: str) -> float:
        """Weight of one of the kinds."""
        return (self.weights or {}).get(kind, KINDS[kind][1])


class _Term(nn.Module):
    """One loss against the anchor, without its weight; the adapters it needs are its modules."""

    def __init__(self, student_layers: Sequence[str] = (), teacher_layers: Sequence[str] = ()) -> None:
        super().__init__()
        self.student_layers, self.teacher_layers = list(student_layers), list(teacher_layers)

    def forward(self, student: Answer, teacher: Answer, labels: Tensor, epoch: int) -> Tensor:
        raise NotImplementedError


class _OnOutputs(_Term):
    """Losses that compare logits: ce, kd, dkd and dist."""

    def __init__(self, kind: str, loss: Loss) -> None:
        super().__init__()
        self.kind, self.loss = kind, loss

    def forward(self, student: Answer, teacher: Answer, labels: Tensor, epoch: int) -> Tensor:
        loss, tau = self.loss, self.loss.temperature
        if self.kind == "ce":
            return losses.cross_entropy(student.outputs, labels)
        if self.kind == "kd":
            return losses.kd_loss(student.outputs, teacher.outputs, tau)
        if self.kind == "dist":
            return losses.dist_loss(student.outputs, teacher.outputs, loss.dist_beta, loss.dist_gamma, tau)
        grown = min((epoch + 1) / loss.dkd_warmup, 1.0) if loss.dkd_warmup else 1.0  # the benchmarks count epochs from 1
        return grown * losses.dkd_loss(student.outputs, teacher.outputs, labels, loss.dkd_alpha, loss.dkd_beta, tau)


class _Mimic(_Term):
    def __init__(self, student: Tensor, teacher: Tensor, normalise: bool) -> None:
        super().__init__()
        widths = student.shape[1], teacher.shape[1]
        self.adapter = nn.Identity() if widths[0] == widths[1] else nn.Linear(*widths)
        self.normalise = normalise

    def forward(self, student: Answer, teacher: Answer, labels: Tensor, epoch: int) -> Tensor:
        return losses.mimic_loss(self.adapter(student.outputs), teacher.outputs, self.normalise)


class _Hint(_Term):
    def __init__(self, layers: tuple[str, str], student: Tensor, teacher: Tensor, regressor: str) -> None:
        super().__init__(layers[:1], layers[1:])
        if student.dim() != teacher.dim() or student.dim() not in (2, 4):
            raise ValueError(
                f"hint compares maps with maps or vectors with vectors, but the student's {layers[0]!r} gives {tuple(student.shape)} and the "
                f"teacher's {layers[1]!r} {tuple(teacher.shape)}: choose others by loss.student_layer and loss.teacher_layer"
            )
        widths = student.shape[1], teacher.shape[1]
        self.regressor: nn.Module = nn.Linear(*widths) if student.dim() == 2 else nn.Conv2d(*widths, 1)
        if student.dim() == 4 and regressor == "bn_relu":
            self.regressor = nn.Sequential(nn.Conv2d(*widths, 1, bias=False), nn.BatchNorm2d(widths[1]), nn.ReLU())

    def forward(self, student: Answer, teacher: Answer, labels: Tensor, epoch: int) -> Tensor:
        guided, hint = student.features[self.student_layers[0]], teacher.features[self.teacher_layers[0]]
        if guided.dim() == 4:
            guided, hint = losses.pooled_to_equal(guided, hint)
        return losses.hint_loss(self.regressor(guided), hint)


class _Attention(_Term):
    """Sum over pairs of stages."""

    def __init__(self, pairs: list[tuple[str, str]], student: Answer, teacher: Answer) -> None:
        super().__init__([ours for ours, _ in pairs], [theirs for _, theirs in pairs])
        for who, answer, layers in (("student", student, self.student_layers), ("teacher", teacher, self.teacher_layers)):
            for name in layers:
                if answer.features[name].dim() != 4:
                    shape = tuple(answer.features[name].shape)
                    raise ValueError(f"at needs feature maps (B, C, H, W), but the {who}'s {name!r} gives {shape}: take another loss.kind")

    def forward(self, student: Answer, teacher: Answer, labels: Tensor, epoch: int) -> Tensor:
        pairs = zip(self.student_layers, self.teacher_layers, strict=True)
        return torch.stack([losses.attention_loss(student.features[ours], teacher.features[theirs]) for ours, theirs in pairs]).sum()


class _Contrast(_Term):
    """Penultimate features of both networks, (B, ...), projected by linear layers, which are both trained."""

    def __init__(self, layers: tuple[str, str], student: Tensor, teacher: Tensor) -> None:
        super().__init__(layers[:1], layers[1:])
        self.student = nn.Linear(student[0].numel(), CONTRAST_DIMENSIONS)
        self.teacher = nn.Linear(teacher[0].numel(), CONTRAST_DIMENSIONS)

    def forward(self, student: Answer, teacher: Answer, labels: Tensor, epoch: int) -> Tensor:
        ours, theirs = student.features[self.student_layers[0]], teacher.features[self.teacher_layers[0]]
        return losses.contrast_loss(self.student(ours.flatten(1)), self.teacher(theirs.flatten(1)), labels)


class Objective(nn.Module):
    """The weighted terms that a student is trained by; its parameters are adapters, trained with the student. Built by `build_objective`.

    With `hint_epochs`, parameters beyond the guided layer get no gradient in the first epochs and the regressor none in later ones, which several
    processes have to be told of (`ddp_find_unused_parameters_true`); the same holds for a student trained by hints alone.

    Attributes:
        student_layers: layers of the student to be tapped, see `Taps`.
        teacher_layers: layers of the teacher to be tapped; empty where its outputs are enough, and may be cached.
    """

    def __init__(self, terms: dict[str, _Term], weights: dict[str, float], hint_epochs: int = 0) -> None:
        super().__init__()
        self.terms = nn.ModuleDict(terms)
        self.weights, self.hint_epochs = weights, hint_epochs
        self.student_layers = list(dict.fromkeys(layer for term in terms.values() for layer in term.student_layers))
        self.teacher_layers = list(dict.fromkeys(layer for term in terms.values() for layer in term.teacher_layers))

    def forward(self, student: Answer, teacher: Answer, labels: Tensor, epoch: int) -> dict[str, Tensor]:
        """Return the weighted terms by name (ce, kd, ...), scalars whose sum is the loss.

        Args:
            student: its answer on a batch, with the features of `student_layers`.
            teacher: its answer on the same batch, without gradients, with the features of `teacher_layers`.
            labels: (B,) classes, -1 where unknown; only ce, dkd and crd look at them.
            epoch: of the student, from 0.
        """
        running = [name for name in self.terms if not self.hint_epochs or (name == "hint") == (epoch < self.hint_epochs)]
        return {name: self.weights[name] * self.terms[name](student, teacher, labels, epoch) for name in running}


def build_objective(loss: Loss, student: nn.Module, teacher: nn.Module, example: Tensor) -> Objective:
    """Build the terms of a loss and the adapters between two networks, with random weights from torch's global generator.

    Terms of weight 0 are left out. at pairs the stages of both networks after the stem, from the last one backwards if their numbers differ.

    Args:
        loss: options.
        student: (B, ...) -> (B, K) or (B, d).
        teacher: (B, ...) -> (B, K) or (B, d).
        example: (1, ...) input, to learn the shapes of the layers; both networks are left as they were.

    Raises:
        ValueError: if the networks have not the layers that the loss compares, or these cannot be compared.
    """
    kinds = [kind for kind in loss.kinds if loss.weight(kind)]
    pairs = {kind: _layer_pairs(kind, loss, student, teacher) for kind in kinds}
    ours = _probe(student, [ours for layers in pairs.values() for ours, _ in layers], example)
    theirs = _probe(teacher, [theirs for layers in pairs.values() for _, theirs in layers], example)
    terms: dict[str, _Term] = {"ce": _OnOutputs("ce", loss)} if loss.ce_weight else {}
    terms |= {kind: _build_term(kind, loss, pairs[kind], ours, theirs) for kind in kinds}
    weights = {"ce": loss.ce_weight, **{kind: loss.weight(kind) for kind in kinds}}
    return Objective(terms, weights, loss.hint_epochs).to(ours.outputs.device, ours.outputs.dtype)


def _layer_pairs(kind: str, loss: Loss, student: nn.Module, teacher: nn.Module) -> list[tuple[str, str]]:
    """Names of the student's and the teacher's layers that a loss compares."""
    from projects.rco import networks

    if kind == "hint":
        return [(loss.student_layer or _stage(student, loss, "student"), loss.teacher_layer or _stage(teacher, loss, "teacher"))]
    if kind == "at":
        stages = list(zip(networks.stages(student)[:0:-1], networks.stages(teacher)[:0:-1], strict=False))[::-1]
        if not stages:
            raise ValueError("at needs stages after the stem in both networks, but one has none: take another loss.kind")
        return stages
    if kind == "crd":
        return [(f"{networks.classifier(student)}:in", f"{networks.classifier(teacher)}:in")]
    return []


def _stage(net: nn.Module, loss: Loss, who: str) -> str:
    from projects.rco.networks import stages

    names = stages(net)
    if loss.hint_stage >= len(names):
        raise ValueError(
            f"loss.hint_stage is {loss.hint_stage}, but the stages of the {who} are 0 to {len(names) - 1} ({', '.join(names)}): "
            f"choose one of these, or a layer by loss.{who}_layer"
        )
    return names[loss.hint_stage]


def _probe(net: nn.Module, layers: list[str], example: Tensor) -> Answer:
    """Run a network in eval mode on the example, and leave it as it was."""
    taps, modes = Taps(net, list(dict.fromkeys(layers))), [(module, module.training) for module in net.modules()]
    try:
        with torch.no_grad():
            net.eval()
            return taps(example)
    finally:
        taps.remove()
        for module, mode in modes:
            module.training = mode


def _build_term(kind: str, loss: Loss, layers: list[tuple[str, str]], student: Answer, teacher: Answer) -> _Term:
    widths = student.outputs.shape[1], teacher.outputs.shape[1]
    if kind in ("kd", "dkd", "dist"):
        if widths[0] != widths[1]:
            raise ValueError(f"{kind} compares class by class, but the student has {widths[0]} outputs and the teacher {widths[1]}: make them equal")
        return _OnOutputs(kind, loss)
    if kind == "mimic":
        return _Mimic(student.outputs, teacher.outputs, loss.normalise)
    if kind == "at":
        return _Attention(layers, student, teacher)
    ours, theirs = student.features[layers[0][0]], teacher.features[layers[0][1]]
    return _Hint(layers[0], ours, theirs, loss.regressor) if kind == "hint" else _Contrast(layers[0], ours, theirs)
