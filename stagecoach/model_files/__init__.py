"""What a model is on disk: its shape, the names of its tensors, the bytes of the wanted ones.

Both sides of the system open the same files, so neither torch nor transformers is imported here
and opening a model reads nothing but its headers. Nothing that can execute code is loaded.
"""

from stagecoach.model_files.config import ModelConfig
from stagecoach.model_files.model_files import ModelFiles, TensorInfo, TensorReader
from stagecoach.model_files.open_model import model_id_of, open_model
from stagecoach.model_files.tokenizer_files import GgufTokenizer, HfTokenizerFiles, TokenizerFiles

__all__ = [
    "GgufTokenizer",
    "HfTokenizerFiles",
    "ModelConfig",
    "ModelFiles",
    "TensorInfo",
    "TensorReader",
    "TokenizerFiles",
    "model_id_of",
    "open_model",
]
