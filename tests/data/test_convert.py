import io
import json

import numpy as np
import pytest
import sentencepiece

from r1jax.data.convert import to_huggingface
from r1jax.data.tokenizers import (
    TAGS,
    SentencePieceTokenizer,
    StreamDecoder,
    open_tokenizer,
    train_sentencepiece,
)

ALPHABETS = {
    "ascii": [chr(c) for c in range(32, 127)],
    "two letters": list("ab"),
    "digits": list("0123456789 +="),
    "cjk": list("你好世界数学的是一不了人"),
    "emoji": list("👩👧👍🏽🇩🇪😀\u200d"),
    "white space": [*" \n\t\u3000\u2581", "  ", "    "],
    "tags": [*TAGS, "<", "</", "think>", " ", "a"],
    "any": [chr(c) for c in (*range(1, 0xD800, 97), *range(0xE000, 0x110000, 4999))],
}


def random_text(rng, chars, length):
    """Words of a few kinds, which recur as a corpus' do, and single characters."""
    words = ["".join(rng.choice(chars, rng.integers(1, 6))) for _ in range(6)]
    parts = [rng.choice(words if rng.random() < 0.7 else chars) for _ in range(length)]
    return "".join(part + " " * int(rng.random() < 0.2) for part in parts)


def save(files, folder):
    folder.mkdir(exist_ok=True)
    for name, content in files.items():
        (folder / name).write_bytes(content)
    return folder


@pytest.fixture(scope="module", params=[False, True], ids=["words", "merged"])
def pair(request, tmp_path_factory):
    """(ours, converted), trained on all alphabets but the last."""
    rng = np.random.default_rng(5)
    corpus = [
        random_text(rng, chars, 30)
        for name, chars in ALPHABETS.items() if name != "any" for _ in range(40)
    ]  # fmt: skip
    ours = train_sentencepiece(corpus, 1000, merge_words=request.param)
    folder = save(to_huggingface(ours), tmp_path_factory.mktemp("converted"))
    return ours, open_tokenizer(folder), folder


@pytest.mark.parametrize("alphabet", ALPHABETS)
def test_texts_have_the_same_ids_and_come_back_the_same(pair, alphabet):
    ours, converted, _ = pair
    rng = np.random.default_rng(7)
    several = 0
    for length in [0, 1, 2, *rng.integers(3, 60, size=200)]:
        text = random_text(rng, ALPHABETS[alphabet], int(length))
        ids = ours.encode(text)
        assert converted.encode(text) == ids, text
        assert converted.decode(ids) == ours.decode(ids) == text.replace("\u2581", " ")
        several += len(set(ids)) > 5
    assert several > 20  # the texts are not trivial


@pytest.mark.parametrize("letters", ["a", "ab", " a", " \n"])
def test_ties_between_pairs_of_one_piece(letters, tmp_path):
    """Runs of few letters, where a piece is made from many pairs and pairs overlap."""
    rng = np.random.default_rng(11)
    texts = ["".join(rng.choice(list(letters), n)) + "x" for n in rng.integers(1, 40, size=300)]
    ours = train_sentencepiece(texts[:100], 500, merge_words=True)
    converted = open_tokenizer(save(to_huggingface(ours), tmp_path))
    assert [converted.encode(t) for t in texts] == [ours.encode(t) for t in texts]
    assert max(len(ours.decode([i])) for t in texts for i in ours.encode(t)) > 4


def test_random_ids_decode_the_same(pair):
    ours, converted, _ = pair
    assert converted.byte_run_ids == set(range(8, 264))  # after controls and tags
    rng = np.random.default_rng(13)
    no_byte = np.setdiff1d(np.arange(ours.vocabulary + 50), sorted(converted.byte_run_ids))
    for _ in range(300):
        ids = rng.choice(no_byte, 30)
        assert converted.decode(ids) == ours.decode(ids)
        whole = [*ids[:5], *(8 + b for b in "é😀\n数".encode()), *ids[5:]]
        assert converted.decode(whole) == ours.decode(whole)


def test_the_named_exceptions(pair):
    ours, converted, _ = pair
    assert converted.specials == ("<pad>", "<s>", "</s>", "<unk>")
    assert converted.encode("a<s>b")[1:2] == [1] and 1 not in ours.encode("a<s>b")
    garbage = [8 + b for b in b"\xc3\xa9\xff"]
    assert ours.decode(garbage) == "é\ufffd"
    assert converted.decode(garbage) == "\ufffd" * 3


def test_streams_of_byte_runs(pair):
    """The one decoder whose text of a byte changes with bytes that follow much later."""
    _, converted, _ = pair
    rng = np.random.default_rng(17)
    for _ in range(200):
        ids = list(rng.integers(0, 300, 40))  # mostly bytes
        ids[10:10] = [8 + b for b in "😀数".encode()]
        stream = StreamDecoder(converted)
        parts = [stream.push([i]) for i in ids]
        assert "".join(parts) + stream.finish() == converted.decode(ids)
    stream = StreamDecoder(converted)
    assert [stream.push([8 + b]) for b in "é".encode()] == ["", ""]
    assert stream.push([1]) == "" and stream.push(converted.encode("a")) == "éa"


def test_tokens_and_special_ids_agree(pair):
    ours, converted, folder = pair
    for name in ("pad_id", "bos_id", "eos_id", "stop_ids", "vocabulary", "bos_token", "eos_token"):
        assert getattr(converted, name) == getattr(ours, name), name
    added = json.loads((folder / "tokenizer.json").read_text())["added_tokens"]
    assert {t["content"]: t["id"] for t in added if not t["special"]} == {
        tag: ours.encode(tag)[0] for tag in TAGS
    }


def test_transformers_opens_it(pair):
    transformers = pytest.importorskip("transformers")
    ours, _, folder = pair
    theirs = transformers.AutoTokenizer.from_pretrained(folder)
    named = (theirs.pad_token_id, theirs.bos_token_id, theirs.eos_token_id, theirs.unk_token_id)
    assert named == (0, 1, 2, 3) and len(theirs) == ours.vocabulary
    for text in (" two  spaces\n", "<think>1 + 1 , 2</think>", "", "Ж 数 😀 it 's ."):
        ids = ours.encode(text)
        assert theirs(text, add_special_tokens=False)["input_ids"] == ids
        assert theirs(text)["input_ids"] == [1, *ids]
        assert theirs.decode([1, *ids, 2], skip_special_tokens=True) == text


def other_model(**settings):
    model = io.BytesIO()
    plain = dict(
        model_type="bpe", vocab_size=320, hard_vocab_limit=False, byte_fallback=True,
        normalization_rule_name="identity", add_dummy_prefix=False,
        remove_extra_whitespaces=False, minloglevel=2,
    )  # fmt: skip
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(["one two three"] * 9), model_writer=model, **(plain | settings)
    )
    return SentencePieceTokenizer(model.getvalue())


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"model_type": "unigram"}, "is not a byte-pair model"),
        ({"byte_fallback": False}, "has no bytes to fall back to"),
        ({"bos_id": -1}, "has no begin token"),
        ({"normalization_rule_name": "nfkc"}, "changes letters before it splits"),
        ({"add_dummy_prefix": True}, "puts a space before every text"),
        ({"remove_extra_whitespaces": True}, "takes spaces out"),
    ],
)
def test_models_of_another_kind(settings, message):
    assert set(to_huggingface(other_model())) == {"tokenizer.json", "tokenizer_config.json"}
    with pytest.raises(ValueError, match=f"model {message}; .*hand on its tokenizer.model"):
        to_huggingface(other_model(**settings))
