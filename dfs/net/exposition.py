"""Metrics as text in the Prometheus format, by the official client library.

Owns: the wall around prometheus_client: families from our own numbers, and the page. Refuses to know: what is measured,
and who asks for the page (dfs.net.metrics_port).

Nothing is registered globally and nothing is counted twice: a page is made from the numbers of the moment.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import TypeAlias

from prometheus_client import CollectorRegistry, ProcessCollector, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily
from prometheus_client.exposition import CONTENT_TYPE_LATEST
from prometheus_client.metrics_core import Metric
from prometheus_client.registry import Collector
from prometheus_client.utils import floatToGoString

from dfs.measures import BOUNDS_S, TimesSnapshot

CONTENT_TYPE = CONTENT_TYPE_LATEST
Family: TypeAlias = Metric
Labelled: TypeAlias = Mapping[tuple[str, ...], float]


def gauge(name: str, text: str, value: float | Labelled, labels: tuple[str, ...] = ()) -> Family:
    """Return a number that goes up and down, or one for each combination of label values."""
    family = GaugeMetricFamily(name, text, labels=labels)
    for key, number in _items(value):
        family.add_metric(key, number)
    return family


def counter(name: str, text: str, value: float | Labelled, labels: tuple[str, ...] = ()) -> Family:
    """Return a number that only grows; `name` without the `_total` that the format adds."""
    family = CounterMetricFamily(name, text, labels=labels)
    for key, number in _items(value):
        family.add_metric(key, number)
    return family


def times(name: str, text: str, value: TimesSnapshot | Mapping[str, TimesSnapshot], label: str = "") -> Family:
    """Return a histogram of seconds, or one for each value of a label."""
    family = HistogramMetricFamily(name, text, labels=(label,) if label else ())
    bounds = [*map(floatToGoString, BOUNDS_S), "+Inf"]
    named: Mapping[str, TimesSnapshot] = {"": value} if isinstance(value, TimesSnapshot) else value
    for key, snapshot in named.items():
        buckets = list(zip(bounds, snapshot.counts, strict=True))
        family.add_metric((key,) if label else (), buckets, snapshot.sum_s)
    return family


def _items(value: float | Labelled) -> Iterable[tuple[tuple[str, ...], float]]:
    return value.items() if isinstance(value, Mapping) else [((), value)]


class _Families(Collector):
    def __init__(self, collect: Callable[[], Iterable[Family]]) -> None:
        self._collect = collect

    def describe(self) -> Iterable[Family]:
        """Say nothing in advance: the names are ours alone."""
        return ()

    def collect(self) -> Iterable[Family]:
        return self._collect()


def page_of(collect: Callable[[], Iterable[Family]]) -> Callable[[], bytes]:
    """Return a function that makes the page: what `collect` returns, and what is known of this process."""
    registry = CollectorRegistry(auto_describe=False)
    registry.register(_Families(collect))
    ProcessCollector(registry=registry)
    return lambda: generate_latest(registry)
