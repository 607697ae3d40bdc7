"""The valid examples of requests and events, as JSON objects."""

from tools.generate.examples import events, requests

REQUESTS = [d for by_title in requests().values() for d in by_title.values()]
EVENTS = [d for by_title in events().values() for d in by_title.values()]
