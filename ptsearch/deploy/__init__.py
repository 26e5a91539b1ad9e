"""The chosen ensemble as a folder that stands alone, and the Python API that loads it.

In: what a study recorded of its front. Out: a folder with members, ensemble.yaml, certificate,
replay log, manifests; `PrecisionEnsemble` answers from it. `folder.py` opens it safely.
Open `export.py` first, then `ensemble.py`.
"""
