"""The pages that only read: Now, Projects, Project, Queues and workers, Audit (SPEC 16.2)."""
