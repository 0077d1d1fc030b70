"""What every stage of a run is given."""

import dataclasses
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh

from r1jax import models
from r1jax.checkpoints import Checkpoints
from r1jax.data.packing import Document
from r1jax.data.tokenizers import Tokenizer
from r1jax.models.decoder import Decoder
from r1jax.models.lora import LoraConfig
from r1jax.rewards import Response
from r1jax.sampling.engine import Sampler, SamplingConfig
from r1jax.templates import Template
from r1jax.types import Array, Rollout
from r1jax.writers import Writer


@dataclass(frozen=True)
class Run:
    """Where a stage works and with what. `stage` is its name: of its folder and its keys."""

    workdir: Path
    stage: str
    seed: int
    mesh: Mesh
    model: Decoder
    tokenizer: Tokenizer
    template: Template
    writer: Writer | None  # None where nothing is to be written
    base: str = ""  # what the stage's parameters started from: a folder

    def key(self, *names: str | int) -> Array:
        """A random key that is a function of (seed, stage, names) alone."""
        key = jax.random.key(self.seed)
        for name in (self.stage, *names):
            word = zlib.crc32(name.encode()) if isinstance(name, str) else name
            key = jax.random.fold_in(key, word)
        return key

    def generator(self, *names: str | int) -> np.random.Generator:
        """As `key`, for numpy on the host."""
        words = [zlib.crc32(n.encode()) if isinstance(n, str) else n for n in (self.stage, *names)]
        return np.random.default_rng([self.seed, *words])

    def checkpoints(
        self,
        *,
        keep: int = 2,
        lora: LoraConfig | None = None,
        extra: Mapping[str, Any] | None = None,
    ) -> Checkpoints:
        """The stage's checkpoints, which say themselves what model and prompt they belong to.

        With adapters (`lora.rank`) they hold these alone, and say what base they adapt.
        `extra` goes into their meta too: JSON, such as `models.scoring.about`.
        """
        about = {
            "stage": self.stage,
            "seed": self.seed,
            "template": dataclasses.asdict(self.template),
            "model": models.describe(self.model),
        }
        if lora is not None and lora.rank:
            if not self.base:
                raise ValueError("adapters need a base that is on disk; set the stage's init")
            about["lora"] = dataclasses.asdict(lora) | {"base": self.base}
        about |= extra or {}
        return Checkpoints(self.workdir / "checkpoints" / self.stage, about=about, keep=keep)

    def prompt(self, question: str) -> list[int]:
        """Token ids of the templated question, begin token first where the model has one."""
        begin = [] if self.tokenizer.bos_id is None else [self.tokenizer.bos_id]
        text = self.template.render(question, self.tokenizer.specials)
        return [*begin, *self.tokenizer.encode(text)]

    def document(self, question: str, response: str) -> Document:
        """Templated question and response, end token last, for next-token training.

        The response is a whole text, or what followed a prompt that opens the reasoning: both
        give the same tokens (`Template.completion`).
        """
        prompt = self.prompt(question)
        response = self.tokenizer.encode(self.template.completion(response))
        return Document([*prompt, *response, self.tokenizer.eos_id], len(prompt))

    def sampler(self, config: SamplingConfig) -> Sampler:
        return Sampler(
            self.model, config,
            stop_ids=self.tokenizer.stop_ids, pad_id=self.tokenizer.pad_id, mesh=self.mesh,
        )  # fmt: skip

    def response(self, ids: Sequence[int], truncated: bool, limit: int = 0) -> Response:
        """A response as text, without the end token; `limit`: the tokens it could have had."""
        text = self.tokenizer.decode(ids if truncated else ids[:-1])
        return Response(text, len(ids), truncated, self.template.think_opened, limit)

    def responses(self, rollout: Rollout) -> list[Response]:
        """The rollout's responses as text."""
        return [
            self.response(tokens[:n], bool(cut))
            for tokens, n, cut in zip(
                rollout.tokens_BT, rollout.length_B, rollout.truncated_B, strict=True
            )
        ]
