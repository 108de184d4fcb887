"""The packed cache of one batch row and KV head: open, append, code, seal, rewind (docs/cache-format.md)."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import numpy.typing as npt

from deltallm_onnx.errors import DeltaLLMError
from deltallm_onnx.packed_sizes import BLOCK_ROWS
from deltallm_onnx.reference.hold import change_is_small, row_change_is_small
from deltallm_onnx.reference.packed_blocks import open_keys, open_values, seal_keys, seal_values
from deltallm_onnx.reference.packed_layout import HEADER_SLOTS, PackedLayout
from deltallm_onnx.reference.packed_rows import Row, round_row
from deltallm_onnx.reference.packed_slab import Slab

Array = npt.NDArray[Any]

VERSIONS = {"int8": 0xD801, "int4": 0xD401}
#: Bit 15 of a key tag in row granularity: the row repeats the key before it.
REPEATS = 0x8000
#: Tokens of a run at most: what bits 0 to 14 of a key tag can count.
LONGEST_RUN = 0x7FFF


@dataclasses.dataclass(frozen=True)
class CodingRules:
    """What decides whether a token is held, for one KV head.

    Attributes:
        threshold: θ, float32 [1] or [D].
        row_weight: w, float64 [D].
        granularity: "element" or "row".
        row_rule: "relative" or "absolute".
        refresh: keyframe every so many tokens; 0 = never.
        merges: whether held tokens join the run before them (row granularity only).
    """

    threshold: Array
    row_weight: Array
    granularity: str
    row_rule: str
    refresh: int
    merges: bool


@dataclasses.dataclass(frozen=True)
class CacheRows:
    """What a query reads: R rows, oldest first.

    Attributes:
        keys: float32 [R, D].
        values: float32 [R, D].
        tokens: int64 [R], tokens that a row stands for.
        first_token: int64 [R], the first of them, counted from the first real token.
        coded: bool [R].
        spared: int64 [R]: of a coded row, channels held (element) or tokens held (row); else 0.
    """

    keys: Array
    values: Array
    tokens: Array
    first_token: Array
    coded: Array
    spared: Array


class PackedCache:
    """A view of two slabs that hold the same tokens.

    Args:
        key: uint8 [capacity, bytes_per_token], changed in place.
        value: the same.
        layout: of both.
        rules: how tokens are coded.
        tokens: tokens of the past; with 0, nothing is read.

    Raises:
        DeltaLLMError: for a header that cannot be right, and for a rewind that cannot be done.
    """

    def __init__(self, key: Array, value: Array, layout: PackedLayout, rules: CodingRules, tokens: int) -> None:
        self.key = Slab(key, layout, is_key=True)
        self.value = Slab(value, layout, is_key=False)
        self.layout = layout
        self.rules = rules
        self.tokens = tokens
        self.coded_tokens = 0
        self.coded_rows = 0
        #: Tokens coded, and of them channels or tokens held, since the cache was opened.
        self.counts = [0, 0]
        if tokens > 0:
            self._open()

    def append(self, key: Array, value: Array) -> None:
        """Round and store one token, coding the one that leaves the window. Both are float32 [D]."""
        layout, t = self.layout, self.tokens
        key_row, value_row = round_row(key), round_row(value)
        leaving = t - layout.window
        self.tokens += 1
        if leaving >= layout.sinks + self.coded_tokens:
            if layout.window == 0:
                self._code(key_row, value_row)
            else:
                slot = self._window_slot(leaving)
                self._code(self.key.read(slot), self.value.read(slot))
        if t < layout.sinks or layout.window > 0:
            slot = t if t < layout.sinks else self._window_slot(t)
            self.key.write(slot, key_row.tagged(int(self.rules.granularity == "row")))
            self.value.write(slot, value_row)
        self._write_header()

    def rows(self) -> CacheRows:
        """Everything that a query may read, decoded."""
        layout = self.layout
        blocks = range(layout.sealed_blocks(self.coded_rows))
        opened = [open_keys(self.key.block(block), layout) for block in blocks]
        sinks, waiting, window = self._slots()
        keys, tags = self.key.decode([*sinks, *waiting, *window])
        values, _ = self.value.decode([*sinks, *waiting, *window])
        at = len(sinks)
        return self._described(
            keys=np.concatenate([keys[:at], *(block_keys for block_keys, _ in opened), keys[at:]]),
            values=np.concatenate(
                [values[:at], *(open_values(self.value.block(block), layout) for block in blocks), values[at:]]
            ),
            tags=np.concatenate([*(block_tags for _, block_tags in opened), tags[at : at + len(waiting)]]),
            exact=at,
        )

    def in_use(self) -> tuple[Array, Array]:
        """Which bytes of the key and the value slab docs/cache-format.md specifies, two bool [bytes].

        Header, rows and blocks in use, and the residual of an open run.
        """
        marks = []
        layout = self.layout
        slots = [slot for part in self._slots() for slot in part]
        for slab in (self.key, self.value):
            mask = np.zeros((slab.capacity, layout.bytes_per_token), np.uint8)
            marked = Slab(mask, layout, is_key=slab is self.key)
            marked.mark_rows(slots)
            for block in range(layout.sealed_blocks(self.coded_rows)):
                marked.block(block)[:] = 1
            if slab is self.value and self.tokens:
                marked.mark_tags(range(min(HEADER_SLOTS, slab.rows)))
                if self._has_residual():
                    marked.mark_rows([self._coded_slot(self.coded_rows)])
            marks.append(mask.reshape(-1) == 1)
        return marks[0], marks[1]

    def bytes_in_use(self, seen: Array) -> tuple[int, int]:
        """Bytes of the rows and sealed blocks in use, keys and values, and of those that hold a token that was seen.

        Args:
            seen: bool [tokens].
        """
        rows, layout = self.rows(), self.layout
        blocks = layout.sealed_blocks(self.coded_rows)
        exact = min(self.tokens, layout.sinks)
        is_seen = np.array(
            [seen[a : a + n].any() for a, n in zip(rows.first_token, rows.tokens, strict=True)], bool
        ).reshape(-1)
        in_block = slice(exact, exact + blocks * BLOCK_ROWS)
        seen_blocks = int(is_seen[in_block].reshape(blocks, BLOCK_ROWS).any(axis=1).sum())
        in_area = np.delete(is_seen, in_block)
        sizes = (layout.row_bytes, layout.block_bytes)
        in_use = 2 * (in_area.size * sizes[0] + blocks * sizes[1])
        return in_use, 2 * (int(in_area.sum()) * sizes[0] + seen_blocks * sizes[1])

    def copied(self, key: Array, value: Array) -> PackedCache:
        """The same cache in two other slabs of at least the rows it needs; the rest of them is left as it is."""
        other = PackedCache(key, value, self.layout, self.rules, 0)
        other.tokens, other.coded_tokens, other.coded_rows = self.tokens, self.coded_tokens, self.coded_rows
        for mine, theirs in ((self.key, other.key), (self.value, other.value)):
            theirs.copy_rows(mine)
            for block in range(self.layout.sealed_blocks(self.coded_rows)):
                theirs.block(block)[:] = mine.block(block)
        return other

    # --- coding ---------------------------------------------------------------------------------------------------

    def _code(self, key: Row, value: Row) -> None:
        """Code the token after the last coded one."""
        position = self.layout.sinks + self.coded_tokens
        reference = self._reference()
        forced = reference is None or (self.rules.refresh > 0 and position % self.rules.refresh == 0)
        self.coded_tokens += 1
        self.counts[0] += 1
        if self.rules.granularity == "element":
            self._code_element(key, value, None if forced else reference)
        elif forced or reference is None or not self._row_is_held(key, reference):
            self._append_coded(key.tagged(1), value)
        else:
            self.counts[1] += 1
            # A sink stays as it is, so nothing joins it.
            joins = self.rules.merges and self.coded_rows > 0 and reference.tag & LONGEST_RUN < LONGEST_RUN
            if joins:
                self._merge(value, reference.tag)
            else:
                self._append_coded(reference.tagged(REPEATS | 1), value)

    def _code_element(self, key: Row, value: Row, reference: Row | None) -> None:
        if reference is None:
            self._append_coded(key.tagged(0), value)
            return
        channels, before = key.decoded(), reference.decoded()
        held = change_is_small(channels, before, self.rules.threshold)
        count = int(held.sum())
        self.counts[1] += count
        self._append_coded(round_row(np.where(held, before, channels)).tagged(count), value)

    def _row_is_held(self, key: Row, reference: Row) -> bool:
        rules = self.rules
        return bool(
            row_change_is_small(key.decoded(), reference.decoded(), rules.threshold, rules.row_rule, rules.row_weight)
        )

    def _merge(self, value: Row, tag: int) -> None:
        last, n = self.coded_rows - 1, tag & LONGEST_RUN
        with np.errstate(invalid="ignore", over="ignore"):
            mean = self.value.read(self._coded_slot(last)).decoded()
            if n > 1:
                mean = mean + self.value.read(self._coded_slot(last + 1)).decoded()
            mean = mean + (value.decoded() - mean) / np.float32(n + 1)
            rounded = round_row(mean)
            residual = round_row(mean - rounded.decoded())
        self.value.write(self._coded_slot(last), rounded)
        self.value.write(self._coded_slot(last + 1), residual)
        self.key.write_tag(self._coded_slot(last), tag + 1)

    def _append_coded(self, key: Row, value: Row) -> None:
        slot = self._coded_slot(self.coded_rows)
        self.key.write(slot, key)
        self.value.write(slot, value.tagged(0))
        sealed = self.layout.sealed_blocks(self.coded_rows)
        self.coded_rows += 1
        if self.layout.sealed_blocks(self.coded_rows) > sealed:
            self._seal(sealed)

    def _seal(self, block: int) -> None:
        layout = self.layout
        waiting = range(layout.exact, layout.exact + BLOCK_ROWS)
        keys = [self.key.read(slot) for slot in waiting]
        tags = np.array([row.tag for row in keys], np.uint16)
        self.key.block(block)[:] = seal_keys(np.stack([row.decoded() for row in keys]), tags, layout)
        values = np.stack([self.value.read(slot).decoded() for slot in waiting])
        self.value.block(block)[:] = seal_values(values, layout)
        for slab in (self.key, self.value):
            slab.write(layout.exact, slab.read(layout.exact + BLOCK_ROWS))

    # --- where things lie -----------------------------------------------------------------------------------------

    def _window_slot(self, token: int) -> int:
        layout = self.layout
        return layout.sinks + (token - layout.sinks) % layout.window

    def _coded_slot(self, row: int) -> int:
        """Slot of a coded row that is not sealed; the number of all rows gives the slot behind the last."""
        return self.layout.exact + row - BLOCK_ROWS * self.layout.sealed_blocks(self.coded_rows)

    def _slots(self) -> tuple[list[int], list[int], list[int]]:
        """Slots of the sinks, of the coded rows that are not sealed and of the window, each oldest first."""
        layout = self.layout
        sealed = BLOCK_ROWS * layout.sealed_blocks(self.coded_rows)
        return (
            [*range(min(self.tokens, layout.sinks))],
            [self._coded_slot(row) for row in range(sealed, self.coded_rows)],
            [self._window_slot(token) for token in range(layout.sinks + self.coded_tokens, self.tokens)],
        )

    def _reference(self) -> Row | None:
        """The row that the next token is held against."""
        if self.coded_rows:
            return self.key.read(self._coded_slot(self.coded_rows - 1))
        return self.key.read(self.layout.sinks - 1) if self.layout.sinks else None

    def _has_residual(self) -> bool:
        if not (self.rules.merges and self.coded_rows):
            return False
        return self.key.read_tag(self._coded_slot(self.coded_rows - 1)) & LONGEST_RUN > 1

    def _described(self, keys: Array, values: Array, tags: Array, *, exact: int) -> CacheRows:
        """The rows with what the tags of the coded ones say; `exact` rows lie before those."""
        coded = slice(exact, exact + len(tags))
        tokens, spared = np.ones(len(keys), np.int64), np.zeros(len(keys), np.int64)
        is_coded = np.zeros(len(keys), bool)
        is_coded[coded] = True
        spared[coded] = tags
        if self.rules.granularity == "row":
            tokens[coded] = tags.astype(np.int64) & LONGEST_RUN
            spared[coded] = tokens[coded] - (tags < REPEATS)
        return CacheRows(keys, values, tokens, np.cumsum(tokens) - tokens, is_coded, spared)

    # --- header ---------------------------------------------------------------------------------------------------

    def _header(self) -> list[int]:
        layout = self.layout
        counts = [half for n in (self.coded_tokens, self.coded_rows) for half in (n & 0xFFFF, n >> 16)]
        return [VERSIONS[layout.cache_format], *counts, (layout.sinks + 31 * layout.window) % 65536]

    def _write_header(self) -> None:
        for slot, tag in enumerate(self._header()[: self.value.rows]):
            self.value.write_tag(slot, tag)

    def _open(self) -> None:
        """Believe the header only where it fits, then drop what lies behind the past."""
        tags = [self.value.read_tag(slot) for slot in range(min(HEADER_SLOTS, self.value.rows))]
        # What a small slab has no room for counts as right: nothing is coded there.
        tags += [0] * (HEADER_SLOTS - 1 - len(tags))
        self.coded_tokens, self.coded_rows = tags[1] | tags[2] << 16, tags[3] | tags[4] << 16
        if self._header()[: self.value.rows] != tags[: self.value.rows]:
            raise DeltaLLMError(
                f"The past holds no {self.layout.cache_format} cache of {self.layout.sinks} sinks and a window of "
                f"{self.layout.window} tokens: give the present of a call of this model."
            )
        if not self._counts_can_be():
            raise DeltaLLMError(
                f"The past is said to hold {self.coded_tokens} coded tokens in {self.coded_rows} rows, which a past of "
                f"{self.tokens} tokens in {self.key.capacity} rows cannot: give the present of a call of this model."
            )
        if max(self.tokens - self.layout.sinks, 0) < self.coded_tokens:
            self._rewind()

    def _counts_can_be(self) -> bool:
        layout, R = self.layout, self.coded_rows
        fewest = max(self.tokens - layout.exact, 0)
        paired = (R > 0) == (self.coded_tokens > 0) and self.coded_tokens >= R
        if not self.rules.merges:
            paired = self.coded_tokens == R
        # Before anything about the last row is read, the slab must hold it.
        fits = layout.sealed_blocks(R) <= layout.blocks_that_fit(self.key.capacity)
        last = self._coded_slot(R) if R else min(self.tokens, layout.exact)
        fits = fits and last <= self.key.rows
        return paired and fits and self.coded_tokens >= fewest and (last < self.key.rows or not self._has_residual())

    def _rewind(self) -> None:
        layout = self.layout
        kept = max(self.tokens - layout.sinks, 0)
        if self.rules.merges:
            raise DeltaLLMError(
                f"The past is cut to {self.tokens} tokens, but {self.coded_tokens} tokens behind the sinks are coded "
                "and runs cannot be undone: cut within the window, or start again."
            )
        if layout.sealed_blocks(kept) != layout.sealed_blocks(self.coded_rows):
            raise DeltaLLMError(
                f"The past is cut to {self.tokens} tokens, within a sealed int4 block: cut behind it, or start again."
            )
        self.coded_tokens = self.coded_rows = kept
