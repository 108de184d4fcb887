import pytest

from deltallm_onnx.runtime import ops_library_path


@pytest.fixture(scope="session")
def library() -> str:
    return str(ops_library_path())
