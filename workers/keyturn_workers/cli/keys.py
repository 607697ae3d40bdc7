"""`keyturn keys`: master keys, and what is derived from them (SPEC 2.2, 14).

One module for each command; this one groups them.
"""

import typer

from keyturn_workers.cli import export_project

app = typer.Typer(name="keys", help="Manage master keys, and export one project's admin KEK.")


@app.callback()
def keys() -> None:
    """Manage master keys, and export one project's admin KEK."""
    # Without a callback, a group of one command would be that command.


app.command("export-project")(export_project.export_project)
