"""`deltallm-onnx run`: generate text and say what it took."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from deltallm_onnx.cli.output import byte_text, print_json, print_note, status
from deltallm_onnx.runtime import (
    DecoderModel,
    Generation,
    Sampler,
    TextTokenizer,
    context_length,
    end_of_sequence_ids,
    generate,
)


def run_command(
    model: Annotated[Path, typer.Argument(metavar="X.onnx", help="A dense or rewritten model.")],
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
    json_output: Annotated[bool, typer.Option("--json", help="Print one JSON object instead of the text.")] = False,
) -> None:
    """Continue a prompt: the text goes to stdout as it comes, speed, cache and counters to stderr."""
    sampler = Sampler(temperature, top_k, top_p, seed)
    with status(f"Opening {model} …"):
        decoder = DecoderModel(model, use_library=not no_library, threads=threads)
    tokenizer = TextTokenizer(model.parent)
    ids = tokenizer.encode(prompt)
    end_ids = end_of_sequence_ids(model.parent)
    context = context_length(model.parent)
    if context is not None and len(ids) + max_new_tokens > context:
        print_note(f"note: {len(ids)} + {max_new_tokens} tokens are more than the {context} the model was made for.")
    stream = tokenizer.stream(ids)

    def show(token: int) -> None:
        if not json_output:
            print(stream.push(token), end="", flush=True)

    result = generate(decoder, ids, max_new_tokens=max_new_tokens, sampler=sampler, end_ids=end_ids, on_token=show)
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


def _summary(decoder: DecoderModel, result: Generation) -> list[str]:
    decode = result.decode_tokens_per_second
    per_token = result.cache_bytes_in_use / result.cached_tokens
    in_use, allocated = byte_text(result.cache_bytes_in_use), byte_text(result.cache_bytes_allocated)
    lines = [
        f"prefill: {result.prompt_tokens} tokens, {result.prefill_tokens_per_second:.1f} tokens/s",
        f"decode: {len(result.tokens)} tokens, " + ("–" if decode is None else f"{decode:.1f} tokens/s"),
        f"cache: {byte_text(per_token)} per token, all layers: {in_use} in use, {allocated} allocated",
    ]
    if result.counters is not None:
        lines.append(
            "counters: " + ", ".join(f"{name} {value:.4g}" for name, value in result.counters.to_dict().items())
        )
    elif decoder.signature.delta_nodes:
        lines.append("counters: none, the model was written with --no-statistics")
    else:
        lines.append("counters: none, the model is dense")
    return lines
