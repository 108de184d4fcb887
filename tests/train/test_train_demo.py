"""The committed demo model is what its card says: loads everywhere, fits, uses far context, and repeats."""

from __future__ import annotations

import json
from typing import Any

import pytest
import torch
from corpus import EXCERPT_SEPARATOR
from evaluate import far_context, induction, windows_of
from safetensors import safe_open
from tokenizers import Tokenizer
from train_support import ROOT
from transformers import AutoModelForCausalLM, AutoTokenizer

DEMO = ROOT / "models" / "demo"
PIECE = 'Said the old man, "Naïve — isn\'t it?"\n\nNobody replied.'


@pytest.fixture(scope="module")
def model() -> Any:
    return AutoModelForCausalLM.from_pretrained(DEMO, dtype=torch.float32).eval()


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return Tokenizer.from_file(str(DEMO / "tokenizer.json"))


def test_folder_is_small_and_holds_no_pickle() -> None:
    files = [path for path in DEMO.rglob("*") if path.is_file()]
    assert sum(path.stat().st_size for path in files) <= 24 * 10**6
    assert {path.suffix for path in files} <= {".json", ".safetensors", ".md", ".txt", ".tsv"}


def test_no_two_dimensions_coincide() -> None:
    config = json.loads((DEMO / "config.json").read_text())
    names = ("vocab_size", "intermediate_size", "hidden_size", "head_dim", "num_hidden_layers", "num_attention_heads",
             "num_key_value_heads", "max_position_embeddings")  # fmt: skip
    assert len({config[name] for name in names}) == len(names)
    assert config["head_dim"] == 64
    assert config["num_attention_heads"] // config["num_key_value_heads"] in {2, 4}


def test_weights_are_float16_and_the_projection_is_tied(model: Any) -> None:
    with safe_open(DEMO / "model.safetensors", "pt") as stored:
        assert "lm_head.weight" not in stored.keys()  # noqa: SIM118  # not a dict
        assert {stored.get_tensor(name).dtype for name in stored.keys()} == {torch.float16}  # noqa: SIM118
        assert torch.equal(stored.get_tensor("model.embed_tokens.weight").float(), model.lm_head.weight)


def test_both_tokenizer_loaders_agree(tokenizer: Tokenizer) -> None:
    loaded = AutoTokenizer.from_pretrained(DEMO)
    ids = tokenizer.encode(PIECE).ids
    assert loaded(PIECE).input_ids == ids
    assert ids[0] == loaded.bos_token_id == 0
    assert loaded.eos_token_id == loaded.pad_token_id == 1
    assert loaded.decode(ids, skip_special_tokens=True) == tokenizer.decode(ids) == PIECE
    assert len(loaded) == tokenizer.get_vocab_size() == 4000


@pytest.mark.parametrize("name", ["validation", "calibration"])
def test_texts_are_about_200_kilobytes(name: str) -> None:
    assert 180_000 < (DEMO / f"{name}.txt").stat().st_size < 220_000


def test_texts_share_no_paragraph() -> None:
    paragraphs = [
        {part for part in (DEMO / f"{name}.txt").read_text(encoding="utf-8").split("\n\n") if len(part) > 60}
        for name in ("validation", "calibration")
    ]
    assert not paragraphs[0] & paragraphs[1]


def test_far_context_helps(model: Any, tokenizer: Tokenizer) -> None:
    excerpts = (DEMO / "validation.txt").read_text(encoding="utf-8").split(EXCERPT_SEPARATOR)
    windows = windows_of(tokenizer, iter(excerpts), 2048)[::3]
    found = far_context(model, windows)
    assert found["fall_window64"] > 0.03
    assert found["fall_window64_and_first_token"] > 0.02  # the harder comparison, on fewer windows than in the card
    assert found["drop_128_256_to_1024_2048"] > -2 * found["drop_128_256_to_1024_2048_standard_error"]


def test_a_repeated_sequence_is_predicted_far_better(model: Any) -> None:
    found = induction(model, 4000, count=16, length=64, seed=1)
    assert found["loss_second"] < 0.5 * found["loss_first"]


def test_card_is_final() -> None:
    card = (DEMO / "README.md").read_text(encoding="utf-8")
    assert "Preliminary" not in card
    assert "apache-2.0" in card
