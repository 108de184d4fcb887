"""The memory plan for people, and the limit that `run` keeps to."""

from __future__ import annotations

from pathlib import Path

from deltallm_onnx.bench.peak_memory import peak_resident_bytes, resident_bytes
from deltallm_onnx.byte_size import parse_bytes
from deltallm_onnx.byte_text import byte_text
from deltallm_onnx.errors import DeltaLLMError
from deltallm_onnx.memory.plan import MemoryPlan, plan_memory
from deltallm_onnx.memory.weights import WeightMemory
from deltallm_onnx.runtime import context_length

#: A part of the sum is worth saving from this share on.
_WORTH_SAVING = 0.1
#: Bytes from which a part of the weights is named.
_WORTH_SAYING = 10_000


def inspection_plan(model: Path, context: int | None, batch: int | None, prompt_chunk: int | None) -> MemoryPlan | None:
    """What `inspect` was asked to plan; None without --context.

    Raises:
        DeltaLLMError: for options that mean nothing without --context, and as `plan_memory`.
    """
    if context is None:
        for name, value in (("batch", batch), ("prompt-chunk", prompt_chunk)):
            if value is not None:
                raise DeltaLLMError(f"--{name} {value} plans no memory without a context: give --context TOKENS too.")
        return None
    return plan_memory(model, context, batch=1 if batch is None else batch, prompt_chunk=prompt_chunk)


def plan_lines(plan: MemoryPlan, model: Path) -> list[str]:
    """The plan, one part to a line, each with what it is based on."""
    prompt = "the prompt in one call" if plan.call_tokens == plan.context else f"{plan.call_tokens} tokens per call"
    allocated, copied = byte_text(plan.cache_bytes), byte_text(plan.cache_copy_bytes)
    alive, unused = byte_text(plan.call.activations), byte_text(plan.arena_bytes)
    parts = [
        ("weights", plan.weights.resident, _weights_text(plan.weights)),
        ("caches", plan.held_bytes, f"{_types(plan)}, {allocated} allocated, {copied} while a call copies them"),
        ("logits", plan.call.logits, f"{list(plan.call.logits_shape)}"),
        ("activations", plan.working_bytes, f"{alive} alive at once at {plan.call.node}, {unused} held unused"),
        ("ONNX Runtime", plan.runtime_bytes, "its code and tables, measured (docs/memory.md)"),
        ("peak", plan.total_bytes, f"at most; {byte_text(plan.opening_bytes)} while the model is opened"),
    ]
    lines = [f"memory for {plan.context} tokens, batch {plan.batch}, {prompt}, beside the program itself:"]
    lines += [f"  {name:12} {byte_text(size):>9}  {basis}" for name, size, basis in parts]
    longest = context_length(model.parent)
    if longest is not None and plan.context > longest:
        lines.append(f"note: {plan.context} tokens are more than the {longest} the model was made for.")
    return lines


def _weights_text(weights: WeightMemory) -> str:
    stored = ", ".join(
        f"{name} {byte_text(size)}" for name, size in sorted(weights.by_type.items()) if size >= _WORTH_SAYING
    )
    texts = [f"stored: {stored or byte_text(weights.stored)}"]
    if weights.inside >= _WORTH_SAYING:
        texts.append(f"{byte_text(weights.inside)} of them inside the .onnx file, which are there twice")
    if weights.laid_out >= _WORTH_SAYING:
        texts.append(f"{byte_text(weights.laid_out)} more as kernels want them")
    return "; ".join(texts)


def _types(plan: MemoryPlan) -> str:
    return " and ".join(plan.cache_types)


def check_max_memory(
    model: Path, text: str, *, prompt_tokens: int, max_new_tokens: int, prompt_chunk: int | None, use_library: bool
) -> None:
    """Refuse to run what would take more memory than the user allows, this process included.

    Args:
        model: the .onnx file, not yet opened.
        text: of --max-memory.
        prompt_tokens: length of the prompt.
        max_new_tokens: tokens to make; the last one is never run.
        prompt_chunk: prompt tokens per call; None reads all in one call.
        use_library: whether the operator library runs the model.

    Raises:
        DeltaLLMError: where the plan is beyond the limit, for an amount that is none, and without the library: the
            memory of function bodies is not planned.
    """
    limit = parse_bytes(text, "max-memory")
    if not use_library:
        raise DeltaLLMError("--max-memory plans runs with the operator library: leave out --no-library, or the limit.")
    context = prompt_tokens + max(max_new_tokens, 1) - 1
    plan = plan_memory(model, context, prompt=prompt_tokens, prompt_chunk=prompt_chunk)
    before = resident_bytes() or peak_resident_bytes()
    needed = before + plan.total_bytes
    if needed > limit:
        parts = {
            "weights": plan.weights.resident,
            "caches": plan.held_bytes,
            f"logits of {plan.call_tokens} tokens per call": plan.call.logits,
            "their activations": plan.working_bytes,
            "ONNX Runtime": plan.runtime_bytes,
            "this program": before,
        }
        raise DeltaLLMError(
            f"{model} takes up to {byte_text(needed)} for {context} tokens, and max-memory is {byte_text(limit)} ("
            + ", ".join(f"{name} {byte_text(size)}" for name, size in parts.items())
            + f"): {_advice(plan, limit - before)}."
        )


def _advice(plan: MemoryPlan, room: int) -> str:
    """What would take less memory, the part that saves most first."""
    per_call = plan.call.logits + plan.working_bytes
    parts = [(plan.weights.resident, "--weights int4 when converting")] if _wide(plan) else []
    if plan.call_tokens > 1:
        parts.append((per_call, f"a --prompt-chunk below {plan.call_tokens}"))
    narrower = {"int4": "", "int8": " or an int4 cache"}.get(",".join(plan.cache_types), " or an int8 or int4 cache")
    parts.append((plan.held_bytes, f"a shorter context{narrower}"))
    worth = [(size, text) for size, text in parts if size >= _WORTH_SAVING * plan.total_bytes]
    if room < plan.runtime_bytes or not worth:
        return "allow more, for no setting of the model takes so little"
    return "what would take less: " + ", ".join(text for _, text in sorted(worth, reverse=True))


def _wide(plan: MemoryPlan) -> bool:
    """Whether most weights are float numbers."""
    floats = sum(size for name, size in plan.weights.by_type.items() if "float" in name)
    return 2 * floats > plan.weights.stored
