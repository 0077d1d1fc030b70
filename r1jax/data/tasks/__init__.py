"""Synthetic task families.

A task is a module with `problems(seed, count)` (training problems), `textbook_document(rng)`
and `web_document(rng, web)` (what a base model reads: question, response), `corpus(seed)`
(texts for a tokenizer) and `probes(seed, count)` (tests of the skills its base needs).
"""

from types import ModuleType

from r1jax.data.tasks import mini_aime

TASKS: dict[str, ModuleType] = {"mini_aime": mini_aime}
