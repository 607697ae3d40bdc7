"""One object: `apply` executes the action that `core.plan_action` planned (SPEC 4, 8.2).

`hidden_wraps` finds wraps in the values that a rewrap keeps.
"""
