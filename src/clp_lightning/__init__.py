"""CLP Lightning: one language model that takes the trade-off between its rewards as an input."""
