"""The valid examples of requests and events, as JSON objects."""

import json

from tools import generate
from tools.generate.examples import events, requests

_SEALED = json.loads((generate.ROOT / "examples" / "sealed.json").read_text("utf-8"))
REQUESTS = [d for by_title in requests(_SEALED).values() for d in by_title.values()]
EVENTS = [d for by_title in events().values() for d in by_title.values()]
