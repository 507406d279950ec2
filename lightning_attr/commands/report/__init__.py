"""The report of a run: one HTML page that needs nothing else, made by ``lightning-attr report RUN``."""
