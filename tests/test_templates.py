import pytest

from r1jax.rewards.sections import TAGS
from r1jax.templates import TEMPLATES, Template, escape


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


def test_think_opened_template():
    template = Template("User: {prompt}\nAssistant: <think>\n", think_opened=True)
    assert template.render("<think>") == "User: < think>\nAssistant: <think>\n"


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
