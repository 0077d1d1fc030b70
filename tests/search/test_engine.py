"""Growth against plain sampling, scores against the model, searches in lockstep."""

import jax
import numpy as np
import pytest

from r1jax.models import scoring
from r1jax.run import Run
from r1jax.sampling.engine import SamplingConfig
from r1jax.search.engine import Growth, StepScorer, drive, sigmoid
from r1jax.search.requests import Found, Grow, Score
from r1jax.templates import Template

NEW, STEP = 12, 5


class Letters:
    """A token a character, of 29; "|" ends a step."""

    alphabet = "abcdefghijklmnopqrstuvwxyz|=+"
    pad_id, bos_id, eos_id, stop_ids = 0, 1, 2, (2,)
    specials = ()
    vocabulary = 32

    def encode(self, text):
        return [3 + self.alphabet.index(c) for c in text]

    def decode(self, ids):
        return "".join(self.alphabet[i - 3] for i in ids if i >= 3)


CUT = (3 + 26, 3 + 4, 3 + 9)  # "|", and two letters more, so that steps do end
PROMPTS = [[1, 5, 6], [1, 7, 8, 9, 10], [1, 11]]


@pytest.fixture(scope="module")
def run(tiny, mesh1):
    return Run(
        workdir=None, stage="stage", seed=0, mesh=mesh1, model=tiny[0], tokenizer=Letters(),
        template=Template("{prompt}="), writer=None,
    )  # fmt: skip


@pytest.fixture(scope="module")
def growth(run):
    return Growth(
        run, SamplingConfig(NEW, rows=16, chunk=4), CUT, step_tokens=STEP, prompts=PROMPTS
    )


@pytest.fixture(autouse=True)
def within_mesh(mesh1):
    with jax.set_mesh(mesh1):
        yield


def test_responses_from_the_start_are_those_of_the_sampler(run, growth, tiny):
    key = jax.random.key(3)
    want = run.sampler(SamplingConfig(NEW, rows=16, chunk=4))(
        tiny[1], PROMPTS, key, prompt_ids=[7, 8, 9], group_size=2
    )
    done = []
    grown = growth(
        tiny[1], [(0, ()), (1, ()), (2, ())], 2, key, [7, 8, 9], whole=True, on_done=done.append
    )
    flat = [tokens for group in grown for tokens in group]
    assert [len(tokens) for tokens in flat] == want.length_B.tolist()
    for tokens, row, n in zip(flat, want.tokens_BT, want.length_B, strict=True):
        assert list(tokens) == row[:n].tolist()
    assert sum(done) == 6


def test_steps_end_where_they_are_to(growth, tiny):
    states = [(p, ()) for p in range(3)]
    lengths = set()
    for round_ in range(3):
        grown = growth(tiny[1], states, 8, jax.random.key(round_), range(len(states)), whole=False)
        following = []
        for (p, prefix), group in zip(states, grown, strict=True):
            for tokens in group:
                step = tokens[len(prefix) :]
                assert tokens[: len(prefix)] == prefix
                assert 1 <= len(step) <= STEP and len(tokens) <= NEW
                assert not set(step[:-1]) & {*CUT, 2}
                if step[-1] not in (*CUT, 2):
                    assert len(step) == STEP or len(tokens) == NEW  # cut
                lengths.add(len(step))
                if not growth.finished(tokens):
                    following.append((p, tokens))
        states = following[:6]
    assert len(lengths) > 2


def test_a_sample_does_not_depend_on_what_is_sampled_beside_it(growth, tiny):
    key = jax.random.key(5)
    states = [(0, (4, 5)), (1, ()), (2, (6, 7, 8, 9, 10, 11, 12))]
    together = growth(tiny[1], states, 2, key, [10, 20, 30], whole=True)
    for state, name, want in zip(states, [10, 20, 30], together, strict=True):
        assert growth(tiny[1], [state], 2, key, [name], whole=True) == [want]


def test_prefixes_whose_lengths_no_single_call_can_hold(run, tiny):
    # A context of 64: prompt 5, 50 tokens of response, room for 9 more.
    growth = Growth(run, SamplingConfig(50, rows=16, chunk=8), CUT, step_tokens=4, prompts=PROMPTS)
    states = [(1, tuple([5] * n)) for n in (0, 9, 10, 30, 49)]
    assert growth._classes([0, 9, 10, 30, 49], True) == [[0, 1], [2], [3], [4]]
    grown = growth(tiny[1], states, 1, jax.random.key(0), range(5), whole=True)
    for (_, prefix), (tokens,) in zip(states, grown, strict=True):
        assert tokens[: len(prefix)] == prefix
        assert growth.ended(tokens) or len(tokens) == 50
    with pytest.raises(ValueError, match=r"longest prompt has 5 tokens; with max_tokens=50 and"):
        Growth(run, SamplingConfig(50), CUT, step_tokens=10, prompts=PROMPTS)


def test_scores_are_the_models_after_every_step(run, tiny):
    model, params = tiny
    rng = np.random.default_rng(0)
    params = scoring.with_score(params)
    params["score"] = {"weight": rng.standard_normal(16).astype(np.float32), "bias": np.float32(1)}
    score = jax.jit(lambda params, tokens_BT: scoring.scores(model, params, tokens_BT))
    states = [(0, (4, CUT[0], 5, 6)), (1, (CUT[0], CUT[1])), (2, (8,))]
    found = StepScorer(run, CUT, PROMPTS)(params, states)
    for (p, tokens), given, ends in zip(states, found, [[1, 3], [0, 1], [0]], strict=True):
        alone = score(params, np.array([[*PROMPTS[p], *tokens]]))[0]
        want = [1 / (1 + np.exp(-float(alone[len(PROMPTS[p]) + end]))) for end in ends]
        np.testing.assert_allclose(given, want, rtol=1e-5)


def test_sigmoid_does_not_overflow():
    np.testing.assert_array_equal(sigmoid(np.array([-2000.0, 0.0, 2000.0])), [0, 0.5, 1])


def test_searches_go_in_lockstep_and_do_not_know_of_each_other():
    def search(rounds):
        said = []
        for _ in range(rounds):
            said += yield Grow([(1,), (2,)], [2, 3])
            said += yield Score([(4, 5)], "value")
        return Found([], tuple(str(said)), rounds, 0)

    batches = []

    def grow(states, count, key, ids, whole):
        batches.append((key, count, [p for p, _ in states]))
        return [[(*tokens, key, name)] * count for (_, tokens), name in zip(states, ids)]  # noqa: B905

    def score(model, states):
        return [[float(p)] for p, _ in states]

    over = []
    many = drive({p: search(p) for p in (1, 2, 3)}, lambda at: at, grow, score, over.append)
    assert [f.generated for f in many.values()] == [1, 2, 3]
    assert over == [1, 1, 1]
    # Requests of unlike counts are batches of their own; the round's number is the key.
    assert batches[:2] == [(0, 2, [1, 2, 3]), (0, 3, [1, 2, 3])]
    assert batches[-2:] == [(4, 2, [3]), (4, 3, [3])]
    for p in (1, 2, 3):
        assert drive({p: search(p)}, lambda at: at, grow, score)[p] == many[p]
