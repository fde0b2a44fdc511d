"""A pipeline with one of everything that the dashboard shows."""

import os

from headrace import Pipeline, Record, tumbling

pipeline = Pipeline(
    "shop",
    tokens=os.environ.get("SHOP_TOKENS") == "yes",
    add_sources=True,
    private_addresses=True,  # the source that a test adds is on this machine
)


class Order(Record):
    customer: str
    item: str
    pieces: int = 1


orders = pipeline.topic("orders", Order, partitions=2)
pipeline.topic("others", Order)
pipeline.route("/order/{item}", orders, {"customer": "web", "item": "{item}"}, reply="Ordered!\n")
pipeline.table("sold", "SELECT event_id, received_at, customer, item, pieces FROM orders")
pipeline.view("by_item", "SELECT item, count(*) AS n FROM sold GROUP BY item")
pipeline.view(
    "per_minute",
    "SELECT item, count(*) AS n FROM sold GROUP BY item",
    window=tumbling("1 minute", on="received_at"),
)
