"""What stands in deploy/: units, edge, rules, board and cron scripts, each judged by the program that will read it."""
import contextlib
import json
import os
import re
import shutil
import socket
import subprocess
import sys
import time
from pathlib import Path

import httpx
import pytest
import yaml
from deskbook.app.workers import WORKERS
from deskbook.core.metrics import metric_names
from deskbook.core.settings import Settings

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "ops"))
from listeners import Syslog, Webhook

DEPLOY = Path(__file__).resolve().parents[2] / "deploy"
RULES = yaml.safe_load((DEPLOY / "prometheus" / "rules.yaml").read_text())["groups"][0]["rules"]
BOARD = json.loads((DEPLOY / "grafana" / "deskbook.json").read_text())
WORDS = {"max", "min", "sum", "by", "and", "or", "on", "unless", "rate", "increase", "topk", "histogram_quantile", "time", "up", "hour", "minute", "day_of_week", "max_over_time"}


def metrics_in(expression: str) -> set[str]:
    """The names that an expression asks Prometheus for."""
    bare = re.sub(r"\{[^}]*\}|\[[^\]]*\]|\bby \([^)]*\)|\bon\(\)", "", expression)
    return set(re.findall(r"[a-zA-Z_:][a-zA-Z0-9_:]*", bare)) - WORDS


# ---- systemd

def test_there_is_a_unit_for_every_worker():
    units = {p.name for p in (DEPLOY / "systemd").glob("*.service")}
    assert {f"deskbook-{w}.service" for w in WORKERS} <= units
    wants = re.search(r"^Wants=(.*)$", (DEPLOY / "systemd" / "deskbook.target").read_text(), re.M)[1].split()
    assert sorted(wants) == sorted(f"deskbook-{w}.service" for w in WORKERS)
    for w in WORKERS:
        text = (DEPLOY / "systemd" / f"deskbook-{w}.service").read_text()
        assert f"deskbook daemon {w}\n" in text and "Restart=always" in text and "KillSignal=SIGTERM" in text


def test_systemd_accepts_the_units(system_tool, tmp_path):
    analyze = system_tool("systemd-analyze", "systemd")
    for unit in (DEPLOY / "systemd").iterdir():
        (tmp_path / unit.name).write_text(unit.read_text().replace("/opt/deskbook/bin/deskbook daemon", f"{shutil.which('true')} daemon"))
    done = subprocess.run([analyze, "verify", "--man=no", *map(str, sorted(tmp_path.iterdir()))], capture_output=True, text=True)
    assert done.returncode == 0 and "deskbook" not in done.stderr, done.stderr
    broken = tmp_path / "deskbook-api.service"
    broken.write_text(broken.read_text().replace("Restart=always", "Restart=allways"))
    done = subprocess.run([analyze, "verify", "--man=no", str(broken)], capture_output=True, text=True)
    assert "allways" in done.stderr


# ---- Prometheus and Grafana

@pytest.mark.parametrize("rule", RULES, ids=lambda r: r["alert"])
def test_every_metric_of_a_rule_exists(rule):
    asked = metrics_in(rule["expr"])
    assert asked <= metric_names(), asked - metric_names()
    assert asked or "up{" in rule["expr"]


@pytest.mark.parametrize("panel", BOARD["panels"], ids=lambda p: p["title"])
def test_every_metric_of_the_board_exists(panel):
    asked = {m for t in panel["targets"] for m in metrics_in(t["expr"])}
    assert asked and asked <= metric_names(), asked - metric_names()


def test_a_metric_that_does_not_exist_would_be_found():
    assert metrics_in('sum by (instrument) (rate(sep_gate_rejections_total{reason="x"}[5m])) > 0') == {"sep_gate_rejections_total"}
    assert "sep_gate_rejections_total" not in metric_names()


def test_what_was_promised_is_watched():
    assert {"GateOld", "HazardFallback", "BrokerErrors", "KillSwitchCleared", "DiskFull", "CertificateEnds", "ProcessDown", "WorkerDown"} <= {r["alert"] for r in RULES}
    shown = {m for p in BOARD["panels"] for t in p["targets"] for m in metrics_in(t["expr"])}
    families = {re.sub(r"_(bucket|sum|count)$", "", m) for m in metric_names() if m.startswith(("sep_", "regime_"))}
    assert families <= {re.sub(r"_(bucket|sum|count)$", "", m) for m in shown}, "the board shows every figure of the desk"


def test_the_scrape_targets_are_the_ports_of_the_workers():
    for name, host in (("machine", lambda w: "127.0.0.1"), ("compose", lambda w: w)):
        jobs = {j["job_name"]: j["static_configs"] for j in yaml.safe_load((DEPLOY / "prometheus" / f"{name}.yaml").read_text())["scrape_configs"]}
        ports = {w.name: w.port for w in WORKERS.values() if w.port} | {"gates": Settings.model_fields["prometheus_port"].default}
        assert {c["labels"]["process"]: c["targets"] for c in jobs["deskbook"]} == {w: [f"{host(w)}:{port}"] for w, port in ports.items()}


def test_promtool_accepts_rules_and_targets(system_tool, tmp_path):
    promtool = system_tool("promtool", "prometheus")
    shutil.copytree(DEPLOY / "prometheus", tmp_path / "p")
    for name in ("machine", "compose"):
        text = (tmp_path / "p" / f"{name}.yaml").read_text().replace("/etc/prometheus/api_token", str(tmp_path / "p" / "api_token"))
        (tmp_path / "p" / f"{name}.yaml").write_text(text)
    (tmp_path / "p" / "api_token").write_text("t")
    for words in (["rules", "rules.yaml"], ["config", "machine.yaml"], ["config", "compose.yaml"]):
        done = subprocess.run([promtool, "check", *words], cwd=tmp_path / "p", capture_output=True, text=True)
        assert done.returncode == 0, done.stdout + done.stderr


ALERTING = """
rule_files: [rules.yaml]
evaluation_interval: 1m
tests:
- interval: 1m
  input_series:
  - {series: 'sep_gate_age_seconds{instrument="EUR_USD"}', values: '10+60x20'}
  - {series: 'sep_kill_switch', values: '1x5 0x15'}
  - {series: 'sep_disk_free_ratio', values: '0.05x20'}
  - {series: 'sep_oanda_requests_total{op="quotes",status="200"}', values: '0+90x20'}
  - {series: 'sep_oanda_requests_total{op="quotes",status="503"}', values: '0+10x20'}
  - {series: 'regime_gate_reasons_total{instrument="EUR_USD",reason="hazard_fallback_requested"}', values: '0+1x20'}
  - {series: 'sep_certificate_expiry_timestamp_seconds', values: '864000x120'}
  - {series: 'up{job="deskbook",process="gates"}', values: '0x20'}
  - {series: 'sep_worker_up{worker="gates"}', values: '0x20'}
  alert_rule_test: [%s]
"""


def test_the_rules_fire_when_they_should(system_tool, tmp_path):
    """promtool plays a quarter of an hour of a Thursday on which everything is wrong."""
    promtool = system_tool("promtool", "prometheus")
    shutil.copy(DEPLOY / "prometheus" / "rules.yaml", tmp_path)

    def firing(alert, at, labels):
        rule = next(r for r in RULES if r["alert"] == alert)
        case = {"eval_time": at, "alertname": alert, "exp_alerts": [{"exp_labels": {"severity": rule["labels"]["severity"], **labels}, "exp_annotations": {}}]}
        (tmp_path / "t.yaml").write_text(ALERTING % json.dumps(case))
        done = subprocess.run([promtool, "test", "rules", "t.yaml"], cwd=tmp_path, capture_output=True, text=True)
        return "got:[]" not in (done.stdout + done.stderr).replace(" ", "").replace("\n", "")

    for alert, labels in (("GateOld", {"instrument": "EUR_USD"}), ("HazardFallback", {"instrument": "EUR_USD"}), ("BrokerErrors", {}), ("DiskFull", {}),
                          ("ProcessDown", {}), ("WorkerDown", {"worker": "gates"})):
        assert firing(alert, "15m", labels), alert
    assert firing("KillSwitchCleared", "7m", {}) and firing("CertificateEnds", "61m", {})
    assert not firing("KillSwitchCleared", "3m", {}), "it is still engaged"


# ---- the edge

def free_port() -> int:
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return s.getsockname()[1]


@pytest.fixture
def edge(tmp_path, system_tool):
    """edge(with_certificate): the configuration that render.sh wrote, inside a whole nginx.conf, and its ports."""
    nginx = shutil.which("nginx", path=os.environ["PATH"] + ":/usr/sbin") or system_tool("nginx", "nginx")
    openssl = system_tool("openssl", "openssl")

    def make(with_certificate: bool, upstream: int = 1):
        certs, http, https = tmp_path / "certs", free_port(), free_port()
        certs.mkdir(exist_ok=True)
        if with_certificate:
            words = [openssl, "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-keyout", str(certs / "privkey.pem"), "-out", str(certs / "fullchain.pem"), "-days", "2", "-subj", "/CN=desk.example"]
            subprocess.run(words, check=True, capture_output=True)
        env = {**os.environ, "SERVER_NAME": "desk.example", "CERT_BASE": str(certs), "BACKEND_UPSTREAM": f"127.0.0.1:{upstream}", "HTTP_LISTEN": f"127.0.0.1:{http}",
               "HTTPS_LISTEN": f"127.0.0.1:{https}"}
        subprocess.run([DEPLOY / "nginx" / "render.sh", tmp_path / "desk.conf"], env=env, check=True, capture_output=True)
        whole = tmp_path / "nginx.conf"
        bodies = "".join(f"{k}_temp_path {tmp_path}/{k};\n" for k in ("client_body", "proxy", "fastcgi", "uwsgi", "scgi"))
        user = "user root;\n" if os.geteuid() == 0 else ""
        whole.write_text(f"{user}daemon off;\npid {tmp_path}/pid;\nerror_log {tmp_path}/error.log;\nevents {{}}\nhttp {{\naccess_log off;\n{bodies}include {tmp_path}/desk.conf;\n}}\n")
        return [nginx, "-c", str(whole), "-e", str(tmp_path / "error.log")], http, https

    return make


@pytest.mark.parametrize("with_certificate", [False, True])
def test_nginx_accepts_both_variants(edge, tmp_path, with_certificate):
    command, _, _ = edge(with_certificate)
    done = subprocess.run([*command, "-t"], capture_output=True, text=True)
    assert done.returncode == 0 and "test is successful" in done.stderr, done.stderr
    assert ("ssl_certificate" in (tmp_path / "desk.conf").read_text()) is with_certificate


def test_render_refuses_what_would_become_configuration(tmp_path):
    done = subprocess.run([DEPLOY / "nginx" / "render.sh", tmp_path / "x.conf"], env={**os.environ, "SERVER_NAME": "a; include /etc/passwd"}, capture_output=True, text=True)
    assert done.returncode == 2 and not (tmp_path / "x.conf").exists()


@contextlib.contextmanager
def serving(command, port):
    p = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    try:
        end = time.monotonic() + 10
        while time.monotonic() < end and p.poll() is None:
            with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), 1):
                break
            time.sleep(0.05)
        assert p.poll() is None, p.stderr.read()
        yield
    finally:
        p.terminate()
        p.communicate(timeout=10)


@pytest.mark.parametrize("with_certificate", [False, True])
def test_the_edge_serves_the_api_and_hides_the_figures(edge, with_certificate):
    from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
    from threading import Thread

    class Api(BaseHTTPRequestHandler):
        def do_GET(self):
            body = json.dumps({"path": self.path, "auth": self.headers["authorization"]}).encode()
            self.send_response(200)
            self.send_header("content-length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_):
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Api) as api:
        Thread(target=api.serve_forever, args=(0.05,), daemon=True).start()
        command, http, https = edge(with_certificate, api.server_port)
        with serving(command, http), httpx.Client(verify=False, trust_env=False, headers={"Host": "desk.example"}) as c:
            if with_certificate:
                moved = c.get(f"http://127.0.0.1:{http}/api/status")
                assert (moved.status_code, moved.headers["location"]) == (301, "https://desk.example/api/status")
            base = f"https://127.0.0.1:{https}" if with_certificate else f"http://127.0.0.1:{http}"
            r = c.get(f"{base}/api/status", headers={"Authorization": "Bearer t"})
            assert r.json() == {"path": "/api/status", "auth": "Bearer t"} and ("strict-transport-security" in r.headers) is with_certificate
            assert c.get(f"{base}/health").json()["path"] == "/health", "the API's own answer, not the edge's"
            assert c.get(f"{base}/metrics").status_code == 403
        api.shutdown()


# ---- compose

def test_compose_runs_every_worker_and_keeps_the_defaults_safe():
    compose = yaml.safe_load((DEPLOY / "compose.yaml").read_text())
    services = compose["services"]
    assert {w: services[w]["command"] for w in WORKERS} == {w: ["daemon", w] for w in WORKERS}
    assert all(services[w]["read_only"] and services[w]["restart"] == "unless-stopped" for w in WORKERS)
    assert services["valkey"]["command"][1:3] == ["--appendonly", "yes"]
    env = dict(line.split("=", 1) for line in (DEPLOY / "deskbook.env.example").read_text().splitlines() if line and not line.startswith("#"))
    assert (env["READ_ONLY"], env["KILL_SWITCH_BOOT"], env["OANDA_ENVIRONMENT"]) == ("1", "engage", "practice")
    known = {a for f in Settings.model_fields.values() for a in getattr(f.validation_alias, "choices", [])} | {f"DESKBOOK_{n.upper()}" for n in Settings.model_fields}
    assert set(env) <= known, set(env) - known
    assert not {v for k, v in env.items() if re.search("_KEY|TOKEN|SECRET|WEBHOOK", k)} - {""}


# ---- cron

@pytest.fixture
def program(tmp_path):
    """`deskbook` of this environment as one file."""
    file = tmp_path / "deskbook"
    file.write_text(f"#!{sys.executable}\nimport sys\nfrom deskbook.app.cli import main\nsys.exit(main())\n")
    file.chmod(0o755)
    return str(file)


def cron(script, **env):
    return subprocess.run(["/bin/sh", DEPLOY / "cron" / script], env={**os.environ, **env}, capture_output=True, text=True, timeout=90)


def test_the_freshness_script_alerts_and_keeps_the_code(program, valkey_url, key_prefix, monkeypatch):
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    from deskbook.ops.live_tools import market_closed

    monkeypatch.setenv("DESKBOOK_KEY_PREFIX", key_prefix)
    with Webhook() as hook, Syslog() as syslog:
        places = {"DESKBOOK": program, "SLACK_WEBHOOK": hook.url, "SYSLOG_ADDRESS": syslog.address}
        for _ in range(2):
            done = cron("gate_freshness.sh", **places, VALKEY_URL="redis://127.0.0.1:1/0")
            assert done.returncode == 1, done
        assert len(hook.texts) == 1 and "Gates cannot be read" in hook.texts[0] and "Gates cannot be read" in syslog.next()
        done = cron("gate_freshness.sh", **places, VALKEY_URL=valkey_url)
        assert done.returncode == (0 if market_closed(round(time.time() * 1000)) else 2)


@pytest.mark.parametrize("what", ["missing", "crashes", "hangs up"])
def test_the_freshness_script_alerts_when_deskbook_cannot_run(tmp_path, what):
    file = tmp_path / "deskbook"
    if what != "missing":
        file.write_text('#!/bin/sh\nprintf \'a "quoted"\\nline\\\\ \\t\'\n' + ("exit 139\n" if what == "crashes" else "kill -9 $$\n"))
        file.chmod(0o755)
    with Webhook() as hook, Syslog() as syslog:
        done = cron("gate_freshness.sh", DESKBOOK=str(file), SLACK_WEBHOOK=hook.url, SYSLOG_ADDRESS=syslog.address, NO_PROXY="127.0.0.1", no_proxy="127.0.0.1")
        assert done.returncode not in (0, 1, 2, 3), done
        assert len(hook.texts) == 1 and "gate freshness could not be checked" in hook.texts[0], (hook.bodies, done)
        assert "gate freshness could not be checked" in syslog.next()


def test_the_certificate_script(program, tmp_path, system_tool):
    openssl = system_tool("openssl", "openssl")

    def certificate(days):
        words = [openssl, "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-keyout", str(tmp_path / "k"), "-out", str(tmp_path / "c.pem"), "-days", str(days), "-subj", "/CN=x"]
        subprocess.run(words, check=True, capture_output=True)

    with Webhook() as hook:
        places = {"DESKBOOK": program, "SLACK_WEBHOOK": hook.url, "TLS_CERTIFICATE": str(tmp_path / "c.pem"), "NO_PROXY": "127.0.0.1", "no_proxy": "127.0.0.1"}
        assert cron("certificate_expiry.sh", **places).returncode == 1, "there is none"
        certificate(13)
        assert cron("certificate_expiry.sh", **places).returncode == 3
        certificate(90)
        assert cron("certificate_expiry.sh", **places).returncode == 0
        assert [t.partition("]")[0] for t in hook.texts] == ["[high", "[resolved"] and "no certificate" in hook.texts[0]


def test_no_script_stops_before_it_alerts():
    for script in (DEPLOY / "cron").glob("*.sh"):
        assert not re.search(r"^\s*set -[a-z]*e", script.read_text(), re.M), script.name
        assert subprocess.run(["/bin/sh", "-n", script]).returncode == 0
