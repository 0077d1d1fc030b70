import pytest

from r1jax.rewards import sections

# text, reasoning, final
CASES = [
    ("<think>a</think>b", "a", "b"),
    ("a</think>b", "a", "b"),  # the prompt had opened the tag
    ("<think>a</think>b</think>c", "a</think>b", "c"),  # the last closing tag counts
    ("<think>a</think><answer>b</answer>", "a", "b"),
    ("<think>a</think><answer>b</answer><answer>c</answer> d", "a", "c"),
    ("<think>a</think>x<answer>b", "a", None),  # answer never closed
    ("<think>a</think><answer>b</answer><answer>c", "a", None),
    ("<answer>b</answer>", "<answer>b</answer>", "b"),
    ("<think>a <answer>b</answer>", "a <answer>b</answer>", None),  # think never closed
    ("<think>a</think>b<think>c", "a", None),
    ("<answer>b</answer></think>", "<answer>b</answer>", ""),
    ("plain", "plain", "plain"),
    ("b</answer>", "b</answer>", "b</answer>"),
    ("<Think>a</Think>b", "<Think>a</Think>b", "<Think>a</Think>b"),  # not our tags
    ("", "", ""),
]


@pytest.mark.parametrize(("text", "reasoning", "final"), CASES)
def test_sections(text, reasoning, final):
    assert sections.reasoning(text) == reasoning
    assert sections.final(text) == final


@pytest.mark.parametrize(
    ("text", "opened", "expected"),
    [
        ("<think>a</think>b", False, ("a", "b")),
        ("a</think>b", True, ("a", "b")),
        ("x<think>a", False, ("a", "x")),  # never closed: all that follows is reasoning
        ("42", False, (None, "42")),
        ("a</think>b", False, (None, "a</think>b")),  # nothing says where reasoning began
    ],
)
def test_parts_for_showing(text, opened, expected):
    assert sections.parts(text, think_opened=opened) == expected
