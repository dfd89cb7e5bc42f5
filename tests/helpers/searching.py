"""Small searches: loaders of striped images, and searches in processes of their own."""

import torch
from helpers.workers import KillAt

from projects.forgery_nas.options import SearchOptions
from projects.forgery_nas.planted import stripes
from projects.forgery_nas.search import ArchitectureSearch
from projects.forgery_nas.supernet import Supernet
from shared.callbacks import ResumePoint
from shared.checkpoints import SafeCheckpointIO
from shared.data.base import training_loader
from shared.quiet import quiet_trainer, silence

SPACE = ["max_pool_3x3", "sep_cdc_3x3_0.7", "dil_cdc_3x3_0.7", "skip_connect", "none"]
SMALL = {"channels": 4, "layers": 2, "nodes": 2, "k": 2, "warmup": 1, "prune_every": 1, "lr": 0.05, "lr_architecture": 0.05, "space": SPACE}


def loaders(batch_size=8, length=24, seed=0):
    """Return what a search trains on: loaders "train" and "val" of three batches each."""
    sets = {name: stripes(length, torch.Generator().manual_seed(2 * seed + number)) for number, name in enumerate(("train", "val"))}
    return {name: training_loader(images, batch_size, number) for number, (name, images) in enumerate(sets.items())}


def search(epochs=None, data=None, callbacks=(), ckpt_path=None, devices=1, strategy="auto", **options):
    """Search on one or more CPU processes and return the module."""
    module = ArchitectureSearch(SearchOptions(**(SMALL | {"epochs": epochs} | options)))
    settings = {"accelerator": "cpu", "devices": devices, "strategy": strategy, "plugins": [SafeCheckpointIO()], "callbacks": list(callbacks)}
    trainer = quiet_trainer(module.options.length, **settings)
    with silence():
        trainer.fit(module, loaders() if data is None else data, ckpt_path=ckpt_path)
    return module


def search_until_killed(folder):
    """Search; the process is killed in the step after the one that `last.ckpt` is of."""
    search(5, callbacks=[ResumePoint(folder, 7), KillAt(8)], k_schedule=True)


def search_together(folder):
    """Search as one of several processes; leave its alpha, history and sampled paths as a file by its rank."""
    paths, sample = [], Supernet.sample

    def noted(net, noise, temperature):
        paths.append((mixture := sample(net, noise, temperature)).choice)
        return mixture

    Supernet.sample = noted
    module = search(4, devices=2, strategy="ddp")
    found = {"state": module.state_dict(), "paths": torch.stack(paths), "dropped": [row["dropped"] for row in module.history]}
    torch.save(found, f"{folder}/{module.global_rank}.pt")
