"""Floating-point operations of training and sampling, from a model's shapes alone.

A product of [n, a] and [a, b] is 2 n a b operations. A token therefore costs, forward,

    2 · (parameters of the matrices that it is multiplied with)      linear maps
    + Σ over layers of 2 · heads · (w_qk + w_v) · context            attention

where `context` is the number of tokens that it attends to, itself included, and w_qk and w_v
are the widths of a head's keys and values (both head_dim: 4 · heads · head_dim · context). The
embedding table is looked up, not multiplied; the head is. Of routed experts those
`experts_per_token` count that a token is sent to, beside shared ones and the router. A backward
pass is twice the forward pass. Norms, softmax and rotations are left out, as are padding and
what is computed again to save memory, and logits of prompts, which no loss reads: these are
the operations that the mathematics needs (PaLM, arXiv:2204.02311, appendix B; Chinchilla,
arXiv:2203.15556, appendix F).

Lengths are in tokens; a response's counts its end token. All results are plain floats.
"""

from collections.abc import Sequence

import numpy as np

from r1jax.models.deepseek import DeepseekConfig
from r1jax.models.families import Config

Lengths = Sequence[int] | np.ndarray
BACKWARD = 2.0  # forward passes


def forward_flops(
    config: Config, tokens: float, mean_context: float, *, head: bool = True, absorbed: bool = False
) -> float:
    """A forward pass over `tokens` tokens that attend to `mean_context` tokens on average.

    `head`: with logits. `absorbed`: latent attention in its form for decoding, over the latents
    themselves (`models.deepseek`); nothing elsewhere.
    """
    matrices, attention = _per_token(config, absorbed)
    if head:
        matrices += config.width * config.vocabulary
    return tokens * (2.0 * matrices + attention * mean_context)


def training_flops(
    config: Config, prompt_n: Lengths, response_n: Lengths, *, adapters: bool = False
) -> float:
    """Supervised training: forward and backward over documents, each attending to itself.

    With `adapters` the weights themselves have no gradient, which is half of the backward pass
    (the adapters' own products are left out).
    """
    return _passes(adapters) * scoring_flops(config, prompt_n, response_n)


def sampling_flops(
    config: Config, prompt_B: Lengths, response_B: Lengths, *, group_size: int = 1
) -> float:
    """Sampling responses: a prompt is read once a group, a response token by token.

    Lengths are one a response, row-major over prompts × group.
    """
    prompt_B, response_B = _lengths(prompt_B, response_B, group_size)
    prompt_P = prompt_B[::group_size]
    reading = forward_flops(config, prompt_P.sum(), _mean(prompt_P, (prompt_P + 1) / 2), head=False)
    # The last token is not read again, and the first one's logits are the prompt's.
    fed_B = np.maximum(response_B - 1, 0)
    context = _mean(fed_B, prompt_B + (fed_B + 1) / 2)
    decoding = forward_flops(config, fed_B.sum(), context, head=False, absorbed=True)
    return reading + decoding + 2.0 * response_B.sum() * config.width * config.vocabulary


def scoring_flops(
    config: Config, prompt_B: Lengths, response_B: Lengths, *, group_size: int = 1
) -> float:
    """Log-probabilities of given responses: a forward pass, with a prompt once a group."""
    prompt_B, response_B = _lengths(prompt_B, response_B, group_size)
    prompt_P = prompt_B[::group_size]
    reading = forward_flops(config, prompt_P.sum(), _mean(prompt_P, (prompt_P + 1) / 2), head=False)
    context = _mean(response_B, prompt_B + (response_B + 1) / 2)
    return reading + forward_flops(config, response_B.sum(), context)


def grpo_flops(
    config: Config,
    prompt_B: Lengths,
    response_B: Lengths,
    *,
    group_size: int,
    epochs: int = 1,
    reference: bool = True,
    rescored: bool = False,
    adapters: bool = False,
) -> float:
    """A step of GRPO: sampling, log-probabilities under the reference, updates.

    About 1 + 1 + 3 · epochs forward passes. `reference`: whether there is one (β > 0);
    `rescored`: log-probabilities under the old policy are computed anew (`importance_cap`).
    """
    update = policy_update_flops(
        config, prompt_B, response_B, group_size=group_size, epochs=epochs, reference=reference,
        rescored=rescored, adapters=adapters,
    )  # fmt: skip
    return sampling_flops(config, prompt_B, response_B, group_size=group_size) + update


def policy_update_flops(
    config: Config,
    prompt_B: Lengths,
    response_B: Lengths,
    *,
    group_size: int,
    epochs: int = 1,
    reference: bool = True,
    rescored: bool = False,
    adapters: bool = False,
) -> float:
    """What of a step of GRPO follows sampling; arguments as of `grpo_flops`."""
    once = scoring_flops(config, prompt_B, response_B, group_size=group_size)
    return (epochs * _passes(adapters) + reference + rescored) * once


def distillation_flops(
    config: Config,
    teacher: Config,
    prompt_n: Lengths,
    response_n: Lengths,
    *,
    adapters: bool = False,
) -> float:
    """Training on documents against a teacher's distribution: its forward pass is one more.

    On-policy the student's `sampling_flops` come on top.
    """
    learning = training_flops(config, prompt_n, response_n, adapters=adapters)
    return learning + scoring_flops(teacher, prompt_n, response_n)


def _passes(adapters: bool) -> float:
    return 1.0 + (BACKWARD / 2 if adapters else BACKWARD)


def _mean(weight_n: np.ndarray, value_n: np.ndarray) -> float:
    total = weight_n.sum()
    return float((weight_n * value_n).sum() / total) if total else 0.0


def _lengths(prompt_B, response_B, group_size: int) -> tuple[np.ndarray, np.ndarray]:
    prompt_B, response_B = np.asarray(prompt_B, float), np.asarray(response_B, float)
    if prompt_B.shape != response_B.shape or prompt_B.ndim != 1:
        raise ValueError(
            f"prompt_B {prompt_B.shape} and response_B {response_B.shape}: need two lists of one "
            "length a response"
        )
    if group_size < 1 or len(prompt_B) % group_size:
        raise ValueError(f"{len(prompt_B)} responses are no groups of group_size={group_size}")
    return prompt_B, response_B


def _per_token(config: Config, absorbed: bool) -> tuple[float, float]:
    """(parameters that a token is multiplied with, attention's operations a token of context)."""
    c = config
    if isinstance(c, DeepseekConfig):
        return _latent(c, absorbed)
    attention = c.width * c.head_dim * (2 * c.heads + 2 * c.kv_heads)
    matrices = c.layers * (attention + 3 * c.width * c.mlp)
    return float(matrices), 4.0 * c.layers * c.heads * c.head_dim


def _latent(c: DeepseekConfig, absorbed: bool) -> tuple[float, float]:
    """Of latent attention and routed experts (arXiv:2412.19437, section 2.1)."""
    query = c.heads * (c.nope_dim + c.rope_dim)
    query = (c.width + query) * c.query_rank if c.query_rank else c.width * query
    # `latent_b` meets every token in both forms: there keys and values are made by it, here it
    # moves to the query and the output.
    latent = c.width * (c.kv_rank + c.rope_dim) + c.kv_rank * c.heads * (c.nope_dim + c.value_dim)
    attention = query + latent + c.heads * c.value_dim * c.width
    routed = c.experts_per_token + c.shared_experts
    sparse = c.width * c.experts + 3 * c.width * c.expert_mlp * routed
    matrices = c.layers * attention + c.dense_layers * 3 * c.width * c.mlp
    matrices += (c.layers - c.dense_layers) * sparse
    widths = (c.kv_rank + c.rope_dim) + c.kv_rank if absorbed else None
    widths = widths or (c.nope_dim + c.rope_dim) + c.value_dim
    return float(matrices), 2.0 * c.layers * c.heads * widths
