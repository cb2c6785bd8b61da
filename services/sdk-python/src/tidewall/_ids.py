"""Request ids. A UUID of version 7 says when it was made: a region knows by that which ids it may have forgotten."""

import secrets
import time
import uuid


def new_request_id() -> str:
    """A UUID of version 7 (RFC 9562): 48 bits of Unix time in milliseconds, the rest random."""
    value = int(time.time() * 1000) << 80 | secrets.randbits(80)
    value = value & ~(0xF << 76) | 0x7 << 76
    value = value & ~(0x3 << 62) | 0x2 << 62
    return str(uuid.UUID(int=value))
