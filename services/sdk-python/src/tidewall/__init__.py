"""Client of Tidewall. `Client` makes request ids, repeats what may be repeated, and tells three kinds of end apart."""

from tidewall._client import Client, Done
from tidewall._errors import Decided, Error, NotDecided, Unknown
from tidewall._ids import new_request_id

__all__ = ["Client", "Decided", "Done", "Error", "NotDecided", "Unknown", "new_request_id"]
