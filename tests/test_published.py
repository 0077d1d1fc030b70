"""Published models through the commands: out of a run, into evaluation, sampling, training."""

import json
import shutil
from pathlib import Path

import jax
import numpy as np
import pytest

from r1jax import checkpoints, inference, models
from r1jax.cli import main
from r1jax.config import ConfigError
from r1jax.data.tokenizers import open_tokenizer
from r1jax.models import lora
from r1jax.rewards import REWARDS
from r1jax.sampling.engine import SamplingConfig
from r1jax.writers import read_lines

FILE = str(Path(__file__).parents[1] / "experiments" / "r1_zero.py")
QUESTION = "What is 417+8-5+9 modulo a thousand?"
SMALL = (
    "--config.grpo.steps=2", "--config.grpo.max_tokens=16", "--config.grpo.prompts_per_rollout=8",
    "--config.grpo.group_size=2", "--config.grpo.row_tokens=128", "--config.grpo.reward_workers=0",
    "--config.grpo.checkpoint_every=1", "--config.grpo.lr=1e-3", "--config.grpo.warmup_steps=0",
    "--config.template=r1_zero_short", "--config.evaluate.max_tokens=16",
    "--config.evaluate.samples=2", "--config.evaluate.benchmarks=('mini_aime_dev',)",
    "--config.grpo.rewards={'letters': 1.0}", "--config.grpo.minibatches=1",
)  # fmt: skip


@pytest.fixture(scope="module", autouse=True)
def letters_are_rewarded():
    """A reward that differs within groups of what an untrained model says."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(REWARDS, "letters", lambda _, r: float(sum(map(ord, r.text)) % 5))
        yield


@pytest.fixture(scope="module")
def exported(trained, tmp_path_factory):
    """The trained run as a Hugging Face folder."""
    out = tmp_path_factory.mktemp("exported") / "model"
    assert main(["export", f"--model={trained}", f"--out={out}"]) == 0
    return out


@pytest.fixture(scope="module")
def adapted(exported, tmp_path_factory):
    """A run of GRPO that trains adapters on the exported weights."""
    return train(exported, tmp_path_factory.mktemp("runs") / "lora", "--config.grpo.lora.rank=2")


def train(weights, workdir, *overrides):
    arguments = [
        "train", f"--config={FILE}:published", f"--workdir={workdir}",
        f"--config.weights={weights}", "--config.data=task:mini_aime:64", *SMALL, *overrides,
    ]  # fmt: skip
    assert main(arguments) == 0
    return workdir


def fails(capsys, *arguments):
    assert main(list(arguments)) == 1
    return capsys.readouterr().err


def assert_same(a, b):
    assert jax.tree.structure(a) == jax.tree.structure(b)
    for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True):
        assert x.dtype == y.dtype
        np.testing.assert_array_equal(x, y)


def test_an_export_is_the_run_again(trained, exported):
    assert sorted(p.name for p in exported.iterdir()) == [
        "config.json", "model.safetensors", "r1jax.json", "tokenizer.json", "tokenizer.model",
        "tokenizer_config.json",
    ]  # fmt: skip
    (model, params), (again, same) = models.load(trained), models.load(exported)
    assert again.config == model.config
    assert_same(params, same)
    ours, theirs = open_tokenizer(trained), open_tokenizer(exported)
    for text in (QUESTION, "<think>417+8=425\nwait, check</think> ü 数"):
        assert ours.encode(text) == theirs.encode(text)
    assert (ours.bos_id, ours.stop_ids) == (theirs.bos_id, theirs.stop_ids)
    raw = json.loads((exported / "config.json").read_text())
    assert (raw["bos_token_id"], raw["eos_token_id"]) == (ours.bos_id, ours.eos_id)


def test_an_export_answers_as_the_run(trained, exported):
    rollouts = []
    for path in (trained, exported):
        run, params = inference.open_model(path)
        assert run.template.text == "User: {prompt} Assistant:"
        with jax.set_mesh(run.mesh):
            sampler = run.sampler(SamplingConfig(12))
            rollouts.append(sampler(params, [run.prompt(QUESTION)], run.key("s"), group_size=16))
    for ours, theirs in zip(*rollouts, strict=True):
        np.testing.assert_array_equal(ours, theirs)


def test_eval_of_an_export(trained, exported, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    scores = []
    for model in (trained, exported):
        flags = ["--benchmark=mini_aime_dev", "--limit=4", "--samples=2", "--max_tokens=12"]
        flags += ["--json", "--mesh=fsdp=2,tensor=2", "--workers=0"]
        assert main(["eval", f"--model={model}", *flags]) == 0
        scores.append(json.loads(capsys.readouterr().out))
    assert scores[0] == scores[1] and scores[0]["questions"] == 4


def test_a_streamed_response_is_the_response(exported, capsys):
    flags = [f"--model={exported}", f"--prompt={QUESTION}", "--max_tokens=40", "--seed=3"]
    assert main(["sample", *flags, "--stream", "--template=plain"]) == 0
    streamed = capsys.readouterr().out
    (response,) = inference.sample(exported, QUESTION, max_tokens=40, seed=3, template="plain")
    assert streamed == response.text + "\n" and len(response.text) > 20


def test_only_one_response_can_be_streamed(exported, capsys):
    flags = [f"--model={exported}", "--prompt=x", "--stream", "--samples=2"]
    assert "samples=2: only a single response" in fails(capsys, "sample", *flags)


def test_the_dtype_of_an_export(trained, tmp_path):
    out = tmp_path / "half"
    assert main(["export", f"--model={trained}", f"--out={out}", "--dtype=bfloat16"]) == 0
    _, params = models.load(trained)
    model, half = models.load(out)
    assert model.config.dtype == "bfloat16"
    assert_same(half, jax.tree.map(lambda p: p.astype("bfloat16"), params))


def test_training_on_published_weights(exported, trained, tmp_path):
    workdir = train(exported, tmp_path / "run")
    rows = read_lines(workdir / "metrics.jsonl")
    assert [(r["stage"], r["step"]) for r in rows] == [("grpo", s) for s in (0, 1, 2)]
    assert rows[1]["loss/kl"] < 1e-9 < rows[2]["loss/kl"]  # from the reference away
    # The run has a tokenizer of its own, and opens without the folder it started from.
    assert (workdir / "tokenizer.json").read_bytes() == (exported / "tokenizer.json").read_bytes()
    run, _ = inference.open_model(workdir)
    assert run.template.text == "User: {prompt} Assistant:"
    stage = json.loads((workdir / "manifest.json").read_text())["stages"]["grpo"]
    assert stage["init"] == str(exported)


def test_adapters_leave_the_base_as_it_is(exported, adapted):
    meta = checkpoints.load_meta(checkpoints.find(adapted))
    assert meta["lora"]["rank"] == 2 and meta["lora"]["base"] == str(exported)
    base, merged = (models.load(path)[1] for path in (exported, adapted))
    assert_same(base["embed"], merged["embed"])
    assert_same(base["blocks"]["mlp_norm"], merged["blocks"]["mlp_norm"])
    for name in ("query", "key", "value", "out"):
        change = (
            merged["blocks"]["attention"][name]["kernel"]
            - base["blocks"]["attention"][name]["kernel"]
        )
        # What two of rank add is of rank two, in every layer; rounding is far below 1e-4.
        values = np.linalg.svd(np.asarray(change), compute_uv=False)
        assert (values[:, 0] > 1e-4).all() and (values[:, 2:] < 1e-4 * values[:, :1]).all()


def test_adapters_are_merged_on_export(adapted, tmp_path):
    out = tmp_path / "merged"
    assert main(["export", f"--model={adapted}", f"--out={out}"]) == 0
    assert_same(models.load(out)[1], models.load(adapted)[1])


def test_a_stage_goes_on_from_adapters(adapted, tmp_path):
    workdir = train(adapted, tmp_path / "next", "--config.grpo.steps=1")
    merged = models.load(adapted)[1]
    (first, second) = read_lines(workdir / "metrics.jsonl")
    last = read_lines(adapted / "metrics.jsonl")[-1]
    # Its first evaluation draws other numbers (the step counts), from the same parameters.
    assert first["step"] == 0 and second["loss/kl"] < 1e-9 and last["step"] == 2
    after = models.load(workdir)[1]
    assert not np.array_equal(after["embed"], merged["embed"])  # all is trained now


def test_adapters_whose_base_is_gone(exported, adapted, tmp_path, capsys):
    copy = tmp_path / "run"
    shutil.copytree(adapted, copy)
    folder = checkpoints.find(copy)
    path = folder / "meta" / "metadata"
    path.write_text(path.read_text().replace(str(exported), str(tmp_path / "gone")))
    said = fails(capsys, "sample", f"--model={copy}", "--prompt=x")
    assert f"{folder} holds adapters of {tmp_path / 'gone'}, which is not there" in said


def test_adapters_need_a_base_to_adapt(tmp_path, capsys):
    data = tmp_path / "e.jsonl"
    data.write_text('{"question": "a", "answer": "1 #### 1"}\n' * 64)
    overrides = [
        f"--config.data={data}", "--config.base.lora.rank=2", "--config.tokenizer.vocabulary=400",
    ]  # fmt: skip
    said = fails(
        capsys, "train", f"--config={FILE}:gsm8k", f"--workdir={tmp_path / 'run'}", *overrides
    )
    assert "lora.rank: adapters need a model to adapt" in said


def test_an_unknown_target_names_those_there_are(exported, tmp_path, capsys):
    arguments = [
        "train", f"--config={FILE}:published", f"--workdir={tmp_path / 'run'}",
        f"--config.weights={exported}", "--config.data=task:mini_aime:64", *SMALL,
        "--config.grpo.lora.rank=2", "--config.grpo.lora.targets=('q_proj',)",
    ]  # fmt: skip
    said = fails(capsys, *arguments)
    assert "no linear map of this model is called 'q_proj'; there are down, gate, key" in said


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("--config.weights=", "config.weights is not set"),
        ("--config.model.preset=Qwen3-8B", "config.model has path="),
        ("--config.model.width=16", "config.model.width cannot be set beside path"),
        ("--config.grpo.max_tokens=250", "config.grpo: prompt 0 has"),
        ("--config.model.preset=Qwen3-7B", "config.model has path="),
        ("--config.template=chat", "the tokenizer has no chat template"),
    ],
)
def test_a_config_that_does_not_fit_the_weights(exported, tmp_path, capsys, override, message):
    arguments = [
        "train", f"--config={FILE}:published", f"--workdir={tmp_path / 'run'}",
        f"--config.weights={exported}", "--config.data=task:mini_aime:64", *SMALL, override,
    ]  # fmt: skip
    assert message in fails(capsys, *arguments)


@pytest.mark.parametrize(
    ("model", "message"),
    [
        (dict(preset="Qwen3-7B"), "config.model.preset='Qwen3-7B' is unknown; did you mean"),
        (dict(family="mamba"), "config.model.family='mamba' is unknown; known: deepseek, dense"),
        (dict(preset="Qwen3-8B", width=3), "config.model.width cannot be set beside preset"),
        (dict(widht=3), "config.model.widht is unknown; did you mean 'width'"),
        (dict(path="/nowhere"), "/nowhere"),
    ],
)
def test_a_model_that_cannot_be(model, message):
    from r1jax.experiment import model_config

    with pytest.raises((ConfigError, checkpoints.CheckpointError), match=message):
        model_config(model, vocabulary=1)


def test_a_preset_may_be_changed():
    from r1jax.experiment import model_config

    changed = model_config(
        dict(preset="DeepSeek-V3-Base", context=4096, rope_scaling=dict(kind="linear", factor=2)),
        vocabulary=1,
    )
    assert (changed.context, changed.rope_scaling.kind, changed.experts) == (4096, "linear", 256)


def test_a_tokenizer_of_another_model(exported, tmp_path, capsys):
    folder = tmp_path / "model"
    shutil.copytree(exported, folder)
    for name in ("tokenizer.json", "tokenizer.model"):
        (folder / name).unlink()
    assert f"no tokenizer in {folder}" in fails(capsys, "sample", f"--model={folder}", "--prompt=x")
    from r1jax.data.convert import to_huggingface
    from r1jax.data.tokenizers import train_sentencepiece

    texts = [f"{a} and {b}" for a in "abcdefghijklmnop" for b in "qrstuvwxyz"]
    large = train_sentencepiece([t * n for t in texts for n in (1, 2, 3)], 700)
    vocabulary = models.read_config(folder).vocabulary
    assert large.vocabulary > vocabulary
    for name, content in to_huggingface(large).items():
        (folder / name).write_bytes(content)
    said = fails(capsys, "sample", f"--model={folder}", "--prompt=x")
    assert f"has {large.vocabulary} ids, but the model's vocabulary is {vocabulary}" in said


def test_nothing_is_written_over(trained, exported, capsys):
    said = fails(capsys, "export", f"--model={trained}", f"--out={exported}")
    assert f"{exported} exists already" in said


def test_a_mistake_in_a_later_stage_stops_the_first(tmp_path, capsys):
    arguments = ["train", f"--config={FILE}:tiny", f"--workdir={tmp_path}"]
    said = fails(capsys, *arguments, "--config.grpo.lora.targets=('q_proj',)",
                 "--config.grpo.lora.rank=2")  # fmt: skip
    assert "config.grpo: lora.targets: no linear map of this model is called 'q_proj'" in said
    said = fails(capsys, *arguments, "--config.grpo.max_tokens=300")
    assert "config.grpo: prompt 0 has" in said and "exceeds the model's context of 256" in said
    # Nothing was made, so the workdir takes the config that is right.
    assert {p.name for p in tmp_path.iterdir()} <= {"config.json", "tokenizer.model", "tensorboard"}
    assert main([*arguments, "--config.stages=('pretrain',)"]) == 0


@pytest.mark.parametrize(("mesh", "message"), [("fsdp=16", "needs 16 devices; there are 8")])
def test_a_mesh_larger_than_the_machine(exported, capsys, mesh, message):
    flags = ["sample", f"--model={exported}", "--prompt=x", f"--mesh={mesh}"]
    assert message in fails(capsys, *flags)


def test_join_copies_nothing(trained):
    _, params = models.load(trained)
    frozen, trainable = lora.split(params, lora.LoraConfig(rank=2), jax.random.key(0))
    joined = lora.join(frozen, trainable)
    assert joined["embed"] is params["embed"]


def test_a_tokenizer_that_cannot_be_converted_is_handed_on(trained, tmp_path, monkeypatch, caplog):
    def refuse(_):
        raise ValueError("the sentencepiece model is of another kind")

    monkeypatch.setattr(inference, "to_huggingface", refuse)
    inference.export(trained, tmp_path / "model")
    names = {p.name for p in (tmp_path / "model").iterdir()}
    assert "tokenizer.model" in names and "tokenizer.json" not in names
    assert "no tokenizer.json, only tokenizer.model: the sentencepiece model is" in caplog.text
