"""A tokenizer for the tiny models of support.tiny_models: letters, some pairs, and a BOS token before a text."""

from __future__ import annotations

import json
import string
from pathlib import Path

from tokenizers import AddedToken, Tokenizer, decoders, models, processors

#: As in support.tiny_models: padding, begin and end of a text, and the number of tokens.
PAD, BOS, EOS, VOCABULARY = "<pad>", "<s>", "</s>", 83
#: Pairs that become one token, so that a text's tokens depend on what stands behind them; one holds a blank.
_PAIRS = ("th", "in", "er", "an", " a", "en")


def save_letter_tokenizer(folder: Path) -> None:
    """Write tokenizer.json and tokenizer_config.json, as a Hugging Face model has them."""
    letters = [*string.ascii_lowercase, *string.ascii_uppercase, *" .,:?!'-\n0123456789"]
    names = [PAD, BOS, EOS, *letters, *_PAIRS][:VOCABULARY]
    merges = [(pair[0], pair[1]) for pair in _PAIRS if pair in names]
    vocabulary = {name: i for i, name in enumerate(names)}
    tokenizer = Tokenizer(models.BPE(vocabulary, merges, unk_token="?"))  # noqa: S106  # a token of text, no password
    tokenizer.add_special_tokens([AddedToken(name, special=True) for name in (PAD, BOS, EOS)])
    tokenizer.post_processor = processors.TemplateProcessing(single=f"{BOS} $A", special_tokens=[(BOS, 1)])
    tokenizer.decoder = decoders.Fuse()
    tokenizer.save(str(folder / "tokenizer.json"))
    settings = {"tokenizer_class": "PreTrainedTokenizerFast", "bos_token": BOS, "eos_token": EOS, "pad_token": PAD}
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))
