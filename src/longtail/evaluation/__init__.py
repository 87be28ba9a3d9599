"""From probabilities to numbers: metrics, priors, and how a trained network answers."""
