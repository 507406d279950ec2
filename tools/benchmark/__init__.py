"""How fast the project is on this machine, against the plainest code that does the same."""
