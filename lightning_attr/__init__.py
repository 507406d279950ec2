"""Which training images made this output? Attribution by unlearning, checked by retraining."""
