"""The embedded benchmark `mini`: TOFU's form in 400 rows, generated from a seed, with a tokenizer and an untrained model.

The path `expunge/mini` stands for `benchmark_folder()` where rows are asked for and for `model_folder()`
where a model or a tokenizer is.
"""

from expunge.config.local_data import EMBEDDED as HUB_PATH
from expunge.data.mini.store import benchmark_folder, model_folder

__all__ = ["HUB_PATH", "benchmark_folder", "model_folder"]
