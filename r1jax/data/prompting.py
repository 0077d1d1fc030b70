"""How questions are asked when responses are collected to be learned from.

R1's cold start asks a model for long chains in several ways: showing it worked examples first,
asking directly for a detailed answer with reflection and verification, and R1-Zero as it
is (arXiv:2501.12948, section 2.3.1). Whatever the way, what is learned from is the bare question
with the response, so a response that repeats the asking is told apart here.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from r1jax.rewards.language import language_of
from r1jax.run import Run

WAYS = ("plain", "few_shot", "reflect")
QUOTE = 12  # characters; a shorter question may stand in a response by chance

# Languages that are not here are asked in English.
_REFLECT = {
    "en": "Answer in detail: reason step by step, reflect on every step and verify the result.",
    "zh": "请详细作答：逐步推理，反思每一步，并检验结果。",
}
_REWRITE = {
    "en": "Rewrite the solution so that it is easy to read: the reasoning first, all of it in the "
    "language of the question, then a short summary with the result.",
    "zh": "请把解答改写得易于阅读：先写推理过程，全部使用题目的语言，再用一句话总结并给出结果。",
}


@dataclass(frozen=True)
class Asked:
    """A question as a model is asked it.

    Attributes:
      prompt: token ids.
      added: texts that were added to the question.
    """

    prompt: list[int]
    added: tuple[str, ...] = ()

    def repeated_in(self, text: str) -> bool:
        """Whether a response repeats something of what was added."""
        return any(added in text for added in self.added)


class Asker:
    """Asks questions in a run's template, in each of WAYS; `shots` worked examples at a time.

    plain: the question, nothing else. reflect: with a sentence behind it that asks for a
    detailed answer with reflection and verification. few_shot: after worked examples, each a
    whole document as fine-tuning makes them, its end token included. They are drawn anew for
    every question, in its language where there are enough.
    """

    def __init__(self, run: Run, examples: Sequence[Mapping] = (), shots: int = 0):
        self.run, self.shots = run, shots
        self.examples = list({e["question"]: e for e in examples}.values())
        self._languages: dict[str, list[Mapping]] = {}
        for example in self.examples:
            self._languages.setdefault(language_of(example["question"]), []).append(example)

    def __call__(self, place: int, problem: Mapping, way: str) -> Asked:
        """A problem's question in one way; `place` is its number in the run's keys."""
        run, question = self.run, problem["question"]
        if way == "reflect":
            instruction = _of_language(_REFLECT, language_for(problem))
            return Asked(run.prompt(f"{question}\n\n{instruction}"), (instruction,))
        if way != "few_shot":
            return Asked(run.prompt(question))
        prompt, begin, shown = [], 0, self._choose(place, problem)
        for example in shown:
            prompt += run.document(example["question"], example["response"]).tokens[begin:]
            begin = 0 if run.tokenizer.bos_id is None else 1  # the begin token stands there once
        asked = [e["question"] for e in shown if len(e["question"]) >= QUOTE]
        return Asked([*prompt, *run.prompt(question)[begin:]], tuple(asked))

    def _choose(self, place: int, problem: Mapping) -> list[Mapping]:
        """Worked examples, never the question itself."""
        pool = self._languages.get(language_for(problem), [])
        pool = pool if len(pool) > self.shots else self.examples
        order = self.run.generator("shots", place).permutation(len(pool))
        return [pool[i] for i in order if pool[i]["question"] != problem["question"]][: self.shots]


def ask_to_rewrite(run: Run, problem: Mapping, text: str) -> Asked:
    """A question with a solution of it, to be rewritten into reasoning and summary."""
    instruction = _of_language(_REWRITE, language_for(problem))
    return Asked(run.prompt(f"{problem['question']}\n\n{text}\n\n{instruction}"), (instruction,))


def language_for(problem: Mapping) -> str:
    """The language that a response to a problem should be in."""
    return problem.get("reply_in") or language_of(problem["question"])


def _of_language(texts: Mapping[str, str], language: str) -> str:
    return texts.get(language, texts["en"])
