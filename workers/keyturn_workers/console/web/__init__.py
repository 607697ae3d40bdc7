"""The console's pages: Starlette, Jinja2 and htmx, without a build step (SPEC 16.2, 16.3)."""
