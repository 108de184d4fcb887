"""The parts of the trainer, each against its definition."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from batches import BOS_ID, FIRST_TEXT_ID, IGNORED, WindowSource
from corpus import MANIFEST, books_of, excerpt, read_manifest, spread_excerpts
from errors import UserError
from evaluate import local_mask
from loss import CHUNK, tied_cross_entropy
from plan import Plan
from tokenizer import train_tokenizer


def test_plan_warms_up_stays_and_falls() -> None:
    plan = Plan(steps=100, batch_tokens=8192, warmup=10, decay=0.4, long=0.2)
    assert plan.lr_factor(0) == pytest.approx(0.1)
    assert [plan.lr_factor(step) for step in (9, 30, 59)] == [1.0, 1.0, 1.0]
    falling = [plan.lr_factor(step) for step in range(60, 100)]
    assert falling == sorted(falling, reverse=True)
    assert plan.lr_factor(99) == pytest.approx(1 / 40)
    assert [plan.context_at(step) for step in (0, 79, 80, 99)] == [512, 512, 2048, 2048]
    assert plan.window_offset(79) == 79 * 16
    assert plan.window_offset(81) == 4


def test_windows_of_an_epoch_do_not_overlap_and_the_next_epoch_differs() -> None:
    source = WindowSource(np.arange(1000, dtype=np.uint16), 4000, seed=0, recall=0.0)
    per_epoch = 999 // 32 - 1
    starts = source.starts(0, per_epoch, 32)
    assert np.diff(sorted(starts)).tolist() == [32] * (per_epoch - 1)
    assert source.starts(per_epoch, per_epoch, 32) != starts
    assert source.starts(7, 5, 32) == starts[7:12]


def test_targets_are_the_next_tokens() -> None:
    source = WindowSource(np.arange(5000, dtype=np.uint16), 6000, seed=0, recall=0.0)
    inputs, targets = source.batch(3, 0, 8, 64)
    assert (targets[:, 1:] == targets[:, :-1] + 1).all()
    assert (inputs[:, 1:] == targets[:, :-1]).all()
    assert set(inputs[inputs[:, 0] != targets[:, 0] - 1, 0].tolist()) <= {BOS_ID}


def test_recall_windows_hold_a_span_twice_and_do_not_count_random_first_occurrences() -> None:
    source = WindowSource(np.arange(60000, dtype=np.uint16), 60000, seed=0, recall=1.0)
    inputs, targets = source.batch(0, 0, 200, 256)
    uncounted = 0
    for row, target in zip(inputs, targets, strict=True):
        values, counts = np.unique(row[row >= FIRST_TEXT_ID], return_counts=True)
        assert (counts[np.isin(values, row)] >= 2).sum() >= 6
        uncounted += int((target == IGNORED).any())
    assert 60 < uncounted < 140  # half of the spans are random tokens


def test_batches_do_not_depend_on_history() -> None:
    tokens = np.arange(20000, dtype=np.uint16) % 4000
    first, again = (WindowSource(tokens, 4000, seed=5, recall=0.3) for _ in range(2))
    first.batch(0, 0, 16, 64)
    for a, b in zip(first.batch(1, 16, 16, 64), again.batch(1, 16, 16, 64), strict=True):
        assert np.array_equal(a, b)


@pytest.mark.parametrize("count", [1, CHUNK - 1, CHUNK, CHUNK + 7])
def test_chunked_loss_equals_cross_entropy(count: int) -> None:
    torch.manual_seed(count)
    hidden = torch.randn(count, 24, dtype=torch.float32, requires_grad=True)
    weight = torch.randn(37, 24, requires_grad=True)
    target = torch.randint(0, 37, (count,))
    target[::3] = IGNORED if count > 1 else 5
    counted = int((target != IGNORED).sum())
    ours = tied_cross_entropy(hidden, weight, target, counted)
    gradients = torch.autograd.grad(ours * 2, (hidden, weight))
    reference = torch.nn.functional.cross_entropy(hidden @ weight.T, target, ignore_index=IGNORED)
    expected = torch.autograd.grad(reference * 2, (hidden, weight))
    torch.testing.assert_close(ours, reference)
    torch.testing.assert_close(gradients, expected, rtol=1e-4, atol=1e-6)


def test_local_mask_shows_the_window_and_the_sinks() -> None:
    seen = local_mask(6, window=2, sinks=1)[0, 0] == 0
    assert seen.int().tolist() == [
        [1, 0, 0, 0, 0, 0],
        [1, 1, 0, 0, 0, 0],
        [1, 1, 1, 0, 0, 0],
        [1, 0, 1, 1, 0, 0],
        [1, 0, 0, 1, 1, 0],
        [1, 0, 0, 0, 1, 1],
    ]


def test_tokenizer_round_trips_any_text_and_puts_bos_first() -> None:
    text = "The cat sat on the mat. " * 40 + "Naïve “quotes”, tabs\tand\n\nlines; 日本."
    tokenizer = train_tokenizer(iter([text]), 280)
    ids = tokenizer.encode(text).ids
    assert ids[0] == BOS_ID
    assert tokenizer.decode(ids) == text


def test_tokenizer_refuses_too_little_text() -> None:
    with pytest.raises(UserError, match="yields only"):
        train_tokenizer(iter(["short"]), 4000)


def test_excerpt_ends_with_a_paragraph() -> None:
    assert excerpt("aaaa\n\nbbbb\n\ncccc", 12) == "aaaa\n\nbbbb"
    assert excerpt("a" * 50, 10) == "a" * 50


def test_excerpts_are_spread_over_the_text_and_do_not_overlap() -> None:
    paragraphs = [f"{number:02}" + "é" * (3 + number % 4) for number in range(60)]
    text = "\n\n".join(paragraphs)
    found = spread_excerpts(text, len(text.encode("utf-8")) // 3, 4)
    firsts = [paragraphs.index(part.split("\n\n")[0]) for part in found]
    assert firsts[0] == 0
    assert [round(first / 15) for first in firsts] == [0, 1, 2, 3]
    taken = [paragraph for part in found for paragraph in part.split("\n\n")]
    assert len(set(taken)) == len(taken)
    assert set(taken) <= set(paragraphs)
    most = len(text.encode("utf-8")) // 3 // 4
    assert all(most - 14 <= len(part.encode("utf-8")) <= most for part in found)  # a paragraph has 14 bytes at most


def test_manifest_holds_out_whole_books() -> None:
    books = read_manifest()
    assert len(books) == len({book.file for book in books}) == 230
    held_out = {split: {book.file for book in books_of(split)} for split in ("validation", "calibration")}
    assert len(held_out["validation"]) >= 3
    assert len(held_out["calibration"]) >= 3
    assert not held_out["validation"] & held_out["calibration"]


def test_manifest_with_an_unknown_split_is_refused(tmp_path: Path) -> None:
    lines = MANIFEST.read_text(encoding="utf-8").splitlines()
    path = tmp_path / "MANIFEST.tsv"
    path.write_text(lines[0] + "\n" + lines[1].rsplit("\t", 1)[0] + "\ttest\n", encoding="utf-8")
    with pytest.raises(UserError, match="line 2 has split 'test'"):
        read_manifest(path)
