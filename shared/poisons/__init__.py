"""Perturbations that make images poor to learn from: the mathematics of the attacks, whatever the labels and the loss are.

fields = scale_to_l2(separable_patches(labels, 10, 3, (32, 32)), 1.0)                      # LSP
fields = scale_to_l2(find_processes(10, 3).draw(labels, (32, 32), indices, seed=0), 1.0)   # AR
delta = descend(images, loss, epsilon=8 / 255, step=0.8 / 255, steps=20)                   # one network, or a sequence of losses (SEP)
poisoned = add_on_grid(levels, delta)
print(measure(levels, poisoned))                                                           # on the integers that are stored
"""

from shared.poisons.autoregressive import AutoregressiveProcesses, find_processes
from shared.poisons.bounds import Kind, add_on_grid, add_within_l2, check_radius, measure, to_levels
from shared.poisons.descent import Loss, View, ascend, descend, mean_gradient, mean_over_views, project, uniform_start, worst_within
from shared.poisons.minimising import Alternation, NoiseTable, minimise_errors
from shared.poisons.patterns import enlarge, patch_colours, patch_grid, scale_to_l2, scale_to_linf, separable_patches

__all__ = [
    "Alternation",
    "AutoregressiveProcesses",
    "Kind",
    "Loss",
    "NoiseTable",
    "View",
    "add_on_grid",
    "add_within_l2",
    "ascend",
    "check_radius",
    "descend",
    "enlarge",
    "find_processes",
    "mean_gradient",
    "mean_over_views",
    "measure",
    "minimise_errors",
    "patch_colours",
    "patch_grid",
    "project",
    "scale_to_l2",
    "scale_to_linf",
    "separable_patches",
    "to_levels",
    "uniform_start",
    "worst_within",
]
