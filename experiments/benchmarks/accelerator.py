"""Decoding and training at Qwen2.5-1.5B's shape on one accelerator, against what it can do.

    python experiments/benchmarks/accelerator.py [--transformers] [--json]

Random bfloat16 weights. Decoding: 256 rows whose context grows from 2,048 to 4,096 tokens,
in tokens a second and as a share of the memory-bandwidth floor: (weights + the keys and
values in use) a step over the copy bandwidth measured here. Training: gradient and AdamW
on packed rows of 4,096 tokens, in model FLOPs (6 a weight and token, and attention's) as a
share of the bfloat16 matmul rate measured here. With `--transformers` its `generate` decodes
the same beside it (needs transformers and a torch for the device). `--small` is for
trying the script itself, anywhere.
"""

import argparse
import dataclasses
import json
import statistics
import time
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np

from r1jax.learner import PolicyLearner, init_state
from r1jax.losses import grpo_loss
from r1jax.models import make_model
from r1jax.models.decoder import parameter_count
from r1jax.models.presets import PRESETS
from r1jax.models.transformer import TransformerConfig
from r1jax.optim import adamw
from r1jax.rollouts import packed_shape
from r1jax.sampling.engine import Sampler, SamplingConfig
from r1jax.sharding import make_mesh
from r1jax.types import Rollout


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--small", action="store_true")
    parser.add_argument("--transformers", action="store_true")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--json", action="store_true")
    flags = parser.parse_args()
    config, sizes = PRESETS["Qwen2.5-Math-1.5B"], dict(rows=256, start=2048, new=2048, packed=4096)
    if flags.small:
        config = TransformerConfig(vocabulary=512, width=128, layers=2, mlp=256, context=256)
        sizes = dict(rows=8, start=64, new=64, packed=256)
    config = dataclasses.replace(config, dtype="bfloat16", context=sizes["start"] + sizes["new"])
    mesh = make_mesh(devices=jax.devices()[:1])
    with jax.set_mesh(mesh):
        out = {"device": jax.devices()[0].device_kind, "jax": jax.__version__}
        out |= {"copy_gb_s": copy_bandwidth() / 1e9, "matmul_tflops": matmul_rate() / 1e12}
        out |= decode(config, mesh, sizes, flags.repeats, out["copy_gb_s"] * 1e9)
        out |= train(config, mesh, sizes, flags.repeats, out["matmul_tflops"] * 1e12)
    if flags.transformers:
        out |= decode_by_transformers(config, sizes, flags.repeats)
        out["decode_ratio"] = out["decode_tokens_s"] / out["transformers_tokens_s"]
    for name, value in out.items():
        if not flags.json:
            print(f"{name:<24} {value:.4g}" if isinstance(value, float) else f"{name:<24} {value}")
    if flags.json:
        print(json.dumps(out))


def decode(config, mesh, sizes, repeats, bandwidth) -> dict:
    model = make_model(config)
    params = jax.jit(lambda key: jax.tree.map(_half, model.init(key)))(jax.random.key(0))
    rows, start, new = sizes["rows"], sizes["start"], sizes["new"]
    sampler = Sampler(
        model, SamplingConfig(new, rows=rows, chunk=128), stop_ids=(), pad_id=0, mesh=mesh
    )
    tokens = np.random.default_rng(0).integers(2, config.vocabulary, (rows, start)).tolist()
    # What prefill and set-up cost is taken off: the same with a single new token.
    one = np.ones(rows, int)
    short = seconds(lambda: sampler(params, tokens, jax.random.key(1), stop_at=one), repeats)
    whole = seconds(lambda: sampler(params, tokens, jax.random.key(1)), repeats)
    per_step = (whole - short) / (new - 1)
    weights = 2 * parameter_count(params)
    per_token = 2 * config.layers * 2 * config.kv_heads * config.head_dim
    floor = (weights + rows * (start + new / 2) * per_token) / bandwidth
    return {
        "decode_tokens_s": rows / per_step, "decode_step_ms": 1e3 * per_step,
        "decode_floor_share": floor / per_step,
    }  # fmt: skip


def train(config, mesh, sizes, repeats, rate) -> dict:
    config = dataclasses.replace(config, remat=True)
    model, T, G = make_model(config), sizes["packed"], 4
    optimizer = adamw()
    state = init_state(model, optimizer, mesh, key=jax.random.key(0))
    prompt, response = T // 32, T // G - T // 32 // G
    shape = packed_shape(model.kernel, rows=2, tokens=T, prompt=prompt, response=response)
    learner = PolicyLearner(
        model, optimizer, partial(grpo_loss, clip_eps=0.2, kl_coef=0.0), temperature=1.0,
        shape=shape, mesh=mesh,
    )  # fmt: skip
    B = 8 * G
    rng = np.random.default_rng(0)
    prompts = np.repeat(rng.integers(2, config.vocabulary, (B // G, prompt)), G, axis=0)
    rollout = Rollout(
        prompts.astype(np.int32), np.full(B, prompt),
        rng.integers(2, config.vocabulary, (B, response)).astype(np.int32),
        np.full((B, response), -1.0, np.float32), np.full(B, response), np.ones(B, bool),
    )  # fmt: skip
    adv_B = rng.standard_normal(B).astype(np.float32)

    def once():
        nonlocal state
        state, metrics = learner.update(state, {}, rollout, np.arange(B), adv_B, None, 1e-6)
        jax.block_until_ready((state, metrics))

    spent = seconds(once, repeats)
    tokens = B * response + B // G * prompt  # a group's prompt once, repeated or not
    attended = B * response * (prompt + response / 2)
    heads = config.heads * config.head_dim
    operations = 6 * parameter_count(state.params) * tokens
    operations += 12 * config.layers * heads * attended
    return {
        "train_tokens_s": tokens / spent, "train_step_s": spent,
        "train_mfu": operations / spent / rate,
    }  # fmt: skip


def decode_by_transformers(config, sizes, repeats) -> dict:
    import torch
    from transformers import Qwen2Config, Qwen2ForCausalLM

    theirs = Qwen2Config(
        vocab_size=config.vocabulary, hidden_size=config.width, intermediate_size=config.mlp,
        num_hidden_layers=config.layers, num_attention_heads=config.heads,
        num_key_value_heads=config.kv_heads, max_position_embeddings=config.context,
        tie_word_embeddings=config.tied,
    )  # fmt: skip
    device = "cuda" if torch.cuda.is_available() else "cpu"
    model = Qwen2ForCausalLM(theirs).to(device, torch.bfloat16).eval()
    rows, start, new = sizes["rows"], sizes["start"], sizes["new"]
    tokens = torch.randint(2, config.vocabulary, (rows, start), device=device)

    def generate(count):
        with torch.no_grad():
            model.generate(
                tokens, max_new_tokens=count, min_new_tokens=count, do_sample=True, top_k=0
            )
        if device == "cuda":
            torch.cuda.synchronize()

    spent = seconds(lambda: generate(new), repeats) - seconds(lambda: generate(1), repeats)
    return {"transformers_tokens_s": rows * (new - 1) / spent}


def copy_bandwidth(megabytes: int = 1024) -> float:
    """Bytes a second that are read and written by a copy."""
    x = jnp.ones(megabytes * 2**19, jnp.bfloat16)
    double = jax.jit(lambda x: x * 2)
    return 2 * x.nbytes / seconds(lambda: jax.block_until_ready(double(x)), 5)


def matmul_rate(n: int = 8192) -> float:
    """Floating-point operations a second of a bfloat16 product."""
    n = n if jax.default_backend() != "cpu" else 512
    a = jnp.ones((n, n), jnp.bfloat16)
    product = jax.jit(jnp.matmul)
    return 2 * n**3 / seconds(lambda: jax.block_until_ready(product(a, a)), 5)


def seconds(run, repeats: int) -> float:
    """Median, after one run that compiles."""
    run()
    spent = []
    for _ in range(repeats):
        start = time.perf_counter()
        run()
        spent.append(time.perf_counter() - start)
    return statistics.median(spent)


def _half(x):
    return x.astype(jnp.bfloat16)


if __name__ == "__main__":
    main()
