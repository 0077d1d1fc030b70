"""Tokenizers of published models: tokenizer.json, read by the `tokenizers` library."""

import json
from collections.abc import Sequence
from pathlib import Path

from r1jax.data.tokenizers import JSON_FILE, check_text
from r1jax.templates import breakable

CONFIG_FILE = "tokenizer_config.json"
MAP_FILE = "special_tokens_map.json"
GENERATION_FILE = "generation_config.json"
TEMPLATE_FILE = "chat_template.jinja"


class HuggingFaceTokenizer:
    """A tokenizer.json with the files beside it; the attributes are `tokenizers.Tokenizer`'s.

    Begin, end and pad tokens are the ones that tokenizer_config.json names, or
    special_tokens_map.json where it says nothing; padding is by the end token where neither
    names another. There is no `bos_id` where the begin token is null or `add_bos_token` is
    false, or says nothing and the tokenizer itself puts no begin token. Generation also stops at
    the ids of generation_config.json, and where a turn of the chat ends. `specials` are the
    special tokens and, because DeepSeek does not mark `<｜User｜>` as special, every other
    added token that the chat template spells out.

    Raises ValueError naming the file, what is wrong with it and the mend.
    """

    def __init__(self, path: str | Path):
        path = Path(path)
        try:
            import tokenizers  # only whoever uses published models needs it
        except ImportError as error:
            raise ValueError(
                f'{path} needs the tokenizers library: pip install "r1jax[hf]"'
            ) from error
        beside = (CONFIG_FILE, MAP_FILE, GENERATION_FILE, TEMPLATE_FILE)
        paths = {JSON_FILE: path, **{name: path.parent / name for name in beside}}
        self._paths = {name: p for name, p in paths.items() if p.is_file()}
        self._files = {name: p.read_bytes() for name, p in self._paths.items()}
        try:
            self._tokenizer = tokenizers.Tokenizer.from_buffer(self._files[JSON_FILE])
        except Exception as error:  # the library has no narrower one
            raise ValueError(
                f"{path} is not a file of the tokenizers library: {error}; fetch it again"
            ) from error
        # Settings of whoever saved it last; neither may change what a text's ids are.
        self._tokenizer.no_truncation()
        self._tokenizer.no_padding()
        known = self._tokenizer.get_vocab(with_added_tokens=True)
        self.vocabulary = max(known.values(), default=-1) + 1

        config = self._json(CONFIG_FILE)
        self._named = self._json(MAP_FILE) | config
        self.bos_token = self._token("bos_token")
        eos_token = self._token("eos_token")
        if eos_token is None:
            raise ValueError(
                f"{path.parent / CONFIG_FILE} names no eos_token, so that no response could end; "
                'add "eos_token": "…" with the text of the token that ends a response'
            )
        self.eos_token = eos_token
        self.eos_id = self._id("eos_token", eos_token)
        pad_token = self._token("pad_token")
        self.pad_id = self.eos_id if pad_token is None else self._id("pad_token", pad_token)
        self.bos_id = None
        if self.bos_token is not None:
            bos_id = self._id("bos_token", self.bos_token)
            # Where nothing is said, as the tokenizer does itself (Llama 3 has a post-processor).
            begins, said = (
                self._tokenizer.encode("").ids[:1] == [bos_id],
                config.get("add_bos_token"),
            )
            self.bos_id = bos_id if (begins if said is None else said) else None
        self.chat_template = self._chat_template(config)
        self.specials = tuple(
            token.content
            for token in self._tokenizer.get_added_tokens_decoder().values()
            if (token.special or token.content in (self.chat_template or ""))
            and breakable(token.content)
        )
        self.stop_ids = self._stop_ids()
        self.byte_run_ids: frozenset[int] = frozenset()
        if self.decode([known.get("<0x41>", -1)]) == "A":
            self.byte_run_ids = frozenset(known.get(f"<0x{b:02X}>", -1) for b in range(256))

    def encode(self, text: str) -> list[int]:
        check_text(text)
        return self._tokenizer.encode(text, add_special_tokens=False).ids

    def decode(self, ids: Sequence[int]) -> str:
        known = [int(i) for i in ids if 0 <= i < self.vocabulary]
        return self._tokenizer.decode(known, skip_special_tokens=True)

    def files(self) -> dict[str, bytes]:
        return dict(self._files)

    def _json(self, name: str) -> dict:
        """The object in a file; an empty one where there is no file."""
        if name not in self._files:
            return {}
        try:
            value = json.loads(self._files[name])
        except ValueError as error:
            raise ValueError(f"{self._paths[name]} is not JSON: {error}; fetch it again") from error
        if not isinstance(value, dict):
            raise ValueError(
                f"{self._paths[name]} is a JSON {type(value).__name__}, not an object; "
                "fetch it again"
            )
        return value

    def _where(self, name: str) -> Path:
        """The file that names the special token `name`."""
        return self._paths[CONFIG_FILE if name in self._json(CONFIG_FILE) else MAP_FILE]

    def _token(self, name: str) -> str | None:
        """Text of a special token, written as a string or as an object with "content"."""
        value = self._named.get(name)
        text = value.get("content") if isinstance(value, dict) else value
        if value is not None and not isinstance(text, str):
            raise ValueError(
                f"{self._where(name)}: {name} is {value!r}; "
                'write the token\'s text, or an object that has it as "content"'
            )
        return text

    def _id(self, name: str, text: str) -> int:
        number = self._tokenizer.token_to_id(text)
        if number is None:
            raise ValueError(
                f"{self._where(name)}: {name} is {text!r}, which {self._paths[JSON_FILE]} does "
                "not have; take both files from the same model"
            )
        return number

    def _stop_ids(self) -> tuple[int, ...]:
        """The end token, the ids of generation_config.json, and what ends a turn in a chat.

        Ids beyond the vocabulary stop nothing: some files name a row of the padded embedding.
        """
        ids = self._json(GENERATION_FILE).get("eos_token_id")
        ids = [] if ids is None else ids if isinstance(ids, list) else [ids]
        for i in ids:
            if type(i) is not int or i < 0:
                raise ValueError(
                    f"{self._paths[GENERATION_FILE]}: eos_token_id has {i!r}, but ids are whole "
                    f"numbers from 0 to {self.vocabulary - 1}; take the tokenizer's own file"
                )
        known = [i for i in ids if i < self.vocabulary]
        return tuple(dict.fromkeys([self.eos_id, *known, *self._end_of_turn()]))

    def _end_of_turn(self) -> list[int]:
        """The special token that the chat template puts after an assistant's words, if one."""
        if self.chat_template is None:
            return []
        from r1jax.data.chat import render  # which imports what this module implements

        said = "Yes."
        turns = [{"role": "user", "content": "So?"}, {"role": "assistant", "content": said}]
        try:
            text = render(self, turns, add_generation_prompt=False)
        except ValueError:  # it says so itself where somebody renders with it
            return []
        after = text.rpartition(said)[2].lstrip()
        return [self._id(t, t) for t in self.specials if t and after.startswith(t)][:1]

    def _chat_template(self, config: dict) -> str | None:
        if TEMPLATE_FILE in self._files:
            try:
                return self._files[TEMPLATE_FILE].decode()
            except UnicodeDecodeError as error:
                raise ValueError(
                    f"{self._paths[TEMPLATE_FILE]} is not UTF-8: {error}; fetch it again"
                ) from error
        template = config.get("chat_template")
        try:
            if isinstance(template, list):
                template = {t["name"]: t["template"] for t in template}.get("default")
            if template is None or isinstance(template, str):
                return template
        except (KeyError, TypeError):
            pass
        raise ValueError(
            f"{self._paths[CONFIG_FILE]}: chat_template is neither a text nor a list of objects "
            'with "name" and "template"; correct it or take it out'
        )
