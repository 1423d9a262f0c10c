"""What removing a checkout would give back: what only its pins hold. Costs what is freed."""

from dedupfs.format.manifest import Manifest
from dedupfs.maintenance.forecast import Forecast
from dedupfs.namespace.checkouts import checkout_owner
from dedupfs.store import Store


def freed_bytes(store: Store, manifest: Manifest) -> int:
    """Return how much of the disk gc could give back in the store if a checkout were removed.

    Raises:
        StoreError: the index is damaged.
    """
    with store.reading() as txn:
        forecast = Forecast(store, txn)
        return forecast.exclusive(owners=[checkout_owner(manifest.number)]).disk_bytes
