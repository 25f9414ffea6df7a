"""`python -m shardwise`, which is also how torchrun starts it."""

from shardwise.cli.main import main

if __name__ == "__main__":
    main()
