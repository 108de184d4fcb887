from __future__ import annotations

import pytest
from support.report_models import ReportModels, WrittenReport, save_report_models

from deltallm_onnx.report import ReportRequest, write_report


@pytest.fixture(scope="session")
def models(tmp_path_factory: pytest.TempPathFactory) -> ReportModels:
    return save_report_models(tmp_path_factory.mktemp("models"))


@pytest.fixture(scope="session")
def report(models: ReportModels, tmp_path_factory: pytest.TempPathFactory) -> WrittenReport:
    """A whole report on the int8 model, with its JSON and its PNG files."""
    folder = tmp_path_factory.mktemp("report")
    request = ReportRequest(
        models.int8, baseline=models.dense, text=models.text, window_tokens=90, windows=3, sample_tokens=70, maps=2
    )
    out = folder / "report.html"
    data, files = write_report(request, out, json_file=folder / "report.json", png_folder=folder / "png")
    return WrittenReport(request, data, out.read_text(encoding="utf-8"), files, folder)
