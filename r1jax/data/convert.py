"""Our sentencepiece models as files of the `tokenizers` library, for transformers and others."""

import json

from r1jax.data.huggingface_tokenizer import CONFIG_FILE
from r1jax.data.tokenizers import JSON_FILE, SentencePieceTokenizer

_SPACE = "\u2581"  # what sentencepiece writes for a space


def to_huggingface(tokenizer: SentencePieceTokenizer) -> dict[str, bytes]:
    """tokenizer.json and tokenizer_config.json of a model that `train_sentencepiece` made.

    Read without special tokens, they encode every text to the same ids and decode those to
    the same text, with these exceptions:
      - the texts of the control tokens (`<s>`, `</s>`, `<pad>`, `<unk>`) become control ids;
        sentencepiece takes them for ordinary text;
      - ids that no text encodes to: a run of byte tokens that is not UTF-8 as a whole
        decodes to U+FFFD throughout; sentencepiece keeps the characters that are whole;
      - a piece that two overlapping pairs of neighbours make, X Y and Y Z with XY = YZ:
        sentencepiece merges the left pair first, `tokenizers` the one whose left part is
        the longer. A million random texts over one to three letters had none.
    With special tokens, `<s>` comes first, as it does in training.

    Raises ValueError for a model of another kind.
    """
    # Needs protobuf, which sentencepiece itself does without.
    from sentencepiece.sentencepiece_model_pb2 import ModelProto

    model = ModelProto.FromString(tokenizer.model)
    kinds, pieces = ModelProto.SentencePiece, list(model.pieces)
    ids = {p.piece: i for i, p in enumerate(pieces)}
    if odd := _oddities(model, len(ids)):
        raise ValueError(
            f"the sentencepiece model {odd[0]}; only models as train_sentencepiece makes them "
            "can be converted: hand on its tokenizer.model as it is"
        )
    special = [p.piece for p in pieces if p.type in (kinds.CONTROL, kinds.UNKNOWN)]
    symbols = [p.piece for p in pieces if p.type == kinds.USER_DEFINED]
    normal = {p.piece: p.score for p in pieces if p.type == kinds.NORMAL}
    merges = [
        (piece[:at], piece[at:])
        for piece in sorted(normal, key=normal.get, reverse=True)
        for at in range(len(piece) - 1, 0, -1)
        if piece[:at] in normal and piece[at:] in normal
    ]
    unknown = pieces[model.trainer_spec.unk_id].piece
    begin = {"SpecialToken": {"id": tokenizer.bos_token, "type_id": 0}}
    described = {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": [
            {
                "id": ids[text], "content": text, "single_word": False, "lstrip": False,
                "rstrip": False, "normalized": False, "special": text in special,
            }
            for text in sorted([*special, *symbols], key=ids.get)
        ],
        "normalizer": {"type": "Replace", "pattern": {"String": " "}, "content": _SPACE},
        "pre_tokenizer": None,  # pieces may span words
        "post_processor": {
            "type": "TemplateProcessing",
            "single": [begin, {"Sequence": {"id": "A", "type_id": 0}}],
            "pair": [
                begin, {"Sequence": {"id": "A", "type_id": 0}},
                begin, {"Sequence": {"id": "B", "type_id": 0}},
            ],
            "special_tokens": {
                tokenizer.bos_token: {
                    "id": tokenizer.bos_token, "ids": [tokenizer.bos_id],
                    "tokens": [tokenizer.bos_token],
                }
            },
        },
        "decoder": {
            "type": "Sequence",
            "decoders": [
                {"type": "Replace", "pattern": {"String": _SPACE}, "content": " "},
                {"type": "ByteFallback"},
                {"type": "Fuse"},
            ],
        },
        "model": {
            "type": "BPE", "dropout": None, "unk_token": unknown,
            "continuing_subword_prefix": None, "end_of_word_suffix": None, "fuse_unk": False,
            "byte_fallback": True, "ignore_merges": False, "vocab": ids, "merges": merges,
        },
    }  # fmt: skip
    config = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "bos_token": tokenizer.bos_token,
        "eos_token": tokenizer.eos_token,
        "pad_token": pieces[tokenizer.pad_id].piece,
        "unk_token": unknown,
        "clean_up_tokenization_spaces": False,
    }
    return {
        JSON_FILE: json.dumps(described, ensure_ascii=False).encode(),
        CONFIG_FILE: json.dumps(config, ensure_ascii=False, indent=2).encode(),
    }


def _oddities(model, distinct: int) -> list[str]:
    """What a model has that the files above cannot say."""
    trainer, normalizer = model.trainer_spec, model.normalizer_spec
    odd = {
        "is not a byte-pair model": trainer.model_type != trainer.BPE,
        "has no bytes to fall back to": not trainer.byte_fallback,
        "has no begin token": trainer.bos_id < 0,
        "changes letters before it splits": bool(normalizer.precompiled_charsmap),
        "puts a space before every text": normalizer.add_dummy_prefix,
        "takes spaces out": normalizer.remove_extra_whitespaces,
        f"does not write spaces as {_SPACE}": not normalizer.escape_whitespaces,
        "changes text after decoding": bool(model.denormalizer_spec.precompiled_charsmap),
        "has the same piece twice": distinct != len(model.pieces),
        "has pieces that are not in use": any(p.type == p.UNUSED for p in model.pieces),
    }
    return [what for what, has in odd.items() if has]
