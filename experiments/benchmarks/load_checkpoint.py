"""Loading a sharded Hugging Face checkpoint: peak memory and time, ours and transformers'.

    python experiments/benchmarks/load_checkpoint.py [--gigabytes=2] [--repeats=3] [--folder=DIR]

Generates a Qwen2-shaped bfloat16 checkpoint of random weights (in files of 500 MB), then loads it
several times, every time in a new process. transformers is measured where it is installed
(`pip install -e ".[live]"`), with its default dtype, `dtype="auto"` being the stored one.

Memory is what the process holds beyond its state just before the load: `anonymous` (RssAnon of
/proc/self/status, sampled every millisecond), which mapped file pages do not count towards, and
`resident` (VmHWM), which they do. `over_weights` is the anonymous peak less the bytes of the
weights themselves, in units of the largest tensor: the room a host needs beside the result.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

import numpy as np

CHILD = "R1JAX_BENCHMARK_CHILD"
FILE_BYTES = 500 * 10**6


def generate(folder: Path, gigabytes: float) -> None:
    """A model whose layers are Qwen2.5-1.5B's, as many as fill the size."""
    import jax

    from r1jax.models import huggingface, safetensors
    from r1jax.models.families import make_model
    from r1jax.models.huggingface_config import to_json
    from r1jax.models.transformer import TransformerConfig

    def shape(layers):
        return TransformerConfig(
            151_936, width=1536, layers=layers, heads=12, kv_heads=2, head_dim=128, mlp=8960,
            qkv_bias=True, tied=True, dtype="bfloat16",
        )  # fmt: skip

    def tensors(layers):
        wanted = huggingface.places(make_model(shape(layers)))
        return {name: (place.shape, np.dtype(jax.numpy.bfloat16)) for name, place in wanted.items()}

    def size(about):
        return sum(2 * int(np.prod(s)) for s, _ in about.values())

    one = size(tensors(2)) - size(tensors(1))
    layers = max(1, round((gigabytes * 1e9 - size(tensors(1))) / one) + 1)
    rng = np.random.default_rng(0)
    files, room = [{}], FILE_BYTES
    for name, (dims, dtype) in tensors(layers).items():
        if files[-1] and 2 * int(np.prod(dims)) > room:
            files.append({})
            room = FILE_BYTES
        files[-1][name] = dims, dtype
        room -= 2 * int(np.prod(dims))
    folder.mkdir(parents=True)
    weight_map = {}
    for i, about in enumerate(files, start=1):
        name = f"model-{i:05}-of-{len(files):05}.safetensors"
        weight_map |= dict.fromkeys(about, name)
        values = ((0.02 * rng.standard_normal(s, np.float32)).astype(d) for s, d in about.values())
        safetensors.write(folder / name, about, values)
    index = {"metadata": {"total_size": size(tensors(layers))}, "weight_map": weight_map}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    (folder / "config.json").write_text(json.dumps(to_json(shape(layers), "bfloat16")))


class Watch:
    """Peak anonymous memory of this process while inside, over what it was before (bytes)."""

    def __enter__(self):
        self._before, self._peak, self._on = _status("RssAnon"), 0, True
        self._thread = threading.Thread(target=self._sample, daemon=True)
        self._thread.start()
        return self

    def _sample(self):
        while self._on:
            self._peak = max(self._peak, _status("RssAnon"))
            time.sleep(0.001)

    def __exit__(self, *_):
        self._on = False
        self._thread.join()
        self.anonymous = self._peak - self._before


def _status(name: str) -> int:
    with open("/proc/self/status") as file:
        return next(int(line.split()[1]) * 1024 for line in file if line.startswith(name))


def load(loader: str, folder: Path) -> dict:
    """One load in this process."""
    if loader == "r1jax":
        import jax

        from r1jax.models import load
        from r1jax.sharding import make_mesh

        mesh = make_mesh(devices=jax.devices()[:1])  # starts the backend
        jax.block_until_ready(jax.numpy.zeros(8) + 1)

        def run():
            return jax.block_until_ready(load(folder, mesh=mesh)[1])

        def count(params):
            return sum(p.nbytes for p in jax.tree.leaves(params))
    else:
        import torch
        from transformers import AutoModelForCausalLM

        def run():
            return AutoModelForCausalLM.from_pretrained(folder, dtype="auto")

        def count(model):
            # Touch every page: what is only mapped has not been read yet.
            for p in model.parameters():
                torch.sum(p.detach().view(torch.int16)[..., ::64])
            return sum(p.numel() * p.element_size() for p in model.parameters())

    base, cpu = _status("VmRSS"), time.process_time()
    with Watch() as watch:
        start = time.perf_counter()
        result = run()
        weights = count(result)
        seconds = time.perf_counter() - start
    return {
        "seconds": seconds, "cpu_s": time.process_time() - cpu, "weights_mb": weights / 1e6,
        "anonymous_mb": watch.anonymous / 1e6, "resident_mb": (_status("VmHWM") - base) / 1e6,
    }  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--gigabytes", type=float, default=2.0)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--folder", type=Path, help="keep the checkpoint here, and use it again")
    flags = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        folder = flags.folder or Path(scratch) / "checkpoint"
        if not folder.exists():
            generate(folder, flags.gigabytes)
        loaders = ["r1jax"]
        if not subprocess.run([sys.executable, "-c", "import transformers, torch"]).returncode:
            loaders.append("transformers")
        runs = {loader: [] for loader in loaders}
        for _ in range(flags.repeats):  # alternating: a noisy minute hits both
            for loader in loaders:
                done = subprocess.run(
                    [sys.executable, __file__], env=os.environ | {CHILD: f"{loader}:{folder}"},
                    stdout=subprocess.PIPE, check=True, text=True,
                )  # fmt: skip
                runs[loader].append(json.loads(done.stdout.splitlines()[-1]))
    largest = 2 * 151_936 * 1536  # bytes of the embedding
    for loader, results in runs.items():
        middle = {k: round(statistics.median(r[k] for r in results), 2) for k in results[0]}
        over = (middle["anonymous_mb"] - middle["weights_mb"]) * 1e6 / largest
        print(json.dumps({"loader": loader, **middle, "over_weights": round(over, 3)}))
    if "transformers" in runs:
        ratios = [
            a["seconds"] / b["seconds"]
            for a, b in zip(runs["r1jax"], runs["transformers"], strict=True)
        ]
        print(json.dumps({"seconds_r1jax_by_transformers": round(statistics.median(ratios), 3)}))


if __name__ == "__main__":
    if CHILD in os.environ:
        which, _, where = os.environ[CHILD].partition(":")
        print(json.dumps(load(which, Path(where))))
    else:
        main()
