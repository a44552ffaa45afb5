"""Muon: momentum whose update is replaced by the nearest orthogonal matrix (Newton-Schulz iteration).

For the two-dimensional weights inside the layers; embeddings, tables, norms and biases go to AdamW.
"""
import torch


def orthogonal(g):
    """g [n, rows, cols], a stack of matrices; quintic Newton-Schulz, five steps, bfloat16."""
    x = g.bfloat16()
    tall = x.shape[-2] > x.shape[-1]
    if tall:
        x = x.mT
    x = x / (x.float().norm(dim=(-2, -1), keepdim=True) + 1e-7).bfloat16()
    for _ in range(5):
        a = x @ x.mT
        x = 3.4445 * x + (-4.7750 * a + 2.0315 * (a @ a)) @ x
    return x.mT if tall else x


class Muon:
    def __init__(self, params, lr, momentum=0.95, weight_decay=0.0):
        self.lr, self.momentum, self.weight_decay = lr, momentum, weight_decay
        by_shape = {}
        for p in params:
            by_shape.setdefault(tuple(p.shape), []).append(p)
        # One stack per shape: a few batched products a step in place of one chain per matrix.
        self.groups = [(ps, torch.zeros(len(ps), *shape, device=ps[0].device)) for shape, ps in by_shape.items()]

    @torch.no_grad()
    def step(self):
        for ps, buf in self.groups:
            g = torch.stack([p.grad for p in ps])
            buf.lerp_(g, 1 - self.momentum)
            update = orthogonal(g.lerp(buf, self.momentum)).float()
            rows, cols = ps[0].shape
            update *= -self.lr * max(1.0, rows / cols) ** 0.5
            if self.weight_decay:
                torch._foreach_mul_(ps, 1 - self.lr * self.weight_decay)
            torch._foreach_add_(ps, list(update.unbind(0)))
