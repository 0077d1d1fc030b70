"""Tree search: the rules by hand, the bookkeeping as an invariant, and a tree with a trap."""

import math

import pytest

from r1jax.search.mcts import Node, back_up, expand, most_visited, select, tree_search
from r1jax.search.requests import Grow, Score


def node(visits, mean, prior=0.5, **rest):
    return Node((), prior, visits, mean * visits, **rest)


def chosen(children, **settings):
    root = Node((), visits=sum(c.visits for c in children), children=children)
    return children.index(select(root, **settings)[1])


def test_puct_adds_prior_and_visits_to_the_mean():
    children = [node(4, 0.50, prior=0.25), node(12, 0.55, prior=0.75)]
    # N = 16: 0.50 + c · 0.25 · 4 / 5 = 0.5 + 0.2 c and 0.55 + c · 0.75 · 4 / 13 = 0.55 + 0.231 c
    assert chosen(children, rule="puct", exploration=0.0) == 1
    assert chosen(children, rule="puct", exploration=5.0) == 1
    children = [node(4, 0.50), node(12, 0.55)]
    # Equal priors: 0.5 + 0.4 c and 0.55 + 0.154 c cross at c = 0.05 / 0.246 = 0.203
    assert chosen(children, rule="puct", exploration=0.20) == 1
    assert chosen(children, rule="puct", exploration=0.21) == 0


def test_uct_knows_no_prior():
    children = [node(4, 0.50, prior=0.01), node(12, 0.55, prior=0.99)]
    # √(ln 16 / 4) = 0.8326 and √(ln 16 / 12) = 0.4807 cross at c = 0.05 / 0.3519 = 0.1421
    assert chosen(children, rule="uct", exploration=0.141) == 1
    assert chosen(children, rule="uct", exploration=0.143) == 0


def test_closed_branches_are_passed_by():
    children = [node(1, 0.9, closed=True), node(1, 0.1)]
    assert chosen(children, rule="puct", exploration=1.0) == 1


def test_a_prior_is_the_share_of_the_samples():
    root = Node(())
    expand([root], [(1,), (2,), (1,), (1,)], finished=lambda t: t == (2,))
    assert [(c.tokens, c.prior, c.closed) for c in root.children] == [
        ((1,), 0.75, False),
        ((2,), 0.25, True),
    ]


def test_values_are_backed_up_along_the_path():
    root = Node(())
    expand([root], [(1,), (2,)], finished=lambda t: False)
    back_up([root], [0.2, 0.6])
    left, right = root.children
    expand([root, right], [(2, 1), (2, 2), (2, 3)], finished=lambda t: True)
    back_up([root, right], [0.9, 0.1, 0.5])
    assert (left.visits, left.mean) == (1, 0.2)
    # Its own value, then its three children's: (0.6 + 1.5) / 4
    assert (right.visits, right.mean) == (4, pytest.approx(0.525))
    assert (root.visits, root.mean) == (5, pytest.approx((0.2 + 0.6 + 1.5) / 5))
    assert right.closed and not left.closed and not root.closed


def test_the_path_of_most_visits():
    deep = Node((2, 1), visits=3)
    root = Node((), children=[Node((1,), visits=3), Node((2,), visits=4, children=[deep])])
    assert most_visited(root) is deep


DEPTH = 4


def finished(tokens):
    return len(tokens) == DEPTH


def binary(tokens, count, whole):
    """Both next digits in turn; a rollout goes on with ones."""
    if whole:
        return [(*tokens, *[1] * (DEPTH - len(tokens)))] * count
    return [(*tokens, i % 2) for i in range(count)]


def play(search, grow=binary, value=lambda t: sum(t) / DEPTH):
    requests, answer = [], None
    try:
        while True:
            request = search.send(answer)
            requests.append(request)
            if isinstance(request, Score):
                answer = [[0.0] * (len(t) - 1) + [value(t)] for t in request.responses]
            else:
                answer = [
                    grow(t, n, request.whole)
                    for t, n in zip(request.prefixes, request.counts, strict=True)
                ]
    except StopIteration as end:
        return end.value, requests


def search(**settings):
    return tree_search(**dict(expansions=2, budget=20, finished=finished) | settings)


def test_it_finds_the_best_leaf_of_a_tree_whose_values_lead_there():
    found, _ = play(search(exploration=0.1))
    assert found.best == (1, 1, 1, 1)
    assert found.generated == 20  # two tokens an expansion


def test_a_small_tree_is_exhausted_and_then_the_search_ends():
    found, requests = play(search(budget=1000))
    # 1 + 2 + 4 + 8 inner nodes are expanded, two tokens each: 30; 16 leaves.
    assert found.generated == 30
    assert len({c.tokens for c in found.candidates}) == 16
    prefixes = [r.prefixes[0] for r in requests if isinstance(r, Grow)]
    assert len(set(prefixes)) == len(prefixes)  # no node twice


def test_the_cap_on_children_hides_what_was_not_sampled():
    # The only good first step comes third: with two children a node it is never seen.
    def grow(tokens, count, whole):
        digits = (0, 0, 1) if not tokens else (1, 1, 1)
        return [(*tokens, digits[i % 3]) for i in range(count)]

    def good(tokens):
        return float(tokens[0] == 1)

    capped, _ = play(search(expansions=2, budget=1000), grow, good)
    free, _ = play(search(expansions=3, budget=1000), grow, good)
    assert not good(capped.best) and good(free.best)


def test_rollouts_are_candidates_and_cost_tokens():
    found, requests = play(search(evaluate="rollout", budget=7))
    # Two steps of a token, then two rollouts of three more each: 8, and 7 are over.
    assert found.generated == 8
    assert [c.tokens for c in found.candidates] == [(0, 1, 1, 1), (1, 1, 1, 1)]
    assert found.best == (1, 1, 1, 1)
    scored = [r for r in requests if isinstance(r, Score)]
    assert [r.responses for r in scored] == [[(0, 1, 1, 1), (1, 1, 1, 1)]]  # not the begun ones


def test_by_visits_the_path_is_completed():
    found, requests = play(search(answer="visits", budget=2, exploration=0.1))
    # After one expansion both children have a visit; (1,) has the higher mean.
    assert requests[-1] == Grow([(1,)], [1], whole=True)
    assert found.best == (1, 1, 1, 1)
    assert found.generated == 2 + 3


def test_visits_of_a_node_are_its_own_and_those_of_its_children():
    root = Node(())
    for _ in range(6):
        path = select(root, rule="puct", exploration=1.0)
        expand(path, binary(path[-1].tokens, 2, False), finished)
        back_up(path, [0.1 * sum(c.tokens) for c in path[-1].children])

    def check(parent, own):
        assert parent.visits == own + sum(c.visits for c in parent.children)
        total = sum(c.value for c in parent.children)
        first = 0.1 * sum(parent.tokens) if own else 0.0
        assert math.isclose(parent.value, first + total)
        for child in parent.children:
            if child.children:
                check(child, 1)

    check(root, 0)
