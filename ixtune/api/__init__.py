"""Public functions of `import ixtune`: one per command, with the command's defaults.

Each imports what it needs when it is called. Errors are `ixtune.errors.IxtuneError`s.
"""

from ixtune.api.answers import evaluate, predict
from ixtune.api.data import prepare
from ixtune.api.runs import plan, train
from ixtune.api.weights import export, load_model, load_processor, merge

__all__ = ["evaluate", "export", "load_model", "load_processor", "merge", "plan", "predict", "prepare", "train"]
