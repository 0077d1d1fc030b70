"""Who decides whether a response is correct: a rule, a judge, or nobody."""

import dataclasses
from types import SimpleNamespace

import numpy as np
import pytest

from r1jax.compute import sampling_flops
from r1jax.judging import GRADED, Judge, Verifier, needs_judge, prediction
from r1jax.models.transformer import TransformerConfig
from r1jax.rewards import Response
from r1jax.rewards.pool import RewardPool
from r1jax.types import Rollout

CONFIG = TransformerConfig(
    vocabulary=300, width=8, layers=1, heads=2, kv_heads=1, head_dim=4, mlp=8, context=200
)
MATHS = {"id": "m", "question": "2+2?", "answer": "4"}
OPEN = {"id": "o", "question": "Why?", "answer": "So.", "grader": "open"}


@dataclasses.dataclass
class Run:
    """A model that answers by its prompt, a character a token; 0 ends."""

    say: object
    context: int = 200
    calls: list = dataclasses.field(default_factory=list)

    @property
    def model(self):
        return SimpleNamespace(config=dataclasses.replace(CONFIG, context=self.context))

    def key(self, name):
        return name

    def prompt(self, text):
        return list(text)

    def sampler(self, config):
        assert config.temperature == 0 and config.max_tokens == 10

        def sample(params, prompts, key, *, prompt_ids):
            self.calls.append((params, prompt_ids))
            said = [self.say("".join(p)) for p in prompts]
            return Rollout(None, None, said, None, None, np.array([len(x) > 9 for x in said]))

        return sample

    def responses(self, rollout):
        pairs = zip(rollout.tokens_BT, rollout.truncated_B, strict=True)
        return [Response(text[:10], min(10, len(text) + 1), bool(cut)) for text, cut in pairs]


@pytest.mark.parametrize(
    ("problem", "expected"),
    [
        (MATHS, False),
        (OPEN, True),
        (OPEN | {"checks": []}, True),
        (OPEN | {"checks": [{"words": 3}]}, False),  # a rule after all
        (MATHS | {"grader": "choice"}, False),
    ],
)
def test_open_is_what_no_rule_decides(problem, expected):
    assert needs_judge(problem) is expected


@pytest.mark.parametrize(
    ("response", "said"),
    [
        (Response("<think>a</think>b"), "b"),
        (Response("a</think>b", think_opened=True), "b"),
        (Response("a", think_opened=True), None),
        (Response("<think>a</think> \n\u200b"), None),
        (Response("<think>a</think>b", truncated=True), None),
        (Response(""), None),
        (Response("plain"), "plain"),
    ],
)
def test_a_prediction_is_a_finished_final_section(response, said):
    assert prediction(response) == said


def test_the_judge_says_yes_no_or_nothing():
    replies = {"a": "yes", "b": "No.", "c": "perhaps", "d": "yes" + 9 * " ", "e": "<think>x"}
    run = Run(lambda text: replies[text.split("Prediction: ")[1][0]])
    judge = Judge(run, "weights", max_tokens=10)
    given = [(OPEN, Response(x)) for x in "abcde"]
    assert judge(given) == [True, False, None, None, None]
    # d would be a yes, and does not end within ten tokens.
    lengths = [3 + 1, 3 + 1, 7 + 1, 10, 8 + 1]
    assert judge.tokens == sum(lengths)
    asked = len("Judge. Question: Why? Reference: So. Prediction: a Same?")
    assert judge.flops == sampling_flops(run.model.config, [asked] * 5, lengths)
    assert judge([]) == [] and len(run.calls) == 1 and run.calls[0][0] == "weights"


def test_what_the_judge_cannot_read_it_is_not_asked():
    run = Run(lambda text: "yes", context=100)
    judge = Judge(run, None, max_tokens=10)
    # "Judge. Question: Why? Reference: So. Prediction:  Same?" and the prediction make 90 at most.
    room = 90 - len("Judge. Question: Why? Reference: So. Prediction:  Same?")
    given = [(OPEN, Response("x" * (room + 1))), (OPEN, Response("x" * room))]
    assert judge(given) == [None, True]
    assert run.calls == [(None, [1])]
    assert judge(given[:1]) == [None] and len(run.calls) == 1


def test_rules_decide_what_they_can_and_the_judge_the_rest():
    run = Run(lambda text: "yes" if "good" in text else "maybe")
    with RewardPool(GRADED, 0) as pool:
        verifier = Verifier(pool, Judge(run, None, max_tokens=10))
        # In any order and in parts, as responses come.
        verifier.begin({5: (OPEN, Response("good")), 0: (MATHS, Response("\\boxed{4}"))})
        verifier.begin({3: (MATHS, Response("good")), 2: (OPEN, Response("bad"))})
        verifier.begin({1: (OPEN, Response("<think>good"))})
        assert verifier.finish() == {0: True, 1: False, 2: False, 3: False, 5: True}
        assert verifier.counts == {"judged": 2, "judged_unparsed": 1, "grading_errors": 0}
        assert verifier.finish() == {}
        verifier.begin({0: (MATHS | {"answer": "?!"}, Response("\\boxed{4}"))})
        assert verifier.finish() == {0: False} and verifier.counts["grading_errors"] == 1
        assert Verifier(pool, None).finish() == {}
