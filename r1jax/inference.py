"""Using a trained model: sampling and export, for the command line and for notebooks."""

import json
import logging
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import jax
import numpy as np
from jax.sharding import Mesh

from r1jax import assembly, checkpoints, models
from r1jax.config import unknown
from r1jax.data.convert import to_huggingface
from r1jax.data.tokenizers import SentencePieceTokenizer, StreamDecoder, open_tokenizer
from r1jax.models import huggingface
from r1jax.models.huggingface import is_folder
from r1jax.models.huggingface_config import to_json
from r1jax.process import enable_compilation_cache
from r1jax.rewards import Response
from r1jax.run import Run
from r1jax.sampling.engine import SamplingConfig
from r1jax.sharding import make_mesh
from r1jax.templates import TEMPLATES, Template

log = logging.getLogger("r1jax")

ABOUT = "r1jax.json"  # in an export: what config.json has no place for
LONGEST = 32_768  # tokens of a response in the paper's evaluation


def open_model(
    path: str | Path,
    *,
    seed: int = 0,
    dtype: str | None = None,
    template: str | None = None,
    mesh: Mesh | None = None,
) -> tuple[Run, dict]:
    """(run, params) for a Hugging Face folder, or the newest checkpoint that `path` means.

    On all devices, unless `mesh` says otherwise. `template` names one of
    `r1jax.templates`, or is 'chat'; by default it is the one that a run was made with (which
    its export keeps in r1jax.json), and the chat template of other Hugging Face folders, or
    r1_zero where there is none.
    Raises CheckpointError or ValueError naming what is missing.
    """
    enable_compilation_cache()
    if template not in (None, "chat", *TEMPLATES):
        raise ValueError(unknown(f"template={template!r}", template, [*TEMPLATES, "chat"]))
    mesh = make_mesh() if mesh is None else mesh
    published = is_folder(path)
    folder = Path(path).absolute() if published else checkpoints.find(path)
    config, workdir = models.read_config(folder), models.tokenizer_folder(folder)
    tokenizer = open_tokenizer(workdir)
    assembly.check_vocabulary(tokenizer, config, f"the tokenizer in {workdir}")
    if template is not None:
        prompt = assembly.make_template(template, tokenizer, {})
    elif not published:
        prompt = Template(**checkpoints.load_meta(folder)["template"])
    elif (folder / ABOUT).is_file():
        prompt = Template(**json.loads((folder / ABOUT).read_text())["template"])
    else:
        template = "chat" if tokenizer.chat_template else "r1_zero"
        log.info("prompts: template %s (--template takes another)", template)
        prompt = assembly.make_template(template, tokenizer, {})
    model, params = models.load(folder, mesh=mesh, dtype=dtype)
    run = Run(
        workdir=workdir, stage="inference", seed=seed, mesh=mesh, model=model,
        tokenizer=tokenizer, template=prompt, writer=None,
    )  # fmt: skip
    return run, params


def export(
    path: str | Path, out: str | Path, *, dtype: str | None = None, mesh: Mesh | None = None
) -> None:
    """Writes a Hugging Face folder of a model: config.json, weights, tokenizer.

    A sentencepiece tokenizer goes along as tokenizer.json too, where it can be converted. Open
    that by transformers' PreTrainedTokenizerFast: its AutoTokenizer (5.23) takes every folder
    of Qwen2's architecture for Qwen2's tokenizer, whatever tokenizer_config.json says.
    Raises ValueError where `out` is there already, and CheckpointError or ValueError
    naming what is missing.
    """
    if Path(out).exists():
        raise ValueError(f"{out} exists already; name a folder that does not")
    to_json(models.read_config(path), "float32")  # says so early where no architecture fits
    tokenizer = open_tokenizer(models.tokenizer_folder(path))
    files = tokenizer.files()
    if isinstance(tokenizer, SentencePieceTokenizer):
        try:
            files |= to_huggingface(tokenizer)
        except ValueError as error:
            log.warning("no tokenizer.json, only tokenizer.model: %s", error)
    if not is_folder(path):
        about = {"template": checkpoints.load_meta(checkpoints.find(path))["template"]}
        files[ABOUT] = json.dumps(about, indent=2).encode()
    elif (Path(path) / ABOUT).is_file():
        files[ABOUT] = (Path(path) / ABOUT).read_bytes()
    model, params = models.load(path, mesh=mesh)
    ends = list(tokenizer.stop_ids)
    special = {
        "bos_token_id": tokenizer.bos_id,
        "eos_token_id": ends if len(ends) > 1 else ends[0],
        "pad_token_id": tokenizer.pad_id,
    }
    huggingface.save(out, model, params, dtype=dtype, special=special, files=files)


def sample(
    path: str | Path,
    question: str,
    *,
    samples: int = 1,
    temperature: float = 0.6,
    top_p: float = 0.95,
    max_tokens: int | None = None,
    seed: int = 0,
    dtype: str | None = None,
    template: str | None = None,
    mesh: Mesh | None = None,
    on_text: Callable[[str], None] | None = None,
) -> list[Response]:
    """Responses of a model to one question.

    `on_text` is given the text of a single response as it comes, never half a character.
    """
    if samples < 1:
        raise ValueError(f"samples={samples} must be at least 1")
    if on_text and samples > 1:
        raise ValueError(f"samples={samples}: only a single response can be shown as it comes")
    if not question.strip():
        raise ValueError("the prompt is empty; ask something (--prompt)")
    SamplingConfig(_some(max_tokens), temperature=temperature, top_p=top_p)
    run, params = open_model(path, seed=seed, dtype=dtype, template=template, mesh=mesh)
    max_tokens = room(run, [question]) if max_tokens is None else max_tokens
    log.info("up to %d tokens (context %d)", max_tokens, run.model.config.context)
    config = SamplingConfig(max_tokens, temperature=temperature, top_p=top_p)
    stream = StreamDecoder(run.tokenizer)

    def show(new: Mapping[int, np.ndarray]) -> None:
        on_text(stream.push(new.get(0, ())))

    with jax.set_mesh(run.mesh):
        rollout = run.sampler(config)(
            params, [run.prompt(question)], run.key("sample"), group_size=samples,
            on_tokens=on_text and show,
        )  # fmt: skip
    if on_text:
        on_text(stream.finish())
    return run.responses(rollout)


def _some(max_tokens: int | None) -> int:
    return 1 if max_tokens is None else max_tokens


def room(run: Run, questions: Sequence[str]) -> int:
    """Tokens that the context leaves for a response to the longest question, 32,768 at most."""
    context, longest = run.model.config.context, max(len(run.prompt(q)) for q in questions)
    if longest >= context:
        raise ValueError(
            f"a prompt has {longest} tokens; the model's context of {context} has no room left"
        )
    return min(context - longest, LONGEST)
