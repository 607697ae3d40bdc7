"""`python -m workers` is the `keyturn` command."""

from workers.cli import main

if __name__ == "__main__":
    main()
