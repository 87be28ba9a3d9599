"""The loop, what a run carries from step to step, what guards it, and who watches it."""
