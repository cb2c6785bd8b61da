"""Buys a ticket: TOKEN=$(tidewall token --user ann) python3 buy.py 127.0.0.1:7400 regions/north/events/gala ga"""

import os
import sys

from tidewall import Client, Decided, Unknown

gateways, event, tier = sys.argv[1:]
with Client(gateways.split(","), token=os.environ["TOKEN"]) as client:
    try:
        print(client.tickets.buy_tickets(parent=event, tier_id=tier, quantity=1).purchase.tickets[0])
    except Decided as no:
        sys.exit(f"refused: {no.reason}")
    except Unknown as unknown:
        print(client.seal(event.split("/events/")[0], unknown.request_id))
