"""Structural pruning: find the channels that go together, score them, choose, look, mask or remove, store.

index = GroupIndex.build(unet, {"sample": x, "timestep": t}, protected=["conv_in", "conv_out"])
loss(unet).backward()
plan = select(index, taylor(index, unet), Budget(channels=0.06), scope="local", at_least=1, mode="mask")
print(report(plan))
with masked(unet, plan): ...                      # for a while
held = hold(unet, plan, [optimizer], [average])   # during training, with all shapes as they are
index = apply(unet, plan); save(unet, folder)     # for good (plans of mode "cut")
"""

from shared.pruning.apply import apply, verify
from shared.pruning.collect import Activations, BatchTaylor, backward_over, fisher
from shared.pruning.costs import Budget, measure_latency
from shared.pruning.groups import GroupIndex
from shared.pruning.masks import Hold, LearnableMasks, hold, masked
from shared.pruning.plan import Plan
from shared.pruning.report import Report, report
from shared.pruning.scores import Scores, differential, geometric_median, group_sparsity_, hessian, magnitude, random, rank_correlation, taylor
from shared.pruning.select import select
from shared.pruning.store import import_history, load, save

__all__ = [
    "Activations",
    "BatchTaylor",
    "Budget",
    "GroupIndex",
    "Hold",
    "LearnableMasks",
    "Plan",
    "Report",
    "Scores",
    "apply",
    "backward_over",
    "differential",
    "fisher",
    "geometric_median",
    "group_sparsity_",
    "hessian",
    "hold",
    "import_history",
    "load",
    "magnitude",
    "masked",
    "measure_latency",
    "random",
    "rank_correlation",
    "report",
    "save",
    "select",
    "taylor",
    "verify",
]
