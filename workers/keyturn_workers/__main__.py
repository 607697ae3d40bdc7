"""`python -m keyturn_workers` is the `keyturn` command."""

from keyturn_workers.cli.app import main

if __name__ == "__main__":
    main()
