import json
import re
import sys
from types import SimpleNamespace

import numpy as np
import pytest
import tokenizers
from tokenizers import decoders, models, pre_tokenizers, processors, trainers

from r1jax.data.huggingface_tokenizer import HuggingFaceTokenizer
from r1jax.data.tokenizers import StreamDecoder, open_tokenizer
from r1jax.run import Run
from r1jax.templates import Template, escape

CORPUS = ["The sum of 12 and 345 is 357.", "Здравствуй, мир! 你好，世界。", "a  b\n\nc"] * 10
SPECIAL = ["<|end|>", "<|im_start|>", "<|im_end|>", "<|begin|>"]
MARKED = ["<think>", "</think>", "<|User|>", "  ", "数"]  # added tokens that are not special
CONFIG = {"eos_token": "<|im_end|>", "pad_token": "<|end|>", "bos_token": None}


@pytest.fixture(scope="module")
def library():
    """A byte-level BPE with all 256 bytes. It begins texts with <|begin|>, cuts and pads them."""
    made = tokenizers.Tokenizer(models.BPE())
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=320, initial_alphabet=alphabet, show_progress=False)
    made.train_from_iterator(CORPUS, trainer)
    made.add_special_tokens(SPECIAL)
    made.add_tokens(MARKED)
    begin = made.token_to_id("<|begin|>")
    made.post_processor = processors.TemplateProcessing(
        single="<|begin|> $A", special_tokens=[("<|begin|>", begin)]
    )
    made.enable_truncation(5)
    made.enable_padding(length=50)
    return made


@pytest.fixture
def folder(library, tmp_path):
    """A function that writes tokenizer.json and the files given, and returns their folder."""

    def write(config=CONFIG, **files):
        (tmp_path / "tokenizer.json").write_text(library.to_str())
        for stem, content in {"tokenizer_config": config, **files}.items():
            if content is not None:
                text = content if isinstance(content, str) else json.dumps(content)
                (tmp_path / f"{stem}.json").write_text(text)
        return tmp_path

    return write


@pytest.mark.parametrize("text", ["", " ", *CORPUS, CORPUS[0] * 9, "👩\u200d👧 é\x00\u2581\ufffd"])
def test_texts_come_back_whole_without_anything_added(folder, library, text):
    tokenizer = open_tokenizer(folder())
    ids = tokenizer.encode(text)
    assert tokenizer.decode(ids) == text
    assert not {library.token_to_id(t) for t in SPECIAL} & set(ids)  # not begun, cut or padded


def test_byte_level_ids_are_bytes_where_nothing_merges(folder, library):
    """An independent decoder: GPT-2's letters for bytes, and Python's UTF-8."""
    plain = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = [b for b in range(256) if b not in plain]
    letters = {chr(b): b for b in plain} | {chr(256 + n): b for n, b in enumerate(others)}
    tokenizer = open_tokenizer(folder())
    rng = np.random.default_rng(2)
    for _ in range(100):
        some = rng.choice(list(letters), 20)
        ids = [library.token_to_id(letter) for letter in some]
        raw = bytes(letters[letter] for letter in some)
        assert tokenizer.decode(ids) == raw.decode("utf-8", "replace")


def test_special_texts_become_their_ids_and_decode_to_nothing(folder, library):
    tokenizer = open_tokenizer(folder())
    start, end = map(library.token_to_id, ("<|im_start|>", "<|im_end|>"))
    think = library.token_to_id("<think>")
    text = "<|im_start|>user\n1<|im_end|><think>"
    ids = tokenizer.encode(text)
    assert (ids[0], ids[-2], ids[-1]) == (start, end, think)
    assert tokenizer.decode(ids) == "user\n1<think>"
    beyond = [tokenizer.vocabulary, 10**12, -1]
    assert tokenizer.decode(np.array([*beyond, *ids])) == "user\n1<think>"
    assert tokenizer.vocabulary == library.get_vocab_size() == 1 + library.token_to_id("数")


def test_specials_are_what_a_question_may_not_hold(folder, library):
    config = CONFIG | {"chat_template": "<|User|>{{ messages[0].content }}  数"}
    tokenizer = open_tokenizer(folder(config))
    # <|User|> acts in the template though it is not special; white space and letters do not.
    assert set(tokenizer.specials) == {*SPECIAL, "<|User|>"}
    assert set(open_tokenizer(folder()).specials) == set(SPECIAL)
    question = "".join([*SPECIAL, "<|User|>", "<think>"]) * 2
    ids = tokenizer.encode(escape(question, tokenizer.specials))
    assert not set(ids) & {library.token_to_id(t) for t in (*SPECIAL, "<|User|>", "<think>")}


BEGIN, END = {"content": "<|begin|>", "lstrip": False}, {"content": "<|im_end|>"}


@pytest.mark.parametrize(
    ("config", "bos"),
    [
        ({"eos_token": "<|im_end|>"}, None),
        ({"eos_token": "<|im_end|>", "bos_token": None}, None),
        ({"eos_token": END, "bos_token": "<|begin|>"}, "<|begin|>"),  # as Llama 3
        ({"eos_token": END, "bos_token": {"__type": "AddedToken"} | BEGIN}, "<|begin|>"),
        ({"eos_token": END, "bos_token": BEGIN, "add_bos_token": True}, "<|begin|>"),
        ({"eos_token": END, "bos_token": BEGIN, "add_bos_token": None}, "<|begin|>"),
        ({"eos_token": END, "bos_token": BEGIN, "add_bos_token": False}, None),
        ({"eos_token": END, "bos_token": None, "add_bos_token": True}, None),
    ],
)
def test_begin_token(folder, library, config, bos):
    tokenizer = open_tokenizer(folder(config))
    assert tokenizer.bos_id == (None if bos is None else library.token_to_id(bos))
    assert tokenizer.bos_token == ("<|begin|>" if config.get("bos_token") else None)
    assert tokenizer.eos_id == tokenizer.pad_id == library.token_to_id("<|im_end|>")
    assert tokenizer.eos_token == "<|im_end|>"


@pytest.mark.parametrize("bos", [None, "<|begin|>"])
def test_a_prompt_begins_with_the_begin_token_where_there_is_one(folder, library, bos):
    tokenizer = open_tokenizer(folder(CONFIG | {"bos_token": bos}))
    run = SimpleNamespace(tokenizer=tokenizer, template=Template("{prompt}<|im_end|>"))
    begin = [] if bos is None else [library.token_to_id(bos)]
    prompt = Run.prompt(run, "a<|im_end|>")
    assert prompt == [*begin, *tokenizer.encode("a< |im_end|>"), tokenizer.eos_id]


def test_special_tokens_map_fills_what_the_configuration_leaves_out(folder, library):
    named = {"eos_token": END, "bos_token": "<|begin|>", "pad_token": "<|end|>"}
    tokenizer = open_tokenizer(folder({"bos_token": None}, special_tokens_map=named))
    assert tokenizer.bos_id is None  # null says there is none
    assert tokenizer.pad_id == library.token_to_id("<|end|>")
    assert tokenizer.eos_id == library.token_to_id("<|im_end|>")
    (folder() / "tokenizer_config.json").unlink()
    alone = open_tokenizer(folder(None, special_tokens_map=named | {"eos_token": "<|end|>"}))
    assert alone.eos_token == "<|end|>" and alone.bos_id == library.token_to_id("<|begin|>")


@pytest.mark.parametrize(
    ("given", "stops"),
    [
        (None, ["<|im_end|>"]),
        ("<|end|>", ["<|im_end|>", "<|end|>"]),
        (["<|end|>", "<|im_end|>", "<|end|>"], ["<|im_end|>", "<|end|>"]),
        ([], ["<|im_end|>"]),
    ],
)
def test_generation_stops_at_all_ends(folder, library, given, stops):
    number = library.token_to_id
    ids = [*map(number, given)] if isinstance(given, list) else given and number(given)
    tokenizer = open_tokenizer(folder(generation_config={"eos_token_id": ids, "top_p": 0.9}))
    assert tokenizer.stop_ids == tuple(map(number, stops))
    assert tokenizer.stop_ids[0] == tokenizer.eos_id


def test_no_begin_token_where_the_tokenizer_itself_puts_none(folder, library, tmp_path):
    path = folder(CONFIG | {"bos_token": "<|begin|>"})
    assert open_tokenizer(path).bos_id == library.token_to_id("<|begin|>")
    raw = json.loads((path / "tokenizer.json").read_text()) | {"post_processor": None}
    (path / "tokenizer.json").write_text(json.dumps(raw))
    assert open_tokenizer(path).bos_id is None


def test_generation_stops_where_a_turn_of_the_chat_ends(folder, library):
    # ChatML on a base model whose own end is another token.
    chat = (
        "{% for m in messages %}<|User|>{{ m.content }}<|im_end|>\n{% endfor %}"
        "{% if add_generation_prompt %}<|User|>{% endif %}"
    )
    config = CONFIG | {"eos_token": "<|begin|>", "chat_template": chat}
    ends = [library.token_to_id(t) for t in ("<|begin|>", "<|im_end|>")]
    assert open_tokenizer(folder(config)).stop_ids == tuple(ends)


def test_ends_beyond_the_vocabulary_stop_nothing(folder, library):
    path = folder()
    (path / "generation_config.json").write_text('{"eos_token_id": [5, 1000000]}')
    assert open_tokenizer(path).stop_ids == (library.token_to_id("<|im_end|>"), 5)


def test_chat_template_of_the_configuration_or_its_own_file(folder):
    assert open_tokenizer(folder()).chat_template is None
    assert open_tokenizer(folder(CONFIG | {"chat_template": "a"})).chat_template == "a"
    several = [{"name": "tool_use", "template": "t"}, {"name": "default", "template": "d"}]
    assert open_tokenizer(folder(CONFIG | {"chat_template": several})).chat_template == "d"
    assert open_tokenizer(folder(CONFIG | {"chat_template": several[:1]})).chat_template is None
    path = folder(CONFIG | {"chat_template": "a"})
    (path / "chat_template.jinja").write_text("é\n")
    assert open_tokenizer(path).chat_template == "é\n"


def test_its_files_open_it_again(folder, tmp_path):
    path = folder(generation_config={"eos_token_id": 0}, special_tokens_map={}, config_of_model={})
    (path / "chat_template.jinja").write_text("{{ x }}")
    first = open_tokenizer(path)
    files = first.files()
    assert set(files) == {
        "tokenizer.json", "tokenizer_config.json", "special_tokens_map.json",
        "generation_config.json", "chat_template.jinja",
    }  # fmt: skip
    (copy := tmp_path / "copy").mkdir()
    for name, content in files.items():
        (copy / name).write_bytes(content)
    (copy / "tokenizer.model").write_bytes(b"not looked at")
    again = open_tokenizer(copy)
    assert again.files() == files and again.encode(CORPUS[1]) == first.encode(CORPUS[1])
    assert (again.stop_ids, again.chat_template) == (first.stop_ids, "{{ x }}")
    assert open_tokenizer(copy / "tokenizer.json").files() == files


NO_END = 'tokenizer_config.json names no eos_token, .*; add "eos_token"'


@pytest.mark.parametrize(
    ("files", "message"),
    [
        ({"tokenizer": "version https://git-lfs"}, "tokenizer.json is not a file of the tokeniz"),
        ({"tokenizer": "{}"}, "tokenizer.json is not a file of the tokenizers library: .*fetch it"),
        ({"config": "{"}, "tokenizer_config.json is not JSON: .*; fetch it again"),
        ({"config": "[]"}, "tokenizer_config.json is a JSON list, not an object; fetch it"),
        ({"config": {}}, NO_END),
        ({"config": None}, NO_END),
        ({"config": {"eos_token": None}}, NO_END),
        ({"config": {"eos_token": 3}}, "tokenizer_config.json: eos_token is 3; write"),
        ({"config": {"eos_token": {}}}, "tokenizer_config.json: eos_token is {}; write"),
        (
            {"config": {"eos_token": "<eos>"}},
            "tokenizer_config.json: eos_token is '<eos>', which .*/tokenizer.json does not have; "
            "take both files from the same model",
        ),
        ({"config": CONFIG | {"pad_token": "<p>"}}, "config.json: pad_token is '<p>', which"),
        ({"config": CONFIG | {"bos_token": "<b>"}}, "config.json: bos_token is '<b>', which"),
        (
            {"config": {}, "special_tokens_map": {"eos_token": "<e>"}},
            "special_tokens_map.json: eos_token is '<e>', which",
        ),
        ({"config": CONFIG | {"chat_template": 1}}, "config.json: chat_template is neither"),
        ({"config": CONFIG | {"chat_template": ["a"]}}, "chat_template is neither .*correct it"),
        (
            {"generation_config": {"eos_token_id": -1}},
            "generation_config.json: eos_token_id has -1, but ids .* 0 to 321; take the",
        ),
        ({"generation_config": {"eos_token_id": [True]}}, "eos_token_id has True"),
        ({"generation_config": {"eos_token_id": ["a"]}}, "eos_token_id has 'a'"),
    ],
)
def test_malformed_files(folder, files, message):
    path = folder(**files)
    with pytest.raises(ValueError, match=f"{re.escape(str(path))}/.*{message}"):
        HuggingFaceTokenizer(path / "tokenizer.json")


def test_a_chat_template_that_is_not_utf8(folder):
    path = folder()
    (path / "chat_template.jinja").write_bytes(b"\xff")
    with pytest.raises(ValueError, match="chat_template.jinja is not UTF-8: .*; fetch it again"):
        open_tokenizer(path)


def test_without_the_library(folder, monkeypatch):
    path = folder()
    monkeypatch.setitem(sys.modules, "tokenizers", None)
    with pytest.raises(ValueError, match=r'needs the tokenizers library: pip install "r1jax\[hf\]'):
        open_tokenizer(path)


def test_lone_surrogates_have_no_tokens(folder):
    with pytest.raises(ValueError, match="lone surrogate, '.ud800', at character 1; replace it"):
        open_tokenizer(folder()).encode("a\ud800")


def test_streamed_text_is_the_decoded_text(folder, library):
    tokenizer = open_tokenizer(folder())
    assert tokenizer.byte_run_ids == frozenset()
    rng = np.random.default_rng(1)
    parts_of_emoji = np.array(tokenizer.encode("👍é\u20ac"))
    for round_ in range(150):
        match round_ % 3:
            case 0:
                ids = list(rng.integers(-1, tokenizer.vocabulary + 2, 90))
            case 1:
                ids = list(rng.choice(parts_of_emoji, 90))
            case _:
                ids = tokenizer.encode(" 数👍 <think>\ufffd" * int(rng.integers(1, 20)))
        stream, at, parts = StreamDecoder(tokenizer), 0, []
        while at < len(ids):
            step = int(rng.choice([1, 1, 2, 30]))
            parts.append(stream.push(ids[at : at + step]))
            at += step
        assert "".join(parts) + stream.finish() == tokenizer.decode(ids)


def test_an_emoji_comes_out_whole_even_around_special_tokens(folder, library):
    tokenizer = open_tokenizer(folder())
    ids = tokenizer.encode("👍")
    assert len(ids) == 4
    stream = StreamDecoder(tokenizer)
    pads = [tokenizer.pad_id] * 100
    assert [stream.push([i, *pads]) for i in ids] == ["", "", "", "👍"]
