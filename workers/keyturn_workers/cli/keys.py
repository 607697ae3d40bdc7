"""`keyturn keys`: master keys, and what is derived from them (SPEC 2.2, 14).

One module for each command; this one groups them.
"""

import typer

from keyturn_workers.cli import check_keys, create_key, export_project, import_key, list_keys

app = typer.Typer(name="keys", help="Manage master keys, and export one project's admin KEK.")


app.command("list")(list_keys.list_keys)
app.command("check")(check_keys.check_keys)
app.command("create")(create_key.create_key)
app.command("import")(import_key.import_key)
app.command("export-project")(export_project.export_project)
