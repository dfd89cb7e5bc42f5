"""The training loss."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor
from torch.nn import functional as F


def detection_loss(
    logits: Tensor, labels: Tensor, balances: Mapping[str, Tensor] | None = None, lora_weight: float = 200.0, adapter_weight: float = 1.0
) -> dict[str, Tensor]:
    """Return L = CE + lora_weight * mean L_LoRA + adapter_weight * mean L_adapter, and its terms.

    Args:
        logits: (B, 2), real and fake.
        labels: (B,) int64, 0 real and 1 fake.
        balances: what `MoEViT.balance_losses` gives: the means over blocks under `lora` and `adapter`; None or {} in evaluation, where a batch that
            one expert takes alone would make them huge and meaningless.
        lora_weight: the reference's 200 is made for batches of 32 * 197 tokens, over which CV2 is tiny; it grows as 1 / tokens.
        adapter_weight: weight of the adapters' term, over which B images are routed.

    Returns:
        Scalars: `loss`, `cross_entropy`, and without their weights `balance_lora` and `balance_adapter` where they are given.
    """
    cross_entropy = F.cross_entropy(logits, labels)
    weights = {"lora": lora_weight, "adapter": adapter_weight}
    terms = dict(balances or {})
    loss = cross_entropy
    for name, balance in terms.items():
        loss = loss + weights[name] * balance
    return {"loss": loss, "cross_entropy": cross_entropy} | {f"balance_{name}": balance for name, balance in terms.items()}
