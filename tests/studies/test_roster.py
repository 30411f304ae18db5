"""Both rules of the roster, their memory, and a ledger that survives."""
import json
from concurrent.futures import ProcessPoolExecutor
from datetime import timedelta
from multiprocessing import get_context

import pytest

from deskbook.core.clock import fixed_clock, iso, to_datetime
from deskbook.core.errors import BadInput, DataError
from deskbook.studies.roster import KEEP, REMOVE, UNPROVEN, RosterLedger, RosterRules, decide_roster, pool_weeks, read_ledger, record_roster, week_numbers, week_of

MONDAYS = [to_datetime("2025-11-10") + timedelta(weeks=i) for i in range(8)]


def cell(mean=1.5, se=0.6, n=440, n_eff=110.0, share=0.57, auroc_admit=0.56, p=0.01, auroc=(0.55, 0.6), short=None):
    def side(m): return {"avg_return_bp": m, "se_bp": se, "n_eff": n_eff}
    return {"count": n, "avg_return_pct": mean / 100, "positive_pct": share, "auroc_admit": auroc_admit, "p_value_holm": p, "auroc_direction": sum(auroc) / 2, "auroc_ci95": {"direction": list(auroc)},
            "short": side(-mean - 2 if short is None else short)} | side(mean)


def evidence(end, cells):
    return {"generated_at": iso(end), "window": {"start": iso(end - timedelta(days=7)), "end": iso(end)}, "instruments": cells}


def decide(cells, ledger=None, end=MONDAYS[0]):
    return decide_roster(evidence(end, {"EUR_USD": cells}), ledger)[0]


@pytest.mark.parametrize("change, verdict", [
    ({}, KEEP), ({"n": 199}, UNPROVEN), ({"n": 200}, KEEP), ({"share": 0.549}, UNPROVEN), ({"share": 0.55}, KEEP), ({"auroc_admit": 0.549}, UNPROVEN), ({"auroc_admit": 0.55}, KEEP),
    ({"p": 0.05}, UNPROVEN), ({"p": 0.049}, KEEP), ({"p": None}, UNPROVEN), ({"auroc_admit": None}, UNPROVEN)])
def test_seed_rule_at_its_bars(change, verdict):
    d = decide({"60": cell(**change)})
    assert d.seed_verdict == verdict and d.seed_reasons


def test_either_of_the_two_horizons_will_do_and_others_do_not():
    bad = cell(share=0.3)
    assert decide({"60": bad, "240": cell()}).seed_verdict == KEEP
    assert decide({"5": cell(), "60": bad}).seed_verdict == UNPROVEN


def four(change=None, weeks=4):
    ledger = RosterLedger(None)
    for end in MONDAYS[:weeks]:
        doc = evidence(end, {"EUR_USD": {"60": cell(**(change or {}))}})
        out = decide_roster(doc, ledger)[0]
        ledger = RosterLedger(None, {**ledger.weeks, week_of(doc): {"numbers": week_numbers(doc)}})
    return out


@pytest.mark.parametrize("change, weeks, verdict, word", [
    ({}, 4, KEEP, "+1.50 bp"), ({}, 3, UNPROVEN, "3 of 4 weeks"), ({"n_eff": 49.0}, 4, UNPROVEN, "196 of 200 facts"), ({"se": 3.0}, 4, UNPROVEN, "Holm p"),
    ({"auroc": (0.4, 0.55)}, 4, UNPROVEN, "AUROC"), ({"mean": -0.5}, 1, UNPROVEN, "lower bound"), ({"mean": -4.0, "short": 2.0, "auroc": (0.4, 0.45)}, 4, KEEP, "short 60 min")])
def test_sound_rule(change, weeks, verdict, word):
    d = four(change, weeks)
    assert d.sound_verdict == verdict and word in " ".join(d.sound_reasons)
    assert d.side == (None if verdict != KEEP else "short" if "short" in word else "long")


def test_old_weeks_fall_out_of_the_pool():
    ledger = RosterLedger(None, {f"2025-W{w:02d}": {"numbers": week_numbers(evidence(MONDAYS[0], {"EUR_USD": {"60": cell()}}))} for w in range(10, 14)})
    assert decide({"60": cell()}, ledger).sound_verdict == UNPROVEN


def test_pooling_is_by_precision_and_holm_is_over_all():
    weeks = [week_numbers(evidence(MONDAYS[0], {"EUR_USD": {"60": cell(mean=m, se=s)}, "USD_JPY": {"60": cell(mean=0.1)}})) for m, s in ((1.0, 1.0), (4.0, 2.0))]
    got = {(c.instrument, c.side): c for c in pool_weeks(weeks)}
    assert len(got) == 4
    assert got["EUR_USD", "long"].mean_bp == pytest.approx((1 + 4 / 4) / (1 + 1 / 4))
    assert got["EUR_USD", "long"].n_eff == 220 and got["EUR_USD", "long"].p_holm == pytest.approx(min(1, 4 * got["EUR_USD", "long"].p))


def test_two_consecutive_bad_weeks_remove_and_a_gap_does_not(tmp_path):
    bad = {"60": cell(mean=-1.0, short=-1.0), "240": cell(mean=-0.1, short=-2.0)}
    book = tmp_path / "roster.jsonl"
    first, second = (record_roster(book, evidence(e, {"EUR_USD": bad}))[0] for e in MONDAYS[:2])
    assert (first.seed_verdict, second.seed_verdict, second.sound_verdict) == (KEEP, REMOVE, REMOVE)  # the seed rule does not look at signs in one week
    fourth = record_roster(book, evidence(MONDAYS[3], {"EUR_USD": bad}))[0]
    assert fourth.seed_verdict == KEEP and fourth.sound_verdict == UNPROVEN
    good = record_roster(book, evidence(MONDAYS[4], {"EUR_USD": bad | {"5": cell(mean=0.1)}}))[0]
    assert REMOVE not in (good.seed_verdict, good.sound_verdict)


def test_remove_goes_over_the_end_of_a_year(tmp_path):
    bad = {"EUR_USD": {"60": cell(mean=-1.0, short=-1.0)}}
    book = tmp_path / "r.jsonl"
    record_roster(book, evidence(to_datetime("2025-12-29"), bad))
    d = record_roster(book, evidence(to_datetime("2026-01-05"), bad))[0]
    assert d.week == "2026-W01" and d.seed_verdict == REMOVE


def test_a_week_that_loses_one_way_only_is_not_removed_by_the_sound_rule(tmp_path):
    book, shorts = tmp_path / "r.jsonl", {"EUR_USD": {"60": cell(mean=-4.0, short=2.0)}}
    for e in MONDAYS[:2]:
        d = record_roster(book, evidence(e, shorts))[0]
    assert (d.seed_verdict, d.sound_verdict) == (REMOVE, UNPROVEN)


@pytest.mark.parametrize("cells", [{}, {"note": "no gates in the window."}, {"60": {"count": 0, "avg_return_pct": None}}])
def test_unknown_is_unproven(cells):
    d = decide(cells)
    assert (d.seed_verdict, d.sound_verdict) == (UNPROVEN, UNPROVEN) and d.seed_reasons and d.sound_reasons
    json.dumps(d.to_dict(), allow_nan=False)


def test_legacy_evidence_feeds_the_seed_rule_only():
    old = {k: v for k, v in cell().items() if k in ("count", "avg_return_pct", "positive_pct", "auroc_admit", "p_value_holm")}
    doc = {"generated_at": "2025-11-11T00:50:39+00:00", "instruments": {"EUR_USD": {"60": old}}}
    d = decide_roster(doc)[0]
    assert (d.week, d.seed_verdict, d.sound_verdict) == ("2025-W46", KEEP, UNPROVEN)


@pytest.mark.data
def test_golden_week_is_all_unproven(shared_data):
    doc = json.loads((shared_data / "golden-study" / "outcome_weekly_costs.json").read_text())
    decisions = decide_roster(doc)
    assert len(decisions) == len(doc["instruments"]) and {(d.week, d.seed_verdict) for d in decisions} == {("2025-W45", UNPROVEN)}
    assert all("positive after costs" in d.seed_reasons[0] for d in decisions)


def test_same_week_again_replaces_and_keeps_history(tmp_path):
    book, one = tmp_path / "r.jsonl", evidence(MONDAYS[0], {"EUR_USD": {"60": cell()}})
    record_roster(book, one, clock=fixed_clock("2025-11-11"))
    before = book.read_bytes()
    record_roster(book, one, clock=fixed_clock("2025-11-12"))
    assert book.read_bytes() == before
    record_roster(book, evidence(MONDAYS[0], {"EUR_USD": {"60": cell(share=0.1)}}), clock=fixed_clock("2025-11-13"))
    entry = read_ledger(book).weeks["2025-W45"]
    assert entry["decisions"][0]["seed_verdict"] == UNPROVEN and entry["history"][0]["decisions"][0]["seed_verdict"] == KEEP
    assert entry["history"][0]["decided_at"] == "2025-11-11T00:00:00Z" and len(book.read_text().splitlines()) == 1


def test_half_written_line_is_set_aside_and_a_bad_one_is_an_error(tmp_path):
    book = tmp_path / "r.jsonl"
    record_roster(book, evidence(MONDAYS[0], {"EUR_USD": {"60": cell()}}))
    whole = book.read_text()
    for cut in range(1, len(whole) - 1, 97):
        book.write_text(whole + whole.replace("W45", "W46")[:cut])
        assert list(read_ledger(book).weeks) == ["2025-W45"]
    record_roster(book, evidence(MONDAYS[1], {"EUR_USD": {"60": cell()}}))
    assert list(read_ledger(book).weeks) == ["2025-W45", "2025-W46"] and (tmp_path / "r.jsonl.broken").exists()
    book.write_text("{broken\n" + whole)
    with pytest.raises(DataError, match="line 1"):
        read_ledger(book)


def test_a_full_disk_leaves_the_old_ledger(tmp_path, monkeypatch):
    book = tmp_path / "r.jsonl"
    record_roster(book, evidence(MONDAYS[0], {"EUR_USD": {"60": cell()}}))
    before = book.read_bytes()
    import deskbook.core.files as files
    monkeypatch.setattr(files.os, "fsync", lambda fd: (_ for _ in ()).throw(OSError(28, "No space left on device")))
    with pytest.raises(OSError):
        record_roster(book, evidence(MONDAYS[1], {"EUR_USD": {"60": cell()}}))
    assert book.read_bytes() == before and not list(tmp_path.glob("*.tmp"))


def _write(args):
    book, i = args
    record_roster(book, evidence(MONDAYS[i], {"EUR_USD": {"60": cell()}}))


def test_two_writers_lose_no_week(tmp_path):
    book = tmp_path / "r.jsonl"
    with ProcessPoolExecutor(2, mp_context=get_context("spawn")) as pool:
        list(pool.map(_write, [(book, i) for i in range(6)]))
    assert len(read_ledger(book).weeks) == 6


def test_wrong_input():
    with pytest.raises(BadInput, match="no instruments"):
        decide_roster({"generated_at": "2025-11-11"})
    with pytest.raises(DataError, match="neither a window"):
        decide_roster({"instruments": {}})
    assert RosterRules().min_n_eff == 200
