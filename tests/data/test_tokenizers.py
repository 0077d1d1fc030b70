import io
import re
import unicodedata

import numpy as np
import pytest
import sentencepiece

from r1jax.data.tokenizers import (
    TAGS,
    SentencePieceTokenizer,
    StreamDecoder,
    open_tokenizer,
    train_sentencepiece,
)

SPACE_MARK = "\u2581"
CORPUS = [
    "What is 12 + 345? The sum of 12 and 345 is 357, and the sum of 357 and 1 is 358.",
    "<think>the sum of 1 and 2\nis 3</think>\n<answer>\\boxed{3}</answer>",
    "The sum of the sum of 1 and 1 and the sum of 2 and 2 is 6. Здравствуй, мир! 你好，世界。",
] * 20


@pytest.fixture(scope="module", params=[False, True], ids=["words", "merged"])
def tokenizer(request):
    return train_sentencepiece(CORPUS, 380, merge_words=request.param)


@pytest.mark.parametrize(
    "text",
    [
        "", " ", "   ", "\n", " \n\t\r\n\v\f ", "\x00", "a\x00\x7fb", "  two  spaces  each  ",
        "e\u0301 é", "Å Å Å", "ﬁ ﬀ ﷺ ① ² Ⅳ ½", "\u00a0\u2002\u2003\u3000\u200b\u202f\ufeff",
        "\u2028\u2029\u0085", "עברית العربية", "हिन्दी ไทย 한국어 日本語",
        "👩\u200d👩\u200d👧\u200d👦 🇩🇪 👍🏽", "\U0010ffff\ufffe\uffff\ue000\ufffd",
        "<0x41><0xE2>", "<s></s><pad><unk> ⁇ ",
        "<think", "think>", "< think>", "</ answer>", "<THINK>", "x\u2582y\u2580z", "İıſß",
    ],
)  # fmt: skip
def test_texts_come_back_exactly(tokenizer, text):
    assert tokenizer.decode(tokenizer.encode(text)) == text


def test_all_of_unicode_comes_back_exactly(tokenizer):
    # The basic plane whole, of the others every 97th; in pieces of 1,000, apart and together.
    points = [*range(0x10000), *range(0x10000, 0x110000, 97)]
    every = [chr(c) for c in points if not 0xD800 <= c < 0xE000 and chr(c) != SPACE_MARK]
    assert len(every) > 70_000
    for separator in ("", " "):
        for at in range(0, len(every), 1000):
            text = separator.join(every[at : at + 1000])
            assert tokenizer.decode(tokenizer.encode(text)) == text
    assert not unicodedata.is_normalized("NFC", "".join(every))  # nothing is normalised away


def test_the_space_mark_itself_is_the_one_exception(tokenizer):
    assert tokenizer.decode(tokenizer.encode(f"a{SPACE_MARK}b")) == "a b"


def test_fixed_ids(tokenizer):
    assert (tokenizer.pad_id, tokenizer.bos_id, tokenizer.eos_id) == (0, 1, 2)
    assert tokenizer.stop_ids == (2,)
    assert (tokenizer.bos_token, tokenizer.eos_token) == ("<s>", "</s>")
    assert 320 <= tokenizer.vocabulary <= 380
    ids = set().union(*map(tokenizer.encode, CORPUS))
    assert max(ids) < tokenizer.vocabulary and not ids & {0, 1, 2, 3}


def test_tags_are_single_symbols_wherever_they_stand(tokenizer):
    ids = [tokenizer.encode(tag) for tag in TAGS]
    assert [len(i) for i in ids] == [1] * 4 and len({i[0] for i in ids}) == 4
    for tag, (i,) in zip(TAGS, ids, strict=True):
        for text in (f"x{tag}y", f" {tag} ", f"<{tag}>", tag * 2, f"1{tag}\n"):
            assert tokenizer.encode(text).count(i) == text.count(tag)
        assert tokenizer.decode([i]) == tag


def test_digits_are_split_and_spaces_merge_only_if_asked(tokenizer, request):
    pieces = [tokenizer.decode([i]) for i in range(4, tokenizer.vocabulary)]
    assert {p for p in pieces if re.search(r"\d", p)} == set("0123456789")
    for text in ("12345", "000", "1+2=3", "٣٤"):
        digits = sum(c.isdigit() for c in text)
        assert len(tokenizer.encode(text)) >= digits
    spanning = [p for p in pieces if " " in p.strip()]
    merged = "merged" in request.node.callspec.id
    assert bool(spanning) == merged


def test_control_ids_and_ids_beyond_have_no_text(tokenizer):
    ids = tokenizer.encode("sum of")
    beyond = [tokenizer.vocabulary, tokenizer.vocabulary + 1000, -1]
    assert tokenizer.decode([1, *ids, 2, 0, 3, *beyond]) == "sum of"
    assert tokenizer.decode(np.array([1, *ids, 2, 0, 3, *beyond])) == "sum of"
    euro = tokenizer.encode("\u20ac")
    assert len(euro) == 3 and tokenizer.decode([euro[0], 2, euro[1], 0, euro[2]]) == "\u20ac"
    assert tokenizer.decode([]) == ""


def test_training_twice_gives_the_same_bytes(tokenizer):
    merged = len(tokenizer.encode("the sum of ")) < 3
    again = train_sentencepiece(iter(CORPUS), 380, merge_words=merged)
    assert again.model == tokenizer.model
    assert train_sentencepiece(CORPUS[:-1], 400, merge_words=merged).model != tokenizer.model


def test_saved_and_loaded(tokenizer, tmp_path):
    path = tmp_path / "tokenizer.model"
    path.write_bytes(tokenizer.model)
    loaded = SentencePieceTokenizer.load(path)
    assert loaded.encode(CORPUS[0]) == tokenizer.encode(CORPUS[0])
    assert (loaded.vocabulary, loaded.model) == (tokenizer.vocabulary, tokenizer.model)


def test_foreign_bytes(tokenizer, tmp_path):
    for foreign in (b"", b"x", b"{}", bytes(100), tokenizer.model[:-5], tokenizer.model[:100]):
        with pytest.raises(ValueError, match=r"memory is .*not a sentencepiece model"):
            SentencePieceTokenizer(foreign)
    path = tmp_path / "tokenizer.model"
    with pytest.raises(ValueError, match=re.escape(f"no tokenizer at {path}")):
        SentencePieceTokenizer.load(path)
    path.write_bytes(b"PK\x03\x04")
    with pytest.raises(ValueError, match=re.escape(f"{path} is not a sentencepiece model")):
        SentencePieceTokenizer.load(path)


def test_too_small_a_vocabulary():
    with pytest.raises(ValueError, match="vocabulary=319 is below 320"):
        train_sentencepiece(CORPUS, 319)
    assert train_sentencepiece(CORPUS, 320).vocabulary <= 320


def test_vocabulary_is_an_upper_limit():
    assert train_sentencepiece(["ab"], 5000).vocabulary < 320


def test_no_text_becomes_a_control_id(tokenizer):
    assert tokenizer.specials == () and tokenizer.chat_template is None
    for token in (tokenizer.bos_token, tokenizer.eos_token, "<pad>", "<unk>"):
        assert not set(tokenizer.encode(f"a{token}")) & {0, 1, 2, 3}


@pytest.mark.parametrize("text", ["\ud800", "ab \udfff!", "\udc00\ud800"])
def test_lone_surrogates_have_no_tokens(tokenizer, text):
    at = next(i for i, c in enumerate(text) if c >= "\ud800")
    with pytest.raises(ValueError, match=f"lone surrogate, .* at character {at}; replace it: "):
        tokenizer.encode(text)
    assert "?" in tokenizer.decode(tokenizer.encode(text.encode("utf-8", "replace").decode()))


def test_opened_from_its_files(tokenizer, tmp_path):
    files = tokenizer.files()
    assert list(files) == ["tokenizer.model"]
    path = tmp_path / "tokenizer.model"
    path.write_bytes(files["tokenizer.model"])
    (tmp_path / "renamed.model").write_bytes(files["tokenizer.model"])
    for at in (tmp_path, str(tmp_path), path, tmp_path / "renamed.model"):
        assert open_tokenizer(at).model == tokenizer.model


def test_nothing_to_open(tmp_path):
    expected = "expected tokenizer.json or tokenizer.model"
    with pytest.raises(ValueError, match=re.escape(f"no tokenizer in {tmp_path}: {expected}")):
        open_tokenizer(tmp_path)
    absent = tmp_path / "no.model"
    with pytest.raises(ValueError, match=re.escape(f"no tokenizer at {absent}: expected a folder")):
        open_tokenizer(absent)
    (text := tmp_path / "vocab.txt").write_text("a")
    with pytest.raises(
        ValueError, match=re.escape(f"{text} is no tokenizer by its name: expected")
    ):
        open_tokenizer(text)
    (tmp_path / "tokenizer.model").write_bytes(b"\x00")
    with pytest.raises(ValueError, match="tokenizer.model is not a sentencepiece model"):
        open_tokenizer(tmp_path)


def other_model(**settings):
    """A model as others train them: a space before every text, no padding token."""
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(CORPUS), model_writer=model, model_type="bpe", vocab_size=400,
        hard_vocab_limit=False, byte_fallback=True, minloglevel=2, **settings,
    )  # fmt: skip
    return SentencePieceTokenizer(model.getvalue())


def test_models_without_some_control_tokens():
    plain = other_model()
    assert (plain.bos_id, plain.eos_id, plain.pad_id) == (1, 2, 2)  # padded by the end token
    without = other_model(bos_id=-1)
    assert (without.bos_id, without.bos_token) == (None, None)
    with pytest.raises(ValueError, match="memory has no end token.*train it with eos_id set"):
        other_model(eos_id=-1)


def streams(tokenizer, rng):
    """Ids of texts, of garbage, and of garbage that is mostly bytes."""
    texts = [
        *CORPUS[:3],
        "  two 👩\u200d👧 x\ufffdy\ufffd\ufffd\ufffd 数\u20ac",
        "\ufffd" * 9,
        "   ",
    ]
    yield from ([tokenizer.bos_id, *tokenizer.encode(text)] for text in texts)
    a = tokenizer.encode("a")
    # The last such id is the piece, which may have no text at a beginning; the byte has.
    space = [i for i in range(tokenizer.vocabulary) if tokenizer.decode([*a, i]) == "a "][-1]
    yield [*[space] * 50, *a, *[space] * 50, *a]
    for _ in range(60):
        yield list(rng.integers(-1, tokenizer.vocabulary + 2, 90))
        yield list(rng.integers(0, 270, 90))
        bytes_of = np.array(tokenizer.encode("\u20ac👩\u200d"))
        yield list(rng.choice(bytes_of, 90))


@pytest.mark.parametrize("kind", ["words", "merged", "space before"])
def test_streamed_text_is_the_decoded_text(kind):
    match kind:
        case "space before":
            tokenizer = other_model()
        case _:
            tokenizer = train_sentencepiece(CORPUS, 380, merge_words=kind == "merged")
    rng = np.random.default_rng(1)
    for ids in streams(tokenizer, rng):
        stream, at, parts = StreamDecoder(tokenizer), 0, []
        whole = tokenizer.decode(ids)
        while at < len(ids):
            step = int(rng.choice([0, 1, 1, 1, 2, 40]))
            parts.append(stream.push(ids[at : at + step]))
            at += step
            assert whole.startswith("".join(parts))
            # No more waits than an unfinished character can be.
            assert len(tokenizer.decode(ids[:at])) - len("".join(parts)) <= 3
        assert "".join(parts) + stream.finish() == whole
        assert stream.finish() == "" and stream.push(ids) + stream.finish() == whole


def test_an_emoji_comes_out_whole(tokenizer):
    ids = tokenizer.encode("sum 👍 sum")
    start = next(i for i in range(len(ids)) if "\ufffd" in tokenizer.decode(ids[: i + 1]))
    stream = StreamDecoder(tokenizer)
    parts = [stream.push([i]) for i in ids]
    assert parts[start : start + 4] == ["", "", "", "👍"]
    assert "".join(parts) == "sum 👍 sum"


def test_garbage_does_not_wait_for_ever(tokenizer):
    (byte,) = set(tokenizer.encode("\u20ac")[:1])
    stream = StreamDecoder(tokenizer)
    parts = [stream.push([byte]) for _ in range(50)]
    assert parts == [""] * 3 + ["\ufffd"] * 47 and stream.finish() == "\ufffd" * 3


@pytest.mark.parametrize("text", ["the sum of 1 ", "\u20ac", "\ufffd", None])
def test_cost_of_a_push_does_not_grow(tokenizer, text, monkeypatch):
    decode, asked = tokenizer.decode, []
    monkeypatch.setattr(tokenizer, "decode", lambda ids: asked.append(len(ids)) or decode(ids))
    ids = [0] * 3000 if text is None else tokenizer.encode(text * 1000)
    stream = StreamDecoder(tokenizer)
    for i in ids:
        stream.push([i])
    assert max(asked) <= 33 and len(asked) < 4 * len(ids)
