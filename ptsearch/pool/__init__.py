"""From a base model to checkpoints of every variant of the pool, in one pass over its layers.

In: variants and calibration text. Out: one verified folder per variant, with its meta.json.
`layerwise.py` walks the layers and sums moments, `one_pass.py` solves and writes, `verify.py`
measures perplexity; `backends.py` runs llm-compressor or GPTQModel instead.
Open `build.py` first.
"""
