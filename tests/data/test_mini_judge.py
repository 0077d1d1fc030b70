import re

import numpy as np

from r1jax.data.tasks import mini_general, mini_judge, mini_world
from r1jax.rewards.format import format_reward
from r1jax.rewards.judge import verdict

FORM = re.compile("Judge. Question: (.*) Reference: (.*) Prediction: (.*) Same\\?")
EN = ["zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine"]
ZH = list("零一二三四五六七八九")
CLOSING = re.compile(r"\s*happy to help\.|很高兴帮忙。")


def digits(question, reference, prediction):
    """Those of the two, told from the texts alone; none is held out."""
    if problem := mini_world.problem_of(question):
        assert int(reference) == (problem[0] + sum(problem[1])) % 1000
        assert problem not in mini_world.held_out()
        return list(f"{int(reference):03d}"), list(re.search("[0-9]{3}", prediction)[0])
    assert question not in mini_general.held_out()
    among = "|".join(ZH if question.startswith("say ") else EN)
    return re.findall(among, reference), re.findall(among, CLOSING.sub("", prediction))


def test_verdicts_are_true_and_reasoned():
    rows = mini_judge.examples(0, 1000)
    assert rows == mini_judge.examples(0, 1000) != mini_judge.examples(1, 1000)
    same = 0
    for row in rows:
        true, said = digits(*FORM.fullmatch(row["question"]).groups())
        assert verdict(row["response"]) is (true == said)
        assert format_reward(row["response"]) == 1
        lines = row["response"].removeprefix("<think>").split("\n</think>")[0].split("\n")
        pairs = [re.fullmatch("(.*), (.*?)( no)?", line).groups() for line in lines]
        assert [a for a, _, _ in pairs if a != "-"] == true
        assert [b for _, b, _ in pairs if b != "-"] == said
        assert all((a != b) == bool(no) for a, b, no in pairs)
        same += true == said
    assert abs(same - 500) < 5 * 0.5 * 1000**0.5  # five standard deviations of a fair coin
    problems = sum("say" not in r["question"] and "用英语" not in r["question"] for r in rows)
    assert abs(problems - 500) < 5 * 0.5 * 1000**0.5


def test_wrong_verdicts():
    for wrong, other in ((0, 1), (1, 0)):
        rng, again = np.random.default_rng(3), np.random.default_rng(3)
        for _ in range(50):
            question, response = mini_judge.document(rng, wrong=wrong)
            assert mini_judge.document(again, wrong=other)[0] == question
            true, said = digits(*FORM.fullmatch(question).groups())
            assert (verdict(response) is (true == said)) == (not wrong)


def test_corpus_has_prompts_and_responses():
    texts = mini_judge.corpus(0, 3)
    rows = mini_judge.examples(0, 3)
    assert texts[1::2] == [row["response"] for row in rows]
    assert all(row["question"] in text for row, text in zip(rows, texts[::2], strict=True))


def test_problems_have_a_reference_and_no_rule():
    rows = mini_judge.problems(0, 300)
    assert rows == mini_judge.problems(0, 300) != mini_judge.problems(1, 300)
    assert len({row["question"] for row in rows}) == len({row["id"] for row in rows}) == 300
    assert not {row["question"] for row in rows} & mini_general.held_out()
    for row in rows:
        assert row["grader"] == "open" and "checks" not in row
        # As many digits in the reference as the question names: words in one, signs in the other.
        digits = [len(row["answer"].split()), len(row["answer"])]
        assert row["answer"] and min(digits) in (1, 2, 3)
