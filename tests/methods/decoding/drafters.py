"""Drafters for tests: one that knows what will be written, and one that draws at random."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from foveate.methods.decoding import Drafter, Session, Shape, Target, Tree


class Knowing(Drafter):
    """Drafts the given answer, in the middle of wrong tokens where a tree is asked for."""

    def __init__(self, written: Tensor, wrong: int = 1, right: int | None = None) -> None:
        self.written, self.wrong, self.right = written, wrong, right

    def check(self, model: Any) -> None:
        pass

    def session(self, target: Target) -> Session:
        return _Knowing(self)


class _Knowing(Session):
    def __init__(self, own: Knowing) -> None:
        self.own, self.place = own, 0

    def extend(self, features: Tensor, following: Tensor, visual: Tensor) -> None:
        self.place += 1 if self.place == 0 else len(features)

    def propose(self, shape: Shape) -> Tree:
        coming = self.own.written[self.place : self.place + shape.depth]
        if self.own.right is not None:
            coming = coming.clone()
            coming[self.own.right :] = self.own.wrong
        if shape.top_k == 1:
            return Tree(coming, torch.arange(-1, len(coming) - 1))
        # Each right token has a wrong sister before it, so that what is kept is scattered.
        tokens, parents, before = [], [], -1
        for token in coming.tolist():
            tokens += [self.own.wrong if token != self.own.wrong else self.own.wrong + 1, token]
            parents += [before, before]
            before = len(tokens) - 1
        return Tree(torch.tensor(tokens, dtype=torch.int64), torch.tensor(parents, dtype=torch.int64))


class Guessing(Drafter):
    """Draws trees at random: the worst that a draft can do."""

    def check(self, model: Any) -> None:
        pass

    def session(self, target: Target) -> Session:
        return _Guessing()


class _Guessing(Session):
    def __init__(self) -> None:
        self.generator = torch.Generator().manual_seed(0)

    def extend(self, features: Tensor, following: Tensor, visual: Tensor) -> None:
        assert features.shape == following.shape and len(visual) == len(features)

    def propose(self, shape: Shape) -> Tree:
        tokens = torch.randint(1, 100, (shape.tokens,), generator=self.generator)
        parents = torch.stack([torch.randint(-1, n, (), generator=self.generator) for n in range(shape.tokens)])
        return Tree(tokens, torch.arange(-1, shape.tokens - 1) if shape.top_k == 1 else parents)
