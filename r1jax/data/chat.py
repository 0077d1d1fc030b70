"""Chat templates of published models, rendered as the field renders them, and as prompts."""

import datetime
import functools
import json
import traceback
from collections.abc import Mapping, Sequence

from r1jax.data.tokenizers import Tokenizer
from r1jax.rewards.sections import THINK
from r1jax.templates import Template

# What `strftime_now` tells templates, whenever it is asked. It is Llama 3's own default.
DATE = datetime.date(2024, 7, 26)

_SLOT = "{prompt}"


def render(
    source: Tokenizer | str,
    messages: Sequence[Mapping],
    *,
    specials: Mapping[str, str] | None = None,
    add_generation_prompt: bool = True,
    date: datetime.date = DATE,
    **variables,
) -> str:
    """`messages` as the text that a chat template makes of them.

    `strftime_now` gives `date`, not today's: a run is a function of its config alone, and
    its prompts must not change overnight.

    Args:
      source: a tokenizer with a chat template, or a template's jinja source.
      messages: objects with "role" and "content", and what else the template reads.
      specials: texts for the variables bos_token, eos_token …; by default the tokenizer's.
      add_generation_prompt: whether the text goes on to where the assistant begins.
      variables: what else the template reads, e.g. enable_thinking.

    Raises:
      ValueError: no template; no jinja2; an error in the template or raised by it, with
        the template's line.
    """
    if not isinstance(source, str):
        if source.chat_template is None:
            raise ValueError(
                "the tokenizer has no chat template; add chat_template.jinja beside its "
                "tokenizer.json, or take a prompt template"
            )
        if specials is None:
            named = {"bos_token": source.bos_token, "eos_token": source.eos_token}
            specials = {name: text for name, text in named.items() if text is not None}
        source = source.chat_template
    environment = _environment()
    try:
        return _compiled(environment, source).render(
            # Templates test these two for none, for which an undefined variable does not pass.
            {"tools": None, "documents": None, **(specials or {}), **variables},
            messages=messages,
            add_generation_prompt=add_generation_prompt,
            strftime_now=date.strftime,
        )
    except Exception as error:  # a template is foreign code and may raise anything
        lines = [f.lineno for f in traceback.extract_tb(error.__traceback__) if f.filename == _NAME]
        what = str(error).rstrip(".") or type(error).__name__
        raise ValueError(
            f"{_NAME} line {lines[-1] if lines else '?'}: {what}; "
            "correct the template or what it is given"
        ) from error


def chat_prompt(tokenizer: Tokenizer, *, system: str = "", **variables) -> Template:
    """The tokenizer's chat template around one user message, as a plain prompt template.

    The begin token's text is taken off where the tokenizer has `bos_id`, because a run puts
    the id there itself. `system` is a system message before the question; with none, the
    template may put in one of its own. `variables` are `render`'s.

    Raises ValueError where the template does not put the question in once and as it is
    (white space around it apart), and all that `render` raises.
    """

    def prompt(content: str) -> str:
        messages = [{"role": "user", "content": content}]
        if system:
            messages.insert(0, {"role": "system", "content": system})
        return render(tokenizer, messages, **variables)

    text = prompt(_SLOT)
    if (slots := text.count(_SLOT)) != 1:
        raise ValueError(
            f"the chat template has the question {slots} times in {text!r}; "
            "it must put it in once and unchanged: take a prompt template instead"
        )
    if prompt(_PROBE) != text.replace(_SLOT, _PROBE):
        raise ValueError(
            f"the chat template makes {prompt(_PROBE)!r} of the question {_PROBE!r}; "
            "it must put it in unchanged: take a prompt template instead"
        )
    if tokenizer.bos_id is not None and tokenizer.bos_token:
        text = text.removeprefix(tokenizer.bos_token)
    return Template(text, think_opened=text.rstrip().endswith(THINK))


_NAME = "chat template"  # by which jinja's tracebacks call it
# A question in which whatever escapes, quotes, splits or folds letters has something to do.
_PROBE = "What is\n\n1 < 2 & \"x\" 'ß' </b> \\frac{1}{2} {{ 3 }} é 数?"


@functools.cache
def _compiled(environment, source: str):
    code = environment.compile(source, filename=_NAME)
    return environment.template_class.from_code(environment, code, environment.make_globals(None))


@functools.cache
def _environment():
    """The jinja environment that chat templates are written for."""
    try:
        import jinja2
        from jinja2 import ext, nodes, sandbox
    except ImportError as error:
        raise ValueError('chat templates need jinja2: pip install "r1jax[hf]"') from error

    class Generation(ext.Extension):
        """`{% generation %}` marks what the model wrote; it is rendered as if unmarked."""

        tags = frozenset({"generation"})

        def parse(self, parser):
            line = next(parser.stream).lineno
            body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
            return nodes.Scope(body, lineno=line)

    def raise_exception(message):
        raise jinja2.TemplateError(message)

    def tojson(value, ensure_ascii=False, **options):
        return json.dumps(value, ensure_ascii=ensure_ascii, **options)

    environment = sandbox.ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[ext.loopcontrols, Generation]
    )
    environment.globals["raise_exception"] = raise_exception
    environment.filters["tojson"] = tojson
    return environment
