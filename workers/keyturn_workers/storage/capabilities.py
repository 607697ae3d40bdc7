"""Differences between S3 servers that code depends on at run time (SPEC 10).

What the requests and responses of single servers look like is in `s3_requests`, `s3_responses`,
`listing` and `s3_listings`.

`keyturn_workers.storage.probe.runner` measures each field with requests to the bucket itself.
The defaults work on every server that keeps to S3's rules for keys and listings. The flags at the
end say that a server does not.
"""

from dataclasses import dataclass

from keyturn.identifiers import Order, byte_order, path_order


@dataclass(frozen=True, slots=True)
class Capabilities:
    """What the configured bucket does beyond what SPEC 10 requires."""

    # A completion honors If-None-Match: *. Otherwise two completions both succeed, and the second
    # body wins: large bodies are then stored by one streamed conditional put.
    conditional_completion: bool = False
    # A copy honors If-Match on its destination. Otherwise the header is not sent.
    conditional_copy_destination: bool = False
    # A self-copy keeps the tags. Otherwise they are read before it and restored after it.
    copy_keeps_tags: bool = False
    # A listing that starts after an overwrite was acknowledged shows the new ETag. Otherwise
    # keyrings are read one by one.
    listings_show_overwrites: bool = False
    # Puts, self-copies and completions are refused after the lease they were signed with.
    # Otherwise a stalled worker may revert an object after a proof, and the report of each sweep
    # says so.
    late_writes_refused: bool = False

    # Keys are paths: `a\b` is `a/b`, or no object can exist beside those below its key. Then
    # uploads to keys with a backslash are refused.
    keys_are_paths: bool = False
    # Listings leave out some names (of the server's own folders). Then uploads to such keys are
    # refused, since a rotation could not find them.
    unlisted_names: bool = False
    # The server lists keys by their paths, `a/x` before `a-b`, and continues in that order.
    # Otherwise by their bytes. Sweeps divide a project into ranges of this order. None: not
    # measured. A storage then finds it out from the keys that it lists, where it matters.
    lists_by_path: bool | None = None

    @property
    def order(self) -> Order:
        """The order in which the server lists."""
        return path_order if self.lists_by_path else byte_order


BASELINE = Capabilities()
