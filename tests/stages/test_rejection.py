"""Rejection sampling: what is kept, what is counted, and stopping half-way."""

import dataclasses
import json
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from r1jax.compute import sampling_flops
from r1jax.data.mixing import Mixture
from r1jax.rewards import graders
from r1jax.stages import rejection
from r1jax.stages.rejection import RejectionConfig
from r1jax.templates import Template
from r1jax.types import Rollout

# --- with a scripted model: what it says is a function of what it is asked -----------------


class Codes:
    """A tokenizer whose ids are code points; 1 begins and 2 ends."""

    bos_id, eos_id, stop_ids, pad_id, specials = 1, 2, (2,), 0, ("<|end|>",)

    def encode(self, text):
        return [ord(c) for c in text]

    def decode(self, ids):
        return "".join(chr(i) for i in ids if i > 2)


@dataclasses.dataclass
class Script:
    """In place of a run: `say(prompt, sample)` gives the response; None goes on for ever."""

    run: object
    say: object
    asked: list = dataclasses.field(default_factory=list)

    def __getattr__(self, name):
        return getattr(self.run, name)

    def sampler(self, config):
        def sample(params, prompts, key, *, prompt_ids, group_size=1, on_done=None):
            self.asked.append([self.run.tokenizer.decode(p) for p in prompts])
            assert len(set(prompt_ids)) == len(prompts)  # every one has keys of its own
            rows = []
            for text in self.asked[-1]:
                for j in range(group_size):
                    said = self.say(text, j)
                    ids = [46] * config.max_tokens if said is None else [*map(ord, said), 2]
                    cut = said is None or len(ids) > config.max_tokens
                    rows.append((ids[: config.max_tokens], cut))
            if on_done:
                on_done(dict(reversed(list(enumerate(rows)))))
            tokens_BT = np.zeros((len(rows), config.max_tokens), np.int32)
            for line, (ids, _) in zip(tokens_BT, rows, strict=True):
                line[: len(ids)] = ids
            lengths, cut = np.array([len(r[0]) for r in rows]), np.array([r[1] for r in rows])
            return Rollout(None, None, tokens_BT, None, lengths, cut)

        return sample


PARAMS = {"w": jnp.ones(3)}
GOOD = "<think>We count all of them.</think>\nThere are \\boxed{4}."


@pytest.fixture
def scripted(place, tiny):
    """A function (what is said, the config's changes) that runs the stage: (place, counts)."""

    def go(say, problems, *, name="a", template="{prompt}=", **changes):
        given = {k: changes.pop(k) for k in ("shots", "extra", "judge_params") if k in changes}
        if "judge_params" in given:
            given["judge"] = given.pop("judge_params")
        here = place(name)
        model = SimpleNamespace(config=dataclasses.replace(tiny[0].config, context=1000))
        opened = Template(template, template.endswith("<think>"))
        run = dataclasses.replace(here.run, tokenizer=Codes(), model=model, template=opened)
        script = Script(run, say)
        config = RejectionConfig(**(dict(problems="p", max_tokens=200, samples=2) | changes))
        here.counts = rejection.run(config, script, problems, PARAMS, **given)
        here.rows = [
            json.loads(line)
            for line in (run.workdir / "data" / "stage.jsonl").read_text().split("\n")[:-1]
        ]
        here.asked = script.asked
        return here

    return go


def problem(question="How many are there?", **more):
    return {"id": f"id of {question}", "question": question, "answer": "4"} | more


def test_rows_and_where_they_are_from(scripted):
    here = scripted(
        lambda text, j: GOOD + str(j), [problem(source="books"), problem("And how many here?")],
        extra=[{"question": "Hello", "response": "Hi.", "source": "task:x:1"}],
    )  # fmt: skip
    assert here.rows[0] == {
        "question": "How many are there?", "response": GOOD + "0",
        "id": "id of How many are there?", "source": "books", "asked": "plain", "sample": 0,
    }  # fmt: skip
    assert [(r.get("id"), r["source"]) for r in here.rows[1:]] == [
        ("id of How many are there?", "books"), ("id of And how many here?", "p"),
        ("id of And how many here?", "p"), (None, "task:x:1"),
    ]  # fmt: skip
    assert here.rows[-1] == {"question": "Hello", "response": "Hi.", "source": "task:x:1"}
    assert (here.counts["kept"], here.counts["extra"], here.counts["rows"]) == (4, 1, 5)


# One response for every way to be left out; GOOD, told apart by a digit, stays.
FATES = {
    "wrong": GOOD.replace("4", "5"),
    "truncated": "<think>so</think>\\boxed{4}" + "." * 200,
    "control": GOOD + "<|end|>",
    "half": GOOD + "\ufffd",
    "mixed": GOOD.replace("all", "都是的"),
    "summary": "<think>so</think> \\boxed{4}",
    "duplicate": GOOD,
    "kept": GOOD,
    "kept too": GOOD + "!",
    "surplus": GOOD + "?",
}


def test_every_response_is_counted_where_it_ended(scripted):
    said = list(FATES.values())
    here = scripted(
        lambda text, j: said[j], [problem()], samples=len(said), keep=2,
        filters=("mixed_language", "bare_answer", "duplicate"),
    )  # fmt: skip
    counts = here.counts
    assert counts["sampled"] == 10 and counts["truncated"] == 1
    assert counts["correct"] == 9  # all but the wrong one
    rejected = {k: v for k, v in counts.items() if k.startswith("rejected_") and v}
    assert rejected == {
        "rejected_truncated": 1, "rejected_control": 2, "rejected_mixed_language": 1,
        "rejected_bare_answer": 1, "rejected_duplicate": 1,
    }  # fmt: skip
    assert counts["surplus"] == 1 and counts["kept"] == 2 and counts["questions_kept"] == 1
    assert counts["correct"] == sum(rejected.values()) + counts["surplus"] + counts["kept"]
    # Of those that got so far: 9, 8, 8, 6, 5, 4.
    assert {k: v for k, v in counts.items() if k.startswith("acceptance_")} == {
        "acceptance_truncated": 8 / 9, "acceptance_leak": 1.0, "acceptance_control": 6 / 8,
        "acceptance_mixed_language": 5 / 6, "acceptance_bare_answer": 4 / 5,
        "acceptance_duplicate": 3 / 4,
    }  # fmt: skip
    texts = [r["response"] for r in here.rows]
    assert set(texts) < {GOOD, GOOD + "!", GOOD + "?"} and len(set(texts)) == 2
    [row] = here.metrics
    assert row["rejection/rejected_control"] == 2 and row["step"] == 1
    # 200 for the truncated one; the others and their end tokens.
    lengths = [min(200, len(text) + 1) for text in said]
    assert row["rejection/tokens"] == sum(lengths)
    config, prompt = here.run.model.config, len("How many are there?=") + 1
    assert row["compute/flops"] == sampling_flops(config, [prompt] * 10, lengths, group_size=10)


def test_at_most_so_many_of_a_question_are_drawn(scripted):
    def say(text, j):
        return GOOD + "!" * j

    problems = [problem(f"How many in {i}?") for i in range(30)]
    here = scripted(say, problems, samples=4, keep=1)
    samples = [r["sample"] for r in here.rows]
    assert len(samples) == 30 and set(samples) == {0, 1, 2, 3}  # not always the first
    assert scripted(say, problems, name="b", samples=4, keep=1, batch_prompts=7).rows == here.rows
    both = scripted(say, problems, name="c", samples=4, keep=3).rows
    order = [(r["id"], r["sample"]) for r in both]
    assert order == sorted(order, key=lambda x: (int(x[0].split()[-1][:-1]), x[1]))


def test_ways_of_asking_leave_no_trace_in_what_is_kept(scripted):
    shots = [{"question": f"What is there, number {i}?", "response": GOOD} for i in range(4)]

    def say(text, j):
        if "Answer in detail" in text:
            return GOOD + " In detail." + (" Answer in detail: reason step by step, reflect on "
                "every step and verify the result." if j else "")  # fmt: skip
        if "number" in text:
            return GOOD + " Next: " + (text[text.index("What") :][:26] if j else "")
        return GOOD + str(j)

    here = scripted(
        say, [problem()], shots=shots, shots_from="f", keep=9,
        prompts=("plain", "few_shot", "reflect"),
    )  # fmt: skip
    assert [(r["asked"], r["sample"]) for r in here.rows] == [
        ("plain", 0), ("plain", 1), ("few_shot", 0), ("reflect", 0),
    ]  # fmt: skip
    assert {r["question"] for r in here.rows} == {"How many are there?"}
    assert here.counts["rejected_leak"] == 2 and here.counts["sampled"] == 6
    plain, few_shot, _ = here.asked[0]
    assert plain == "How many are there?="
    assert few_shot.count("What is there, number") == 2 and few_shot.endswith(plain)


def test_prompts_without_room_are_refused_with_the_numbers(scripted):
    long = [{"question": f"q{i}" * 60, "response": "r" * 300} for i in range(3)]
    never = None  # nothing is sampled
    # Begin, 120 and "=", 300, end; again but for begin; then the question's 19 and "=".
    length = (1 + 121 + 301) + (121 + 301) + 20
    with pytest.raises(ValueError, match=f"'few_shot' has {length} tokens; .* of 1000: lower"):
        scripted(never, [problem()], shots=long, shots_from="f", prompts=("few_shot",))
    with pytest.raises(ValueError, match="asked 'plain' has 902 tokens; with max_tokens=200"):
        scripted(never, [problem(), problem("a" * 900)], name="b")
    with pytest.raises(ValueError, match="shots=2, and 2 different questions are in 'f'"):
        scripted(never, [problem()], shots=[*long[:2], long[0]], shots_from="f",
                 prompts=("few_shot",), name="c")  # fmt: skip


def test_the_language_to_reply_in_is_the_problems(scripted):
    problems = [problem(), problem("How many here?", reply_in="zh")]
    here = scripted(lambda text, j: GOOD, problems, samples=1)
    assert [r["question"] for r in here.rows] == ["How many are there?"]
    assert here.counts["rejected_mixed_language"] == 1


# --- the judge -----------------------------------------------------------------------


def open_problem(question="Why?", answer="Because it is.", **more):
    return problem(question, answer=answer, grader="open", **more)


@pytest.fixture
def open_grader(monkeypatch):
    grade = lambda p, text: float(all(c in text for c in p["checks"]))  # noqa: E731
    monkeypatch.setitem(graders.GRADERS, "open", graders.Grader(lambda p: None, grade))


def answers(*, judge):
    """Says sample 0 and 1 of an answer; as a judge what `judge(prediction)` gives."""

    def say(text, j):
        if text.startswith("Judge."):
            return judge(text.split("Prediction: ")[1].split(" Same?")[0])
        return f"<think>Let me think.</think>It is {'so' if j else 'not'}."

    return say


def test_open_problems_are_judged_and_what_is_not_clearly_right_is_wrong(scripted, open_grader):
    replies = {"It is so.": "Yes.", "It is not.": "It is the same, yes"}
    here = scripted(answers(judge=replies.get), [open_problem()], judge="self")
    assert [r["sample"] for r in here.rows] == [1]
    assert (here.counts["judged"], here.counts["judged_unparsed"]) == (2, 1)
    assert here.asked[1] == [
        f"Judge. Question: Why? Reference: Because it is. Prediction: It is {x}. Same?="
        for x in ("not", "so")
    ]


def test_what_says_nothing_is_not_judged(scripted, open_grader):
    said = ["<think>so", "<think>so</think> ", None, "<think>so</think>It is so."]
    here = scripted(
        lambda text, j: "yes" if text.startswith("Judge") else said[j], [open_problem()],
        samples=4, judge="self",
    )  # fmt: skip
    assert here.counts["judged"] == 1 and [r["sample"] for r in here.rows] == [3]


def test_open_problems_that_nothing_decides_are_left_out_and_counted(scripted, open_grader):
    checked = open_problem("Say so!", answer="", checks=["so"])
    problems = [open_problem(), checked, open_problem("Who?", answer="")]
    without = scripted(answers(judge=None), problems)
    assert without.counts["dropped_open"] == 2 and without.counts["questions"] == 1
    assert [(r["question"], r["sample"]) for r in without.rows] == [("Say so!", 1)]  # by its checks
    judged = scripted(answers(judge=lambda p: "yes"), problems, name="b", judge="self")
    assert judged.counts["dropped_open"] == 1
    assert {r["question"] for r in judged.rows} == {"Why?", "Say so!"}
    with pytest.raises(ValueError, match="all of the 2 problems are open"):
        scripted(None, [problems[0], problems[2]], name="c")


def test_the_judge_is_measured_on_samples_that_a_rule_decides(scripted):
    def say(text, j):
        if text.startswith("Judge"):
            # It takes 4 and 6 for right, says no to 5, and nothing clear of 7.
            digit = text.split("boxed{")[1][0]
            return {"4": "yes", "5": "no", "6": "yes", "7": "maybe"}[digit]
        return GOOD.replace("4", "4567"[j])

    problems = [problem(f"How many in {i}?") for i in range(5)]
    here = scripted(say, problems, samples=4, judge="self", judge_audit=1000, batch_prompts=2)
    # All 20 are audited. The rule says yes to 4 alone.
    audit = {k: v for k, v in here.counts.items() if k.startswith("audit_")}
    assert audit == {
        "audit_both_yes": 5, "audit_both_no": 5, "audit_judge_yes": 5, "audit_judge_no": 0,
        "audit_unparsed": 5,
    }  # fmt: skip
    assert here.counts["judge_agreement"] == 10 / 20
    assert [row["rejection/judge_agreement"] for row in here.metrics] == [0.5] * 3
    # Cumulative; two batches of two questions, one of one.
    flops = [row["compute/flops"] for row in here.metrics]
    assert flops == pytest.approx([here.counts["flops"] * n / 5 for n in (2, 4, 5)])
    assert here.counts["judged"] == 0 and here.counts["kept"] == 5  # the rule decides
    few = scripted(say, problems, name="b", samples=4, judge="self", judge_audit=7)
    assert sum(v for k, v in few.counts.items() if k.startswith("audit_")) == 7
    again = scripted(say, problems, name="c", samples=4, judge="self", judge_audit=7,
                     batch_prompts=1)  # fmt: skip
    assert again.counts.pop("flops") == pytest.approx(few.counts.pop("flops"))
    assert again.counts == few.counts and again.rows == few.rows


def test_another_model_judges(scripted, open_grader):
    with pytest.raises(ValueError, match="judge='teacher': its parameters were not given"):
        scripted(None, [open_problem()], judge="teacher")
    here = scripted(answers(judge=lambda p: "yes"), [open_problem()], judge="teacher", name="b",
                    judge_params=PARAMS)  # fmt: skip
    assert len(here.rows) == 2


# --- rewriting -------------------------------------------------------------------------


def test_a_task_rewrites_and_what_it_makes_is_graded_and_filtered(scripted, monkeypatch):
    said = ["\\boxed{4} 是的", "\\boxed{4}", "\\boxed{4} no", "\\boxed{4} spoilt", "\\boxed{5}"]

    def readable(problem, text):
        if "no" in text:
            return None
        number = "7" if "spoilt" in text else "4"
        return f"<think>{text}</think>\nThere are \\boxed{{{number}}}."

    task = SimpleNamespace(readable=readable)
    monkeypatch.setattr(rejection, "TASKS", {"toy": task, "bare": SimpleNamespace()})
    here = scripted(lambda text, j: said[j], [problem()], samples=5, rewrite="task:toy")
    assert [r["response"] for r in here.rows] == [
        "<think>\\boxed{4}</think>\nThere are \\boxed{4}."
    ]
    assert here.counts["correct"] == 4 and here.counts["rejected_rewrite"] == 2
    assert here.counts["rejected_mixed_language"] == 1  # of the text as it would be kept
    with pytest.raises(ValueError, match="rewrite='task:bare' is unknown; known: model, task:toy"):
        RejectionConfig("p", 9, rewrite="task:bare")
    RejectionConfig("p", 9, rewrite="model")


def test_the_model_rewrites_its_own(scripted):
    drafts = [f"draft {j} \\boxed{{{5 if j == 3 else 4}}}" for j in range(5)] + ["d" * 850]

    def say(text, j):
        if "Rewrite" not in text:
            return drafts[j]
        assert text.startswith("How many are there?\n\ndraft ")
        number, instruction = text.split("draft ")[1][0], "Rewrite" + text.split("Rewrite")[1]
        return {
            "0": GOOD, "1": GOOD.replace("4", "5"), "2": GOOD + "." * 300,
            "4": GOOD + instruction[:-1],
        }[number]  # fmt: skip

    here = scripted(say, [problem()], samples=6, rewrite="model", max_tokens=300)
    assert [(r["response"], r["sample"]) for r in here.rows] == [(GOOD, 0)]
    # The one too long for a response is truncated already; 1 is wrong, 2 is cut short, 4 quotes.
    assert here.counts["truncated"] == 1 and here.counts["correct"] == 4
    assert here.counts["rejected_rewrite"] == 3


def test_drafts_too_long_to_be_read_are_not_rewritten(scripted):
    draft = "d" * 450 + "\\boxed{4}"
    say = lambda text, j: GOOD if "Rewrite" in text else ("short \\boxed{4}", draft)[j]  # noqa: E731
    here = scripted(say, [problem()], rewrite="model", max_tokens=480)
    assert [r["sample"] for r in here.rows] == [0] and here.counts["rejected_rewrite"] == 1


def test_a_prompt_that_opens_the_reasoning(scripted):
    said = ["We count all of them.</think>There are \\boxed{4}.", "never closed \\boxed{4}"]
    here = scripted(
        lambda text, j: said[j], [problem()], template="{prompt}<think>",
        extra=[{"question": "Hello", "response": "Hi.", "source": "s"},
               {"question": "How?", "response": "<think>so</think>So.", "source": "s"}],
    )  # fmt: skip
    # Whole texts; those from elsewhere as they were given.
    whole = ["<think>" + said[0], "Hi.", "<think>so</think>So."]
    assert [r["response"] for r in here.rows] == whole
    run = dataclasses.replace(
        here.run, tokenizer=Codes(), template=Template("{prompt}<think>", True)
    )
    learned = [run.document(r["question"], r["response"]) for r in here.rows]
    follows = [said[0], "</think>Hi.", "so</think>So."]
    assert [run.tokenizer.decode(d.tokens[d.prompt :]) for d in learned] == follows


def test_what_a_task_rewrites_after_a_prompt_that_opens_the_reasoning(scripted, monkeypatch):
    """Graded and kept as if it had been sampled so."""
    task = SimpleNamespace(readable=lambda problem, text: text.replace("draft", "count"))
    monkeypatch.setattr(rejection, "TASKS", {"toy": task})
    said = "We draft.</think>There are \\boxed{4}."
    here = scripted(
        lambda text, j: said, [problem()], samples=1, rewrite="task:toy",
        template="{prompt}<think>",
    )  # fmt: skip
    assert [r["response"] for r in here.rows] == ["<think>We count.</think>There are \\boxed{4}."]


# --- which questions, settings ---------------------------------------------------------


def test_questions_of_a_mixture(scripted):
    sources = {n: [problem(f"{n}{i}?") for i in range(4)] for n in "ab"}
    mixture = Mixture(sources, {"a": 3, "b": 1}, 0)
    every = scripted(lambda text, j: GOOD, mixture, samples=1)
    assert [r["question"] for r in every.rows] == [f"{n}{i}?" for n in "ab" for i in range(4)]
    some = scripted(lambda text, j: GOOD, mixture, name="b", samples=1, questions=4)
    asked = [r["question"][0] for r in some.rows]
    assert (asked.count("a"), asked.count("b")) == (3, 1) and len(some.rows) == 4
    with pytest.raises(ValueError, match="questions=8 of p are only 6 different"):
        scripted(None, mixture, name="c", questions=8)  # 6 of a, which has 4, and 2 of b
    first = scripted(lambda text, j: GOOD, mixture.problems, name="d", samples=1, questions=3)
    assert [r["question"] for r in first.rows] == ["a0?", "a1?", "a2?"]


def test_nothing_kept_is_an_error_with_the_counts(scripted):
    with pytest.raises(RuntimeError, match="none of 4 responses was kept: .*'correct': 2.*'rejec"):
        scripted(
            lambda text, j: ("\\boxed{4}", "\\boxed{5}")[j], [problem(), problem("q?")],
        )  # fmt: skip


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (dict(samples=0), "samples=0 must be at least 1"),
        (dict(keep=0), "keep=0"),
        (dict(batch_prompts=0), "batch_prompts=0"),
        (dict(questions=-1), "questions=-1 must not be negative"),
        (dict(prompts=()), "at least one"),
        (dict(prompts=("plain", "plain")), "name each way once"),
        (dict(prompts=("fewshot",)), "'fewshot' is unknown; did you mean 'few_shot'"),
        (dict(prompts=("few_shot",)), "set shots_from"),
        (dict(filters=("codes",)), "filter 'codes' is unknown"),
        (dict(judge_audit=3), "judge_audit=3 needs a judge"),
        (dict(rewrite="models"), "rewrite='models' is unknown; did you mean 'model'"),
        (dict(top_p=0.0), "top_p=0.0"),
        (dict(max_tokens=0), "max_tokens=0"),
    ],
)
def test_settings_that_make_no_sense(changes, message):
    with pytest.raises(ValueError, match=message):
        RejectionConfig(**(dict(problems="p", max_tokens=9) | changes))


# --- with a real sampler -----------------------------------------------------------------

LETTERS = [
    {"id": f"x{i}", "question": c * (1 + i % 3), "answer": "7"} for i, c in enumerate("abcdefg")
]


@pytest.fixture
def real(place, tiny, monkeypatch):
    """A function that runs the stage with random weights: right is what has an e in it."""
    toy = graders.Grader(lambda p: None, lambda p, text: float("e" in text))
    monkeypatch.setitem(graders.GRADERS, "math", toy)

    def go(name, *, stop_at=None, seed=0, params=tiny[1], **changes):
        here = place(name, stop_at=stop_at, seed=seed)
        settings = dict(
            problems="p", max_tokens=40, samples=4, keep=2, filters=("duplicate",), batch_prompts=2,
            rows=16, chunk=8,
        )  # fmt: skip
        here.counts = rejection.run(
            RejectionConfig(**(settings | changes)), here.run, LETTERS, params
        )
        here.bytes = (here.run.workdir / "data" / "stage.jsonl").read_bytes()
        return here

    return go


def test_a_stopped_run_ends_with_the_same_file(real, stopped):
    whole = real("a")
    assert 0 < whole.counts["kept"] < 14 and len(whole.run.calls) == 4
    with pytest.raises(stopped):
        real("b", stop_at=3)
    assert not (whole.run.workdir.with_name("b") / "data" / "stage.jsonl").exists()
    resumed = real("b")
    assert resumed.bytes == whole.bytes and resumed.counts == whole.counts
    assert len(resumed.run.calls) == 2  # batches 3 and 4
    assert resumed.metrics == whole.metrics
    assert [p.name for p in (resumed.run.workdir / "data").iterdir()] == ["stage.jsonl"]


def test_the_file_is_a_function_of_the_seed_and_not_of_batches(real):
    whole = real("a")
    assert real("b", batch_prompts=7, rows=8, chunk=3).bytes == whole.bytes
    assert real("c", seed=1).bytes != whole.bytes


def test_progress_of_other_weights_is_not_gone_on_from(real, stopped, tiny):
    with pytest.raises(stopped):
        real("a", stop_at=3)
    other = jax.tree.map(lambda x: x * 1.01, tiny[1])
    again = real("a", params=other)
    assert len(again.run.calls) == 4
    assert again.bytes == real("b", params=other).bytes != real("c").bytes
