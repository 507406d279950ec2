"""Commands that are no training job: prepare a store, inspect it, report on a run, benchmark."""
