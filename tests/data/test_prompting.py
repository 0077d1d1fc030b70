"""Ways of asking: what the model reads, and what of it may not be learned from."""

from types import SimpleNamespace

from r1jax.data.prompting import Asker, ask_to_rewrite
from r1jax.run import Run
from r1jax.templates import Template


class Codes:
    """A tokenizer whose ids are code points; 1 begins and 2 ends."""

    bos_id, eos_id, stop_ids, pad_id, specials = 1, 2, (2,), 0, ()

    def encode(self, text):
        return [ord(c) for c in text]

    def decode(self, ids):
        return "".join(chr(i) for i in ids if i > 2)


class NoBegin(Codes):
    bos_id = None


def run_of(template="User: {prompt} Assistant:", tokenizer=None, **opened):
    return Run(
        workdir=None, stage="s", seed=0, mesh=None, model=SimpleNamespace(),
        tokenizer=tokenizer or Codes(), template=Template(template, **opened), writer=None,
    )  # fmt: skip


def shown(asked):
    return "".join({1: "^", 2: "$"}.get(i, chr(i)) for i in asked.prompt)


ENGLISH = [
    {"question": f"What is {i} plus {i}?", "response": f"<think>{i}</think>{2 * i}"}
    for i in range(4)
]
CHINESE = [{"question": f"{i}加{i}是多少？请回答", "response": f"{2 * i}"} for i in range(4)]
PROBLEM = {"question": "What is 9 plus 9?"}


def test_plain_is_the_templated_question():
    asked = Asker(run_of())(0, PROBLEM, "plain")
    assert shown(asked) == "^User: What is 9 plus 9? Assistant:"
    assert not asked.repeated_in("What is 9 plus 9? It is 18.")


def test_reflect_asks_for_it_in_the_language_of_the_reply():
    ask = Asker(run_of())
    english, chinese = ask(0, PROBLEM, "reflect"), ask(0, PROBLEM | {"reply_in": "zh"}, "reflect")
    for asked, word in ((english, "verify"), (chinese, "检验")):
        before, instruction = shown(asked).removesuffix(" Assistant:").split("\n\n")
        assert before == "^User: What is 9 plus 9?"
        assert word in instruction
        # A response that quotes what was added to the question is told.
        assert asked.repeated_in(f"<think>You said: {instruction}</think>18")
        assert not asked.repeated_in("<think>I verify the result, 检验.</think>18")
    assert shown(ask(0, PROBLEM | {"reply_in": "ru"}, "reflect")) == shown(english)


def test_few_shot_shows_documents_as_training_makes_them():
    ask = Asker(run_of(), [ENGLISH[2], ENGLISH[2]], 1)
    asked = ask(0, PROBLEM, "few_shot")
    assert shown(asked) == (
        "^User: What is 2 plus 2? Assistant:<think>2</think>4$User: What is 9 plus 9? Assistant:"
    )
    assert asked.repeated_in("18. User: What is 2 plus 2?")
    assert not asked.repeated_in("<think>2</think>4")
    without = Asker(run_of(tokenizer=NoBegin()), [ENGLISH[2]], 1)(0, PROBLEM, "few_shot")
    assert shown(without) == shown(asked)[1:]


def test_few_shot_after_a_prompt_that_opens_the_reasoning():
    ask = Asker(run_of("{prompt}\n<think>", think_opened=True), [ENGLISH[1], CHINESE[1]], 2)
    text = shown(ask(0, PROBLEM, "few_shot"))
    assert text.count("What is 1 plus 1?\n<think>1</think>2$") == 1
    assert text.count("1加1是多少？请回答\n<think></think>2$") == 1  # no reasoning was given
    assert text.endswith("What is 9 plus 9?\n<think>") and text.count("^") == 1
    follows = [{"question": ENGLISH[1]["question"], "response": "1</think>2"}, CHINESE[1]]
    assert shown(Asker(ask.run, follows, 2)(0, PROBLEM, "few_shot")) == text


def test_worked_examples_are_drawn_for_each_question_in_its_language():
    ask = Asker(run_of(), [*ENGLISH, *CHINESE], 3)

    def questions(place, problem):
        text = shown(ask(place, problem, "few_shot"))
        return [t.split("User: ")[1].split(" Assistant:")[0] for t in text.split("$")[:-1]]

    drawn = [questions(place, PROBLEM) for place in range(20)]
    assert all(len(set(d)) == 3 and "What" in min(d) for d in drawn)
    assert len({tuple(d) for d in drawn}) > 5  # of 24 orders
    assert drawn == [questions(place, PROBLEM) for place in range(20)]
    assert all("加" in q for q in questions(0, {"question": "7加7是多少？"}))
    # Never the question itself; what its language lacks comes from the others.
    for place in range(10):
        assert ENGLISH[0]["question"] not in questions(place, ENGLISH[0])
        assert len(questions(place, {"question": "Сколько будет два плюс два?"})) == 3


def test_short_questions_may_stand_in_a_response():
    ask = Asker(run_of(), [{"question": "Hello!", "response": "Hi"}], 1)
    assert not ask(0, PROBLEM, "few_shot").repeated_in("One says Hello! and goes on.")


def test_rewriting_asks_with_the_solution_whose_tags_are_broken():
    asked = ask_to_rewrite(run_of(), PROBLEM, "<think>9 9</think>18")
    text = shown(asked)
    assert text.startswith("^User: What is 9 plus 9?\n\n< think>9 9< /think>18\n\nRewrite")
    assert asked.repeated_in(text)
    assert "改写" in shown(ask_to_rewrite(run_of(), {"question": "九加九"}, "18"))
