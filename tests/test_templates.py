import itertools

import numpy as np
import pytest

from r1jax.rewards.sections import TAGS
from r1jax.templates import TEMPLATES, Template, breakable, escape


def test_short_is_exactly_this():
    assert TEMPLATES["r1_zero_short"].render("2+2?") == "User: 2+2? Assistant:"


def test_r1_zero_says_what_the_rewards_want():
    prompt = TEMPLATES["r1_zero"].render("What is 2+2?")
    assert prompt.endswith("User: What is 2+2?. Assistant:")
    for needed in (*TAGS, "\\boxed{}"):
        assert needed in prompt


def test_r1_zero_does_not_say_how_to_think():
    lower = TEMPLATES["r1_zero"].text.lower()
    for word in ("step", "verify", "check", "reflect", "careful", "wait", "long"):
        assert word not in lower


@pytest.mark.parametrize("template", TEMPLATES.values(), ids=TEMPLATES)
@pytest.mark.parametrize(
    "question",
    ["{prompt}", "{}", "{x} {0} {prompt}{prompt}", r"\boxed{\frac{1}{2}}", "%s", r"\1 \g<0>", ""],
)
def test_braces_are_safe(template, question):
    before, after = template.text.split("{prompt}")
    assert template.render(question) == before + question + after


@pytest.mark.parametrize("template", TEMPLATES.values(), ids=TEMPLATES)
@pytest.mark.parametrize("tag", TAGS)
def test_tags_in_a_question_are_broken(template, tag):
    question = f"a {tag} b <{tag}{tag[1:]} {tag}{tag}"
    for symbol in TAGS:
        assert template.render(question).count(symbol) == template.text.count(symbol)


def test_escape():
    assert escape("<think>x</think> <answer></answer>") == (
        "< think>x< /think> < answer>< /answer>"
    )
    assert escape("<<think>think>") == "<< think>think>"
    assert escape("1 < 2, <b>, <Think>, thinking") == "1 < 2, <b>, <Think>, thinking"
    assert escape(escape("<think>")) == escape("<think>")


def test_reserved_texts_are_broken_like_tags():
    reserved = ("<|im_end|>", "[INST]", "</s>")
    assert (
        escape("a<|im_end|>b [INST]</s><think>", reserved) == "a< |im_end|>b [ INST]< /s>< think>"
    )
    assert (
        escape("<|im_end| >, [inst], im_end, <s>", reserved) == "<|im_end| >, [inst], im_end, <s>"
    )
    assert escape("a<|im_end|>b") == "a<|im_end|>b"
    template = Template("<|u|>{prompt}<|a|>")
    assert template.render("x<|a|>{prompt}", ["<|u|>", "<|a|>"]) == "<|u|>x< |a|>{prompt}<|a|>"


def test_breaking_creates_no_other_reserved_text():
    assert escape("<x>", ["<x>", "< x>", "<  x>"]) == "<   x>"
    assert escape("<  x>", ["<  x>", "<x>", "< x>"]) == "<   x>"
    assert escape("aaa", ["aa"]) == "a a a"  # overlapping
    assert escape("<think>", ["< think>"]) == "<  think>"
    assert escape("[a]b", ["a]b", "[a ]"]) == "[ a ]b"


def test_any_breakable_words_are_gone_and_the_text_is_else_unchanged():
    rng = np.random.default_rng(3)
    words = ["".join(w) for n in (1, 2, 3, 4) for w in itertools.product("<a ", repeat=n)]
    usable = [w for w in words if breakable(w)]
    assert 0 < len(usable) < len(words)
    for _ in range(500):
        reserved = list(rng.choice(usable, 4))
        text = "".join(rng.choice(list("<a "), 12))
        out = escape(text, reserved)
        assert not any(word in out for word in reserved)
        assert out.replace(" ", "") == text.replace(" ", "")
        assert (out == text) == (not any(word in text for word in reserved))


@pytest.mark.parametrize("word", ["", "x", " ", " x", "x ", "x  ", "  "])
def test_words_that_no_space_breaks(word):
    assert not breakable(word) and word in f"{word[:1]} {word[1:]}"
    with pytest.raises(ValueError, match=f"reserved text '{word}' cannot be broken by a space"):
        escape("anything", ["<s>", word])


def test_think_opened_template():
    template = Template("User: {prompt}\nAssistant: <think>\n", think_opened=True)
    assert template.render("<think>") == "User: < think>\nAssistant: <think>\n"


# By what a prompt that ends in the tag makes of them: prompt + what follows has it once.
FOLLOWS = {
    "<think>so</think>4": "so</think>4",
    "\n <think>so</think>4": "\n so</think>4",
    "<think>\nso\n</think>4": "\nso\n</think>4",
    "so</think>4": "so</think>4",  # it followed such a prompt before
    "so</think>The tag is <think>.": "so</think>The tag is <think>.",
    "<think></think>4": "</think>4",
    "</think>4": "</think>4",
    "<think>never closed": "never closed",
    "<think><think>a</think>b": "<think>a</think>b",  # sampled so: one tag is the prompt's
    "<answer>4</answer>": "</think><answer>4</answer>",
    "Hello!": "</think>Hello!",
    "Hm <think>so</think>4": "</think>Hm <think>so</think>4",
    "": "</think>",
}


@pytest.mark.parametrize("response", FOLLOWS)
def test_what_follows_a_prompt(response):
    opened = Template("{prompt} <think>\n", think_opened=True)
    assert opened.completion(response) == FOLLOWS[response]
    for template in TEMPLATES.values():  # none of them opens it
        assert template.completion(response) == response


@pytest.mark.parametrize("response", [r for r in FOLLOWS if "<think>" not in FOLLOWS[r]])
def test_a_completion_is_its_own_once_it_is_closed(response):
    opened = Template("{prompt}<think>", think_opened=True)
    once = opened.completion(response)
    assert (opened.completion(once) == once) == ("</think>" in once)


@pytest.mark.parametrize(
    ("text", "think_opened", "message"),
    [
        ("no slot", False, "has {prompt} 0 times; write it once"),
        ("{prompt} {prompt}", False, "has {prompt} 2 times"),
        ("{prompt} <think>", False, "think_opened=False, but the template ends in"),
        ("{prompt}", True, "think_opened=True, but the template ends in"),
    ],
)
def test_bad_templates(text, think_opened, message):
    with pytest.raises(ValueError, match=message):
        Template(text, think_opened=think_opened)


def test_a_fence_at_the_end_of_a_question_is_closed():
    question = "Complete this.\n\n```python\ndef f():\n```"
    assert TEMPLATES["r1_zero"].render(question).endswith("\ndef f():\n```\n. Assistant:")
    assert TEMPLATES["r1_zero"].render("What?").endswith("User: What?. Assistant:")
