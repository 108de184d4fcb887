"""Train the byte-level BPE tokenizer and turn the books into token arrays.

    python models/train/tokenizer.py --books DIR --out RUN

writes `RUN/tokenizer.json`, and `RUN/{train,validation,calibration}.npy` (uint16 token ids). Every book is written as
`<s> text </s>`. Only the training split is seen by the BPE trainer.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import numpy.typing as npt
from corpus import MANIFEST, SPLITS, books_of, read_book
from errors import UserError, run_command
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers

BOS, EOS = "<s>", "</s>"
BOS_ID, EOS_ID = 0, 1


def train_tokenizer(texts: Iterator[str], vocab_size: int) -> Tokenizer:
    """A byte-level BPE tokenizer of exactly `vocab_size` entries, `<s>` = 0 and `</s>` = 1; encoding prepends `<s>`."""
    if not 258 < vocab_size <= 65535:
        raise UserError(f"--vocab-size is {vocab_size}; give 259 to 65535 (256 bytes, two specials, some merges)")
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{BOS} $A", pair=f"{BOS} $A {BOS}:1 $B:1", special_tokens=[(BOS, BOS_ID)]
    )
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=[BOS, EOS],
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    found = tokenizer.get_vocab_size()
    if found != vocab_size:
        raise UserError(f"the text yields only {found} of {vocab_size} entries; give more text or ask for fewer")
    return tokenizer


def encode_books(tokenizer: Tokenizer, texts: Iterator[str]) -> npt.NDArray[np.uint16]:
    """All texts as one array of token ids, each framed by `<s>` and `</s>`."""
    parts = []
    for text in texts:
        ids = tokenizer.encode(text, add_special_tokens=False).ids
        parts.append(np.array([BOS_ID, *ids, EOS_ID], dtype=np.uint16))
    return np.concatenate(parts)


def main() -> None:
    """Read the command line and run."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", 1)[0])
    parser.add_argument("--books", type=Path, required=True, help="folder with one .txt per manifest row")
    parser.add_argument("--out", type=Path, required=True, help="run folder, outside the repository")
    parser.add_argument("--manifest", type=Path, default=MANIFEST)
    parser.add_argument("--vocab-size", type=int, default=4000)
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)

    def texts(split: str) -> Iterator[str]:
        return (read_book(args.books, book) for book in books_of(split, args.manifest))

    tokenizer = train_tokenizer(texts("train"), args.vocab_size)
    tokenizer.save(str(args.out / "tokenizer.json"))
    for split in SPLITS:
        ids = encode_books(tokenizer, texts(split))
        np.save(args.out / f"{split}.npy", ids)
        letters = sum(len(text) for text in texts(split))
        print(f"{split}: {len(ids)} tokens, {letters / len(ids):.3f} characters per token", flush=True)


if __name__ == "__main__":
    run_command(main)
