"""`deltallm-onnx run`: generate text and say what it took."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from deltallm_onnx.byte_text import byte_text
from deltallm_onnx.cli.memory import check_max_memory
from deltallm_onnx.cli.output import print_json, print_note, status
from deltallm_onnx.runtime import (
    DecoderModel,
    Generation,
    Sampler,
    TextTokenizer,
    context_length,
    end_of_sequence_ids,
    generate,
)
from deltallm_onnx.runtime.model_file import check_model_path
from deltallm_onnx.runtime.session_settings import LOW_MEMORY


def run_command(
    model: Annotated[Path, typer.Argument(metavar="MODEL", help="A dense or rewritten .onnx, or an .ort.")],
    *,
    prompt: Annotated[str, typer.Option(help="The text to continue.")],
    max_new_tokens: Annotated[int, typer.Option(metavar="N", help="Stop after so many tokens.")] = 128,
    temperature: Annotated[float, typer.Option(metavar="T", help="0 always takes the most probable token.")] = 0.0,
    top_k: Annotated[int, typer.Option(metavar="K", help="Draw from the K most probable tokens; 0 = all.")] = 0,
    top_p: Annotated[
        float, typer.Option(metavar="P", help="Draw from the most probable tokens that reach P together.")
    ] = 1.0,
    seed: Annotated[int | None, typer.Option(metavar="N", help="Draw the same tokens every time.")] = None,
    threads: Annotated[
        int | None, typer.Option(metavar="N", help="Threads within an operator [default: ONNX Runtime's choice].")
    ] = None,
    no_library: Annotated[
        bool, typer.Option("--no-library", help="Run the function bodies in the model instead of the operator library.")
    ] = False,
    prompt_chunk: Annotated[
        int | None,
        typer.Option(
            metavar="S",
            help="Read the prompt in calls of S tokens: less memory. With prefill exact, later calls read held keys "
            "where one call reads exact ones [default: one call].",
        ),
    ] = None,
    max_memory: Annotated[
        str | None, typer.Option(metavar="SIZE", help="Refuse to start where more memory may be needed, such as 512MB.")
    ] = None,
    low_memory: Annotated[
        bool,
        typer.Option("--low-memory", help="For small devices: no memory arena, no memory pattern, no busy waiting."),
    ] = False,
    json_output: Annotated[bool, typer.Option("--json", help="Print one JSON object instead of the text.")] = False,
) -> None:
    """Continue a prompt: the text goes to stdout as it comes, speed, cache and counters to stderr."""
    sampler = Sampler(temperature, top_k, top_p, seed)
    check_model_path(model)
    tokenizer = TextTokenizer(model.parent)
    ids = tokenizer.encode(prompt)
    if max_memory is not None:
        check_max_memory(
            model,
            max_memory,
            prompt_tokens=len(ids),
            max_new_tokens=max_new_tokens,
            prompt_chunk=prompt_chunk,
            use_library=not no_library,
        )
    with status(f"Opening {model} …"):
        settings = LOW_MEMORY if low_memory else None
        decoder = DecoderModel(model, use_library=not no_library, threads=threads, settings=settings)
    end_ids = end_of_sequence_ids(model.parent)
    context = context_length(model.parent)
    if context is not None and len(ids) + max_new_tokens > context:
        print_note(f"note: {len(ids)} + {max_new_tokens} tokens are more than the {context} the model was made for.")
    stream = tokenizer.stream(ids)

    def show(token: int) -> None:
        if not json_output:
            print(stream.push(token), end="", flush=True)

    result = generate(
        decoder,
        ids,
        max_new_tokens=max_new_tokens,
        sampler=sampler,
        end_ids=end_ids,
        on_token=show,
        prompt_chunk=prompt_chunk,
    )
    if json_output:
        print_json({"prompt": prompt, "text": tokenizer.decode(result.tokens), **_report(decoder, result)})
        return
    print(stream.finish())
    for line in _summary(decoder, result):
        print_note(line)


def _report(decoder: DecoderModel, result: Generation) -> dict[str, Any]:
    return {
        "model": str(decoder.path),
        "operator_library": decoder.uses_library,
        "prompt_tokens": result.prompt_tokens,
        "tokens": result.tokens,
        "stop": result.stop,
        "prefill_seconds": result.prefill_seconds,
        "prefill_tokens_per_second": result.prefill_tokens_per_second,
        "decode_seconds": result.decode_seconds,
        "decode_tokens_per_second": result.decode_tokens_per_second,
        "cached_tokens": result.cached_tokens,
        "cache_bytes_in_use": result.cache_bytes_in_use,
        "cache_bytes_allocated": result.cache_bytes_allocated,
        "counters": None if result.counters is None else result.counters.to_dict(),
    }


def _in_blocks(decoder: DecoderModel) -> str:
    """What a token of an int4 cache comes down to once it lies in a sealed block."""
    caches = decoder.signature.caches
    if not any(cache.packed and cache.packed.row_bytes != cache.packed.bytes_per_token for cache in caches):
        return ""
    return f" ({byte_text(sum(cache.row_bytes for cache in caches))} in sealed blocks)"


def _summary(decoder: DecoderModel, result: Generation) -> list[str]:
    decode = result.decode_tokens_per_second
    per_token = result.cache_bytes_in_use / result.cached_tokens
    in_blocks = _in_blocks(decoder)
    in_use, allocated = byte_text(result.cache_bytes_in_use), byte_text(result.cache_bytes_allocated)
    lines = [
        f"prefill: {result.prompt_tokens} tokens, {result.prefill_tokens_per_second:.1f} tokens/s",
        f"decode: {len(result.tokens)} tokens, " + ("–" if decode is None else f"{decode:.1f} tokens/s"),
        f"cache: {byte_text(per_token)} per token, all layers{in_blocks}: {in_use} in use, {allocated} allocated",
    ]
    if result.counters is not None:
        lines.append(
            "counters: " + ", ".join(f"{name} {value:.4g}" for name, value in result.counters.to_dict().items())
        )
    elif decoder.signature.delta_nodes or "deltallm.config" in decoder.metadata:  # written out in an .ort
        lines.append("counters: none, the model was written with --no-statistics")
    else:
        lines.append("counters: none, the model is dense")
    return lines
