"""Trees of drafted tokens against slow loops."""

import itertools

import pytest
import torch

from foveate import FoveateError
from foveate.methods.decoding import Shape, Tree, grow


def path(tree: Tree, place: int) -> list[int]:
    """Tokens from the root to a place."""
    tokens: list[int] = []
    while place >= 0:
        tokens.insert(0, int(tree.tokens[place]))
        place = int(tree.parents[place])
    return tokens


def test_what_each_token_sees_is_what_it_follows():
    generator = torch.Generator().manual_seed(3)
    parents = torch.stack([torch.randint(-1, place, (), generator=generator) for place in range(12)])
    tree = Tree(torch.arange(12), parents)
    for place in range(12):
        ancestors, at = {place}, place
        while at >= 0:
            at = int(parents[at])
            ancestors.add(at)
        expected = [other - 1 in ancestors for other in range(13)]
        assert tree.sees()[place + 1].tolist() == expected
        assert int(tree.depths()[place + 1]) == len(ancestors) - 1
    assert tree.sees()[0].tolist() == [True] + [False] * 12


def test_children_are_found_by_their_token():
    tree = Tree(torch.tensor([5, 6, 5, 5]), torch.tensor([-1, -1, 0, 1]))
    assert (tree.child(-1, 5), tree.child(-1, 6), tree.child(0, 5), tree.child(1, 5)) == (0, 1, 2, 3)
    assert tree.child(0, 6) is None and tree.child(-1, 7) is None
    assert not tree.is_chain and Tree(torch.tensor([1, 1]), torch.tensor([-1, 0])).is_chain


@pytest.mark.parametrize("parents", [[0], [-2], [-1, 1], [-1, 0, 5]])
def test_a_tree_has_parents_before_children(parents):
    with pytest.raises(FoveateError, match="follows the root"):
        Tree(torch.zeros(len(parents), dtype=torch.int64), torch.tensor(parents))


def table(tokens: list[int], vocabulary: int) -> torch.Tensor:
    """Log-probabilities after a path, the same for the same path."""
    generator = torch.Generator().manual_seed(hash(tuple(tokens)) % 2**31)
    return (2 * torch.randn(vocabulary, generator=generator)).log_softmax(-1)


def grown(shape: Shape, vocabulary: int = 6) -> tuple[Tree, list[int]]:
    """A tree over `table`, and how many tokens each call was asked about."""
    paths: list[list[int]] = [[]]
    asked = []

    def advance(tokens: torch.Tensor, before: torch.Tensor) -> torch.Tensor:
        nonlocal paths
        paths = [[*paths[b], t] for t, b in zip(tokens.tolist(), before.tolist(), strict=True)]
        asked.append(len(tokens))
        return torch.stack([table(own, vocabulary) for own in paths])

    return grow(table([], vocabulary), advance, shape), asked


def test_a_tree_wide_enough_holds_the_likeliest_paths_of_all():
    """With all tokens expanded, what stays is the most valuable of every path there is."""
    tree, asked = grown(Shape(depth=3, top_k=36, tokens=40))
    values = {}
    for length in (1, 2, 3):
        for tokens in itertools.product(range(6), repeat=length):
            values[tokens] = sum(float(table(list(tokens[:n]), 6)[tokens[n]]) for n in range(length))
    best = sorted(values, key=lambda tokens: -values[tokens])[:40]
    assert sorted(tuple(path(tree, place)) for place in range(len(tree))) == sorted(best)
    assert asked == [6, 36]


def test_a_narrow_tree_against_a_loop_written_from_the_paper():
    shape = Shape(depth=4, top_k=2, tokens=7)
    tree, asked = grown(shape)
    frontier, drafted = [((), 0.0)], []
    for _ in range(shape.depth):
        level = []
        for tokens, value in frontier:
            said = table(list(tokens), 6)
            for token in said.topk(2).indices.tolist():
                level.append(((*tokens, token), value + float(said[token])))
        drafted += level
        frontier = sorted(level, key=lambda one: -one[1])[:2]
    kept = sorted(drafted, key=lambda one: -one[1])[:7]
    assert sorted(tuple(path(tree, place)) for place in range(len(tree))) == sorted(tokens for tokens, _ in kept)
    assert asked == [2, 2, 2]


def test_one_token_after_each_is_a_chain_of_the_likeliest():
    tree, _ = grown(Shape(depth=5, top_k=1, tokens=60))
    assert tree.is_chain and len(tree) == 5
    tokens: list[int] = []
    for token in tree.tokens.tolist():
        assert token == int(table(tokens, 6).argmax())
        tokens.append(token)


def test_certain_tokens_keep_their_parents():
    """Where a child is worth as much as its parent, the parent stays."""
    certain = torch.tensor([0.0, -torch.inf, -torch.inf])
    tree = grow(certain, lambda tokens, before: certain.expand(len(tokens), -1), Shape(depth=4, top_k=2, tokens=2))
    assert [path(tree, place) for place in range(2)] == [[0], [0, 0]]


@pytest.mark.parametrize("wrong", [{"depth": 0}, {"top_k": 1.5}, {"tokens": -1}, {"depth": True}])
def test_wrong_shapes_are_refused(wrong):
    with pytest.raises(FoveateError, match="whole number from 1 on"):
        Shape(**wrong)
