import datetime
import sys
from types import SimpleNamespace

import pytest

from r1jax.data import chat
from r1jax.data.chat import DATE, chat_prompt, render
from r1jax.templates import Template

# Four templates, each with the habits of a family of models, in words of our own.
CHATML = """\
{%- if messages[0].role == 'system' %}
    {{- '<|im_start|>system\\n' + messages[0].content + '<|im_end|>\\n' }}
{%- else %}
    {{- '<|im_start|>system\\nYou answer briefly.<|im_end|>\\n' }}
{%- endif %}
{%- for message in messages %}
    {%- if not (loop.first and message.role == 'system') %}
        {{- '<|im_start|>' + message.role + '\\n' + message['content'] + '<|im_end|>' + '\\n' }}
    {%- endif %}
{%- endfor %}
{%- if tools is not none %}{{ tools | tojson }}{% endif %}
{%- if add_generation_prompt %}
    {{- '<|im_start|>assistant\\n' }}
{%- endif %}
"""
THINKING = """\
{%- set last = namespace(user=-1) %}
{%- for message in messages[::-1] %}
    {%- if message.role == 'user' %}
        {%- set last.user = messages|length - 1 - loop.index0 %}
        {%- break %}
    {%- endif %}
{%- endfor %}
{%- for message in messages %}
    {%- set text = message.content %}
    {%- if message.role == 'assistant' and '</think>' in text and loop.index0 < last.user %}
        {%- set text = text.split('</think>')[-1].lstrip('\\n') %}
    {%- endif %}
    {{- '<|im_start|>' ~ message.role ~ '\\n' ~ text ~ '<|im_end|>\\n' }}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|im_start|>assistant\\n' }}
    {%- if enable_thinking is defined and enable_thinking is false %}
        {{- '<think>\\n\\n</think>\\n\\n' }}
    {%- endif %}
{%- endif %}
"""
R1 = """\
{% if not add_generation_prompt is defined %}{% set add_generation_prompt = false %}{% endif %}
{%- set ns = namespace(system='') -%}
{%- for m in messages %}{% if m['role'] == 'system' %}{% set ns.system = m['content'] %}{% endif %}
{%- endfor -%}
{{ bos_token }}{{ ns.system }}
{%- for m in messages %}
    {%- if m['role'] == 'user' %}{{ '<｜User｜>' + m['content'] }}{% endif %}
    {%- if m['role'] == 'assistant' %}
        {%- set said = m['content'] %}
        {%- if '</think>' in said %}{% set said = said.split('</think>')[-1] %}{% endif %}
        {%- generation %}{{ '<｜Assistant｜>' + said + eos_token }}{% endgeneration %}
    {%- endif %}
{%- endfor -%}
{% if add_generation_prompt %}{{ '<｜Assistant｜><think>\\n' }}{% endif %}
"""
LLAMA = """\
{{- bos_token }}
{%- if not date_string is defined %}
    {%- set date_string = strftime_now("%d %b %Y") %}
{%- endif %}
{%- if messages[0]['role'] == 'system' %}
    {%- set system = messages[0]['content'] | trim %}
    {%- set messages = messages[1:] %}
{%- else %}
    {%- set system = "" %}
{%- endif %}
{{- "<|start_header_id|>system<|end_header_id|>\\n\\nToday Date: " + date_string + "\\n\\n" }}
{{- system + "<|eot_id|>" }}
{%- for message in messages %}
    {%- if message.role not in ['user', 'assistant'] %}
        {{- raise_exception("no role like " + message.role) }}
    {%- endif %}
    {{- '<|start_header_id|>' + message['role'] + '<|end_header_id|>\\n\\n' }}
    {{- message['content'] | trim + '<|eot_id|>' }}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|start_header_id|>assistant<|end_header_id|>\\n\\n' }}
{%- endif %}
"""
SPECIALS = {"bos_token": "<BOS>", "eos_token": "<EOS>"}
USER = {"role": "user", "content": " 1 < 2 & é?\n"}
TALK = [
    USER,
    {"role": "assistant", "content": "<think>\nyes\n</think>\n\nYes."},
    {"role": "user", "content": "Why?"},
]
SYSTEM = {"role": "system", "content": " Be kind. "}


def tokenizer(chat_template, bos_id=0):
    return SimpleNamespace(
        chat_template=chat_template, bos_id=bos_id, bos_token="<BOS>", eos_token="<EOS>"
    )


EXPECTED = {
    "chatml": (CHATML, [USER], {}, (
        "<|im_start|>system\nYou answer briefly.<|im_end|>\n"
        "<|im_start|>user\n 1 < 2 & é?\n<|im_end|>\n<|im_start|>assistant\n"
    )),
    "chatml, system": (CHATML, [SYSTEM, USER], {"add_generation_prompt": False}, (
        "<|im_start|>system\n Be kind. <|im_end|>\n<|im_start|>user\n 1 < 2 & é?\n<|im_end|>\n"
    )),
    "chatml, tools": (CHATML, [USER], {"tools": [{"b": "<é>", "a": 1}]}, (
        "<|im_start|>system\nYou answer briefly.<|im_end|>\n"
        "<|im_start|>user\n 1 < 2 & é?\n<|im_end|>\n"
        '[{"b": "<é>", "a": 1}]<|im_start|>assistant\n'
    )),
    "thinking": (THINKING, TALK, {}, (
        "<|im_start|>user\n 1 < 2 & é?\n<|im_end|>\n<|im_start|>assistant\nYes.<|im_end|>\n"
        "<|im_start|>user\nWhy?<|im_end|>\n<|im_start|>assistant\n"
    )),
    "not thinking": (THINKING, TALK[2:], {"enable_thinking": False}, (
        "<|im_start|>user\nWhy?<|im_end|>\n<|im_start|>assistant\n<think>\n\n</think>\n\n"
    )),
    "r1": (R1, [SYSTEM, *TALK], {}, (
        "<BOS> Be kind. <｜User｜> 1 < 2 & é?\n<｜Assistant｜>\n\nYes.<EOS><｜User｜>Why?"
        "<｜Assistant｜><think>\n"
    )),
    "llama": (LLAMA, [SYSTEM, *TALK[2:]], {}, (
        "<BOS><|start_header_id|>system<|end_header_id|>\n\nToday Date: 26 Jul 2024\n\n"
        "Be kind.<|eot_id|><|start_header_id|>user<|end_header_id|>\n\nWhy?<|eot_id|>"
        "<|start_header_id|>assistant<|end_header_id|>\n\n"
    )),
}  # fmt: skip


@pytest.mark.parametrize(("source", "messages", "given", "text"), EXPECTED.values(), ids=EXPECTED)
def test_texts_are_exactly_these(source, messages, given, text):
    assert render(source, messages, specials=SPECIALS, **given) == text
    assert render(tokenizer(source), messages, **given) == text


@pytest.mark.parametrize(("source", "messages", "given", "text"), EXPECTED.values(), ids=EXPECTED)
def test_agrees_with_transformers(source, messages, given, text):
    transformers = pytest.importorskip("transformers")
    from tokenizers import Tokenizer, models

    theirs = transformers.PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer(models.BPE()), chat_template=source, **SPECIALS
    )

    def apply(**more):
        given_here = {"add_generation_prompt": True, **given, **more}
        return theirs.apply_chat_template(messages, tokenize=False, **given_here)

    before = datetime.date.today()
    today = apply()
    ours = [
        render(source, messages, specials=SPECIALS, date=date, **given)
        for date in (before, datetime.date.today())  # midnight may come between
    ]
    assert today in ours
    assert apply(date_string="26 Jul 2024") == text


def test_the_date_is_fixed_unless_given():
    ask = "{{ strftime_now('%Y-%m-%d %H:%M') }}"
    assert render(ask, []) == f"{DATE} 00:00" == "2024-07-26 00:00"
    assert render(ask, [], date=datetime.date(2031, 1, 2)) == "2031-01-02 00:00"


def test_blocks_take_their_line_with_them():
    source = "a\n  {% if true %}\n  b\n  {% endif %}\nc\n"
    assert render(source, []) == "a\n  b\nc"


def test_a_generation_block_changes_nothing_and_keeps_its_variables():
    inside = "{% set x = 1 %}{% generation %}{% set x = 2 %}{{ x }}{% endgeneration %}{{ x }}"
    assert render(inside, []) == "21"


def test_tojson_takes_the_usual_options():
    values = {"b": "é<", "a": [1]}
    assert render("{{ v | tojson }}", [], v=values) == '{"b": "é<", "a": [1]}'
    assert render("{{ v | tojson(sort_keys=true) }}", [], v=values) == '{"a": [1], "b": "é<"}'
    assert render("{{ v | tojson(indent=1) }}", [], v=[1]) == "[\n 1\n]"


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("\n\n{% if %}", "chat template line 3: Expected an expression"),
        ("\n{% for m in messages %}", "chat template line 2: Unexpected end of template"),
        ("\n{{ raise_exception('no tools') }}", "chat template line 2: no tools; correct"),
        ("\n\n{{ a.b.c }}", "chat template line 3: 'a' is undefined"),
        ("{{ 'a' + 1 }}", "chat template line 1: can only concatenate"),
        ("\n{{ ''.__class__.__mro__ }}", "line 2: access to attribute '__class__' of 'str'"),
        ("{{ messages.append(1) }}", "line 1: access to attribute 'append' of 'list'"),
        ("{{ x | no_filter }}", "line 1: No filter named 'no_filter'"),
    ],
)
def test_errors_of_templates(source, message):
    with pytest.raises(ValueError, match=message):
        render(source, [USER])


def test_without_jinja2(monkeypatch):
    chat._environment.cache_clear()
    monkeypatch.setitem(sys.modules, "jinja2", None)
    with pytest.raises(ValueError, match=r'need jinja2: pip install "r1jax\[hf\]"'):
        render("", [])


def test_chat_prompts_are_exactly_these():
    template = chat_prompt(tokenizer(R1))
    assert template == Template("<｜User｜>{prompt}<｜Assistant｜><think>\n", think_opened=True)
    assert template.render("{2}?") == "<｜User｜>{2}?<｜Assistant｜><think>\n"
    template = chat_prompt(tokenizer(CHATML), system="Hi.")
    assert not template.think_opened
    assert template.text == (
        "<|im_start|>system\nHi.<|im_end|>\n<|im_start|>user\n{prompt}<|im_end|>\n"
        "<|im_start|>assistant\n"
    )
    llama = chat_prompt(tokenizer(LLAMA), date=datetime.date(2030, 12, 1))
    assert "Today Date: 01 Dec 2030\n" in llama.text and "<BOS>" not in llama.text


@pytest.mark.parametrize(("enable", "end"), [(True, "assistant\n"), (False, "</think>\n\n")])
def test_variables_reach_the_template(enable, end):
    template = chat_prompt(tokenizer(THINKING), enable_thinking=enable)
    assert template.text.endswith(end) and not template.think_opened


def test_begin_token_is_taken_off_once_and_only_where_the_run_puts_it():
    assert chat_prompt(tokenizer("{{ bos_token }}{{ messages[0].content }}")).text == "{prompt}"
    kept = chat_prompt(tokenizer("{{ bos_token }}{{ messages[0].content }}", bos_id=None))
    assert kept.text == "<BOS>{prompt}"
    twice = "{{ bos_token }}{{ messages[0].content }}{{ bos_token }}"
    assert chat_prompt(tokenizer(twice)).text == "{prompt}<BOS>"


@pytest.mark.parametrize(
    ("source", "message"),
    [
        (None, "the tokenizer has no chat template; add chat_template.jinja"),
        ("{{ messages[0].content | upper }}", "has the question 0 times"),
        ("{{ messages[0].content * 2 }}", "has the question 2 times"),
        ("{prompt} {{ messages[0].content }}", "has the question 2 times"),
        ("{{ messages[0].content | e }}", "of the question .*must put it in unchanged"),
        ("{{ messages[0].content | lower }}", "must put it in unchanged"),
        ("{{ messages[0].content | tojson }}", "must put it in unchanged"),
        ("{{ messages[0].content.split('</')[0] }}", "must put it in unchanged"),
        ("{{ messages[0].content.split() | join(' ') }}", "must put it in unchanged"),
        ("{{ raise_exception('never') }}", "line 1: never"),
    ],
)
def test_templates_that_make_no_prompt(source, message):
    with pytest.raises(ValueError, match=message):
        chat_prompt(tokenizer(source))
    with pytest.raises(ValueError, match="has the question 2 times"):
        chat_prompt(tokenizer(CHATML), system="{prompt}")
