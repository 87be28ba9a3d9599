"""The run folder: what is written, read again after anything, and locked."""
