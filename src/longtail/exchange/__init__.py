"""To other programs and from them: exports, their card, and imported checkpoints."""
