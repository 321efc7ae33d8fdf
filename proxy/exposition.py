"""The totals as Prometheus reads them: its text format, or OpenMetrics when the scraper asks for it.

Rendering costs tens of milliseconds once there are hundreds of label sets, so it runs in the supervisor,
on a copy, in a thread: never on a worker's loop.
"""

from __future__ import annotations

from itertools import accumulate
from typing import TYPE_CHECKING

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily, Metric
from prometheus_client.exposition import choose_encoder
from prometheus_client.registry import Collector, CollectorRegistry

from proxy.cells import BOUNDS
from proxy.metrics import Kind

if TYPE_CHECKING:
    from collections.abc import Iterator

    from proxy.totals import Sample

_BOUND_NAMES = [*map(str, BOUNDS), "+Inf"]


def render(samples: list[Sample], accept: str) -> tuple[bytes, str]:
    """The body and its content type, for a scraper that sent ``accept`` as its Accept header."""
    registry = CollectorRegistry(auto_describe=False)
    registry.register(_Samples(samples))
    encode, content_type = choose_encoder(accept)
    return encode(registry), content_type


class _Samples(Collector):
    def __init__(self, samples: list[Sample]) -> None:
        self._samples = samples

    def collect(self) -> Iterator[Metric]:
        return map(_family, self._samples)


def _family(sample: Sample) -> Metric:
    family = sample.family
    match family.kind:
        case Kind.COUNTER:
            # A family without labels exists from the first scrape on, so that rate() sees its first increase.
            counter = CounterMetricFamily(family.name, family.help, labels=family.labels)
            for labels, value in sample.values.items() or ([] if family.labels else [((), 0.0)]):
                counter.add_metric(labels, value)
            return counter
        case Kind.GAUGE:
            gauge = GaugeMetricFamily(family.name, family.help, labels=family.labels)
            for labels, value in sample.values.items() or ([] if family.labels else [((), 0.0)]):
                gauge.add_metric(labels, value)
            return gauge
        case Kind.HISTOGRAM:
            histogram = HistogramMetricFamily(family.name, family.help, labels=family.labels)
            for labels, (counts, total) in sample.distributions.items():
                histogram.add_metric(
                    labels,
                    buckets=list(zip(_BOUND_NAMES, map(float, accumulate(counts)), strict=True)),
                    sum_value=total,
                )
            return histogram
