"""Generated drawings: things, scenes and artists, and an image of them."""
