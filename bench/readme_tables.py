"""Print the README's tables from the committed records.

python bench/readme_tables.py
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

RECORDS = Path(__file__).parent / "records"
DEMO_ROWS = {
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


def main() -> None:
    decode: dict[str, Any] = json.loads((RECORDS / "decode_vs_gqa.json").read_text(encoding="utf-8"))
    print("| past tokens | GroupQueryAttention | ours, float32 cache | ours, float16 cache |\n|---|---|---|---|")
    for result in decode["results"]:
        if result["threads"] == 1:
            peer, *ours = result["contenders"]
            cells = [f"{c['median_us']:.0f} µs ({c['speedup_over_gqa']:.1f}×)" for c in ours]
            print(f"| {result['past_tokens']} | {peer['median_us']:.0f} µs | {' | '.join(cells)} |")
    demo: dict[str, Any] = json.loads((RECORDS / "demo.json").read_text(encoding="utf-8"))
    print("\n| | dense | delta |\n|---|---|---|")
    for name, form in DEMO_ROWS.items():
        cells = ["–" if value is None else form.format(value) for value in demo["measured"][name]]
        print(f"| {name} | {' | '.join(cells)} |")


if __name__ == "__main__":
    main()
