"""The student under Lightning, taught by one state of the teacher after the other."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple, cast

import lightning as L
import torch
from lightning.fabric.utilities import move_data_to_device
from lightning.pytorch.utilities.types import OptimizerLRScheduler
from torch import Tensor, nn
from torch.nn import functional as F

from projects.rco.anchors import Recording, Route
from projects.rco.guide import AnchorNet
from projects.rco.judging import Answers, Collected, congruence, distances, measures
from projects.rco.networks import build_network
from projects.rco.objectives import Answer, Loss, Objective, Taps, build_objective
from projects.rco.recipes import Recipe
from projects.rco.walking import RouteScheduler, Walk
from shared.data.files import first_few
from shared.distributed import gather_rows
from shared.seeding import derive_seed
from shared.training import check_finite, evaluating

if TYPE_CHECKING:
    from projects.rco.data import DistillationData, Which

_log = logging.getLogger(__name__)
CACHED = 2**28
"""Most numbers of a teacher's outputs that are kept between epochs: 1 GiB of float32."""
ON_SCORES = {"kd", "dkd", "dist"}
"""Losses of class scores."""
STUDENT = Recipe(lr=0.02, weight_decay=1e-4)
TEACHER = Recipe(lr=0.02, weight_decay=1e-4)


class Lessons(NamedTuple):
    """What a training along a route needs beside the student; none of it is kept of the student.

    Attributes:
        route: the teacher's states.
        guide: the teacher; no part of the module, so not in its checkpoints, its optimiser or what processes exchange.
        objective: what the student minimises; its adapters are trained along.
        scheduler: which state teaches when.
        student: runs the student, with the layers that are compared.
        teacher: runs the teacher, with the layers that are compared.
    """

    route: Route
    guide: AnchorNet
    objective: Objective
    scheduler: RouteScheduler
    student: Taps
    teacher: Taps


class RouteDistillation(L.LightningModule):
    """A student that follows the route which its teacher took: easy states first, the converged one last.

    Args:
        shape: of an input; the data tell it.
        classes: K; the data tell it.
        teacher: name of the teacher's network; a route that is there already tells its own.
        student: name of the student's network, such as mlp_16, resnet20, mobilenetv2_0.5 or timm:mobilenetv3_small_050.
        embedding: length of the embedding that faces are compared by; null is a classifier.
        route: folder with a route, or a run that has one (latest is the newest); null trains a teacher first.
        walk: which states of the route are the anchors, and how long each teaches.
        loss: what is asked of the student.
        learning: how the student is trained, for trainer.max_epochs epochs.
        teaching: how the teacher is trained.
        teacher_epochs: epochs of the teacher; null is trainer.max_epochs.
        recording: which states of the teacher are stored.
        cache: keeps the teacher's outputs on the training set while an anchor teaches; null does so where nothing is augmented and they fit.
        channels_last: lays images out for tensor cores; null does so on a GPU.
        seed: of the weights and of random anchors.
    """

    if TYPE_CHECKING:
        hparams: Any  # the arguments below, by name

    def __init__(
        self,
        shape: list[int],
        classes: int,
        teacher: str = "mlp_800",
        student: str = "mlp_16",
        embedding: int | None = None,
        route: str | None = None,
        walk: Walk = Walk(),  # noqa: B008 - frozen
        loss: Loss = Loss(),  # noqa: B008
        learning: Recipe = STUDENT,
        teaching: Recipe = TEACHER,
        teacher_epochs: int | None = None,
        recording: Recording = Recording(),  # noqa: B008
        cache: bool | None = None,
        channels_last: bool | None = None,
        seed: int = 0,
    ) -> None:
        super().__init__()
        self.save_hyperparameters(ignore=["walk", "loss", "learning", "teaching", "recording"])
        self.walk, self.loss, self.learning, self.teaching, self.recording = walk, loss, learning, teaching, recording
        if embedding is not None and (loss.ce_weight or ON_SCORES & set(loss.kinds)):
            said = f"loss.kind {loss.kind} with loss.ce {loss.ce_weight:g}"
            raise ValueError(f"{said} is of class scores, and model.embedding makes vectors: take loss.kind mimic, with loss.ce 0")
        if teacher_epochs is not None and teacher_epochs < 1:
            raise ValueError(f"model.teacher_epochs must be at least 1, or null for trainer.max_epochs, got {teacher_epochs}")
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(derive_seed(seed, "rco student"))
            self.student = build_network(student, shape, embedding or classes)
        self.route: Route | None = None
        """What the student is trained along, and compared with in tests; None reads `route` when a training begins."""
        self.objective: Objective | None = None  # as a part of the module its adapters are exchanged between processes
        self._lessons: Lessons | None = None
        self.leg = 0
        """Number of the leg that the student is on, from 1."""
        self.taught = 0
        """Samples that the teacher has seen while the student was trained."""
        self.cached: tuple[int, Tensor] | None = None  # an anchor and its (N, ...) outputs on the training set
        self.finals: dict[str, Tensor] = {}  # the converged teacher's outputs on the samples held out
        self.terms: list[Tensor] = []
        self.class_names: list[str] = []
        """Names of the classes of what the student was trained on."""
        self.reports_training = False
        """Whether a test also says how far the student is from the converged teacher on the training set."""

    @property
    def embeds(self) -> bool:
        """Whether outputs are embeddings, rather than logits."""
        return self.hparams.embedding is not None

    @property
    def width(self) -> int:
        """Numbers of an answer: K, or d."""
        return self.hparams.embedding or self.hparams.classes

    @property
    def find_unused_parameters(self) -> bool:
        """Whether some parameters have no gradient in some epochs, as the classifier has none from hints."""
        return self.loss.hint_epochs > 0 or not (self.loss.ce_weight or {*ON_SCORES, "mimic"} & set(self.loss.kinds))

    def forward(self, inputs: Tensor) -> Tensor:
        """Map (B, ...) inputs, normalised as the data are, to (B, K) logits or (B, d) embeddings."""
        return self.student(inputs)

    # ---- training

    def setup(self, stage: str) -> None:
        given, data = self.hparams, self.data
        if list(data.shape) != list(given.shape) or (data.classes != given.classes and not self.embeds):
            raise ValueError(f"the student takes {given.shape} to {given.classes} classes, the data are {data.shape} with {data.classes}")
        if stage == "test" and not self.embeds and self.class_names not in ([], list(data.class_names)):
            said = f"the student learnt the classes {_listed(self.class_names)}, the data have {_listed(data.class_names)}"
            raise ValueError(f"{said}: test it on the classes that it learnt")
        if stage != "fit" or self._lessons is not None:
            return
        self.class_names = list(data.class_names)
        self.route = route = self.route or Route.load(given.route or _no_route())
        guide = self.guide_of(route)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(derive_seed(given.seed, "rco objective"))
            self.objective = objective = build_objective(self.loss, self.student, guide.net, torch.zeros(1, *given.shape))
        self._epochs = self.trainer.max_epochs
        if not self._epochs or self._epochs < 1:
            raise ValueError("a walk deals epochs out to anchors: set trainer.max_epochs, not trainer.max_steps")
        scheduler = RouteScheduler(self.walk, route, self._epochs, given.seed)
        self.check_walk(data, self._epochs)
        if data.held_set is not None and (theirs := route.about.get("division", data.division)) != data.division:
            _log.warning("the teacher learnt samples that are held out here, and looks better on them: it had %s, this is %s", theirs, data.division)
        guide.check({*(leg.anchor for leg in scheduler.legs), *scheduler.candidates()})
        taps = Taps(self.student, objective.student_layers), Taps(guide.net, objective.teacher_layers)
        self._lessons = Lessons(route, guide, objective, scheduler, *taps)
        self.trainer.fit_loop.max_epochs = scheduler.total

    def check_walk(self, data: DistillationData, epochs: int) -> None:
        """Refuse, before a teacher is trained, a walk that the data or the student's epochs do not allow.

        Raises:
            ValueError: if states are to be judged, and no samples are held out of training, or if hints leave no epoch to all other terms.
        """
        if self.loss.hint_epochs and self.loss.hint_epochs >= epochs:
            raise ValueError(
                f"loss.hint_epochs {self.loss.hint_epochs} leaves none of the student's {epochs} epochs to loss.kind {self.loss.kind} beyond the "
                "hint, and what follows the guided layer would never be trained: make it smaller, or trainer.max_epochs larger"
            )
        if self.walk.choice == "greedy" and data.held_set is None:
            raise ValueError("walk.choice greedy judges states on samples held out of training: set data.held_out, such as 0.1")

    @property
    def lessons(self) -> Lessons:
        """What the present training needs."""
        assert self._lessons is not None, "the module is not in training"
        return self._lessons

    @property
    def data(self) -> DistillationData:
        """The data module that the trainer works with."""
        return self.trainer.datamodule  # type: ignore[attr-defined]

    def guide_of(self, route: Route) -> AnchorNet:
        """Return the teacher of a route, not yet in any state.

        Raises:
            ValueError: if it answers in another form than the student.
        """
        about, given = route.about, self.hparams
        if missing := [name for name in ("network", "shape", "outputs") if name not in about]:
            mend = 'record it with AnchorRecorder(about={"network": ..., "shape": ..., "outputs": ...}), or add them under about'
            raise ValueError(f"{route.folder}/route.json does not tell the teacher's {', '.join(missing)}: {mend}")
        expected = (list(given.shape), given.embedding or given.classes, self.embeds)
        if (found := (list(about["shape"]), about["outputs"], bool(about.get("embeds")))) != expected:
            said = "the route's teacher takes {} to {} outputs (embedding: {}), the student {} to {} ({}): make them equal"
            raise ValueError(f"{route.folder}: " + said.format(*found, *expected))
        if "task" in about and about["task"] != self.data.task:
            raise ValueError(f"{route.folder}: the route's teacher learnt {about['task']}, and the data are {self.data.task}: make them equal")
        if not self.embeds and "class_names" in about and about["class_names"] != (names := list(self.data.class_names)):
            said = f"the route's teacher learnt the classes {_listed(about['class_names'])}, the data have {_listed(names)}"
            raise ValueError(f"{route.folder}: {said}: its scores would be of other classes; give both the same")
        return AnchorNet(build_network(about["network"], about["shape"], about["outputs"]), route)

    def teardown(self, stage: str) -> None:
        if self._lessons is not None:
            self._lessons.student.remove()
            self._lessons.guide.close()
            self.trainer.fit_loop.max_epochs = self._epochs
        self.objective = self._lessons = self.cached = None
        self.finals = {}

    def on_fit_start(self) -> None:
        guide = self.lessons.guide
        layout = torch.channels_last if self._is_channels_last else torch.contiguous_format
        self.student.to(memory_format=layout)
        self.trainer.precision_plugin.convert_module(guide.net)
        guide.to(self.device, layout).at(self.lessons.route.final)
        if self.data.held_set is not None:
            self.finals["val"] = self.outputs_on("held", guide.net)

    @property
    def _is_channels_last(self) -> bool:
        wanted = self.hparams.channels_last
        return len(self.hparams.shape) == 3 and (self.device.type == "cuda" if wanted is None else wanted)

    def on_train_start(self) -> None:
        self.terms = []
        self._enter(self.current_epoch)  # a training that resumes within an epoch has no start of it

    def on_train_epoch_start(self) -> None:
        self.terms = []
        self._enter(self.current_epoch)

    def _enter(self, epoch: int) -> None:
        """Let the anchor of an epoch teach, choosing it first if need be; it stays as it is within a leg."""
        guide, scheduler = self.lessons.guide, self.lessons.scheduler
        if scheduler.needs_choice(epoch):
            scheduler.advance(self.congruences([scheduler.legs[-1].anchor, *scheduler.candidates()]))
            self.trainer.fit_loop.max_epochs = scheduler.total
        leg = scheduler.leg(epoch)
        is_new = leg.number != self.leg  # else training resumes within it
        if is_new and self.leg and self.walk.budget == "restart":
            self._start_afresh(epoch)
        self.leg = leg.number
        guide.at(leg.anchor)
        if leg.number < len(scheduler.legs):
            guide.prefetch(scheduler.legs[leg.number].anchor)
        if self._caches and (self.cached is None or self.cached[0] != leg.anchor):
            self.cached = (leg.anchor, self.outputs_on("train", guide.net))
            self.taught += is_new * len(self.cached[1])

    def _start_afresh(self, epoch: int) -> None:
        """Begin a leg with an optimiser that knows nothing of the last one, at the beginning of the learning rate's schedule."""
        optimizer = cast(torch.optim.Optimizer, self.optimizers())
        optimizer.state.clear()
        for group in optimizer.param_groups:  # a leg that was chosen just now the schedule did not know
            group["lr"] = group["initial_lr"] * self.learning.factor(*self.lessons.scheduler.epoch_in_schedule(epoch))

    @property
    def _caches(self) -> bool:
        """Whether the teacher's outputs on the training set are kept while an anchor teaches.

        Raises:
            ValueError: if they are to be, but differ from epoch to epoch or are not all that is compared.
        """
        varies, wanted = self.data.is_augmented or bool(self.lessons.objective.teacher_layers), self.hparams.cache
        if wanted and varies:
            raise ValueError("model.cache keeps outputs on unaugmented samples: set data.augment to false, and take a loss of outputs alone")
        fits = len(self.data.train_set) * self.width <= CACHED  # type: ignore[arg-type]
        return not varies and (fits if wanted is None else wanted)

    def training_step(self, batch: Mapping[str, Tensor], batch_idx: int) -> Tensor:
        inputs, labels, lessons = batch["input"], batch["label"], self.lessons
        if self._is_channels_last:
            inputs = inputs.contiguous(memory_format=torch.channels_last)
        terms = lessons.objective(lessons.student(inputs), self._taught(inputs, batch["index"]), labels, self.current_epoch)
        losses = torch.stack(list(terms.values()))
        self.term_names = list(terms)
        self.terms.append(losses.detach())
        return losses.sum()

    def _taught(self, inputs: Tensor, index: Tensor) -> Answer:
        """Return what the anchor says of a batch: the very view that the student sees, unless it is known from before."""
        if self.cached is not None:
            return Answer(self.cached[1][index], {})
        self.taught += len(inputs) * self.trainer.world_size
        with torch.no_grad():  # what inference mode makes would have to be copied for a loss that keeps it for its gradient
            return self.lessons.teacher(inputs)

    def on_train_epoch_end(self) -> None:
        check_finite(self, "model.learning.lr")
        if self.terms:  # none where a training goes on after an epoch's last step
            means = torch.stack(self.terms).mean(0)  # batches are of one size
            self.log("train/loss", means.sum(), prog_bar=True, sync_dist=True)
            for name, value in zip(self.term_names, means, strict=True):
                self.log(f"train/{name}", value, sync_dist=True)
        self.log("train/anchor", float(self.lessons.scheduler.leg(self.current_epoch).anchor), sync_dist=True)

    def configure_optimizers(self) -> OptimizerLRScheduler:
        scheduler = self.lessons.scheduler
        optimizer = self.learning.optimizer([*self.student.parameters(), *self.lessons.objective.parameters()])
        schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda epoch: self.learning.factor(*scheduler.epoch_in_schedule(epoch)))
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "epoch"}}

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        check_finite(self, "model.learning.lr")
        weights = checkpoint["state_dict"]
        checkpoint["objective"] = {name: weights.pop(name) for name in list(weights) if name.startswith("objective.")}
        checkpoint["class_names"] = self.class_names
        checkpoint["walk"], checkpoint["leg"], checkpoint["taught"] = self.lessons.scheduler.state_dict(), self.leg, self.taught

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        self.class_names = list(checkpoint.get("class_names", []))
        if self._lessons is not None:
            checkpoint["state_dict"] |= checkpoint["objective"]
            self.lessons.scheduler.load_state_dict(checkpoint["walk"])
            self.leg, self.taught = checkpoint["leg"], checkpoint["taught"]
            self.trainer.fit_loop.max_epochs = self.lessons.scheduler.total

    # ---- what states of the teacher say

    @torch.no_grad()
    def outputs_on(self, which: Which, net: nn.Module) -> Tensor:
        """Return a network's outputs on the whole of a set, (N, ...) in its order; the processes share the work."""
        index, found = [], []
        with evaluating(net), self.trainer.precision_plugin.forward_context():
            for batch in self.data.ordered(which):
                batch = self.trainer.precision_plugin.convert_input(self.data.finish(move_data_to_device(batch, self.device), augment=False))
                index.append(batch["index"])
                found.append(net(batch["input"]).float())
        places = gather_rows(torch.cat(index) if index else torch.empty(0, dtype=torch.long, device=self.device))
        rows = gather_rows(torch.cat(found) if found else torch.empty(0, self.width, device=self.device))
        return torch.empty_like(rows).index_copy_(0, places, rows)

    def congruences(self, anchors: list[int]) -> dict[int, float]:
        """Return the student's mean congruence loss to each of some states of the teacher, on at most 2000 samples held out of training.

        It is given in nats, or as part of the variance of the converged teacher's embeddings.
        """
        own, guide, final = self.outputs_on("judged", self.student), self.lessons.guide, self.finals["val"]
        most = float((F.normalize(final) if self.loss.normalise else final).var(0).mean()) if self.embeds else 1.0
        found = {anchor: self.outputs_on("judged", guide.at(anchor)) for anchor in anchors}
        return {anchor: float(distances(own, rows, self.embeds, self.loss.normalise).mean()) / most for anchor, rows in found.items()}

    # ---- validation and testing

    def on_validation_epoch_start(self) -> None:
        self.collected = Collected(self.width)

    on_test_epoch_start = on_validation_epoch_start

    def validation_step(self, batch: Mapping[str, Tensor], batch_idx: int) -> None:
        self.collected.add(batch, self.student(batch["input"]))

    test_step = validation_step

    def on_validation_epoch_end(self) -> None:
        if self.trainer.sanity_checking:
            return
        answers = self.collected.gathered(self.device)
        found = {} if self.embeds else measures(answers)
        if "val" in self.finals:  # not where a checkpoint is validated by itself
            found |= congruence(answers, self.finals["val"], self.embeds, self.loss.normalise)
        self.log_dict({f"val/{name}": value for name, value in found.items()}, prog_bar=True, sync_dist=True)  # equal in all processes

    def on_test_epoch_end(self) -> None:
        answers = self.collected.gathered(self.device)
        found = measures(answers, self.data.protocol if self.embeds else None)
        if self.route is not None:
            found |= self._beside_the_final(answers, self.route)
        self.log_dict({f"test/{name}": value for name, value in found.items()}, sync_dist=True)

    def _beside_the_final(self, answers: Answers, route: Route) -> dict[str, float]:
        """Compare the answers to the test set, and to the training set if that is wanted, with those of the converged teacher."""
        guide = self.guide_of(route)
        self.trainer.precision_plugin.convert_module(guide.net)
        final = guide.to(self.device).at(route.final)
        found = congruence(answers, self.outputs_on("test", final), self.embeds, self.loss.normalise)
        if self.reports_training:
            own, teacher = (self.outputs_on("train", net) for net in (self.student, final))
            found["train_congruence"] = congruence(Answers(own.new_zeros(len(own)), own), teacher, self.embeds, self.loss.normalise)["congruence"]
        return found


def _listed(names: Sequence[str]) -> str:
    return ", ".join(first_few(map(str, names), 5))


def _no_route() -> str:
    raise ValueError("the student has no route to follow: give model.route, a folder that AnchorRecorder wrote, or let fit train a teacher")
