"""Where does a new job go? A rank over what an instance reports; the cluster keeps the order and takes the least."""

from penstock.core.events import Load


def least_loaded(load: Load) -> float:
    """Jobs there, waiting ones first in weight: those are sure to wait for each other."""
    return 2.0 * load.waiting + load.running
