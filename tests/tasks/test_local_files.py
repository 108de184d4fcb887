from __future__ import annotations

import json
from pathlib import Path

from deltallm_onnx.tasks.local_files import read_json_lines


def test_separators_of_other_scripts_do_not_end_a_line_of_json(tmp_path: Path) -> None:
    rows = [{"question": "one\u2028two\x85three"}, {"question": "four\x0cfive"}]
    lines = [json.dumps(row, ensure_ascii=False).encode() for row in rows]
    (tmp_path / "rows.jsonl").write_bytes(b"\r\n".join([*lines, b"", b""]))
    assert read_json_lines(tmp_path / "rows.jsonl") == rows
