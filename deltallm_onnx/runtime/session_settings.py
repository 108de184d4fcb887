"""What an ONNX Runtime session trades: memory and power against speed."""

from __future__ import annotations

import dataclasses

import onnxruntime as ort


@dataclasses.dataclass(frozen=True)
class SessionSettings:
    """Switches of a session; the defaults are ONNX Runtime's own.

    Attributes:
        arena: working memory of a call is kept for the next one. Without it every tensor goes back to the system's
            allocator as soon as nobody reads it any more.
        memory_pattern: the working memory of a call whose shapes came before is one block, planned ahead.
        spinning: idle threads of the pool wait busily: faster to wake, at the cost of power.
        prepacking: matrices are laid out anew for the kernels that read them.
    """

    arena: bool = True
    memory_pattern: bool = True
    spinning: bool = True
    prepacking: bool = True

    def apply(self, options: ort.SessionOptions) -> None:
        """Set the switches in the options of a session that is about to be opened."""
        options.enable_cpu_mem_arena = self.arena
        options.enable_mem_pattern = self.memory_pattern
        # onnxruntime_session_options_config_keys.h
        options.add_session_config_entry("session.intra_op.allow_spinning", "1" if self.spinning else "0")
        options.add_session_config_entry("session.disable_prepacking", "0" if self.prepacking else "1")


#: What `run --low-memory` and examples/cpp open a model with; docs/memory.md has what each switch is worth.
LOW_MEMORY = SessionSettings(arena=False, memory_pattern=False, spinning=False)
