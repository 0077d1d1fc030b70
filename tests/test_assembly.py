"""What a run is put together from: whether a model of elsewhere reads the run's token ids."""

import json

import numpy as np
import pytest

from r1jax import assembly
from r1jax.config import ConfigError
from r1jax.data.huggingface_tokenizer import HuggingFaceTokenizer
from r1jax.data.tokenizers import train_sentencepiece


def trained(seed):
    """On words of its own, so many that every piece there is room for is found."""
    rng = np.random.default_rng(seed)
    words = ["".join(rng.choice(list("aeinost"), 5)) for _ in range(60)]
    return train_sentencepiece([" ".join(rng.choice(words, 12)) for _ in range(60)], 330)


@pytest.fixture(scope="module")
def own():
    return trained(0)


@pytest.fixture(scope="module")
def other():
    return trained(1)


@pytest.fixture
def published(tmp_path):
    """A function (files): a published folder with them, of which nothing else is read."""
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "qwen2"}))
    (tmp_path / "model.safetensors").write_bytes(b"")

    def make(files):
        for name, content in files.items():
            (tmp_path / name).write_bytes(content)
        return tmp_path

    return make


@pytest.fixture
def finished(tmp_path):
    """A function (files): the stage's folder of a run that has them."""
    (tmp_path / "checkpoints" / "grpo" / "7" / "params").mkdir(parents=True)

    def make(files):
        for name, content in files.items():
            (tmp_path / name).write_bytes(content)
        return tmp_path / "checkpoints" / "grpo"

    return make


def fast(path, words):
    """A tokenizer of the tokenizers library that knows these words."""
    vocabulary = {word: i for i, word in enumerate(["</s>", *words])}
    model = {"type": "WordLevel", "vocab": vocabulary, "unk_token": "</s>"}
    path.mkdir()
    (path / "tokenizer.json").write_text(json.dumps({
        "version": "1.0", "truncation": None, "padding": None, "added_tokens": [],
        "normalizer": None, "pre_tokenizer": None, "post_processor": None, "decoder": None,
        "model": model,
    }))  # fmt: skip
    (path / "tokenizer_config.json").write_text('{"eos_token": "</s>"}')
    return HuggingFaceTokenizer(path / "tokenizer.json")


@pytest.mark.parametrize("kind", ["published", "finished"])
def test_a_model_of_the_runs_tokenizer(request, own, kind):
    folder = request.getfixturevalue(kind)(own.files())
    assert assembly.check_same_tokenizer(folder, own, "teacher") is None
    assert assembly.check_same_tokenizer(str(folder), own, "teacher") is None


@pytest.mark.parametrize("kind", ["published", "finished"])
def test_a_model_of_another_tokenizer_is_refused_whatever_its_size(request, own, other, kind):
    assert other.vocabulary == own.vocabulary and other.model != own.model
    folder = request.getfixturevalue(kind)(other.files())
    with pytest.raises(ConfigError) as caught:
        assembly.check_same_tokenizer(folder, own, "judge_model")
    message = str(caught.value)
    assert message.startswith(f"judge_model: {folder}: the model's tokenizer (")
    place = folder if kind == "published" else folder.parents[1]
    assert "is not the run's" in message and f"config.tokenizer.path={str(place)!r}" in message
    assembly.check_same_tokenizer(folder, other, "judge_model")


def test_both_formats_beside_each_other(published, own, other):
    """As exported: the sentencepiece model with a tokenizer.json made of it."""
    folder = published(own.files() | {"tokenizer.json": b"{}"})
    assembly.check_same_tokenizer(folder, own, "init")
    with pytest.raises(ConfigError, match="init: .* is not the run's"):
        assembly.check_same_tokenizer(folder, other, "init")


def test_tokenizers_of_the_library(published, own, tmp_path):
    first, second = fast(tmp_path / "a", ["one", "two"]), fast(tmp_path / "b", ["two", "one"])
    assert first.vocabulary == second.vocabulary
    # Who saved a tokenizer last may have written other settings beside it.
    folder = published(first.files() | {"tokenizer_config.json": b'{"eos_token": "</s>", "a": 1}'})
    assembly.check_same_tokenizer(folder, first, "teacher")
    with pytest.raises(ConfigError, match="teacher: .* is not the run's"):
        assembly.check_same_tokenizer(folder, second, "teacher")
    with pytest.raises(ConfigError, match="teacher: .*there is no tokenizer.model in"):
        assembly.check_same_tokenizer(folder, own, "teacher")


def test_a_folder_without_a_tokenizer(published, own):
    with pytest.raises(ConfigError, match="init: .*there is no tokenizer.model in .*put the one"):
        assembly.check_same_tokenizer(published({}), own, "init")
