"""Where does a new job go? A rank over what an instance reports; the cluster keeps the order and takes the least."""

from penstock.core.events import Load


def least_loaded(load: Load) -> float:
    """Jobs there, waiting ones first in weight: those are sure to wait for each other."""
    return 2.0 * load.waiting + load.running + load.arriving


def shortest_queue(load: Load) -> float:
    """Jobs that wait or are under way: the dispatch of DistServe's prefill pool."""
    return float(load.waiting + load.running)


def least_decodes(load: Load) -> float:
    """Jobs that decode there or soon will: the dispatch of DistServe's decode pool."""
    return float(load.running + load.waiting + load.arriving)


def freeness(load: Load) -> float:
    """Free tokens for each job, all that wait counted as if they ran: INFaaS++ as Llumnix's authors built it. Negative
    where what waits does not fit. More is better, so this is its negative."""
    free = load.pages_free * load.page_tokens - load.waiting_tokens
    return -free / max(1, load.running + load.waiting + load.arriving)
