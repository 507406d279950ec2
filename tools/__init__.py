"""What maintains the project: the demo, benchmarks, and the proof that a change of the code changes no result."""
