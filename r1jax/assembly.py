"""The tokenizer and the prompt template of a run, made as its config says."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from r1jax import config, models
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

FILES = (JSON_FILE, MODEL_FILE)  # by one of which a tokenizer is found
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


def check_same_tokenizer(folder: str | Path, own: Tokenizer, where: str) -> None:
    """Raises ConfigError unless the tokenizer of a model in `folder` is the run's `own`.

    Ids of another tokenizer are other texts, of whatever size it is. The file by which `own` is
    found is compared, byte for byte: a folder may have the same tokenizer in both formats.
    """
    beside, files = models.tokenizer_folder(folder), own.files()
    name = next(name for name in FILES if name in files)
    if not (beside / name).is_file():
        raise ConfigError(
            f"{where}: {folder}: there is no {name} in {beside}, so that its tokenizer cannot be "
            "told to be the run's; put the one that came with the weights there"
        )
    if (beside / name).read_bytes() != files[name]:
        raise ConfigError(
            f"{where}: {folder}: the model's tokenizer ({beside / name}) is not the run's; name a "
            f"model of the run's tokenizer, or set config.tokenizer.path={str(beside)!r}, to have "
            "all of the run use that one"
        )


def make_template(name: str, tokenizer: Tokenizer, chat: Mapping) -> Template:
    """The prompt template of that name; 'chat' is the tokenizer's own."""
    if name != "chat":
        return TEMPLATES[name]
    try:
        return chat_prompt(tokenizer, **chat)
    except ValueError as error:
        raise ConfigError(f"config.template='chat': {error}") from error


def kept_tokenizer(workdir: Path) -> Tokenizer | None:
    """The tokenizer in a run's folder, if there is one yet."""
    return open_tokenizer(workdir) if any((workdir / name).exists() for name in FILES) else None


def make_tokenizer(settings: TokenizerConfig, seed: int) -> Tokenizer:
    """The tokenizer at a path, or one trained on a corpus."""
    if settings.path:
        return open_tokenizer(settings.path)
    if settings.corpus.startswith("task:"):
        name = settings.corpus.removeprefix("task:")
        if name not in TASKS:
            raise ConfigError(
                config.unknown(f"config.tokenizer.corpus={name!r}", name, list(TASKS))
            )
        corpus = TASKS[name].corpus(seed)
    else:
        corpus = [text for row in load_examples(settings.corpus) for text in row.values()]
    return train_sentencepiece(corpus, settings.vocabulary, merge_words=settings.merge_words)


def keep_tokenizer(tokenizer: Tokenizer, folder: Path) -> None:
    """Writes the tokenizer's files; the one by which it is found last, when all are there."""
    files = tokenizer.files()
    for name in sorted(files, key=lambda name: name in FILES):
        replace(folder / name, files[name])
