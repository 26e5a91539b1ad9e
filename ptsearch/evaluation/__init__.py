"""Variant x benchmark -> predictions, and the table of answers that everything below reads.

In: a config, variants, benchmarks. Out: Parquet predictions in the cache and a `Table` of entries.
`table.py` builds and evaluates what is missing, in worker processes (`workers.py`); `llm_judge.py`
reads replies that the rules cannot. Open `predictions.py` first, then `table.py`.
"""
