"""`r1jax bench`: what a rollout, a training step and token log-probabilities cost.

Fixed sizes, lengths and fields, so that figures of different machines, versions and
systems can be set side by side. All repetitions come after one that compiles. Beside wall
time there are the CPU seconds of this process, and the rate at which the same machine, in
the same run, multiplies matrices: a share of that ceiling says more than seconds do.
"""

import gc
import json
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np

from r1jax.advantages import group_relative
from r1jax.learner import PolicyLearner, init_state
from r1jax.logprobs import head_logprobs
from r1jax.losses import grpo_loss
from r1jax.models.decoder import parameter_count
from r1jax.models.transformer import Transformer, TransformerConfig
from r1jax.optim import adamw
from r1jax.process import keep_large_blocks
from r1jax.rollouts import packed_shape
from r1jax.sampling.engine import Sampler, SamplingConfig
from r1jax.sharding import batch_axis_size, make_mesh

NEW = 256  # tokens a response has at most
SIZES = {
    "S": dict(
        model=TransformerConfig(
            vocabulary=512, width=256, layers=4, heads=8, kv_heads=4, head_dim=32, mlp=1024,
            qkv_bias=False, context=64 + NEW,
        ),
        prompts=16, group=16, prompt=64, row_tokens=1024,
    ),
    "M": dict(
        model=TransformerConfig(
            vocabulary=32_000, width=512, layers=8, heads=8, kv_heads=4, head_dim=64, mlp=2048,
            qkv_bias=False, context=128 + NEW,
        ),
        prompts=4, group=8, prompt=128, row_tokens=512,
    ),
}  # fmt: skip
KL_COEF = 0.04


def forced_lengths(rows: int) -> np.ndarray:
    """Lengths of the `tail` benchmark: log-normal with mean 64 before the cut, the longest 256."""
    z = np.random.default_rng(1).standard_normal(rows)
    mu = np.log(0.25 * NEW) - 0.9**2 / 2
    n = np.clip(np.rint(np.exp(mu + 0.9 * z)), 1, NEW).astype(int)
    n[n.argmax()] = NEW
    return n


def rollout(size: str, lengths: str, *, repeats: int = 3) -> dict:
    """The cost of sampling a group of responses to each prompt, weights and all at random."""
    bench = _Bench(size, lengths)
    with jax.set_mesh(bench.mesh):
        fields = _measure(lambda: bench.sample(bench.params), repeats)
    return bench.fields("rollout") | fields | bench.share(fields["cpu_s_median"], 2)


def step(size: str, lengths: str, *, repeats: int = 3) -> dict:
    """The cost of rollout, reference log-probabilities and one update (AdamW, one epoch)."""
    bench = _Bench(size, lengths)
    parts = []
    with jax.set_mesh(bench.mesh):
        optimizer = adamw()
        state = init_state(bench.model, optimizer, bench.mesh, params=bench.params)
        learner = bench.learner(optimizer)
        reward_B = np.random.default_rng(2).integers(0, 2, bench.rows).astype(np.float32)
        adv_B = np.asarray(group_relative(reward_B, bench.group))

        def once():
            nonlocal state
            clock = [time.perf_counter()]
            got = bench.sample(state.params)
            clock.append(time.perf_counter())
            ref_logp_BR = learner.logprobs(bench.params, got)
            clock.append(time.perf_counter())
            every_B = np.arange(bench.rows)
            state, metrics = learner.update(state, {}, got, every_B, adv_B, ref_logp_BR, 1e-6)
            jax.block_until_ready((state, metrics))
            clock.append(time.perf_counter())
            parts.append(np.diff(clock))

        fields = _measure(once, repeats)
    names = ("rollout_s", "reference_s", "update_s")
    fields |= dict(zip(names, np.median(parts[1:], axis=0).tolist(), strict=True))
    # A reference costs 2 operations a weight and token, an update 6, a rollout 2.
    return bench.fields("step") | fields | bench.share(fields["cpu_s_median"], 10)


def logprobs(*, repeats: int = 3) -> dict:
    """Token log-probabilities and their gradient, in chunks and with materialised logits.

    32 × 512 tokens, 32,000 words, width 512. A process for each repetition of each, in turn:
    the peak of a process says nothing of its later parts. `memory_ratio` and `time_ratio`
    (of CPU seconds) are medians of ours over materialised.
    """
    rounds = [{way: _in_process(way) for way in ("chunks", "full")} for _ in range(repeats)]

    def median(name: str, way: str) -> float:
        return statistics.median(r[way][name] for r in rounds)

    def ratio(name: str) -> float:
        return statistics.median(r["chunks"][name] / r["full"][name] for r in rounds)

    return {
        "kind": "logprobs", "size": "32x512x32000x512", "useful_tokens": 32 * 512,
        "seconds": [r["chunks"]["seconds"] for r in rounds],
        "seconds_median": median("seconds", "chunks"),
        "cpu_s": [r["chunks"]["cpu_s"] for r in rounds],
        "cpu_s_median": median("cpu_s", "chunks"),
        "cpu_s_median_full": median("cpu_s", "full"),
        "grown_mb": median("grown_mb", "chunks"), "grown_mb_full": median("grown_mb", "full"),
        "memory_ratio": ratio("grown_mb"), "time_ratio": ratio("cpu_s"),
    }  # fmt: skip


def _in_process(way: str) -> dict:
    command = [sys.executable, "-m", "r1jax", "bench", "logprobs", f"--only={way}", "--json"]
    return json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)


def logprobs_once(way: str) -> dict:
    """One repetition after warm-up; `grown_mb` is what the process's peak grew by."""
    B, T, V, D = 32, 512, 32_000, 512
    rng = np.random.default_rng(0)
    hidden_BTD = jnp.asarray(rng.standard_normal((B, T, D)), jnp.float32)
    table_DV = jnp.asarray(rng.standard_normal((D, V)) * D**-0.5, jnp.float32)
    tokens_BT = jnp.asarray(rng.integers(0, V, (B, T)), jnp.int32)

    def full(hidden_BTD, table_DV, tokens_BT):
        logp_BTV = jax.nn.log_softmax(jnp.matmul(hidden_BTD, table_DV), axis=-1)
        return jnp.take_along_axis(logp_BTV, tokens_BT[..., None], axis=-1)[..., 0]

    function = {"chunks": head_logprobs, "full": full}[way]
    gradient = jax.jit(
        jax.value_and_grad(lambda *arrays: function(*arrays, tokens_BT).mean(), argnums=(0, 1))
    )
    jax.block_until_ready((hidden_BTD, table_DV, tokens_BT))
    before = _peak_rss_mb()
    fields = _measure(lambda: jax.block_until_ready(gradient(hidden_BTD, table_DV)), 1)
    return {
        "seconds": fields["seconds_median"], "cpu_s": fields["cpu_s_median"],
        "grown_mb": fields["peak_rss_mb"] - before,
    }  # fmt: skip


class _Bench:
    """One size: model, prompts, lengths, and the programs made of them."""

    def __init__(self, size: str, lengths: str):
        if size not in SIZES or lengths not in ("fixed", "tail"):
            raise ValueError(f"size={size!r}, lengths={lengths!r}: use S or M, and fixed or tail")
        chosen = SIZES[size]
        self.size, self.lengths, self.group = size, lengths, chosen["group"]
        self.model = Transformer(chosen["model"])
        self.mesh = make_mesh()
        self.rows = chosen["prompts"] * self.group
        shape, vocabulary = (chosen["prompts"], chosen["prompt"]), self.model.config.vocabulary
        self.prompts = np.random.default_rng(0).integers(2, vocabulary, shape).tolist()
        # A forced length stops its row as an end token would; the scheduler is not told.
        self.forced_B = forced_lengths(self.rows) if lengths == "tail" else np.full(self.rows, NEW)
        config = SamplingConfig(NEW, rows=self.rows)
        self.sampler = Sampler(self.model, config, stop_ids=(), pad_id=0, mesh=self.mesh)
        with jax.set_mesh(self.mesh):
            self.params = jax.jit(self.model.init)(jax.random.key(0))
        keep_large_blocks(4 * parameter_count(self.params))

    def sample(self, params):
        return self.sampler(
            params, self.prompts, jax.random.key(1), group_size=self.group, stop_at=self.forced_B
        )

    def learner(self, optimizer) -> PolicyLearner:
        shape = packed_shape(
            self.model.kernel, rows=batch_axis_size(self.mesh),
            tokens=SIZES[self.size]["row_tokens"], prompt=len(self.prompts[0]), response=NEW,
        )  # fmt: skip
        loss = partial(grpo_loss, clip_eps=0.2, kl_coef=KL_COEF)
        return PolicyLearner(
            self.model, optimizer, loss, temperature=1.0, shape=shape, mesh=self.mesh
        )

    @property
    def useful_tokens(self) -> int:
        return int(self.forced_B.sum())

    def fields(self, kind: str) -> dict:
        return {
            "kind": kind, "size": self.size, "lengths": self.lengths, "rows": self.rows,
            "useful_tokens": self.useful_tokens,
        }  # fmt: skip

    def share(self, cpu_s: float, operations: int) -> dict:
        """Of the ceiling: `operations` a weight and useful token, against the matmul rate."""
        rate = matmul_rate()
        needed = operations * parameter_count(self.params) * self.useful_tokens
        return {"matmul_gflops_per_cpu_s": rate / 1e9, "ceiling_share": needed / rate / cpu_s}


def _measure(run: Callable[[], object], repeats: int) -> dict:
    start = time.perf_counter()
    run()
    first = time.perf_counter() - start
    seconds, cpu_s = [], []
    for _ in range(repeats):
        gc.collect()
        start, cpu = time.perf_counter(), time.process_time()
        run()
        seconds.append(time.perf_counter() - start)
        cpu_s.append(time.process_time() - cpu)
    median = statistics.median(seconds)
    return {
        "seconds": seconds, "seconds_median": median, "cpu_s": cpu_s,
        "cpu_s_median": statistics.median(cpu_s), "compile_s": max(0.0, first - median),
        "peak_rss_mb": _peak_rss_mb(),
    }  # fmt: skip


def matmul_rate(n: int = 2048, repeats: int = 5) -> float:
    """Floating-point operations a CPU second of a float32 product of n × n matrices."""
    a = jnp.ones((n, n), jnp.float32)
    product = jax.jit(jnp.matmul)
    jax.block_until_ready(product(a, a))
    costs = []
    for _ in range(repeats):
        cpu = time.process_time()
        jax.block_until_ready(product(a, a))
        costs.append(time.process_time() - cpu)
    return 2 * n**3 / statistics.median(costs)


def _peak_rss_mb() -> float:
    unit = 2**20 if sys.platform == "darwin" else 2**10
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / unit
