"""A testbed between oracle and language: the pretrained model with answers of one word, where everything is exact."""
