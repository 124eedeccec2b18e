"""Muon for the matrices, AdamW for the rest, over data-parallel ranks that share the costly part of Muon.

Muon takes the momentum of a matrix's gradient, makes its singular values nearly equal (Newton-Schulz), and steps along
that. On whole matrices the iteration would cost as much as a small step's gradients; on blocks of 128 rows (two heads
of an attention) it costs far less, and each rank does a share of the matrices.
"""

from __future__ import annotations

from typing import Any, Final

import torch
import torch.distributed as dist
from torch import Tensor, nn

MOMENTUM: Final = 0.95
MUON_RATE: Final = 0.02
ADAM_RATE: Final = 3e-3
WEIGHT_DECAY: Final = 0.05
NEWTON_SCHULZ: Final = ((4.0848, -6.8946, 2.9270), (3.9505, -6.3029, 2.6377), (3.7418, -5.5913, 2.3037),
                        (2.8769, -3.1427, 1.2046), (2.8366, -3.0525, 1.2012))  # fmt: skip
BLOCK: Final = 128  # rows that are made orthogonal together


def orthogonalise(g: Tensor) -> Tensor:
    """`g` with the singular values of every block of `BLOCK` rows brought to about one, [rows, columns]."""
    x = g.view(-1, BLOCK, g.shape[1]) if g.shape[0] % BLOCK == 0 else g[None]
    x = x / (x.square().sum((1, 2), keepdim=True).sqrt() * 1.01 + 1e-7)
    for a, b, c in NEWTON_SCHULZ:
        s = x @ x.mT
        x = a * x + (b * s + c * s @ s) @ x
    return x.view_as(g)


class Optimizer:
    """Both optimizers over all ranks; the state is the same on every rank."""

    def __init__(self, model: nn.Module, world: int, rank: int) -> None:
        """Matrices of layers and adaptor go to Muon; embeddings, heads, biases and norms to AdamW."""
        self.world, self.rank = world, rank
        self.parameters = list(model.parameters())
        named = dict(model.named_parameters())
        matrices = [n for n, p in named.items() if p.ndim == 2 and ("layers." in n)]
        self.matrices = [named[n] for n in sorted(matrices, key=lambda n: -named[n].numel())]
        rest = [p for n, p in named.items() if n not in set(matrices)]
        self.momentum = [torch.zeros_like(p) for p in self.matrices]
        self.adam = torch.optim.AdamW(rest, lr=ADAM_RATE, betas=(0.9, 0.98), weight_decay=0.01)

    def average_gradients(self) -> None:
        """Mean over the ranks, in one message."""
        if self.world == 1:
            return
        flat = torch.cat([p.grad.flatten() if p.grad is not None else p.new_zeros(p.numel()) for p in self.parameters])
        dist.all_reduce(flat)
        flat /= self.world
        for p, g in zip(self.parameters, flat.split([p.numel() for p in self.parameters]), strict=True):
            p.grad = g.view_as(p)

    def clip(self, limit: float) -> float:
        """Bound the norm of the averaged gradient; returns it."""
        return float(nn.utils.clip_grad_norm_(self.parameters, limit))

    @torch.no_grad()
    def step(self, scale: float) -> None:
        """One step at `scale` times the full rates."""
        for group in self.adam.param_groups:
            group["lr"] = ADAM_RATE * scale
        self.adam.step()
        updates = []
        for i, (p, m) in enumerate(zip(self.matrices, self.momentum, strict=True)):
            assert p.grad is not None
            m.lerp_(p.grad, 1 - MOMENTUM)
            mine = i % self.world == self.rank
            updates.append(orthogonalise(p.grad.lerp(m, MOMENTUM)) if mine else torch.zeros_like(p))
        if self.world > 1:
            flat = torch.cat([u.flatten() for u in updates])
            dist.all_reduce(flat)
            parts = flat.split([u.numel() for u in updates])
            updates = [u.view_as(p) for u, p in zip(parts, self.matrices, strict=True)]
        for p, u in zip(self.matrices, updates, strict=True):
            p.mul_(1 - MUON_RATE * scale * WEIGHT_DECAY).sub_(u, alpha=MUON_RATE * scale)
        for p in self.parameters:
            p.grad = None

    def state_dict(self) -> dict[str, Any]:
        """What a continued run needs."""
        return {"momentum": self.momentum, "adam": self.adam.state_dict()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from `state_dict`."""
        for m, saved in zip(self.momentum, state["momentum"], strict=True):
            m.copy_(saved)
        self.adam.load_state_dict(state["adam"])
