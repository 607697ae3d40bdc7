"""What differs between S3 servers, named here and nowhere else (SPEC 10).

Each field is measured by `keyturn_workers.storage.probe.runner` with requests to the bucket itself.
The defaults are what works everywhere.
"""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Capabilities:
    """What the configured bucket does beyond what SPEC 10 requires."""

    # Completing a multipart upload honours If-None-Match: *. Where it does not, two
    # completions both succeed and the second body wins: large bodies then go as one
    # streamed conditional put.
    conditional_completion: bool = False
    # A copy honours If-Match on its destination; where it does not, the header is not sent.
    conditional_copy_destination: bool = False
    # A self-copy keeps the tags; where it does not, they are read before and put back after.
    copy_keeps_tags: bool = False
    # A listing begun after an overwrite was acknowledged shows the new ETag. Where it may not,
    # keyrings are read one by one.
    listings_show_overwrites: bool = False
    # What is signed with a lease is refused after it: puts, self-copies and completions. Where
    # it is not, a worker that stalled may set an object back behind a proof, and the end of
    # each sweep says so.
    late_writes_refused: bool = False


BASELINE = Capabilities()
