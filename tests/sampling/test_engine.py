"""Rollouts against teacher forcing: what was sampled, from what, with which number, until when."""

import functools

import jax
import numpy as np
import pytest

from r1jax.sampling import engine
from r1jax.sampling.engine import Sampler, SamplingConfig, bucket

PAD, EOS, NEW, GROUP = 0, 19, 12, 4
# Of 1 to 11 tokens, padded to 16; an end token in a prompt (the last) ends nothing.
PROMPTS = [[1], [1, 5, 9, 3, 7], [1, 8, 8, 4, 31, 30, 29, 12], [1, 6, 20], [1, *range(10, 20)]]
KEY = 7


@functools.cache
def sampler(model, mesh, eos_id=EOS, **settings):
    config = SamplingConfig(**(dict(max_tokens=NEW, chunk=NEW) | settings))
    return Sampler(model, config, stop_ids=[eos_id], pad_id=PAD, mesh=mesh)


def sample(
    tiny, mesh, prompts=PROMPTS, *, ids=None, group=GROUP, key=KEY, counter=None, **settings
):
    model, params = tiny
    with jax.set_mesh(mesh):
        return sampler(model, mesh, **settings)(
            params, prompts, jax.random.key(key),
            prompt_ids=ids, group_size=group, on_tokens=counter,
        )  # fmt: skip


def probabilities(tiny, rollout, temperature=1.0, top_p=1.0, apply=None):
    """[B, T, V] in float64, of each response token, from unpadded rows through the whole model."""
    model, params = tiny
    R = rollout.tokens_BT.shape[1]
    rows = np.zeros((len(rollout.tokens_BT), rollout.prompt_BT.shape[1] + R), np.int32)
    for row, prompt, n, tokens in zip(
        rows, rollout.prompt_BT, rollout.prompt_length_B, rollout.tokens_BT, strict=True
    ):
        row[: n + R] = [*prompt[len(prompt) - n :], *tokens]
    logits_BTV = np.asarray((apply or forward(model))(params, rows), np.float64)
    columns = rollout.prompt_length_B[:, None] - 1 + np.arange(R)
    z = np.take_along_axis(logits_BTV, columns[:, :, None], axis=1) / temperature
    p = np.exp(z - z.max(axis=-1, keepdims=True))
    p /= p.sum(axis=-1, keepdims=True)
    order = np.argsort(-p, axis=-1)
    ranked = np.take_along_axis(p, order, axis=-1)
    last = np.argmax(np.cumsum(ranked, axis=-1) >= top_p - 1e-12, axis=-1)
    p = np.where(p >= np.take_along_axis(ranked, last[..., None], axis=-1), p, 0)
    return p / p.sum(axis=-1, keepdims=True)


@functools.cache
def forward(model):
    return jax.jit(model.apply)


def uniforms(prompt_ids, group, steps, key=KEY):
    """The number of each token, [B, T]: a function of key, prompt, sample and position."""
    fold = jax.random.fold_in
    row = jax.jit(
        lambda k: jax.vmap(lambda position: jax.random.uniform(fold(k, position)))(np.arange(steps))
    )
    keys = [
        fold(fold(jax.random.key(key), p), sample) for p in prompt_ids for sample in range(group)
    ]
    return np.stack([row(k) for k in keys])


def distance_from_draw(p_BTV, tokens_BT, uniform_BT):
    """How far outside its token's interval of the cumulative distribution each uniform lies."""
    above = np.take_along_axis(np.cumsum(p_BTV, axis=-1), tokens_BT[..., None], axis=-1)[..., 0]
    below = above - np.take_along_axis(p_BTV, tokens_BT[..., None], axis=-1)[..., 0]
    return np.maximum(np.maximum(below - uniform_BT, uniform_BT - above), 0)


def same(a, b, rows_a=slice(None), rows_b=slice(None)):
    """Equal tokens, and log-probabilities to rounding; prompts may be padded differently."""
    np.testing.assert_array_equal(a.tokens_BT[rows_a], b.tokens_BT[rows_b])
    np.testing.assert_array_equal(a.length_B[rows_a], b.length_B[rows_b])
    np.testing.assert_array_equal(a.truncated_B[rows_a], b.truncated_B[rows_b])
    np.testing.assert_allclose(a.logp_BT[rows_a], b.logp_BT[rows_b], rtol=0, atol=1e-5)


@pytest.fixture(scope="module")
def base(tiny, mesh1):
    return sample(tiny, mesh1, chunk=4)


@pytest.mark.parametrize(
    ("temperature", "top_p"), [(1.0, 1.0), (0.7, 1.0), (1.5, 0.8), (0.6, 0.95)]
)
def test_sampler_agrees_with_teacher_forcing(tiny, mesh1, temperature, top_p):
    rollout = sample(tiny, mesh1, temperature=temperature, top_p=top_p)
    inside = rollout.mask_BT > 0
    # There is something to disagree about: short and full responses, prompts with padding.
    assert rollout.truncated_B.any() and (rollout.length_B < NEW).sum() > 3
    p_BTV = probabilities(tiny, rollout, temperature, top_p)
    p_BT = np.take_along_axis(p_BTV, rollout.tokens_BT[..., None], axis=-1)[..., 0]
    with np.errstate(divide="ignore"):  # padding after the end may be impossible to sample
        np.testing.assert_allclose(
            rollout.logp_BT, np.where(inside, np.log(p_BT), 0), rtol=0, atol=1e-5
        )
    uniform_BT = uniforms(range(len(PROMPTS)), GROUP, NEW)
    away_BT = distance_from_draw(p_BTV, rollout.tokens_BT, uniform_BT)
    assert away_BT[inside].max() < 1e-5


@pytest.mark.usefixtures("absolute_positions")
def test_positions_count_from_a_prompts_first_token(tiny, mesh1):
    model, params = tiny
    mine = Sampler(model, SamplingConfig(6, chunk=4), stop_ids=[EOS], pad_id=PAD, mesh=mesh1)
    with jax.set_mesh(mesh1):
        rollout = mine(params, PROMPTS, jax.random.key(KEY))
    traced_anew = jax.jit(lambda params, rows: model.apply(params, rows))
    p_BTV = probabilities(tiny, rollout, apply=traced_anew)
    logp_BT = np.log(np.take_along_axis(p_BTV, rollout.tokens_BT[..., None], axis=-1)[..., 0])
    expected = np.where(rollout.mask_BT > 0, logp_BT, 0)
    np.testing.assert_allclose(rollout.logp_BT, expected, rtol=0, atol=1e-5)


def test_temperature_zero_is_greedy(tiny, mesh1):
    rollout = sample(tiny, mesh1, group=2, temperature=0.0)
    same(rollout, rollout, slice(0, None, 2), slice(1, None, 2))
    assert not rollout.logp_BT.any()
    p_BTV = probabilities(tiny, rollout)
    inside = rollout.mask_BT > 0
    np.testing.assert_array_equal(rollout.tokens_BT[inside], p_BTV.argmax(axis=-1)[inside])


@pytest.mark.parametrize(
    "settings",
    [
        dict(chunk=100),
        dict(chunk=5),  # 12 is not a multiple: chunks of 5, 5 and 2
        dict(chunk=4, rows=20),  # all at once, and finished rows are dropped
        dict(rows=8),  # two prompts at a time, the last batch filled up with a padding prompt
        dict(rows=1),  # less than a group: one prompt at a time
    ],
    ids=str,
)
def test_scheduling_changes_nothing(tiny, mesh1, base, settings):
    assert (base.length_B > 8).sum() <= 10  # so that the last of three chunks is on half the rows
    same(sample(tiny, mesh1, **settings), base)


def test_max_tokens_only_cuts(tiny, mesh1, base):
    cut = sample(tiny, mesh1, max_tokens=5, chunk=1)
    np.testing.assert_array_equal(cut.tokens_BT, base.tokens_BT[:, :5])
    np.testing.assert_allclose(cut.logp_BT, base.logp_BT[:, :5], rtol=0, atol=1e-5)
    check_ends(cut, 5)


def test_other_prompts_and_their_order_change_nothing(tiny, mesh1, base):
    order = [3, 0, 4, 1, 2]
    shuffled = sample(tiny, mesh1, [PROMPTS[i] for i in order], ids=np.array(order))
    rows_of = np.arange(len(PROMPTS) * GROUP).reshape(-1, GROUP)
    same(shuffled, base, rows_b=rows_of[order].ravel())
    for i in (0, 4):  # padded to 8 and to 16
        same(sample(tiny, mesh1, [PROMPTS[i]], ids=[i]), base, rows_b=rows_of[i])


def test_samples_of_a_smaller_group_are_the_first_of_a_larger(tiny, mesh1, base):
    rows = np.arange(len(PROMPTS) * GROUP).reshape(-1, GROUP)[:, :2].ravel()
    same(sample(tiny, mesh1, group=2), base, rows_b=rows)


def test_each_prompt_sample_position_and_key_has_a_number_of_its_own(tiny, mesh1):
    # One prompt three times, four samples each, under two keys: 24 responses without end,
    # no two alike (at some 10 likely tokens, 12 in a row coincide with chance 10⁻¹²).
    parts = [
        sample(tiny, mesh1, [PROMPTS[1]] * 3, ids=[0, 1, 300], key=key, eos_id=-1) for key in (1, 2)
    ]
    responses = np.concatenate([part.tokens_BT for part in parts])
    assert len({tuple(row) for row in responses}) == 24
    # A number repeated along the row would let the same token follow the same token always.
    assert len(np.unique(uniforms([0, 1, 300], 4, NEW, key=1))) == 3 * 4 * NEW
    same(sample(tiny, mesh1, [PROMPTS[1]] * 3, ids=[0, 1, 300], key=1, eos_id=-1), parts[0])


def check_ends(rollout, max_tokens, prompts=PROMPTS, group=GROUP):
    B = len(prompts) * group
    assert rollout.tokens_BT.shape == rollout.logp_BT.shape == (B, max_tokens)
    for i in range(B):
        n, tokens = rollout.length_B[i], rollout.tokens_BT[i]
        ends = np.flatnonzero(tokens == EOS)
        assert rollout.truncated_B[i] == (len(ends) == 0)
        # up to the first end token, which is kept and counted, or all there is room for
        assert n == (ends[0] + 1 if len(ends) else max_tokens)
        assert (rollout.logp_BT[i, :n] < 0).all()
        assert (tokens[n:] == PAD).all() and (rollout.logp_BT[i, n:] == 0).all()
        assert rollout.mask_BT[i].tolist() == [1.0] * n + [0.0] * (max_tokens - n)
        prompt = prompts[i // group]
        assert rollout.prompt_length_B[i] == len(prompt)
        padding = rollout.prompt_BT.shape[1] - len(prompt)
        assert rollout.prompt_BT[i].tolist() == [PAD] * padding + list(prompt)


def test_responses_end_with_the_first_end_token_or_at_max_tokens(base):
    check_ends(base, NEW)
    assert 0 < base.truncated_B.sum() < len(base.truncated_B)


def test_an_end_token_in_the_last_place_is_no_truncation(tiny, mesh1, base):
    # Cut where an end token is known to come: it fits, and other rows still run.
    for n in sorted(set(base.length_B[~base.truncated_B]))[:3]:
        cut = sample(tiny, mesh1, max_tokens=int(n))
        check_ends(cut, n)
        assert ((cut.length_B == n) & ~cut.truncated_B).any() and cut.truncated_B.any()
        np.testing.assert_array_equal(cut.tokens_BT, base.tokens_BT[:, :n])


def test_a_single_token(tiny, mesh1, base):
    one = sample(tiny, mesh1, max_tokens=1)
    check_ends(one, 1)
    np.testing.assert_array_equal(one.tokens_BT, base.tokens_BT[:, :1])


def test_without_an_end_token_all_are_truncated(tiny, mesh1):
    rollout = sample(tiny, mesh1, eos_id=-1)
    assert rollout.truncated_B.all() and (rollout.length_B == NEW).all()
    # the token that ends a text elsewhere is a token like others here
    assert (rollout.tokens_BT == EOS).any()


def test_tokens_are_reported_as_they_come(tiny, mesh1):
    seen = []
    # Three batches of two prompts, the last with one: padding prompts are not counted.
    # Rows are those of the rollout, tokens come in their order.
    rollout = sample(tiny, mesh1, rows=8, counter=seen.append)
    rows = [range(8), range(8, 16), range(16, len(rollout.length_B))]
    assert [sorted(new) for new in seen] == [list(part) for part in rows]
    for new in seen:
        for row, ids in new.items():
            assert ids.tolist() == rollout.tokens_BT[row, : rollout.length_B[row]].tolist()


def agree_on_two_meshes(tiny, a, b, uniform_BT):
    """Equal up to the first draw within 1e-5 of a boundary; returns how many rows fork there."""
    p_BTV, forks = probabilities(tiny, a), 0
    for i in range(len(a.tokens_BT)):
        differs = np.flatnonzero(a.tokens_BT[i] != b.tokens_BT[i])
        n = differs[0] if len(differs) else a.length_B[i]
        np.testing.assert_allclose(a.logp_BT[i, :n], b.logp_BT[i, :n], rtol=0, atol=1e-5)
        if not len(differs):
            assert a.length_B[i] == b.length_B[i] and a.truncated_B[i] == b.truncated_B[i]
            continue
        forks += 1
        # The same distribution stands before both tokens: the number must be at the edge
        # of the interval of each.
        for tokens in (a.tokens_BT, b.tokens_BT):
            at = p_BTV[i, n][None], tokens[i, n][None], uniform_BT[i, n][None]
            assert distance_from_draw(*at)[0] < 1e-5
    return forks


def test_eight_devices_sample_what_one_does(tiny, mesh1, mesh8, base):
    # Five prompts, filled up to eight for the four pieces of the mesh.
    rollout = sample(tiny, mesh8, chunk=6)
    check_ends(rollout, NEW)
    forks = agree_on_two_meshes(tiny, base, rollout, uniforms(range(len(PROMPTS)), GROUP, NEW))
    assert forks <= 1  # a chance of 2·10⁻⁵ a boundary for some 200 tokens


def test_groups_that_do_not_halve_on_the_mesh(tiny, mesh1, mesh8):
    # Four prompts of three samples are 12 rows; of 6 the mesh could not cut four pieces.
    prompts = PROMPTS[:4]
    rollout = sample(tiny, mesh8, prompts, group=3, rows=12, chunk=8)
    check_ends(rollout, NEW, prompts, group=3)
    expected = sample(tiny, mesh1, prompts, group=3)
    assert (expected.length_B > 8).sum() <= 6  # where one device would go on with 6 rows
    assert agree_on_two_meshes(tiny, expected, rollout, uniforms(range(4), 3, NEW)) <= 1


def test_prompts_that_cannot_be_sampled_from(tiny, mesh1):
    with pytest.raises(ValueError, match="prompt 1 is empty"):
        sample(tiny, mesh1, [[1], []])
    # 64 tokens of context, 12 new
    message = "prompt 0 has 53 tokens; with max_tokens=12 that exceeds the model's context of 64"
    with pytest.raises(ValueError, match=message):
        sample(tiny, mesh1, [[1] * 53])


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (dict(max_tokens=0), "max_tokens=0"),
        (dict(rows=0), "rows=0"),
        (dict(chunk=0), "chunk=0"),
        (dict(temperature=-0.1), "temperature=-0.1 must not be negative"),
        (dict(top_p=0.0), "top_p=0.0 must be in"),
        (dict(top_p=1.1), "top_p=1.1 must be in"),
    ],
)
def test_bad_settings(settings, message):
    with pytest.raises(ValueError, match=message):
        SamplingConfig(**(dict(max_tokens=8) | settings))


def test_a_prompt_that_just_fits(tiny, mesh1):
    # 52 + 12 = 64; padded to 56 it is still sampled as without padding.
    prompt = [1, *(np.arange(51) % 29 + 3)]
    rollout = sample(tiny, mesh1, [prompt], group=1)
    p_BTV = probabilities(tiny, rollout)
    away_BT = distance_from_draw(p_BTV, rollout.tokens_BT, uniforms([0], 1, NEW))
    assert away_BT[rollout.mask_BT > 0].max() < 1e-5


def test_no_prompts_and_ids_that_do_not_match(tiny, mesh1):
    with pytest.raises(ValueError, match="no prompts"):
        sample(tiny, mesh1, [])
    with pytest.raises(ValueError, match="1 prompt_ids for 2 prompts"):
        sample(tiny, mesh1, PROMPTS[:2], ids=[3])


def test_cache_lengths_are_few_and_little_longer_than_needed():
    lengths = range(1, 40_000)
    assert [bucket(n) for n in range(1, 257)] == list(range(1, 257))
    assert all(n <= bucket(n) <= 1.25 * n for n in lengths)
    # 256 to 512 in steps of 64, to 1024 in steps of 128, …: 4 a doubling, 7 doublings to 32,768.
    assert len({bucket(n) for n in range(257, 32_769)}) == 4 * 7
    pairs = {257: 320, 320: 320, 321: 384, 512: 512, 513: 640, 32_768: 32_768}
    assert {n: bucket(n) for n in pairs} == pairs


def test_a_cache_longer_than_needed_changes_nothing(tiny, mesh1, monkeypatch):
    plain = sample(tiny, mesh1)
    monkeypatch.setattr(engine, "bucket", lambda n: n + 13)
    for a, b in zip(plain, sample(tiny, mesh1), strict=True):
        np.testing.assert_allclose(a, b, rtol=0, atol=1e-5)
