"""Pages as HTML: templates, charts, and values as words and addresses (SPEC 16.2)."""
