"""The names that dashboards and alert rules rely on, and the server that shows them."""
from urllib.request import urlopen

import pytest

from deskbook.core.errors import BadInput
from deskbook.core.metrics import metric_names, metrics_text, serve_metrics

PROMISED = """regime_payloads_total regime_latest_hazard regime_hazard_threshold regime_candle_age_seconds regime_iteration_seconds_count
regime_iteration_seconds_sum regime_gate_reasons_total regime_candles_rejected_total sep_gate_age_seconds sep_kill_switch
sep_kill_switch_cleared_total sep_read_only sep_trading_active sep_loop_age_seconds sep_nav_usd sep_exposure_usd sep_positions sep_drift_usd
sep_oanda_requests_total sep_oanda_request_seconds_bucket sep_decisions_total sep_decision_reasons_total sep_orders_total sep_worker_up
sep_worker_restarts_total sep_alerts_open sep_disk_free_ratio sep_certificate_expiry_timestamp_seconds""".split()


def test_every_promised_metric_is_there():
    assert set(PROMISED) <= metric_names()


def test_shown_over_http_and_ended_when_told():
    stop = serve_metrics(0)
    url = f"http://127.0.0.1:{stop.port}/metrics"
    with urlopen(url) as answer:
        assert answer.headers["Content-Type"].startswith("text/plain")
        assert b"# TYPE sep_kill_switch gauge" in answer.read()
    with pytest.raises(BadInput, match="REGIME_PROM_PORT"):
        serve_metrics(stop.port)
    stop()
    with pytest.raises(OSError):
        urlopen(url, timeout=1)


def test_every_line_can_be_read_by_a_parser():
    from prometheus_client.parser import text_string_to_metric_families

    assert {"sep_orders", "regime_payloads"} <= {f.name for f in text_string_to_metric_families(metrics_text().decode())}
