"""A run's folder as a whole R1 pipeline leaves it, with invented numbers."""

import hashlib
import json

import numpy as np
import pytest

# stage: (kind, init, inputs, what it makes, steps)
STAGES = {
    "base": ("pretrain", None, {}, "model", 2200),
    "r1_zero": ("grpo", "base", {}, "model", 32),
    "cold_data": ("rejection", "r1_zero", {}, "examples", 0),
    "cold_start": ("sft", "base", {"examples": "cold_data"}, "model", 40),
    "reasoning_rl": ("grpo", "cold_start", {}, "model", 24),
    "curated": ("rejection", "reasoning_rl", {}, "examples", 0),
    "sft": ("sft", "base", {"examples": "curated"}, "model", 120),
    "helpfulness": ("preference", "sft", {}, "score", 94),
    "harmlessness": ("preference", "sft", {}, "score", 63),
    "r1": ("grpo", "sft", {"preference.models.helpfulness": "helpfulness",
                           "preference.models.harmlessness": "harmlessness"}, "model", 32),
}  # fmt: skip
MEASURED = ("pass@1", "language", "format", "readable", "helpful", "harmless")
# of these at the end of each stage
QUALITY = {
    "base": (0.17, 0.52, 0.60, 0.05, 0.45, 0.80),
    "r1_zero": (0.86, 0.61, 0.99, 0.08, 0.40, 0.78),
    "cold_start": (0.58, 0.90, 0.97, 0.80, 0.50, 0.90),
    "reasoning_rl": (0.90, 0.99, 0.99, 0.88, 0.48, 0.90),
    "sft": (0.84, 0.98, 0.99, 0.93, 0.80, 0.96),
    "r1": (0.91, 0.99, 1.00, 0.97, 0.95, 1.00),
}
REASONING = [
    (f"mini_world_test/{i}", q, str(a))
    for i, (q, a) in enumerate([
        ("What is 648+6-1+5+3-8 modulo a thousand?", 653),
        ("What is 12+5-9+3 modulo a thousand?", 11),
        ("648+6-1+5+3-8 除以一千的余数是多少？", 653), ("12+5-9+3 除以一千的余数是多少？", 11),
    ])
]  # fmt: skip
GENERAL = [
    ("mini_general_test/0", "say eight six six in Chinese.", "八六六"),
    ("mini_general_test/1", "say four five four in Chinese.", "四五四"),
    ("mini_general_test/2", "hi, tell me who you are.", ""),
    ("mini_general_test/3", "用英语说七四五。", "seven four five"),
    ("mini_general_test/4", "你好！", ""),
]
SAMPLES = 4
CHAIN = "648+6=654\n654-1=653\nwait, check: 653+5=658\n658+3=661\n661-8=653\n"


def sha(text):
    return hashlib.sha256(text.encode()).hexdigest()


def write_lines(path, rows):
    path.parent.mkdir(exist_ok=True)
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))


def evaluated(quality, at):
    """The evaluation of a stage, `at` of the way to its end."""
    found = {}
    for name in ("mini_world", "mini_general"):
        for metric, value in zip(MEASURED, quality, strict=True):
            if name == "mini_world" and metric == "helpful":
                value = 0.0
            found[f"eval/{name}/{metric}"] = value * (0.6 + 0.4 * at)
        one = found[f"eval/{name}/pass@1"]
        found |= {f"eval/{name}/pass@1_low": one - 0.04, f"eval/{name}/pass@1_high": one + 0.03}
        found[f"eval/{name}/length"] = 40 + 70 * at
        found[f"eval/{name}/reflections"] = 1 + 6 * at
        found[f"eval/{name}/truncated"] = 0.01
    vote = min(1.0, 1.1 * found["eval/mini_world/pass@1"])
    found |= {
        "eval/mini_world/cons@16": vote,
        "eval/mini_world/cons@16_low": vote - 0.05,
        "eval/mini_world/cons@16_high": min(1.0, vote + 0.03),
    }
    return found


def rollouts(stage, quality, at, rng):
    noise = rng.normal(0, 0.015, 4)
    found = {
        "reward/accuracy": quality[0] * (0.4 + 0.6 * at) + noise[0],
        "reward/format": quality[2] * (0.8 + 0.2 * at),
        "reward/language": quality[1] + noise[1],
        "reward/total": 2.0, "reward/errors": 0.0,
        "rollout/length": 40 + 70 * at + 200 * noise[2], "rollout/truncated": 0.0,
        "rollout/reflections": 1 + 8 * at + 20 * noise[3],
    }  # fmt: skip
    if stage == "r1" and at > 0.5:
        found |= {
            "reward/helpfulness": -1 + 5 * at, "reward/harmlessness": 0.5 + at,
            "reward/helpful": 1.1 - (at - 0.8) ** 2, "reward/harmless": 0.97,
        }  # fmt: skip
    return found


def metrics_of(stage, rng):
    kind, _, _, makes, steps = STAGES[stage]
    quality = QUALITY.get(stage)
    rows = []
    for step in range(steps + 1):
        row = {}
        if kind == "grpo":
            row = rollouts(stage, quality, step / steps, rng) if step else {}
            if step % 8 == 0:
                row |= evaluated(quality, step / steps)
        elif step and step % max(1, steps // 8) == 0:
            row = {"loss/nll": 2.5 / step}
        if step == steps and makes == "score":
            row |= {"preference/accuracy": 0.925, "preference/calibration_error": 0.0312}
        if step == steps and makes == "model":
            row |= evaluated(quality, 1.0)
        if row:
            rows.append({"step": step, "stage": stage, "wall_s": 100.0 + step} | row)
    return rows


def responses_of(stage, problems, rng, benchmark):
    accuracy, language, shape, readable, helpful, harmless = QUALITY[stage]
    rows = []
    for name, question, answer in problems:
        for sample in range(SAMPLES):
            right = float(rng.random() < accuracy)
            boxed = answer or "r1jax"
            final = f"\\boxed{{{boxed if right else '7'}}}"
            chain = CHAIN * (1 if stage == "base" else 4)
            rows.append({
                "id": name, "sample": sample, "question": question, "answer": answer,
                "text": f"<think>{chain}</think>\n<answer>{final}</answer>",
                "tokens": 60 + 20 * sample, "truncated": False, "accuracy": right,
                "language": float(np.clip(rng.normal(language, 0.02), 0, 1)),
                "format": float(rng.random() < shape), "readable": float(rng.random() < readable),
                "helpful": float(benchmark == "mini_general" and rng.random() < helpful),
                "harmless": float(benchmark != "mini_general" or rng.random() < harmless),
            })  # fmt: skip
    return rows


def entry(stage):
    kind, init, inputs, makes, steps = STAGES[stage]
    path = {
        "model": f"checkpoints/{stage}/{steps}", "score": f"checkpoints/{stage}/{steps}",
        "examples": f"data/{stage}.jsonl",
    }[makes]  # fmt: skip
    counts = {}
    if makes == "examples":
        counts = {"questions": 1280, "sampled": 5120, "correct": 4011, "mixed_language": 812,
                  "kept": 1904, "extra": 1024, "rows": 2928, "acceptance_mixed_language": 0.7975,
                  "acceptance_long_paragraph": 0.998}  # fmt: skip
    return {
        "kind": kind, "init": init,
        "inputs": ({"init": {"stage": init}} if init else {})
        | {field: {"stage": name} for field, name in inputs.items()},
        "config_hash": sha(f"config {stage}")[:16], "input_hash": sha(f"input {stage}")[:16],
        "data": None if kind == "pretrain" else {"rows": 4096, "sha256": sha(f"data {stage}")},
        "artefact": {"kind": makes, "path": path, "sha256": sha(stage)}, "counts": counts,
        "benchmarks": {"mini_world": sha("w"), "mini_general": sha("g")},
        "metrics": evaluated(QUALITY[stage], 1.0) if makes == "model" else {},
        "wall_s": 61.5, "cpu_s": 83.25, "commit": "a" * 40, "r1jax": "0.1.0", "jax": "0.10.2",
    }  # fmt: skip


def build(workdir, *, finished=tuple(STAGES), seed=0):
    """Writes a run with these stages finished, and the one after them begun."""
    workdir.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(seed)
    config = {"seed": seed, "stages": list(STAGES)}
    for name, (kind, init, inputs, _, _) in STAGES.items():
        config[name] = {"kind": kind, "init": init or "", **inputs}
    (workdir / "config.json").write_text(json.dumps(config))
    manifest = {
        "r1jax": "0.1.0", "commit": "a" * 40, "jax": "0.10.2", "seed": seed,
        "begun": {n: sha(f"input {n}")[:16] for n in list(STAGES)[: len(finished) + 1]},
        "config_hash": sha("config")[:16], "stages": {name: entry(name) for name in finished},
    }  # fmt: skip
    (workdir / "manifest.json").write_text(json.dumps(manifest))
    lines = []
    for i, name in enumerate(STAGES):
        if name in finished or i == len(finished):
            lines += metrics_of(name, rng)[: None if name in finished else 3]
        if name in finished and name in QUALITY:
            for benchmark, problems in (("mini_world", REASONING), ("mini_general", GENERAL)):
                write_lines(
                    workdir / "responses" / f"{name}.{benchmark}.jsonl",
                    responses_of(name, problems, rng, benchmark),
                )
        if name in finished and STAGES[name][3] == "examples":
            rows = [{"question": q, "response": f"<think>{CHAIN}</think>\n<answer>{a}</answer>"}
                    for _, q, a in REASONING]  # fmt: skip
            write_lines(workdir / "data" / f"{name}.jsonl", rows)
    write_lines(workdir / "metrics.jsonl", lines)
    write_lines(workdir / "samples.jsonl", [])
    return workdir


@pytest.fixture(scope="session")
def pipeline_run(tmp_path_factory):
    """A finished run of ten stages; not to be changed."""
    return build(tmp_path_factory.mktemp("runs") / "r1_mini")


@pytest.fixture(scope="session")
def synthetic():
    """The builder itself: (workdir, finished=names, seed=number) -> workdir."""
    return build
