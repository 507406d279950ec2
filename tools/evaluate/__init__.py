"""Scores against a sweep's pack: `python -m tools.evaluate PACK SCORES...`."""
