"""The report of a run: one HTML page that needs nothing else, made by `python -m tools.report RUN`."""
