"""Ask a model which of its training images made some outputs, in one command: a thin script over the stages."""
