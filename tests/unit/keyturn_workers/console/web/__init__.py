"""The console's pages, through Starlette's test client."""
