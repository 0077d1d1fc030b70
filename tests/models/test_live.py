"""Exported checkpoints in transformers itself, where it is installed."""

from pathlib import Path

import jax
import numpy as np
import pytest

import r1jax.models
from r1jax import inference
from r1jax.data.tokenizers import open_tokenizer
from r1jax.models import huggingface
from r1jax.models.deepseek import Deepseek, DeepseekConfig
from r1jax.models.rope import RopeScaling
from r1jax.models.transformer import Transformer, TransformerConfig

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")
safetensors = pytest.importorskip("safetensors.torch")

FIXTURES = sorted(p.parent for p in Path(__file__).with_name("fixtures").glob("*/config.json"))


def dense(**settings):
    return Transformer(TransformerConfig(vocabulary=64, width=32, layers=2, mlp=48, **settings))


def sparse(**settings):
    return Deepseek(DeepseekConfig(vocabulary=64, width=32, groups=2, **settings))


# What no fixture has.
VARIANTS = {
    "llama_linear": dense(qkv_bias=False, rope_scaling=RopeScaling("linear", 4.0)),
    "llama_untied": dense(qkv_bias=False, tied=False, head_dim=12, norm_eps=1e-3),
    "qwen2_yarn": dense(rope_scaling=RopeScaling("yarn", 4.0, 128)),
    "qwen3_yarn_factor": dense(
        qkv_bias=False,
        qk_norm=True,
        rope_scaling=RopeScaling("yarn", 4.0, 128, truncate=False, attention_factor=1.3),
    ),
    "deepseek_whole_queries": sparse(query_rank=0),
    "deepseek_all_dense": sparse(dense_layers=3),
    "deepseek_all_sparse": sparse(dense_layers=0, normalise_weights=False, routed_scale=2.0),
    "deepseek_yarn": sparse(
        rope_scaling=RopeScaling("yarn", 8.0, 64, mscale=0.7, mscale_all_dim=1.0)
    ),
}


@pytest.fixture(scope="module", params=[*FIXTURES, *VARIANTS], ids=lambda p: getattr(p, "name", p))
def exported(request, mesh1, random_params, tmp_path_factory):
    """(folder, model, params) of a model that was written."""
    if request.param in VARIANTS:
        model = VARIANTS[request.param]
        params = random_params(model)
    else:
        model, params = r1jax.models.load(request.param, mesh=mesh1, dtype="float32")
    folder = tmp_path_factory.mktemp("exports") / "export"
    huggingface.save(folder, model, params)
    return folder, model, params


def test_transformers_computes_our_logits(exported):
    folder, model, params = exported
    theirs, report = transformers.AutoModelForCausalLM.from_pretrained(
        folder, dtype=torch.float32, attn_implementation="eager", output_loading_info=True
    )
    assert not any(report.values()), report  # a tensor too many or too few
    tokens = np.random.default_rng(0).integers(0, model.config.vocabulary, (2, 70)).astype(np.int32)
    with torch.no_grad():
        expected = theirs.eval()(torch.tensor(tokens, dtype=torch.int64)).logits.numpy()
    actual = np.asarray(jax.jit(model.apply)(params, tokens))
    assert expected.std() > 0.5  # logits near zero would agree with anything
    assert np.abs(actual - expected).max() <= 2e-4 * np.abs(expected).max()


def test_reading_an_export_gives_the_same_bits(exported, mesh1):
    folder, model, params = exported
    again, leaves = r1jax.models.load(folder, mesh=mesh1, dtype="float32")
    assert again.config == model.config
    jax.tree.map(same_bits, leaves, params)


def same_bits(a, b):
    assert a.dtype == b.dtype
    assert np.asarray(a).tobytes() == np.asarray(b).tobytes()


@pytest.mark.parametrize("name", [f.name for f in FIXTURES if "fp8" not in f.name])
def test_an_export_holds_the_tensors_that_were_read(name, mesh1, tmp_path):
    """In the types they were read in; but no layers for multi-token prediction."""
    folder = Path(__file__).with_name("fixtures") / name
    model, params = r1jax.models.load(folder, mesh=mesh1)
    huggingface.save(tmp_path / "export", model, params)
    read, written = tensors(folder), tensors(tmp_path / "export")
    more = {n for n in read if n.startswith(f"model.layers.{model.config.layers}.")}
    assert bool(more) == ("mtp" in name)
    assert written.keys() == read.keys() - more
    for tensor in written:
        assert written[tensor].dtype == read[tensor].dtype
        assert torch.equal(written[tensor], read[tensor])


def tensors(folder) -> dict:
    out = {}
    for path in folder.glob("*.safetensors"):
        out |= safetensors.load_file(path)
    return out


def test_a_run_of_ours_in_transformers(trained, tmp_path):
    out = tmp_path / "model"
    inference.export(trained, out)
    tokenizer = transformers.PreTrainedTokenizerFast.from_pretrained(out)
    ours = open_tokenizer(trained)
    text = "User: What is 417+8-5+9 modulo a thousand? Assistant:<think>417+8=425\n"
    ids = [ours.bos_id, *ours.encode(text)]
    assert tokenizer(text)["input_ids"] == ids and len(ids) > 10
    assert tokenizer.eos_token_id == ours.eos_id
    theirs = transformers.AutoModelForCausalLM.from_pretrained(out, dtype=torch.float32)
    with torch.no_grad():
        expected = theirs(torch.tensor([ids])).logits.numpy()
    model, params = r1jax.models.load(trained)
    actual = np.asarray(model.apply(params, np.array([ids], np.int32)))
    assert np.abs(actual - expected).max() <= 2e-4 * np.abs(expected).max()
