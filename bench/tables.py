"""Write the tables of README.md, docs/performance.md and docs/memory.md, and the plot, from the committed records.

    python -m bench.tables          # tables, between the pages' markers
    python -m bench.tables --plot   # and docs/performance.svg; needs pip install '.[bench]'

A table stands between `<!-- table NAME -->` and `<!-- end -->`; NAME is a key of `TABLES`. Nothing else is touched.
"""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from bench.arm64_counts_table import per_token_table
from bench.geometry import GEOMETRIES
from bench.runner_memory_table import memory_table
from bench.script import refusals, script_parser
from bench.slopes import Axis, per_past_token, per_query_and_key
from bench.slopes import slopes as slopes_of
from deltallm_onnx.errors import DeltaLLMError

RECORDS = Path(__file__).parent / "records"
_ROOT = Path(__file__).resolve().parents[1]
PAGES = (_ROOT / "README.md", _ROOT / "docs" / "performance.md", _ROOT / "docs" / "memory.md")
PLOT = _ROOT / "docs" / "performance.svg"

Record = Mapping[str, Any]
Row = Mapping[str, Any]

_MARKED = re.compile(r"(<!-- table (?P<name>[^>]+?) -->\n).*?(<!-- end -->)", re.DOTALL)


def load(name: str, records: Path = RECORDS) -> Record:
    """A record by its file name without suffix.

    Raises:
        DeltaLLMError: where it was not taken yet.
    """
    path = records / f"{name}.json"
    if not path.is_file():
        raise DeltaLLMError(f"There is no record {path}: take it with its benchmark, see docs/performance.md.")
    record: Record = json.loads(path.read_text(encoding="utf-8"))
    return record


def markdown(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A table in Markdown."""
    lines = [f"| {' | '.join(cells)} |" for cells in (header, *rows)]
    lines.insert(1, "|" + "---|" * len(header))
    return "\n".join(lines) + "\n"


def ratio(row: Row, other: str | None = None) -> str:
    """How many times faster than the fastest peer, or than another contender: median (quartiles)."""
    found = row["speedups"].get(other or row["fastest_peer"])
    return "–" if found is None else f"{found['median']:.3g}× ({found['lower']:.3g}–{found['upper']:.3g})"


def named(result: Record) -> dict[str, Row]:
    """The contenders of a result by name."""
    return {row["name"]: row for row in result["contenders"]}


def ours(record: Record) -> list[str]:
    """Names of our contenders, in the order of measuring."""
    names: dict[str, None] = {}
    for result in record["results"]:
        names.update((row["name"], None) for row in result["contenders"] if row["name"].startswith("ours "))
    return list(names)


def ratios(record: Record, threads: int) -> str:
    """One row per setting: the fastest peer's time, then our contenders against it."""
    names = ours(record)
    varied = "new_tokens" if record["suite"] == "prompt" else "past_tokens"
    rows = []
    for result in record["results"]:
        if result["threads"] != threads:
            continue
        found = named(result)
        peer = next(iter(found.values()))["fastest_peer"]
        first = [str(result[varied]), f"{found[peer]['microseconds']['median']:.0f} µs ({peer})"]
        rows.append([*first, *(ratio(found[name]) if name in found else "–" for name in names)])
    head = ["tokens" if varied == "new_tokens" else "past tokens", "fastest GQA"]
    return markdown([*head, *(name.removeprefix("ours ") for name in names)], rows)


def roofline(record: Record, threads: int = 1) -> str:
    """Every contender at one setting: time, least time, share of the roofline."""
    header = ["past tokens", "contender", "µs (quartiles)", "MB", "Mop", "least µs", "of roofline"]
    rows = []
    for result in record["results"]:
        if result["threads"] != threads:
            continue
        for row in result["contenders"]:
            own, least = row["microseconds"], row["least_microseconds"]
            rows.append(
                [
                    str(result["past_tokens"]),
                    row["name"],
                    f"{own['median']:.0f} ({own['lower']:.0f}–{own['upper']:.0f})",
                    f"{row['bytes'] / 1e6:.2f}",
                    f"{row['operations'] / 1e6:.1f}",
                    "–" if least is None else f"{least:.0f}",
                    "–" if row["share_of_roofline"] is None else f"{row['share_of_roofline']:.0%}",
                ]
            )
    return markdown(header, rows)


def all_geometries(suite: str, records: Path = RECORDS) -> str:
    """Our ratios on one thread, a row per setting of every geometry that was measured."""
    rows: list[list[str]] = []
    names: list[str] = []
    for geometry in GEOMETRIES:
        if not (records / f"attention-{suite}-{geometry}.json").is_file():
            continue
        record = load(f"attention-{suite}-{geometry}", records)
        names = names or ours(record)
        for result in record["results"]:
            if result["threads"] == 1:
                found = named(result)
                tokens = result["new_tokens"] if suite == "prompt" else result["past_tokens"]
                rows.append([geometry, str(tokens), *(ratio(found[n]) if n in found else "–" for n in names)])
    header = ["geometry", "tokens" if suite == "prompt" else "past tokens"]
    return markdown([*header, *(name.removeprefix("ours ") for name in names)], rows)


def slopes(record: Record, threads: int = 1) -> str:
    """Nanoseconds per past token and layer: what a longer context costs, without the cost of calling."""
    alone = sorted((r for r in record["results"] if r["threads"] == threads and r["new_tokens"] == 1), key=_past)
    shortest, longest = alone[0], alone[-1]
    begin, end = named(shortest), named(longest)
    tokens = _past(longest) - _past(shortest)
    rows = []
    for name in end:
        if name in begin:
            slope = (end[name]["microseconds"]["median"] - begin[name]["microseconds"]["median"]) * 1e3 / tokens
            rows.append([name, f"{slope:.0f}"])
    return markdown(["decode", f"ns per token from {_past(shortest)} to {_past(longest)}"], rows)


def _past(result: Record) -> int:
    return int(result["past_tokens"])


def per_pair(record: Record, threads: int = 1) -> str:
    """Nanoseconds per query and visible key of the longest prompt."""
    prompts = [r for r in record["results"] if r["threads"] == threads and r["new_tokens"] > 1]
    longest = max(prompts, key=lambda result: int(result["new_tokens"]))
    new = longest["new_tokens"]
    pairs = new * (new + 1) / 2
    rows = [
        [row["name"], f"{row['microseconds']['median'] * 1e3 / pairs:.0f}", ratio(row)] for row in longest["contenders"]
    ]
    return markdown([f"prompt of {new} tokens", "ns per query and key", "against the fastest GQA"], rows)


def decode_costs(record: Record, threads: int = 1) -> str:
    """Decode steps at every length, and what a past token costs: ours beside OpenVINO."""
    results = [r for r in record["results"] if r["threads"] == threads and r["new_tokens"] == 1]
    return _costs(results, per_past_token, "past_tokens", "ns per past token")


def prompt_costs(record: Record, threads: int = 1) -> str:
    """Prompts of every length, and what a query and key cost: ours beside OpenVINO."""
    results = [r for r in record["results"] if r["threads"] == threads and r["new_tokens"] > 1]
    return _costs(results, per_query_and_key, "new_tokens", "ns per query and key")


def openvino(record: Record) -> str:
    """What the OpenVINO record was taken with."""
    package = f"OpenVINO {record['openvino'].split('-')[0]}, onnxruntime {record['versions']['onnxruntime']}"
    return f"{record['cpu']}; {package}; {record['date'][:10]}.\n"


def _costs(results: Sequence[Record], axis: Axis, length: str, unit: str) -> str:
    ordered = sorted(results, key=lambda result: int(result[length]))
    costs = slopes_of(ordered, axis)
    fewest = min((cost.median for name, cost in costs.items() if name.startswith("OpenVINO")), default=0.0)
    found = [named(result) for result in ordered]
    others = [other for row in found[-1].values() for other in row["speedups"] if other.startswith("OpenVINO")]
    other = others[0] if others else "OpenVINO"
    rows = []
    for name, cost in costs.items():
        medians = [each[name]["microseconds"]["median"] if name in each else None for each in found]
        times = ["–" if median is None else f"{median:.0f}" for median in medians]
        slope = f"{cost.median:.0f} ({cost.lower:.0f}–{cost.upper:.0f})"
        last = found[-1][name]
        error = "–" if last["relative_error"] is None else f"{last['relative_error']:.1e}"
        # On a busy machine noise can outweigh the slope of short contexts.
        share = f"{fewest / cost.median:.2f}" if min(fewest, cost.median) > 0 else "–"
        rows.append([name, *times, slope, share, ratio(last, other), error])
    end = f"at {ordered[-1][length]}"
    head = ["contender", *(f"µs at {result[length]}" for result in ordered), unit, "OpenVINO's fewest / these"]
    return markdown([*head, f"times as fast as {other} {end}", f"relative error {end}"], rows)


def against(record: Record, threads: int = 1) -> str:
    """Every contender that is compared with another one of ours."""
    rows = []
    for result in record["results"]:
        if result["threads"] != threads:
            continue
        for row in result["contenders"]:
            others = [name for name in row["speedups"] if name.startswith("ours ") or name.endswith(", one thread")]
            own = f"{row['microseconds']['median']:.0f} µs"
            rows += [[str(result["past_tokens"]), row["name"], own, other, ratio(row, other)] for other in others]
    return markdown(["past tokens", "contender", "a step", "against", "times as fast"], rows)


def errors(records: Sequence[Record]) -> str:
    """Relative errors at the longest setting of every record, one thread."""
    rows = []
    for record in records:
        alone = [result for result in record["results"] if result["threads"] == 1]
        longest = max(alone, key=lambda result: (result["past_tokens"], result["new_tokens"]))
        where = f"{record['suite']}, {longest['past_tokens']} + {longest['new_tokens']} tokens"
        rows += [
            [where, row["name"], f"{row['relative_error']:.1e}"]
            for row in longest["contenders"]
            if row["relative_error"] is not None
        ]
    return markdown(["call", "contender", "relative error"], rows)


def whole_model(record: Record) -> str:
    """Tokens per second of every variant, and ours against the fastest peer."""
    names = list(named(record["results"][0]))
    rows = []
    for result in record["results"]:
        found = named(result)
        speeds = (
            f"{found[name]['tokens_per_second']:.3g}" + (f", {ratio(found[name])}" if name.startswith("ours ") else "")
            for name in names
        )
        rows.append([str(result["threads"]), str(result["past_tokens"]), *speeds])
    return markdown(["threads", "past tokens", *names], rows)


def whole_model_memory(record: Record) -> str:
    """Caches, resident memory while decoding and the peak of every variant, in MiB."""
    names = list(dict.fromkeys(row["name"] for row in record["memory"]))
    rows = []
    for past in dict.fromkeys(row["past_tokens"] for row in record["memory"]):
        found = {row["name"]: row for row in record["memory"] if row["past_tokens"] == past}
        cells = (
            " / ".join(
                "–" if found[name][key] is None else f"{found[name][key] / 2**20:.0f}"
                for key in ("kv_bytes", "resident_bytes", "peak_resident_bytes")
            )
            for name in names
        )
        rows.append([str(past), *cells])
    return markdown(["past tokens", *names], rows)


#: Rows of the README's demonstration, and how their numbers are written.
_DEMO_ROWS = {
    "decode tokens/s": "{:.0f}",
    "prefill tokens/s": "{:.0f}",
    "perplexity": "{:.2f}",
    "KL to dense (nats/token)": "{:.1e}",
    "cache bytes/token in use": "{:.0f}",
    "delta_sparsity, scoring": "{:.3f}",
    "qk_mac_sparsity, scoring": "{:.3f}",
    "attn_mac_sparsity, scoring": "{:.3f}",
    "wall time of scoring (s)": "{:.2f}",
}


def demonstration(record: Record) -> str:
    """What `make demo` measured, dense and with delta attention."""
    rows = [
        [name, *("–" if value is None else form.format(value) for value in record["measured"][name])]
        for name, form in _DEMO_ROWS.items()
    ]
    return markdown(["", "dense", "delta"], rows)


def decode_in_short(record: Record) -> str:
    """Times on one thread, and the medians of our ratios to the fastest peer."""
    names = [name for name in ours(record) if not name.endswith("half held")]
    rows = []
    for result in record["results"]:
        if result["threads"] != 1:
            continue
        found = named(result)
        peer = next(iter(found.values()))["fastest_peer"]
        cells = [f"{found[peer]['microseconds']['median']:.0f} µs"]
        for name in names:
            row = found.get(name)
            cells.append(
                "–"
                if row is None
                else f"{row['microseconds']['median']:.0f} µs ({row['speedups'][peer]['median']:.3g}×)"
            )
        rows.append([str(result["past_tokens"]), *cells])
    header = ["past tokens", "GroupQueryAttention, fastest of three"]
    return markdown([*header, *(f"{name} cache" for name in names)], rows)


def machine(record: Record) -> str:
    """What the machine can do at most, and what it is."""
    rows = []
    for threads, rates in (record["machine_rates"] or {}).items():
        cells = [rates[name] for name in ("read_bytes", "float32_operations", "bfloat16_operations", "int8_operations")]
        rows.append([threads, *("–" if cell is None else f"{cell / 1e9:.0f}" for cell in cells)])
    header = ["threads", "read GB/s", "float32 Gop/s", "bfloat16 Gop/s", "int8 Gop/s"]
    versions = ", ".join(f"{name} {version}" for name, version in record["versions"].items())
    return f"{record['cpu']}, {record['cpus']} cores; {versions}; {record['date'][:10]}.\n\n" + markdown(header, rows)


_LLAMA = "Llama-3.2-1B"

TABLES: Mapping[str, Callable[[], str]] = {
    "machine": lambda: machine(load(f"attention-decode-{_LLAMA}")),
    "demonstration": lambda: demonstration(load("demo")),
    "decode in short": lambda: decode_in_short(load(f"attention-decode-{_LLAMA}")),
    "decode": lambda: ratios(load(f"attention-decode-{_LLAMA}"), 1),
    "decode, two threads": lambda: ratios(load(f"attention-decode-{_LLAMA}"), 2),
    "decode, roofline": lambda: roofline(load(f"attention-decode-{_LLAMA}")),
    "decode, half held": lambda: against(load(f"attention-decode-{_LLAMA}")),
    "decode, all geometries": lambda: all_geometries("decode"),
    "decode, AVX2": lambda: ratios(load(f"attention-decode-{_LLAMA}-avx2"), 1),
    "prompt": lambda: ratios(load(f"attention-prompt-{_LLAMA}"), 1),
    "prompt, two threads": lambda: ratios(load(f"attention-prompt-{_LLAMA}"), 2),
    "prompt, all geometries": lambda: all_geometries("prompt"),
    "chunk": lambda: ratios(load(f"attention-chunk-{_LLAMA}"), 1),
    "decode, per token": lambda: slopes(load(f"attention-decode-{_LLAMA}")),
    "prompt, per key": lambda: per_pair(load(f"attention-prompt-{_LLAMA}")),
    "OpenVINO, versions": lambda: openvino(load(f"openvino-{_LLAMA}")),
    "OpenVINO, decode": lambda: decode_costs(load(f"openvino-{_LLAMA}")),
    "OpenVINO, prompt": lambda: prompt_costs(load(f"openvino-{_LLAMA}")),
    "overhead": lambda: against(load(f"attention-overhead-{_LLAMA}")),
    "scaling": lambda: against(load(f"attention-scaling-{_LLAMA}"), 2),
    "errors": lambda: errors([load(f"attention-{suite}-{_LLAMA}") for suite in ("decode", "prompt")]),
    "whole model": lambda: whole_model(load(f"whole-model-{_LLAMA}")),
    "whole model, memory": lambda: whole_model_memory(load(f"whole-model-{_LLAMA}")),
    "instructions, cortex-a53": lambda: per_token_table(load(f"arm64-counts-{_LLAMA}"), "cortex-a53"),
    "instructions, cortex-a76": lambda: per_token_table(load(f"arm64-counts-{_LLAMA}"), "cortex-a76"),
    "C++ program, memory": lambda: memory_table(load(f"runner-memory-{_LLAMA}")),
}


def filled(page: str, tables: Mapping[str, Callable[[], str]] = TABLES) -> tuple[str, list[str]]:
    """The page with its tables renewed, and a sentence per table that could not be made: it stays as it was.

    Raises:
        DeltaLLMError: for a marker of a table there is none of.
    """
    problems: list[str] = []

    def renewed(match: re.Match[str]) -> str:
        name = match["name"]
        if name not in tables:
            raise DeltaLLMError(f"The page asks for the table {name!r}: choose one of {', '.join(tables)}.")
        try:
            return match[1] + tables[name]() + match[3]
        except DeltaLLMError as error:
            problems.append(f"{name}: {error}")
            return match[0]

    return _MARKED.sub(renewed, page), problems


def fill_page(page: Path, tables: Mapping[str, Callable[[], str]] = TABLES) -> None:
    """Renew the tables of a page in place; on stderr, a line per table that could not be made.

    Raises:
        DeltaLLMError: as `filled`.
    """
    text, problems = filled(page.read_text(encoding="utf-8"), tables)
    page.write_text(text, encoding="utf-8")
    for problem in problems:
        print(f"{page.name}, left as it was: {problem}", file=sys.stderr)


def main() -> None:
    parser = script_parser("bench.tables", __doc__)
    parser.add_argument("--plot", action="store_true", help="draw docs/performance.svg too")
    options = parser.parse_args()
    with refusals():
        for page in PAGES:
            fill_page(page)
        if options.plot:
            from bench.plot import draw  # noqa: PLC0415  # matplotlib is an extra

            draw(load(f"attention-decode-{_LLAMA}"), load(f"attention-prompt-{_LLAMA}"), PLOT)


if __name__ == "__main__":
    main()
