"""Scores of responses: what is scored, independence of the batch, and where steps end."""

import math
import re
from pathlib import Path
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tokenizers
from tokenizers import decoders, pre_tokenizers, trainers
from tokenizers import models as library

from r1jax import models
from r1jax.checkpoints import CheckpointError, Checkpoints
from r1jax.data.examples import load_examples
from r1jax.data.huggingface_tokenizer import HuggingFaceTokenizer
from r1jax.data.packing import Document
from r1jax.data.tokenizers import train_sentencepiece
from r1jax.models import scoring
from r1jax.models.transformer import Transformer, TransformerConfig
from r1jax.rewards import Response, whole_text
from r1jax.run import Run
from r1jax.scoring import (
    Newlines,
    ResponseScorer,
    Scorer,
    load_scorer,
    scored_document,
    step_ends,
)
from r1jax.templates import Template
from r1jax.types import TrainState

TEXT = "<think>\n1+1=2\n\nwait, check\n  \n数学=2\n</think>\n<answer>\\boxed{2}\n</answer>"
TEMPLATE = Template("q: {prompt} a:")
CORPUS = ["q: What is 1+1? a:", TEXT, "ab\n\n\ncd\n数学\n\n"] * 20


def sentencepieces(merge_words):
    return train_sentencepiece(CORPUS, 380, merge_words=merge_words)


def huggingface(tmp_path, kind):
    """Byte-level BPE, whose tokens join newlines, or BPE with single bytes (Llama 2's kind)."""
    if kind == "bytes":
        known = {"<unk>": 0, "</s>": 1} | {f"<0x{b:02X}>": 2 + b for b in range(256)}
        made = tokenizers.Tokenizer(library.BPE(known, [], unk_token="<unk>", byte_fallback=True))
        made.decoder = decoders.Sequence([decoders.ByteFallback(), decoders.Fuse()])
    else:
        made = tokenizers.Tokenizer(library.BPE())
        made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
        made.decoder = decoders.ByteLevel()
        alphabet = pre_tokenizers.ByteLevel.alphabet()
        trainer = trainers.BpeTrainer(vocab_size=330, initial_alphabet=alphabet)
        made.train_from_iterator(CORPUS, trainer)
        made.add_special_tokens(["</s>"])
    made.save(str(tmp_path / "tokenizer.json"))
    (tmp_path / "tokenizer_config.json").write_text('{"eos_token": "</s>"}')
    return HuggingFaceTokenizer(tmp_path / "tokenizer.json")


@pytest.fixture(params=["words", "merged", "byte-level", "bytes"])
def tokenizer(request, tmp_path):
    if request.param in ("words", "merged"):
        return sentencepieces(request.param == "merged")
    return huggingface(tmp_path, request.param)


@pytest.fixture(scope="module")
def model():
    return Transformer(
        TransformerConfig(
            vocabulary=384, width=16, layers=2, heads=4, kv_heads=2, head_dim=4, mlp=24, context=512
        )
    )


@pytest.fixture(scope="module")
def params(model, random_params):
    rng = np.random.default_rng(3)
    head = {"weight": jnp.float32(rng.standard_normal(16)), "bias": jnp.float32(-0.5)}
    return {**random_params(model), "score": head}


@pytest.fixture(scope="module")
def run_of(model, tmp_path_factory):
    """A function (mesh, template): a run with a sentencepiece tokenizer."""
    pieces, workdir = sentencepieces(False), tmp_path_factory.mktemp("run")
    (workdir / "tokenizer.model").write_bytes(pieces.model)

    def make(mesh, template=TEMPLATE):
        return Run(
            workdir=workdir, stage="stage", seed=0, mesh=mesh, model=model, tokenizer=pieces,
            template=template, writer=None,
        )  # fmt: skip

    return make


@pytest.fixture(scope="module")
def alone(model, params):
    """A function: scores after every token of one text, without others, segments or positions.

    What follows a text in its row is no part of what its tokens see.
    """
    scores = jax.jit(lambda tokens_BT: scoring.scores(model, params, tokens_BT))

    def of(tokens):
        row = np.full((1, 160), 9)
        row[0, : len(tokens)] = tokens
        return np.asarray(scores(row))[0, : len(tokens)]

    return of


def test_what_a_document_is_made_of(run_of, mesh1):
    run = run_of(mesh1)
    encode, question = run.tokenizer.encode, "What is 1+1?"
    prompt = [1, *encode("q: What is 1+1? a:")]
    whole = scored_document(run, question, TEXT, "whole")
    assert whole == Document([*prompt, *encode(TEXT), 2], len(prompt))
    assert scored_document(run, question, TEXT, "steps") == whole
    # The last <answer> section, its newline too; nothing where the answer was not come to.
    final = scored_document(run, question, TEXT, "final")
    assert final == Document([*prompt, *encode("\\boxed{2}\n"), 2], len(prompt))
    cut = scored_document(run, question, "<think>1+1", "final")
    assert cut == Document([*prompt, 2], len(prompt))


OPENED = Template("q: {prompt} a:<think>", think_opened=True)


def test_a_prompt_that_opens_the_reasoning(run_of, mesh1):
    run = run_of(mesh1, OPENED)
    text = "<think>\n1+1=2\n</think>2"
    whole = scored_document(run, "q", text, "whole")
    assert run.tokenizer.decode(whole.tokens) == "q: q a:" + text
    final = scored_document(run, "q", text, "final")
    assert run.tokenizer.decode(final.tokens) == "q: q a:<think></think>2"
    cut = scored_document(run, "q", "<think>1+1", "final")
    assert run.tokenizer.decode(cut.tokens) == "q: q a:<think></think>"


@pytest.mark.parametrize("template", [OPENED, TEMPLATE])
@pytest.mark.parametrize(
    ("whole", "follows"),
    [
        (TEXT, TEXT.removeprefix("<think>")),
        ("<answer>hello</answer>", "</think><answer>hello</answer>"),
        ("<think>1</think><think>2</think>3", "1</think><think>2</think>3"),
    ],
)
def test_a_whole_response_and_what_follows_the_prompt_are_the_same_tokens(
    run_of, mesh1, template, whole, follows
):
    """For training, for pairs that scores are learned from, and for what is scored later."""
    run = run_of(mesh1, template)
    encode, prompt = run.tokenizer.encode, run.prompt("hi")
    tail = follows if template.think_opened else whole
    want = Document([*prompt, *encode(tail), 2], len(prompt))
    assert run.document("hi", whole) == want
    assert scored_document(run, "hi", whole, "whole") == want
    if template.think_opened:
        assert run.document("hi", follows) == want
        for scope in ("whole", "final"):
            pair, late = (scored_document(run, "hi", t, scope) for t in (whole, follows))
            sampled = whole_text(Response(follows, think_opened=True))
            assert pair == late == scored_document(run, "hi", sampled, scope)


def test_a_doubled_tag_that_was_sampled_is_scored_as_it_was(run_of, mesh1):
    run = run_of(mesh1, OPENED)
    sampled = Response("<think>1</think>2", think_opened=True)
    document = scored_document(run, "q", whole_text(sampled), "whole")
    assert run.tokenizer.decode(document.tokens[document.prompt :]) == sampled.text


def test_worked_answers_open_the_reasoning_once(run_of, mesh1, tmp_path):
    path = tmp_path / "worked.jsonl"
    path.write_text('{"question": "1+1?", "answer": "1+1=2\\n#### 2"}\n')
    [example] = load_examples(str(path))
    for template in (OPENED, TEMPLATE):
        run = run_of(mesh1, template)
        document = run.document(example["question"], example["response"])
        assert run.tokenizer.decode(document.tokens) == (
            "q: 1+1? a:<think>1+1=2</think>\n<answer>\\boxed{2}</answer>"
        )


def test_steps_after_a_prompt_that_opens_the_reasoning(run_of, mesh1, model, params):
    """Their newlines are counted in the whole text: as many have to be in the tokens."""
    run = run_of(mesh1, OPENED)
    scorer = ResponseScorer(run, model, params, "steps", batch_tokens=256)
    for text in ("<think>\n1+1=2\n</think>2\n", "\n <think>ab\ncd\n</think>2"):
        document = scored_document(run, "q", text, "steps")
        ids = document.tokens[document.prompt :]
        assert len(Newlines(run.tokenizer)(ids)) == text.count("\n")
    sampled = Response("\n1+1=2\n</think>2", think_opened=True)
    document = scored_document(run, "q", whole_text(sampled), "steps")
    [score_T] = Scorer(run, model, batch_tokens=256)(params, [document])
    end = next(  # of the line 1+1=2, by decoding ever longer prefixes
        t
        for t in range(len(document.tokens))
        if "1+1=2\n" in run.tokenizer.decode(document.tokens[: t + 1])
    )
    want = 1 / (1 + math.exp(-score_T[end]))
    np.testing.assert_allclose(scorer([{"question": "q"}], [sampled]), [want], atol=1e-5)


def test_half_a_character_is_scored(run_of, mesh1, model, params):
    scorer = ResponseScorer(run_of(mesh1), model, params, "whole", batch_tokens=256)
    question = {"question": "q"}
    a, b = scorer([question] * 2, [Response("x\ud800"), Response("x?")])
    assert a == b and np.isfinite(a)


@pytest.mark.parametrize("scope", ["final", "whole"])
def test_the_score_at_the_end_token(run_of, mesh1, model, params, alone, scope):
    run = run_of(mesh1)
    texts = [TEXT, "<think>1", "", "ab\n" * 40, TEXT + "数"]  # of 64 tokens a row, and of more
    problems = [{"question": f"What is {i}?"} for i in range(len(texts))]
    got = ResponseScorer(run, model, params, scope, batch_tokens=256)(
        problems, [Response(t) for t in texts]
    )
    assert got.dtype == np.float32 and got.shape == (5,)
    for problem, text, score in zip(problems, texts, got, strict=True):
        document = scored_document(run, problem["question"], text, scope)
        want = alone(document.tokens)[-1]
        np.testing.assert_allclose(score, want, atol=2e-5)


def test_scores_do_not_depend_on_what_else_is_scored(run_of, mesh1, mesh8, model, params, alone):
    run, rng = run_of(mesh1), np.random.default_rng(0)
    documents = [
        Document(rng.integers(4, 380, n).tolist(), 1) for n in (1, 63, 64, 65, 100, 5, 128)
    ]
    # Rows of 64 tokens and of 128: two and one a program, or eight and four.
    together = Scorer(run, model, batch_tokens=128)(params, documents)
    turned = Scorer(run, model, batch_tokens=512)(params, documents[::-1])[::-1]
    layout = jax.tree.map(lambda s: s.sharding, models.abstract_params(model, mesh8))
    words = {name: params[name] for name in layout}
    eight = jax.device_put(words, layout) | {"score": params["score"]}
    cut = Scorer(run_of(mesh8), model, batch_tokens=256)(eight, documents)
    for document, a, b, c in zip(documents, together, turned, cut, strict=True):
        want = alone(document.tokens)
        assert a.shape == b.shape == c.shape == want.shape
        for got in (a, b, c):
            np.testing.assert_allclose(got, want, atol=5e-5)
    assert Scorer(run, model)(params, []) == []


def test_programs_are_few(run_of, mesh1, model, params):
    """Lengths 1 to 64, 65 to 128 and 129 to 256: three shapes, however many documents."""
    scorer = Scorer(run_of(mesh1), model, batch_tokens=256)
    for some in (range(1, 60, 7), (64, 65, 128), (129, 256, 3)):
        scorer(params, [Document([5] * n, 0) for n in some])
    assert scorer._scores._cache_size() == 3


def test_steps_are_the_mean_of_probabilities(run_of, mesh1, model, params, alone):
    run = run_of(mesh1)
    scorer = ResponseScorer(run, model, params, "steps", batch_tokens=256)
    responses = [Response(TEXT), Response("<think>\n \n</think>1"), Response("<think>no newline")]
    got = scorer([{"question": "1?"}] * 3, responses)
    document = scored_document(run, "1?", TEXT, "steps")
    score_T = alone(document.tokens)
    ends = [  # of the lines 1+1=2, wait, check and 数学=2, by decoding ever longer prefixes
        next(
            t
            for t in range(len(document.tokens))
            if line + "\n" in run.tokenizer.decode(document.tokens[: t + 1])
        )
        for line in ("1+1=2", "wait, check", "数学=2")
    ]
    want = np.mean([1 / (1 + math.exp(-score_T[t])) for t in ends])
    np.testing.assert_allclose(got, [want, 0, 0], atol=1e-5)


def brute_force(tokenizer, ids):
    """The token of each newline, by decoding every prefix."""
    found, seen = [], 0
    for at in range(len(ids)):
        count = tokenizer.decode(ids[: at + 1]).count("\n")
        found += [at] * max(0, count - seen)
        seen = max(seen, count)
    return found


@pytest.mark.parametrize(
    "text", [TEXT, "", "\n", "\n\n\n\nab\n\n\n\ncd", "数\n学\n\n é\n", "a\r\nb"]
)
def test_newlines_against_decoding_every_prefix(tokenizer, text):
    ids = tokenizer.encode(text)
    found = Newlines(tokenizer)(ids)
    assert len(found) == text.count("\n")
    assert found == brute_force(tokenizer, ids)


def test_some_tokens_hold_more_than_a_newline(tmp_path):
    """Else the tests above show nothing."""
    merged = sentencepieces(True)
    assert any(len(merged.decode([i]).strip("\n")) for i in newline_ids(merged))
    level = huggingface(tmp_path, "byte-level")
    assert any(level.decode([i]).count("\n") > 1 for i in newline_ids(level))


def newline_ids(tokenizer):
    return [i for i in range(tokenizer.vocabulary) if "\n" in tokenizer.decode([i])]


def test_newlines_of_sampled_ids(tokenizer):
    """Not what `encode` gives: characters one by one, as a model may write them."""
    ids = [i for c in "ab\n数\n" for i in tokenizer.encode(c)]
    assert Newlines(tokenizer)(ids) == brute_force(tokenizer, ids)


def test_a_tokenizer_without_newlines():
    spaces = SimpleNamespace(
        encode=lambda text: [ord(c) for c in text.replace("\n", " ")],
        decode=lambda ids: "".join(map(chr, ids)),
    )
    with pytest.raises(ValueError, match="the tokenizer does not keep newlines"):
        Newlines(spaces)


@pytest.mark.parametrize(
    ("text", "lines"),
    [
        ("<think>a\nb\n</think>c\n", [0, 1]),
        ("<think>\na\n\n \nb\n</think>", [1, 4]),
        ("<think>a\nb</think>\nc", [0]),  # the last line ends in no newline
        ("a\nb", [0]),  # without tags all is reasoning
        ("\n\nx<think>a\nb\n", [2, 3]),
        ("a\n</think>b\n</think>c\n", [0, 1]),  # up to the last end
        ("", []),
    ],
)
def test_lines_that_are_steps(text, lines):
    """Every newline its own token: their numbers show which ones end steps."""
    assert step_ends(text, range(100, 100 + text.count("\n"))) == [100 + n for n in lines]


def test_a_token_that_ends_two_lines_ends_one_step():
    assert step_ends("<think>a\nb\nc\n</think>", [4, 4, 6]) == [4, 6]


def test_scopes_that_score_no_responses(run_of, mesh1, model, params):
    with pytest.raises(ValueError, match="scope='value' scores no whole responses; known: final,"):
        ResponseScorer(run_of(mesh1), model, params, "value")


@pytest.fixture(scope="module")
def saved(run_of, mesh1, model, params):
    """Folder of checkpoints in a run's folder: of a score model and of a language model."""
    run = run_of(mesh1)
    with run.checkpoints(extra=scoring.about("final")) as checkpoints:
        checkpoints.save(TrainState(params, (), jnp.int32(7)), {})
    words = {k: v for k, v in params.items() if k != "score"}
    about = {"model": models.describe(model)}
    with Checkpoints(run.workdir / "checkpoints" / "words", about=about) as checkpoints:
        checkpoints.save(TrainState(words, (), jnp.int32(7)), {})
    return run.workdir / "checkpoints"


def test_a_scorer_from_disk_is_the_one_that_was_saved(saved, run_of, mesh1, model, params):
    """With its own template, whatever the run's is."""
    want = ResponseScorer(run_of(mesh1), model, params, "final")
    scorer = load_scorer(saved / "stage", run_of(mesh1, Template("{prompt}")))
    assert scorer.scope == "final"
    given = [{"question": "What is 1+1?"}], [Response(TEXT)]
    np.testing.assert_array_equal(scorer(*given), want(*given))


def test_a_language_model_is_no_scorer(saved, run_of, mesh1):
    message = f"{re.escape(str(saved / 'words' / '7'))} holds no score model"
    with pytest.raises(CheckpointError, match=message):
        load_scorer(saved / "words", run_of(mesh1))


@pytest.mark.slow
@pytest.mark.parametrize("name", ["qwen3", "deepseek_v3_yarn_shards_mtp"])
def test_families_score_a_document_as_if_it_were_alone(name, mesh1, run_of):
    """Experts choose by token: neither other rows nor padding takes a token's place."""
    folder = Path(__file__).parent / "models" / "fixtures" / name
    model, words = models.load(folder, mesh=mesh1, dtype="float32")
    rng = np.random.default_rng(2)
    weight = jnp.float32(rng.standard_normal(model.config.width))
    params = {**words, "score": {"weight": weight, "bias": jnp.float32(0)}}
    documents = [Document(rng.integers(3, 60, n).tolist(), 1) for n in (64, 7, 30, 1, 64)]
    scorer = Scorer(run_of(mesh1), model, batch_tokens=256)
    scores = jax.jit(lambda tokens_BT: scoring.scores(model, params, tokens_BT))
    for document, got in zip(documents, scorer(params, documents), strict=True):
        row = np.full((1, 64), 9)
        row[0, : len(document.tokens)] = document.tokens
        want = np.asarray(scores(row))[0, : len(document.tokens)]
        np.testing.assert_allclose(got, want, atol=1e-4)
