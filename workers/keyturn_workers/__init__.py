"""The processes: workers, the gateway, the console, and the command line `keyturn`."""
