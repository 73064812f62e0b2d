"""What steering costs, in turns with what it is compared with (`make bench`)."""
