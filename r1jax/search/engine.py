"""The device's part: samples steps and whole responses, and scores them, for many searches at once.

The searches of all problems go in lockstep: each makes its next request, and equal kinds of
requests become one batch. A sample is a function of (key, problem, round, place in the request),
so that the outcome of one problem does not depend on which others are searched beside it.
"""

import copy
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace

import numpy as np

from r1jax.data.packing import Document
from r1jax.run import Run
from r1jax.sampling.engine import Sampler, SamplingConfig
from r1jax.scoring import Scorer
from r1jax.search.requests import Found, Grow, Score, Search, Tokens
from r1jax.search.steps import step_ends
from r1jax.types import Array

MOST_PREFIXES = 1024  # of a request: samples are numbered problem × this + place
LEAST_ROWS = 8  # of the smallest batch
WIDTH = 64  # prefixes are prefilled in widths that are multiples of it: few programs


class Growth:
    """Continues responses, to the end of the step or of the response.

    `sampling.max_tokens` bounds a whole response, `step_tokens` a single step: what is longer is
    cut there and counts as a step. Raises ValueError for prompts that leave no room for both.
    """

    def __init__(
        self,
        run: Run,
        sampling: SamplingConfig,
        boundaries: Sequence[int],
        *,
        step_tokens: int,
        prompts: Sequence[Sequence[int]],
    ):
        longest = max(map(len, prompts))
        room = run.model.config.context - longest - sampling.max_tokens
        if room < step_tokens:
            raise ValueError(
                f"the longest prompt has {longest} tokens; with max_tokens={sampling.max_tokens} "
                f"and a last step of step_tokens={step_tokens} more that exceeds the model's "
                f"context of {run.model.config.context}: lower one of them"
            )
        self.prompts, self.limit, self._room = prompts, sampling.max_tokens, room
        self._stop_ids = frozenset(run.tokenizer.stop_ids)
        about = {"pad_id": run.tokenizer.pad_id, "mesh": run.mesh}
        ends = tuple(run.tokenizer.stop_ids)
        self._whole = Sampler(run.model, sampling, stop_ids=ends, **about)
        self._step = Sampler(
            # A step is one chunk: no program for the few rows whose steps are longer.
            run.model, replace(sampling, max_tokens=step_tokens, chunk=step_tokens),
            stop_ids=(*ends, *boundaries), **about,
        )  # fmt: skip

    def ended(self, tokens: Tokens) -> bool:
        """Whether a response has drawn its end token."""
        return bool(tokens) and tokens[-1] in self._stop_ids

    def finished(self, tokens: Tokens) -> bool:
        """Whether nothing can follow: an end token, or as many tokens as there may be."""
        return self.ended(tokens) or len(tokens) >= self.limit

    def __call__(
        self,
        params,
        states: Sequence[tuple[int, Tokens]],
        count: int,
        key: Array,
        ids: Sequence[int],
        *,
        whole: bool,
        on_done: Callable[[int], None] | None = None,
    ) -> list[list[Tokens]]:
        """`count` continuations of each (problem, prefix), prefix in front; `ids` name them in
        the random keys, `on_done` is told how many more are done. Prefixes are unfinished."""
        grown: list[list[Tokens]] = [[] for _ in states]
        for members in self._classes([len(tokens) for _, tokens in states], whole):
            longest = max(self.limit - len(states[i][1]) for i in members)
            sampler = _limited(self._whole, longest) if whole else self._step
            prompts = [[*self.prompts[states[i][0]], *states[i][1]] for i in members]
            left = [min(self.limit - len(states[i][1]), longest) for i in members]
            # Further ones, of which a token is sampled and dropped, make batches of few sizes.
            width = max(map(len, prompts))
            most = sampler.model.config.context - sampler.config.max_tokens
            widest = [0] * min(width + -width % WIDTH + 1, max(width, most))
            spare = _spare(len(members) * count, sampler.config.rows, count)
            prompts += [widest, *([[0]] * (spare - 1))]
            real = len(members) * count
            done = on_done and (lambda new, real=real: on_done(sum(row < real for row in new)))
            rollout = sampler(
                params, prompts, key, prompt_ids=[*(ids[i] for i in members), *[0] * spare],
                group_size=count, stop_at=np.repeat([*left, *[1] * spare], count), on_done=done,
            )  # fmt: skip
            for at, i in enumerate(members):
                rows = range(at * count, (at + 1) * count)
                grown[i] = [
                    (*states[i][1], *rollout.tokens_BT[r, : rollout.length_B[r]].tolist())
                    for r in rows
                ]
        return grown

    def _classes(self, lengths: Sequence[int], whole: bool) -> list[list[int]]:
        """States that one call of a sampler can continue.

        The longest prefix and what the shortest may still get have to fit the context together.
        """
        if not whole:
            return [list(range(len(lengths)))]
        classes: list[list[int]] = []
        for i in sorted(range(len(lengths)), key=lambda i: lengths[i]):
            if not classes or lengths[i] - lengths[classes[-1][0]] > self._room:
                classes.append([])
            classes[-1].append(i)
        return classes


def _spare(total: int, rows: int, count: int) -> int:
    """Prompts with `count` samples each, 1 at least, that fill `total` rows up to a batch size.

    Sizes are `rows`, a quarter of it, and so on, as the sampler's are: every size has programs
    of its own, and compiling one takes longer than a few rows too many.
    """
    size = rows
    while size // 4 >= max(total + count, LEAST_ROWS):
        size //= 4
    return max(1, -(-(size - total) // count))


def _limited(sampler: Sampler, max_tokens: int) -> Sampler:
    """The same compiled programs with another limit, of which none of them knows."""
    limited = copy.copy(sampler)
    limited.config = replace(sampler.config, max_tokens=max_tokens)
    return limited


class StepScorer:
    """What a score model gives after every step: σ(score) at its last token, a probability."""

    def __init__(self, run: Run, boundaries: Sequence[int], prompts: Sequence[Sequence[int]]):
        self.prompts, self._boundaries = prompts, frozenset(boundaries)
        self._scorer = Scorer(run, run.model)

    def __call__(self, params, states: Sequence[tuple[int, Tokens]]) -> list[list[float]]:
        """Of (problem, begun response) the scores of its steps."""
        documents = [
            Document([*self.prompts[p], *tokens], len(self.prompts[p])) for p, tokens in states
        ]
        found = []
        for (p, tokens), score_T in zip(states, self._scorer(params, documents), strict=True):
            at = len(self.prompts[p]) + np.array(step_ends(tokens, self._boundaries), int)
            found.append(sigmoid(score_T[at]).tolist())
        return found


def sigmoid(x: np.ndarray) -> np.ndarray:
    """1 / (1 + exp(−x)), without overflow."""
    small = np.exp(-np.abs(x.astype(np.float64)))
    return np.where(x >= 0, 1, small) / (1 + small)


def drive(
    searches: Mapping[int, Search],
    key: Callable[[int], Array],
    grow: Callable[..., list[list[Tokens]]],
    score: Callable[[str, list[tuple[int, Tokens]]], list[list[float]]],
    on_found: Callable[[int], None] | None = None,
) -> dict[int, Found]:
    """Runs searches, by problem, to their ends; in the problems' order.

    `key(round)` is the random key of all searches' requests number `round`. `grow(states, count,
    key, ids, whole=)` and `score(model, states)` answer batches of (problem, tokens);
    `on_found` is told how many more searches are over.
    """
    requests, found, at = {}, {}, 0
    for problem, search in searches.items():
        requests[problem] = next(search)
    while requests:
        answers = _grown(requests, key(at), grow) | _scored(requests, score)
        at, pending, requests = at + 1, requests, {}
        for problem in pending:
            try:
                requests[problem] = searches[problem].send(answers[problem])
            except StopIteration as end:
                found[problem] = end.value
        if on_found and (over := len(pending) - len(requests)):
            on_found(over)
    return {problem: found[problem] for problem in searches}


def _grown(requests, key: Array, grow) -> dict[int, list[list[Tokens]]]:
    answers, kinds = {}, {}
    for problem, request in requests.items():
        if not isinstance(request, Grow):
            continue
        if len(request.prefixes) > MOST_PREFIXES:
            raise ValueError(f"a request of {len(request.prefixes)} prefixes; lower the width")
        answers[problem] = [[] for _ in request.prefixes]
        for i, (tokens, count) in enumerate(zip(request.prefixes, request.counts, strict=True)):
            kinds.setdefault((count, request.whole), []).append((problem, i, tokens))
    for (count, whole), members in sorted(kinds.items()):
        states = [(problem, tokens) for problem, _, tokens in members]
        ids = [problem * MOST_PREFIXES + i for problem, i, _ in members]
        grown = grow(states, count, key, ids, whole=whole)
        for (problem, i, _), group in zip(members, grown, strict=True):
            answers[problem][i] = group
    return answers


def _scored(requests, score) -> dict[int, list[list[float]]]:
    answers = {}
    asked = {p: r for p, r in requests.items() if isinstance(r, Score)}
    for model in sorted({r.model for r in asked.values()}):
        of_model = {p: r.responses for p, r in asked.items() if r.model == model}
        flat = iter(score(model, [(p, t) for p, group in of_model.items() for t in group]))
        answers |= {p: [next(flat) for _ in group] for p, group in of_model.items()}
    return answers
