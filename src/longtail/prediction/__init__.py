"""A trained network as something that takes images and gives probabilities."""
