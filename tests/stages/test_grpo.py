"""The loop of reinforcement learning on a model of 32 letters, problems made by hand."""

import dataclasses
import itertools
import json
import os

import jax
import numpy as np
import pytest

from r1jax import learner
from r1jax.data.sources import batch_indices
from r1jax.losses import LOSSES
from r1jax.models.lora import LoraConfig
from r1jax.rewards import REWARDS
from r1jax.stages import grpo
from r1jax.stages.grpo import GrpoConfig

P, G, NEW = 4, 4, 7  # questions a rollout, responses to each, tokens of a response
PROBLEMS = [{"id": str(i), "question": q, "answer": "1"} for i, q in enumerate("abcdefgh")]


@pytest.fixture(autouse=True)
def toy_rewards(monkeypatch):
    """Rewards that a random model meets now and then."""
    monkeypatch.setitem(REWARDS, "vowels", lambda _, r: sum(c in "aeiou" for c in r.text))
    monkeypatch.setitem(REWARDS, "one", lambda _, r: 1.0)


def settings(**changes):
    return GrpoConfig(
        **dict(
            problems="unused", steps=1, max_tokens=NEW, prompts_per_rollout=P, group_size=G,
            # Four responses a packed row.
            micro_rows=2, row_tokens=128, chunk=4, rewards={"vowels": 1.0}, lr=1e-2, kl_coef=0.1,
            checkpoint_every=100,
        )
        | changes
    )  # fmt: skip


@pytest.fixture
def train(place, tiny):
    """Runs the stage: (final parameters, place)."""

    def run(name="a", *, config=None, problems=PROBLEMS, loss=None, evaluate=None, **where):
        here = place(name, **where)
        params = grpo.run(
            config or settings(), here.run, tiny[1], problems, loss=loss, evaluate=evaluate
        )
        return params, here

    return run


def assert_same(a, b, **tolerance):
    for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True):
        np.testing.assert_allclose(x, y, **{"rtol": 0, "atol": 0} | tolerance)


def stream_position(checkpoint):
    return json.loads((checkpoint / "meta" / "metadata").read_text())["position"]


def distance(a, b):
    return max(np.abs(x - y).max() for x, y in zip(*map(jax.tree.leaves, (a, b)), strict=True))


# --- one step --------------------------------------------------------------------------


class Deadly(dict):
    """A problem that kills the worker it is sent to."""

    def __reduce__(self):
        return os._exit, (9,)


@pytest.mark.parametrize("ahead", [False, True])
def test_a_run_goes_on_when_workers_die(train, ahead):
    problems = [Deadly(p) if i == 1 else p for i, p in enumerate(PROBLEMS)]
    config = settings(
        steps=2, rewards={"accuracy": 1.0, "format": 1.0}, reward_workers=1, reward_limit_s=60.0,
        ahead=ahead, importance_cap=2.0,
    )  # fmt: skip
    _, here = train(config=config, problems=problems)
    asked = [i for step in range(2) for i in batch_indices(len(problems), P, step, here.run.seed)]
    deaths = asked.count(1)
    assert deaths > 0 and len(here.metrics) == 2
    for name in ("reward/errors", "reward/restarts"):
        assert sum(row[name] for row in here.metrics) == G * deaths


def test_metrics_of_a_step_are_those_of_its_rollout(train):
    _, here = train()
    ((prompts, asked, rollout),) = here.run.calls
    (row,) = here.metrics
    assert (row["step"], row["stage"]) == (1, "stage")
    assert len(prompts) == P and asked["group_size"] == G
    assert row["rollout/length"] == pytest.approx(rollout.length_B.mean())
    assert row["rollout/tokens"] == rollout.length_B.sum()
    assert row["rollout/truncated"] == pytest.approx(rollout.truncated_B.mean())
    assert row["rollout/entropy"] == pytest.approx(-rollout.logp_BT.sum() / rollout.length_B.sum())
    texts = [
        here.run.tokenizer.decode(t[:n])
        for t, n in zip(rollout.tokens_BT, rollout.length_B, strict=True)
    ]
    vowels_PG = np.array([sum(c in "aeiou" for c in t) for t in texts]).reshape(P, G)
    assert row["reward/vowels"] == row["reward/total"] == pytest.approx(vowels_PG.mean())
    assert row["rollout/zero_variance"] == np.mean(np.ptp(vowels_PG, axis=1) == 0)
    assert (row["rollout/rounds"], row["reward/errors"], row["lr"]) == (1, 0, 1e-2)


@pytest.mark.parametrize("temperature", [1.0, 0.7])
def test_the_samplers_logprobs_are_the_trainers(train, temperature):
    # Before the first update π is π_old: every ratio is 1, what is left of k3 is rounding
    # (errors of 1e-5 squared), and the reference is π too.
    _, here = train(config=settings(temperature=temperature))
    (row,) = here.metrics
    assert row["loss/ratio_mean"] == pytest.approx(1, abs=1e-5)
    assert 0 <= row["loss/approx_kl_old"] < 1e-9
    assert 0 <= row["loss/kl"] < 1e-9
    assert row["loss/clip_fraction"] == 0
    assert row["loss/gradient_norm"] > 1e-3  # there was something to learn


def test_the_end_token_is_an_action_and_the_prompt_is_not(train, monkeypatch):
    packings = []

    def spy(*given, pack=learner.pack):
        packings.extend(pack(*given))
        return packings

    monkeypatch.setattr(learner, "pack", spy)
    _, here = train(config=settings(kl_coef=0.0))
    ((_, _, rollout),) = here.run.calls
    assert 0 < rollout.truncated_B.sum() < P * G  # both kinds of rows occur
    seen = []
    for batch, row_XN in packings:
        for at in np.ndindex(row_XN.shape):
            row = row_XN[at]
            trained = batch.tokens_XT[at[0], batch.at_XNR[at][batch.mask_XNR[at] > 0]]
            if row >= 0:
                wanted = rollout.tokens_BT[row, : rollout.length_B[row]]
                np.testing.assert_array_equal(trained, wanted)
                assert (trained[-1] == here.run.tokenizer.eos_id) == (not rollout.truncated_B[row])
                seen.append(row)
            assert len(trained) == (rollout.length_B[row] if row >= 0 else 0)
    # Every response once: 16, four a packed row, two of these a micro-batch.
    assert sorted(seen) == list(range(P * G)) and len(packings) == 2


@pytest.mark.parametrize("loss", ["grpo", "dapo"])
def test_micro_batches_add_up_to_the_batch(train, tiny, loss):
    # 16 responses: in one packed row, and four a row as twice two rows. Adam divides each
    # gradient by its size, so that rounding of a small one can matter as much as the rate:
    # hence a low one.
    whole, a = train("whole", config=settings(loss=loss, lr=1e-4, micro_rows=0, row_tokens=512))
    parts, b = train("parts", config=settings(loss=loss, lr=1e-4))
    assert_same(whole, parts, atol=1e-6)
    assert distance(whole, tiny[1]) > 0.9e-4
    # Adam hides a wrong factor; the gradient's norm, one of the metrics, does not.
    assert a.metrics[0] == pytest.approx(b.metrics[0], abs=1e-5)


@pytest.mark.parametrize("loss", LOSSES)
def test_every_loss_takes_a_step(train, tiny, loss):
    params, here = train(config=settings(loss=loss))
    assert here.metrics[0]["loss/gradient_norm"] > 1e-3
    assert 1e-3 < distance(params, tiny[1]) < 0.1  # Adam's first step: at most lr = 0.01, about


def test_epochs_and_minibatches_count_updates(train):
    updates = []

    def loss(logp_BT, old_logp_BT, ref_logp_BT, adv_B, mask_BT, *, whole):
        jax.debug.callback(lambda rows: updates.append(int(rows)), whole.rows)
        return 0.0 * logp_BT.sum(), {}

    _, here = train(config=settings(steps=2, epochs=2, minibatches=2), loss=loss)
    jax.effects_barrier()
    assert updates == [8] * 8  # 2 steps × 2 epochs × 2 minibatches, half of 16 rows each
    assert list(here.checkpoints) == [2]
    assert stream_position(here.checkpoints[2]) == 2


def test_a_loss_of_ones_own(train, tiny):
    def flat(logp_BT, old_logp_BT, ref_logp_BT, adv_B, mask_BT, *, whole):
        # A quarter a row: 16 rows make 4, however they are cut.
        return 0.0 * logp_BT.sum(), {"mine": 0.25 * (mask_BT.sum(axis=1) > 0).sum()}

    params, here = train(loss=flat)
    (row,) = here.metrics
    assert row["loss/mine"] == 4.0 and row["loss/total"] == 0.0
    assert not any(name in row for name in ("loss/policy", "loss/kl"))
    assert_same(params, tiny[1])  # no gradient, no step


# --- the reference ---------------------------------------------------------------------


def test_the_reference_follows_every_second_step(train):
    _, here = train(config=settings(steps=4, reference_every=2))
    kl = [row["loss/kl"] for row in here.metrics]
    assert kl[0] < 1e-9 and kl[2] < 1e-9  # before steps 1 and 3 the policy is the reference
    assert kl[1] > 1e-5 and kl[3] > 1e-5


def test_a_fixed_reference_stays_behind(train):
    _, here = train(config=settings(steps=3))
    kl = [row["loss/kl"] for row in here.metrics]
    assert kl[0] < 1e-9 and kl[1] > 1e-5 and kl[2] > 1e-5


def test_without_a_penalty_there_is_no_reference(train, monkeypatch):
    monkeypatch.setattr(
        learner.PolicyLearner, "logprobs", lambda *_: pytest.fail("scored a reference")
    )
    _, here = train(config=settings(kl_coef=0.0))
    assert "loss/kl" not in here.metrics[0]
    assert not (here.checkpoints[1] / "reference").exists()


# --- the stream of questions -----------------------------------------------------------


def questions(call, run):
    prompts = [tuple(run.prompt(p["question"])) for p in PROBLEMS]
    return [prompts.index(tuple(p)) for p in call[0]]


def test_questions_come_in_the_order_of_the_stream(train):
    _, here = train(config=settings(steps=3))
    for position, call in enumerate(here.run.calls):
        want = batch_indices(len(PROBLEMS), P, position, 0)
        assert questions(call, here.run) == want.tolist()
        ids = position * P + np.arange(P)
        np.testing.assert_array_equal(call[1]["prompt_ids"], ids)


def test_every_step_and_every_seed_samples_its_own_noise(train):
    # One question, a policy that stays: equal rollouts would mean equal noise.
    config = settings(steps=3, lr=0.0, kl_coef=0.0, prompts_per_rollout=1)
    one = PROBLEMS[:1]
    rollouts = []
    for seed in (0, 1):
        params, here = train(f"seed{seed}", seed=seed, config=config, problems=one)
        rollouts += [call[2].tokens_BT for call in here.run.calls]
    assert len(rollouts) == 6
    for a, b in itertools.combinations(rollouts, 2):
        assert not np.array_equal(a, b)
    again, here = train("again", config=config, problems=one)
    for call, want in zip(here.run.calls, rollouts[:3], strict=True):
        np.testing.assert_array_equal(call[2].tokens_BT, want)
    assert_same(again, params)


# --- dynamic sampling ------------------------------------------------------------------


@pytest.fixture
def half_dull(monkeypatch):
    """Problems a to d are always worth 1; of e to h no two responses are worth the same."""
    # Counted by question: responses are judged as they are done, in any order.
    worth = {q: itertools.count() for q in "efgh"}
    monkeypatch.setitem(
        REWARDS, "half_dull",
        lambda p, r: float(next(worth[p["question"]])) if p["question"] in worth else 1.0,
    )  # fmt: skip
    return {"half_dull": 1.0}


@pytest.fixture
def learned_from(monkeypatch):
    """First tokens of the prompts, and advantages, of what updates were made of."""
    seen = []

    def spy(rollout, rows_b, shape, adv_B, ref, pack=learner.pack):
        in_order = np.sort(rows_b)
        seen.append((rollout.prompt_BT[in_order], adv_B[in_order]))
        return pack(rollout, rows_b, shape, adv_B, ref)

    monkeypatch.setattr(learner, "pack", spy)
    return seen


def test_dull_groups_are_replaced_by_further_questions(train, half_dull, learned_from):
    # Each epoch of 8 questions is two rounds of 4, with the 4 lively ones somewhere in it.
    _, here = train(config=settings(steps=2, rewards=half_dull, dynamic_sampling=True, kl_coef=0.0))
    assert [row["rollout/rounds"] for row in here.metrics] == [2, 2]
    assert [row["rollout/zero_variance"] for row in here.metrics] == [0.5, 0.5]
    assert len(here.run.calls) == 4
    tokens = [call[2].length_B.sum() for call in here.run.calls]
    assert [row["rollout/tokens"] for row in here.metrics] == [sum(tokens[:2]), sum(tokens[2:])]
    for position, call in enumerate(here.run.calls):
        want = batch_indices(len(PROBLEMS), P, position, 0)
        assert questions(call, here.run) == want.tolist()
    assert stream_position(here.checkpoints[2]) == 4
    letter = here.run.tokenizer.decode
    for prompt_BT, adv_B in learned_from:
        assert {letter(row)[0] for row in prompt_BT} == set("efgh")
        # Four different rewards in a row, say 0 1 2 3: (r − 1.5) / √1.25 = ∓1.342, ∓0.447
        np.testing.assert_allclose(
            np.sort(np.abs(adv_B.reshape(P, G)), axis=1)[:, [0, 3]],
            np.tile([0.4472136, 1.3416408], (P, 1)), rtol=1e-5,
        )  # fmt: skip


def test_what_is_missing_after_the_last_round_is_filled_up(train, half_dull, learned_from):
    # Only `e` is lively: at most one group a round of two rounds, the rest is dull.
    few = PROBLEMS[:5]
    _, here = train(
        config=settings(
            rewards=half_dull, dynamic_sampling=True, max_sampling_rounds=2, kl_coef=0.0
        ),
        problems=few,
    )
    assert here.metrics[0]["rollout/rounds"] == 2
    prompt_BT, adv_B = learned_from[-1]
    lively = np.abs(adv_B.reshape(P, G)).max(axis=1) > 0
    letters = [here.run.tokenizer.decode(row)[0] for row in prompt_BT[::G]]
    assert len(letters) == P
    assert [letter == "e" for letter in letters] == lively.tolist()
    assert 1 <= lively.sum() <= 2 and lively[0]  # useful groups come first


def test_nothing_to_learn_changes_nothing(train, tiny):
    config = settings(
        rewards={"one": 1.0}, dynamic_sampling=True, max_sampling_rounds=3, kl_coef=0.0
    )
    params, here = train(config=config)
    (row,) = here.metrics
    assert (row["rollout/rounds"], row["rollout/zero_variance"]) == (3, 1.0)
    assert row["loss/gradient_norm"] == 0.0
    assert_same(params, tiny[1])


# --- stopping and going on -------------------------------------------------------------


AHEAD = dict(ahead=True, importance_cap=1.5)


@pytest.mark.parametrize(
    "changes",
    [
        {},
        AHEAD,
        pytest.param(
            AHEAD | dict(dynamic_sampling=False, lora=LoraConfig(rank=2)), marks=pytest.mark.slow
        ),
    ],
    ids=["plain", "ahead", "ahead_adapters"],
)
def test_stopped_and_resumed_equals_uninterrupted(place, tiny, stopped, monkeypatch, changes):
    # All that a resume could lose: the stream's position (dynamic sampling skips ahead), the
    # reference (of step 3), the order of minibatches, the optimiser's moments, and what was
    # sampled ahead by weights that are gone.
    monkeypatch.setitem(
        REWARDS, "half", lambda p, r: p["question"] in "ab" or sum(c in "aeiou" for c in r.text)
    )
    config = settings(
        **dict(
            steps=6, epochs=2, minibatches=2, reference_every=3, warmup_steps=3,
            checkpoint_every=2, dynamic_sampling=True, max_sampling_rounds=2,
            rewards={"half": 1.0},
        )
        | changes
    )  # fmt: skip

    def run(here):
        return grpo.run(
            config, dataclasses.replace(here.run, base="base"), tiny[1], PROBLEMS, evaluate_every=2,
            evaluate=lambda params, step: {"eval/x": float(np.abs(params["embed"]).sum())},
        )  # fmt: skip

    whole = place("whole")
    want = run(whole)
    assert max(row.get("loss/gradient_norm", 0) for row in whole.metrics) > 1e-3
    rounds = sum(row.get("rollout/rounds", 0) for row in whole.metrics)
    assert rounds > 6 if config.dynamic_sampling else rounds == 6
    for stop_at, newest in {1: 0, 4: 2, 5: 4}.items():
        with pytest.raises(stopped):
            run(place(f"stop{stop_at}", stop_at=stop_at))
        again = place(f"stop{stop_at}")
        assert max(again.checkpoints, default=0) == newest
        assert_same(run(again), want)
        assert again.metrics == whole.metrics


# --- one step ahead --------------------------------------------------------------------


@pytest.fixture
def events(monkeypatch):
    """In order: ("sample", position, params), ("begin", rows), ("finish",), ("update", …)."""
    seen = []

    def record(owner, name, describe):
        method = getattr(owner, name)

        def spied(self, *given, **rest):
            seen.append((name, *describe(*given)))
            return method(self, *given, **rest)

        monkeypatch.setattr(owner, name, spied)

    record(
        grpo.Rounds, "sample", lambda params, step, position, _: (position, jax.device_get(params))
    )
    record(grpo.RewardPool, "begin", lambda pairs: [list(pairs)])
    record(grpo.RewardPool, "finish", list)
    record(
        learner.PolicyLearner, "update",
        lambda state, frozen, rollout, rows, adv, ref, lr, importance: [rollout, importance],
    )  # fmt: skip
    return seen


def without_repeats(names):
    return [name for name, _ in itertools.groupby(names)]


def test_rewards_are_begun_before_the_update_and_finished_after_it(train, events):
    first = ["sample", "begin", "finish"]
    train("plain", config=settings(steps=3))
    assert without_repeats(e[0] for e in events) == [*first, "update"] * 3
    events.clear()
    train("ahead", config=settings(steps=3, **AHEAD))
    overlapped = ["sample", "begin", "update", "finish"]
    # The last step has nothing to sample for.
    assert without_repeats(e[0] for e in events) == [*first, *overlapped * 2, "update"]
    rows = [row for name, *rest in events if name == "begin" for row in rest[0]]
    assert sorted(rows) == sorted([*range(P * G)] * 3)


def test_ahead_samples_with_the_weights_that_the_step_before_started_from(place, tiny, events):
    weights = []

    def evaluate(params, step):
        weights.append(jax.device_get(params))
        return {}

    config = settings(steps=4, **AHEAD)
    grpo.run(config, place().run, tiny[1], PROBLEMS, evaluate=evaluate, evaluate_every=1)
    sampled = [rest for name, *rest in events if name == "sample"]
    assert [position for position, _ in sampled] == [0, 1, 2, 3]
    # weights[n] are those that step n, counted from 0, starts from.
    for (_, params), n in zip(sampled, [0, 0, 1, 2], strict=True):
        assert_same(params, weights[n])
    assert all(distance(a, b) > 1e-3 for a, b in itertools.pairwise(weights))


@pytest.mark.parametrize("cap", [1.0, 1.05, float("inf")])
def test_updates_are_corrected_for_older_weights(train, events, cap):
    _, here = train(config=settings(steps=4, lr=3e-3, ahead=True, importance_cap=cap))
    updates = [rest for name, *rest in events if name == "update"]
    for n, (row, call, (old, weight_BT)) in enumerate(
        zip(here.metrics, here.run.calls, updates, strict=True)
    ):
        # π_old is the policy that the update starts from: ratios are 1, though μ is another.
        assert row["loss/ratio_mean"] == pytest.approx(1, abs=1e-5)
        assert 0 <= row["loss/approx_kl_old"] < 1e-9
        sampled, inside = call[2], call[2].mask_BT > 0
        np.testing.assert_array_equal(old.tokens_BT, sampled.tokens_BT)
        ratio = np.exp(np.float64(old.logp_BT[inside]) - sampled.logp_BT[inside])
        np.testing.assert_allclose(weight_BT[inside], np.minimum(ratio, cap), rtol=1e-6)
        assert not weight_BT[~inside].any()
        assert row["rollout/importance_weight"] == pytest.approx(np.minimum(ratio, cap).mean())
        assert row["rollout/importance_capped"] == pytest.approx((ratio > cap).mean())
        # The first step's responses are its own policy's, all others one step old.
        assert np.abs(ratio - 1).max() < 1e-4 if n == 0 else np.abs(ratio - 1).max() > 0.02
        if n and cap < 2:
            assert 0 < row["rollout/importance_capped"] < 1


@pytest.mark.parametrize("changes", [{}, dict(lora=LoraConfig(rank=2))], ids=["all", "adapters"])
def test_at_rate_zero_ahead_changes_nothing(place, tiny, changes):
    def run(name, **settings_of_it):
        here = place(name)
        config = settings(steps=3, lr=0.0, epochs=2, minibatches=2, **settings_of_it, **changes)
        params = grpo.run(
            config, dataclasses.replace(here.run, base="base"), tiny[1], PROBLEMS
        )  # fmt: skip
        return params, here.metrics

    (params, ahead), (same_params, corrected), (_, plain) = (
        run("ahead", ahead=True, importance_cap=2.0),
        run("corrected", importance_cap=2.0),
        run("plain"),
    )
    assert ahead == corrected
    assert_same(params, same_params)
    # The sampler's log-probabilities are the trainer's to rounding: so are the weights 1.
    weights = ("rollout/importance_weight", "rollout/importance_capped")
    for row, other in zip(ahead, plain, strict=True):
        assert [row.pop(name) for name in weights] == pytest.approx([1.0, 0.0], abs=1e-5)
        assert row.pop("stage") == other.pop("stage")
        # A pass more over the responses, for the corrected log-probabilities.
        assert row.pop("compute/flops") > other.pop("compute/flops")
        assert row == pytest.approx(other, rel=1e-4, abs=1e-5)
        assert row["loss/gradient_norm"] > 1e-3


# --- evaluation, messages --------------------------------------------------------------


def test_evaluation_before_the_first_step_between_and_after_the_last(place, tiny):
    here, seen = place(), []

    def evaluate(params, step):
        seen.append((step, distance(params, tiny[1])))
        return {"eval/x/pass@1": step / 10}

    grpo.run(
        settings(steps=5), here.run, tiny[1], PROBLEMS, evaluate=evaluate, evaluate_every=2
    )  # fmt: skip
    assert [step for step, _ in seen] == [0, 2, 4, 5]
    assert seen[0][1] == 0 < seen[1][1]
    got = {row["step"]: row.get("eval/x/pass@1") for row in here.metrics}
    assert got == {0: 0.0, 1: None, 2: 0.2, 3: None, 4: 0.4, 5: 0.5}


def test_the_learning_rate_warms_up(train):
    _, here = train(config=settings(steps=3, warmup_steps=2, lr=0.03))
    # (step + 1) / (2 + 1), then 1
    assert [row["lr"] for row in here.metrics] == pytest.approx([0.01, 0.02, 0.03])


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"group_size": 1}, "group_size=1: a group needs 2 or more to compare"),
        (
            {"prompts_per_rollout": 500, "minibatches": 16},
            "prompts_per_rollout=500 is not divisible by minibatches=16; use 496 or 512",
        ),
        ({"temperature": 0.0}, "temperature=0.0 must be positive to learn from"),
        ({"micro_rows": -1}, "micro_rows=-1 must not be negative"),
        ({"row_tokens": 0}, "row_tokens=0 must be at least 1"),
        ({"ahead": True}, "ahead=True learns from responses of older weights: correct for that"),
        ({"importance_cap": 0.5}, "importance_cap=0.5 must be 0 .* or at least 1"),
        ({"importance_cap": float("nan")}, "importance_cap=nan must be 0"),
    ],
)
def test_settings_that_cannot_be(changes, message):
    with pytest.raises(ValueError, match="^" + message):
        settings(**changes)


def test_a_prompt_that_does_not_fit(train):
    # Begin token, 60 letters and "=" are 62 tokens; the context is 64.
    long = [*PROBLEMS, {"id": "9", "question": "a" * 60, "answer": "1"}]
    with pytest.raises(ValueError, match=r"prompt 8 has 62 tokens; with max_tokens=7 that exceeds"):
        train(problems=long)


@pytest.mark.parametrize(("micro_rows", "rows"), [(0, 4), (8, 8)])
def test_packed_rows_are_made_for_the_longest_prompt_and_the_mesh(
    train, mesh8, monkeypatch, micro_rows, rows
):
    class Asked(Exception):
        pass

    def shape(kernel, **sizes):
        raise Asked(kernel, sizes)

    monkeypatch.setattr(grpo, "packed_shape", shape)
    problems = [{"id": "9", "question": "a" * 30, "answer": "1"}, *PROBLEMS]
    with pytest.raises(Asked) as asked:
        train(config=settings(micro_rows=micro_rows), problems=problems, mesh=mesh8)
    # mesh8 cuts rows in four. A begin token, 30 letters, "=".
    wanted = dict(rows=rows, tokens=128, prompt=32, response=NEW)
    assert asked.value.args == ("blocks", wanted)


def test_rows_that_the_mesh_cannot_cut(train, mesh8):
    message = "micro_rows=6 is not divisible by the 4 pieces .* use 4 or 8"
    with pytest.raises(ValueError, match=message):
        train(config=settings(micro_rows=6), mesh=mesh8)
