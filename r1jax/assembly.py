"""The tokenizer and the prompt template of a run, made as its config says."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from r1jax import config
from r1jax.config import ConfigError
from r1jax.data.chat import chat_prompt
from r1jax.data.examples import load_examples
from r1jax.data.tasks import TASKS
from r1jax.data.tokenizers import (
    JSON_FILE,
    MODEL_FILE,
    Tokenizer,
    open_tokenizer,
    train_sentencepiece,
)
from r1jax.models.families import Config
from r1jax.templates import TEMPLATES, Template
from r1jax.writers import replace

VOCABULARY_MULTIPLE = 16  # the model's vocabulary is padded to it, so that meshes divide it


@dataclass(frozen=True)
class TokenizerConfig:
    """A tokenizer at `path` (a folder, its tokenizer.json, or a sentencepiece model), or one
    trained on `corpus` (`task:NAME`, or a .jsonl file of examples) with at most `vocabulary`
    pieces."""

    path: str = ""
    corpus: str = ""
    vocabulary: int = 512
    merge_words: bool = False

    def __post_init__(self):
        if bool(self.path) == bool(self.corpus):
            raise ValueError("set either path (of a tokenizer) or corpus (to train one)")


def padded_vocabulary(tokenizer: Tokenizer) -> int:
    return tokenizer.vocabulary + -tokenizer.vocabulary % VOCABULARY_MULTIPLE


def check_vocabulary(tokenizer: Tokenizer, model: Config, where: str) -> None:
    """Raises ConfigError for a tokenizer that knows more ids than the model."""
    if tokenizer.vocabulary > model.vocabulary:
        raise ConfigError(
            f"{where} has {tokenizer.vocabulary} ids, but the model's vocabulary is "
            f"{model.vocabulary}: the tokenizer is another model's; take the one that came "
            "with the weights"
        )


def make_template(name: str, tokenizer: Tokenizer, chat: Mapping) -> Template:
    """The prompt template of that name; 'chat' is the tokenizer's own."""
    if name != "chat":
        return TEMPLATES[name]
    try:
        return chat_prompt(tokenizer, **chat)
    except ValueError as error:
        raise ConfigError(f"config.template='chat': {error}") from error


def make_tokenizer(settings: TokenizerConfig, workdir: Path, seed: int) -> Tokenizer:
    """The run's tokenizer, kept in its folder; trained there if it must be and is not yet."""
    if any((workdir / name).exists() for name in (JSON_FILE, MODEL_FILE)):
        return open_tokenizer(workdir)
    if settings.path:
        tokenizer = open_tokenizer(settings.path)
    else:
        if settings.corpus.startswith("task:"):
            name = settings.corpus.removeprefix("task:")
            if name not in TASKS:
                raise ConfigError(
                    config.unknown(f"config.tokenizer.corpus={name!r}", name, list(TASKS))
                )
            corpus = TASKS[name].corpus(seed)
        else:
            corpus = [text for row in load_examples(settings.corpus) for text in row.values()]
        tokenizer = train_sentencepiece(
            corpus, settings.vocabulary, merge_words=settings.merge_words
        )
    keep_tokenizer(tokenizer, workdir)
    return tokenizer


def keep_tokenizer(tokenizer: Tokenizer, folder: Path) -> None:
    """Writes the tokenizer's files; the one by which it is found last, when all are there."""
    files = tokenizer.files()
    for name in sorted(files, key=lambda name: name in (JSON_FILE, MODEL_FILE)):
        replace(folder / name, files[name])


def forget_tokenizer(workdir: Path, aside: Path) -> None:
    """Moves the run's tokenizer to a folder: another one is to be made."""
    for name in (JSON_FILE, MODEL_FILE):
        if (workdir / name).exists():
            (workdir / name).rename(aside / name)
