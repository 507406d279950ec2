"""What the project does about wrong settings, damaged files and kills, counted."""
