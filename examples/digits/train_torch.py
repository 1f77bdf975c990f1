"""The digits with PyTorch: a module, an optimiser, a loop over the loader's tensors."""

from __future__ import annotations

import torch
from torch import nn

import batchkit as bk
from journal import Journal


def train(train: bk.Loader, test: bk.Loader, journal: Journal) -> float:
    """Train a small classifier; return its accuracy on the test set."""
    torch.manual_seed(0)
    torch.set_num_threads(1)  # the model is so small that a second thread waits more than it computes
    model = nn.Sequential(nn.Flatten(), nn.Linear(64, 256), nn.ReLU(), nn.Linear(256, 10))
    optimizer = torch.optim.Adam(model.parameters(), lr=3e-3)
    for _ in journal.progress():
        losses = []
        for batch in journal.watch(train):
            optimizer.zero_grad()
            loss = nn.functional.cross_entropy(model(batch["image"]), batch["label"])
            loss.backward()
            optimizer.step()
            losses.append(loss.detach())
        journal.losses.append(torch.stack(losses).mean().item())
    with torch.inference_mode():
        hits = torch.cat([model(batch["image"]).argmax(dim=1) == batch["label"] for batch in test])
    return hits.float().mean().item()
