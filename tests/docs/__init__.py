"""The documentation held to the program: commands that run, pages as generated, alerts that are checked."""
