"""Image files: which there are, where their bytes lie, and the pixels that a step needs of them."""
