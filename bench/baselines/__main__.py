"""The command line of the package; see its docstring."""

from __future__ import annotations

import sys
from pathlib import Path

import bench.baselines
from bench.baselines.journal import Journal
from bench.baselines.plot import draw
from bench.baselines.tables import RECORD, tables
from bench.script import check_record_folder, refusals, script_parser
from bench.tables import RECORDS, filled, load
from deltallm_onnx.bench import write_record

PAGE = Path(__file__).resolve().parents[2] / "docs" / "baselines.md"


def write_page(page: Path, records: Path) -> list[str]:
    """Fill in a page's tables and draw the plot beside it.

    Returns:
        A sentence for every table that could not be filled in.
    """
    text, problems = filled(page.read_text(encoding="utf-8"), tables(records))
    page.write_text(text, encoding="utf-8")
    draw(load(RECORD, records), page.with_suffix(".svg"))
    return problems


def main() -> None:
    parser = script_parser("bench.baselines", bench.baselines.__doc__)
    parser.add_argument("--tables", action="store_true", help="the page and the plot from the record, measure nothing")
    parser.add_argument("--windows", type=int, default=8, help="of the held-out text [default: %(default)s]")
    parser.add_argument("--workers", type=int, default=2, help="processes [default: %(default)s]")
    parser.add_argument("--record", type=Path, default=RECORDS, help="folder for the record [default: bench/records]")
    options = parser.parse_args()
    with refusals():
        check_record_folder(options.record)
        if not options.tables:
            from bench.baselines.study import take  # noqa: PLC0415  # torch, which the page does not need

            path = options.record / f"{RECORD}.json"
            finished = path.with_suffix(".journal")
            write_record(path, take(options.windows, options.workers, Journal(finished), print))
            finished.unlink(missing_ok=True)
        # Records of trials do not reach the page.
        if options.record == RECORDS:
            for problem in write_page(PAGE, options.record):
                print(f"{PAGE.name}, left as it was: {problem}", file=sys.stderr)


if __name__ == "__main__":
    main()
