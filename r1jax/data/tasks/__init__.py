"""Synthetic task families.

A task is a module with `problems(seed, count)` (training problems) and `corpus(seed)` (texts
for a tokenizer). One that a base model is made of has `textbook_document(rng)`, `Web` (the
composition of its web corpus), `web_document(rng, web)` (each gives question, response) and
`probes(seed, count)` (tests of the skills the base needs). It may have `readable(problem,
text)` (a response in the readable pattern, None where it cannot be), `examples(seed, count)`
(good responses to learn from) and `pairs(seed, count, aspect)` (preferences).
"""

from types import ModuleType

from r1jax.data.tasks import mini_aime, mini_general, mini_judge, mini_world

TASKS: dict[str, ModuleType] = {
    "mini_aime": mini_aime,
    "mini_world": mini_world,
    "mini_general": mini_general,
    "mini_judge": mini_judge,
}
