"""Monte Carlo tree search over steps, with a value model.

A node is a begun response, its children are steps sampled from the policy: at most
`expansions` a node, so that the tree can be searched at all. Each simulation goes down from
the root by

    argmax_a  Q(a) + c · P(a) · √N / (1 + n(a))                        (rule "puct")
    argmax_a  Q(a) + c · √(ln N / n(a))                                (rule "uct")

where Q is the mean value backed up through a child, n its visits, N those of the parent, and
P(a) the share of the parent's samples that came out as this step: an estimate of the policy's
probability of the whole step, which over so many tokens could not be listed. At a leaf it
samples children, gives each its value, and adds all of these to the path's nodes.

Sources: arXiv:1712.01815 (puct), arXiv:2501.12948, section 4.2 (the cap on children, the
value model and what became of it).
"""

import math
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Self

from r1jax.search.requests import Candidate, Found, Grow, Purse, Score, Search, Tokens

RULES = ("puct", "uct")


@dataclass
class Node:
    """A begun response; `value` is the sum of the values backed up through it."""

    tokens: Tokens
    prior: float = 1.0
    visits: int = 0
    value: float = 0.0
    children: list[Self] = field(default_factory=list)
    closed: bool = False  # finished, or all of its children are closed: nothing to search

    @property
    def mean(self) -> float:
        return self.value / self.visits if self.visits else 0.0


def select(root: Node, *, rule: str, exploration: float) -> list[Node]:
    """The path from the root to a leaf that is open; closed branches are passed by."""
    path = [root]
    while path[-1].children:
        parent = path[-1]

        def bound(child: Node, parent=parent) -> float:
            if rule == "uct":
                return child.mean + exploration * math.sqrt(math.log(parent.visits) / child.visits)
            spread = child.prior * math.sqrt(parent.visits) / (1 + child.visits)
            return child.mean + exploration * spread

        path.append(max((c for c in parent.children if not c.closed), key=bound))
    return path


def expand(path: list[Node], samples: list[Tokens], finished: Callable[[Tokens], bool]) -> None:
    """Gives the leaf a child for every different sample, with its share of them as prior."""
    counts = Counter(samples)
    path[-1].children = [
        Node(tokens, count / len(samples), closed=finished(tokens))
        for tokens, count in counts.items()
    ]


def back_up(path: list[Node], values: list[float]) -> None:
    """Adds the values of the leaf's new children to them and to all nodes of the path."""
    leaf = path[-1]
    for child, value in zip(leaf.children, values, strict=True):
        child.visits, child.value = 1, value
    for node in path:
        node.visits += len(values)
        node.value += sum(values)
    for node in reversed(path):
        node.closed = all(child.closed for child in node.children)


def most_visited(root: Node) -> Node:
    """Where the path of most visits ends; of equal visits the higher mean, then the first."""
    node = root
    while node.children:
        node = max(node.children, key=lambda child: (child.visits, child.mean))
    return node


def tree_search(
    *,
    expansions: int,
    budget: float,
    finished: Callable[[Tokens], bool],
    rule: str = "puct",
    exploration: float = 1.0,
    evaluate: str = "value",
    answer: str = "value",
    reserve: float = 0.0,
) -> Search:
    """Simulations until `budget` tokens are generated or the tree is exhausted.

    `evaluate`: a child's value is the value model's for it ("value"), or for a response
    completed from it ("rollout"), which costs tokens and becomes a candidate. `answer`: the
    best response is the finished one of highest value ("value"), or where the path of most
    visits leads ("visits"), completed by sampling where it is not finished. `reserve` is about
    what that takes (see `Purse`).
    """
    purse, candidates, root = Purse(budget, reserve), [], Node(())

    def grow(request: Grow):
        grown = yield request
        purse.pay(request, grown)
        return grown

    while purse.open(candidates) and not root.closed:
        path = select(root, rule=rule, exploration=exploration)
        before = purse.generated
        (samples,) = yield from grow(Grow([path[-1].tokens], [expansions]))
        expand(path, samples, finished)
        children = path[-1].children
        judged = [child.tokens for child in children]
        unfinished = [i for i, child in enumerate(children) if not child.closed]
        if evaluate == "rollout" and unfinished:
            begun = [judged[i] for i in unfinished]
            rollouts = yield from grow(Grow(begun, [1] * len(begun), whole=True))
            for i, (whole,) in zip(unfinished, rollouts, strict=True):
                judged[i] = whole
            purse.merge(before)
        request = Score(judged, "value")
        scores = yield request
        purse.read(request)
        values = [float(steps[-1]) for steps in scores]
        back_up(path, values)
        candidates += [
            Candidate(tokens, value)
            for tokens, value in zip(judged, values, strict=True)
            if finished(tokens)
        ]
    if answer == "visits" or not candidates:
        end = most_visited(root)
        tokens = end.tokens
        if not finished(tokens):
            ((tokens,),) = yield from grow(Grow([tokens], [1], whole=True))
            candidates.append(Candidate(tokens, end.mean))
    else:
        tokens = max(candidates, key=lambda c: c.score).tokens
    return Found(candidates, tokens, purse.generated, purse.scored)
