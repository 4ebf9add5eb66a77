"""The feature file on disk: its writer and its reader."""
