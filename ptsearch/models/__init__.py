"""Base models and the checkpoints that variants are stored as.

In: a `ModelConfig`, or the folder of a checkpoint. Out: a `BaseModel` on this disk, a model in eval
mode with its tokenizer, or tensors by name. Uniform grids are compressed-tensors checkpoints;
codebooks, trellises and bit planes are `ptsearch-codes/2` (`coded.py`).
Open `loading.py` first, then `base_model.py`.
"""
