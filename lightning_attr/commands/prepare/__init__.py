"""Making stores of images and captions."""
