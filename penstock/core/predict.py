"""What a policy may ask: how long would this step take? A cost model's word, times a running correction.

A profile is made on another day: other load, other clocks, another version. Without correction, policies that reckon
with deadlines lose to naive ones as soon as reality is slower than the profile (docs/predictor.md has figures). So what
steps took, over what was said, is averaged for each regime. It is state of the core: a replay has the same.
"""

from penstock.core.step import Features, StepCost

#: A new ratio weighs at least so much: of about the last thirty steps of its regime each has a say. The first weigh
#: more, later ones more than earlier, so that a start with a stall, or far from the truth, is soon forgotten.
_WEIGHT_MIN = 1 / 32
#: One stall must not pull the average further than this.
_RATIO_MAX = 4.0


def regime(features: Features) -> str:
    """`decode`, `prefill` or `mixed`: steps of one regime err alike."""
    if not features.decodes:
        return "prefill"
    return "decode" if features.decodes == features.new else "mixed"


class Predictor:
    """A cost model and what experience made of it. `corrected` False leaves the model's word as it is."""

    def __init__(self, cost: StepCost, corrected: bool = True) -> None:
        self.cost = cost
        self.corrected = corrected
        #: Regime -> measured over predicted, averaged; and how many steps that is from.
        self.factors: dict[str, float] = {}
        self._seen: dict[str, int] = {}

    def step_ns(self, features: Features) -> int:
        """How long a step with these features should take."""
        return max(1, round(self.cost.step_ns(features) * self.factors.get(regime(features), 1.0)))

    def learn(self, features: Features, took_ns: int) -> None:
        """A step with these features took so long."""
        if not self.corrected:
            return
        kind = regime(features)
        seen = self._seen[kind] = self._seen.get(kind, 0) + 1
        before = self.factors.get(kind, 1.0)
        ratio = min(max(took_ns / self.cost.step_ns(features), before / _RATIO_MAX), before * _RATIO_MAX)
        self.factors[kind] = before + (ratio - before) * max(2 / (seen + 1), _WEIGHT_MIN)
