"""The command line `deltallm-onnx`: parsing and printing only."""

from deltallm_onnx.cli.app import main

__all__ = ["main"]
