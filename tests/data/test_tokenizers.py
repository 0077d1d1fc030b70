import re
import unicodedata

import pytest

from r1jax.data.tokenizers import TAGS, SentencePieceTokenizer, train_sentencepiece

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
    assert tokenizer.decode([1, *ids, 2, 0, 0, *beyond]) == "sum of"
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
