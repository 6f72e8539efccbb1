"""A load's report as the metrics and histograms of a row."""

from dataclasses import asdict

from narrows_tools.bench.load import LAG_BOUND_MS, LoadReport
from narrows_tools.bench.servers import Usage, others_share

GOODPUT_FLOOR_MS = 100.0
GOODPUT_FACTOR = 10.0


def goodput_deadline_ms(single_ms: float) -> float:
    """How late an answer may be and still count: 100 ms, or 10 times what one question alone takes if that is more."""
    return max(GOODPUT_FLOOR_MS, GOODPUT_FACTOR * single_ms)


def metrics_of(report: LoadReport, before: Usage | None = None, after: Usage | None = None) -> dict[str, float]:
    """The metrics of a load, with the usage of the server and its cores before and after it where that is known.

    `others_cpu_share` is what everything else took of the server's cores: how undisturbed the measurement was.
    `generator_late` is 1 where the load generator itself was too slow: such a row says nothing about the server.
    Latencies are left out where nothing was answered: there are none, and 0 would be the best of all.
    """
    total = max(report.requests, 1)
    metrics = {
        "request_count": float(report.requests),
        "duration_s": report.duration_s,
        "throughput_per_s": report.throughput_per_s,
        "goodput_per_s": report.goodput_per_s,
        "in_time_share": report.within_deadline / total,
        "refused_share": report.counts["refused"] / total,
        "late_share": report.counts["late"] / total,
        "failed_share": report.counts["failed"] / total,
        "send_lag_p50_ms": report.send_lag.p50_ms,
        "send_lag_p99_ms": report.send_lag.p99_ms,
        "generator_late": float(report.send_lag.p99_ms > LAG_BOUND_MS),
        "client_cpu_share": report.client_cpu_share,
    }
    if report.counts["ok"]:
        metrics |= asdict(report.latency)
    if report.counts["refused"]:
        metrics["refusal_p99_ms"] = report.refusal.p99_ms
    if report.batch_size_mean:
        metrics["batch_size_mean"] = report.batch_size_mean
    if report.padding_share is not None:
        metrics["padding_share"] = report.padding_share
    if report.background_per_s is not None:
        metrics |= {
            "passages_per_s": report.background_per_s,
            "passages_failed_count": float(report.background_failed),
        }
    if before and after:
        metrics["server_cpu_ms_per_request"] = (after.cpu_s - before.cpu_s) * 1e3 / total
        metrics["rss_bytes"] = float(after.rss_bytes)
        if (others := others_share(before, after)) is not None:
            metrics["others_cpu_share"] = others
    return metrics


def histograms_of(report: LoadReport) -> dict[str, dict[str, int]]:
    """Requests by the size of their batch, by its padded length, and by their own length in tokens."""
    found = {"batch_size": report.batch_sizes, "batch_tokens": report.batch_tokens, "tokens": report.tokens}
    return {name: {str(value): count for value, count in bars.items()} for name, bars in found.items() if bars}
