"""A run: its folder, its checkpoints, how it stops, and its ranks. Import the modules; they need Lightning or not."""
