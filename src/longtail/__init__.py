"""Train image classifiers when a few classes have most of the data and most classes have almost none."""

__version__ = "0.1.0"
