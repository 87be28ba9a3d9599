"""What the subcommands of ``longtail`` do, one file for each group of them."""
