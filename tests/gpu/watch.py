"""A callback that notes the losses and the times of training steps."""

import time

import lightning as L
import torch

SEEN = {"losses": [], "times": []}


class Watch(L.Callback):
    """Adds to SEEN after each training step: its loss, which is the step's result or else the first loss that it logs, and the time."""

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
        if pl_module.device.type == "cuda":
            torch.cuda.synchronize()
        SEEN["times"].append(time.perf_counter())
        loss = outputs.get("loss") if isinstance(outputs, dict) else outputs
        if loss is None:
            loss = next((value for name, value in trainer.callback_metrics.items() if name.startswith("train/") and "loss" in name), None)
        if loss is not None:
            SEEN["losses"].append(float(loss))
