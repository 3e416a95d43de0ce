"""The embedded benchmark `mini`: 400 generated rows in TOFU's format, a tokenizer and an untrained model.

As a data path, `expunge/mini` means `benchmark_folder()`. As a model or tokenizer path, it means
`model_folder()`.
"""

from expunge.config.local_data import EMBEDDED as HUB_PATH
from expunge.data.mini.store import benchmark_folder, model_folder

__all__ = ["HUB_PATH", "benchmark_folder", "model_folder"]
