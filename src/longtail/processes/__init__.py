"""Several processes as one job, what each has of a batch, and where tensors live."""
