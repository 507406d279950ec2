"""Sweeps of retrainings: the ground truth that attributions are checked against."""
