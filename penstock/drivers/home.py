"""The home of live jobs: what the HTTP front talks to. Fixed shape; the body is under construction."""

from collections.abc import AsyncIterator

from penstock.core.job import JobSpec
from penstock.core.slo import Slo
from penstock.engine.base import EngineInfo
from penstock.engine.params import Logprobs, Sampling
