"""The cases, a file per theme."""
