"""The operator's console: a process that shows a deployment and steers it by requests (SPEC 16).

It holds a publisher's key and public event keys; no master key, no event key, no credentials of the
bucket. So nothing here imports what reads the bucket or opens a key.
"""
