"""What the benchmark measures, and the names it is reported by; on a model of 32 words."""

import json
import math

import jax
import numpy as np
import pytest

from r1jax import bench
from r1jax.cli import main
from r1jax.models.decoder import parameter_count
from r1jax.models.transformer import Transformer, TransformerConfig

# Of DESIGN, section 5, then our own.
FIELDS = {
    "kind", "size", "lengths", "rows", "useful_tokens", "seconds", "seconds_median", "cpu_s",
    "compile_s", "peak_rss_mb", "cpu_s_median", "matmul_gflops_per_cpu_s", "ceiling_share",
}  # fmt: skip
PARTS = ["rollout_s", "reference_s", "update_s"]


@pytest.fixture
def rollouts(monkeypatch, tiny, mesh1):
    """Size S becomes `tiny`, 4 prompts × 2 of up to 8 tokens; what is sampled is kept."""
    size = dict(model=tiny[0].config, prompts=4, group=2, prompt=5, row_tokens=128)
    monkeypatch.setitem(bench.SIZES, "S", size)
    monkeypatch.setattr(bench, "NEW", 8)
    monkeypatch.setattr(bench, "make_mesh", lambda: mesh1)
    monkeypatch.setattr(bench, "matmul_rate", lambda: 4e9)
    kept = []

    def sample(self, params, sample=bench._Bench.sample):
        kept.append(sample(self, params))
        return kept[-1]

    monkeypatch.setattr(bench._Bench, "sample", sample)
    return kept


def forced(rows, new):
    """By the definition, a row at a time; rows that the cut leaves alike may both be longest."""
    mu = math.log(new / 4) - 0.9**2 / 2
    z = np.random.default_rng(1).standard_normal(rows).tolist()
    n = [min(max(round(math.exp(mu + 0.9 * x)), 1), new) for x in z]
    n[n.index(max(n))] = new
    return n


@pytest.mark.parametrize("rows", [256, 32])
def test_forced_lengths(rows):
    n = bench.forced_lengths(rows)
    assert n.tolist() == forced(rows, 256) and n.shape == (rows,)
    assert n.max() == 256 and n.min() >= 1
    # exp(mu + 0.9²/2) = 64 for ever so many rows without the cut; of these 256 about 53.
    if rows == 256:
        assert n.mean() == pytest.approx(53, abs=1)


def check(fields, kind, rollouts, operations):
    assert (fields["kind"], fields["size"], fields["lengths"]) == (kind, "S", "tail")
    lengths = forced(8, 8)
    assert (fields["rows"], fields["useful_tokens"]) == (8, sum(lengths)) and sum(lengths) < 40
    assert len(fields["seconds"]) == len(fields["cpu_s"]) == 1
    assert fields["seconds_median"] == fields["seconds"][0] > 0
    assert fields["cpu_s_median"] == fields["cpu_s"][0] > 0
    assert fields["compile_s"] >= 0 and 50 < fields["peak_rss_mb"] < 1e5
    # The matmul rate is 4e9 operations a second (see `rollouts`).
    assert fields["matmul_gflops_per_cpu_s"] == 4
    weights = parameter_count(
        jax.eval_shape(Transformer(bench.SIZES["S"]["model"]).init, jax.random.key(0))
    )
    share = operations * weights * sum(lengths) / 4e9 / fields["cpu_s_median"]
    assert fields["ceiling_share"] == pytest.approx(share)
    # One to compile and one to measure; both stop at the lengths, and at nothing else.
    assert len(rollouts) == 2
    prompts = np.random.default_rng(0).integers(2, 32, (4, 5))
    for rollout in rollouts:
        assert rollout.length_B.tolist() == lengths and rollout.truncated_B.all()
        np.testing.assert_array_equal(rollout.prompt_BT[:, -5:], prompts.repeat(2, axis=0))


def test_a_rollout(rollouts, capsys):
    flags = ["--size=S", "--lengths=tail", "--repeats=1", "--json"]
    assert main(["bench", "rollout", *flags]) == 0
    fields = json.loads(capsys.readouterr().out)
    assert fields.keys() == FIELDS
    check(fields, "rollout", rollouts, operations=2)


def test_a_step(rollouts):
    fields = bench.step("S", "tail", repeats=1)
    assert fields.keys() == FIELDS | set(PARTS)
    # Forward twice (rollout, reference), and forward and backward: 2 + 2 + 6 a weight and token.
    check(fields, "step", rollouts, operations=10)
    # The parts are all there is: with one repetition the medians are of the same.
    assert min(fields[name] for name in PARTS) > 0
    total = sum(fields[name] for name in PARTS)
    assert 0.8 * fields["seconds_median"] < total <= fields["seconds_median"]


def test_fixed_lengths_are_the_longest(rollouts):
    assert bench._Bench("S", "fixed").forced_B.tolist() == [8] * 8


def test_repetitions_come_after_one_that_compiles():
    calls = []
    fields = bench._measure(lambda: calls.append(1), 3)
    assert len(calls) == 4 and len(fields["seconds"]) == len(fields["cpu_s"]) == 3
    assert fields["seconds_median"] == sorted(fields["seconds"])[1]
    assert fields["cpu_s_median"] == sorted(fields["cpu_s"])[1]


@pytest.mark.parametrize(
    ("size", "model", "rest"),
    [
        ("S", (512, 256, 4, 8, 4, 32, 1024), (16, 16, 64)),
        ("M", (32_000, 512, 8, 8, 4, 64, 2048), (4, 8, 128)),
    ],
)
def test_sizes(size, model, rest):
    names = ("vocabulary", "width", "layers", "heads", "kv_heads", "head_dim", "mlp")
    wanted = dict(zip(names, model, strict=True))
    chosen = bench.SIZES[size]
    prompts, group, prompt = rest
    assert (chosen["prompts"], chosen["group"], chosen["prompt"]) == (prompts, group, prompt)
    assert bench.NEW == 256
    # Tied, no biases, just enough context.
    assert chosen["model"] == TransformerConfig(**wanted, qkv_bias=False, context=prompt + 256)
    assert chosen["model"].tied and chosen["model"].dtype == "float32"


@pytest.mark.parametrize(("size", "lengths"), [("L", "tail"), ("S", "short")])
def test_what_there_is_not(size, lengths):
    message = f"size={size!r}, lengths={lengths!r}: use S or M, and fixed or tail"
    for measure in (bench.rollout, bench.step):
        with pytest.raises(ValueError, match=message):
            measure(size, lengths)
