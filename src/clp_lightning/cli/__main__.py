"""`python -m clp_lightning.cli`, for those who start the command with an interpreter of their choice."""

from clp_lightning.cli.app import main

if __name__ == "__main__":
    main()
