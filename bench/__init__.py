"""`make bench`: what steering costs, as ratios of medians taken in turns in one run."""
