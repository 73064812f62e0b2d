"""What `make docs` adds to the pages of docs/: the README as first page, and a reference read from the code."""
