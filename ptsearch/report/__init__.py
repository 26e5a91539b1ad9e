"""A finished study for people: rows, plots, MLflow, the terminal, the certificate.

In: the study and its table. Out: tables on the screen, CSV, figures, MLflow runs.
`rows.py` defines the row that every table, plot and CSV iterates over; MLflow is only in
`tracking.py`. Open `study.py` first; `study_output.py` logs and prints what it computes.
"""
