"""Figures: what they say in words, what they draw, and that nothing is drawn from nothing."""
import subprocess
import sys
from datetime import timedelta

import matplotlib
import polars as pl
import pytest
from deskbook.core.errors import BadInput, NotFound
from deskbook.studies import plots
from deskbook.studies.outcomes import StudyConfig, run_outcome_study
from deskbook.studies.roster import decide_roster, read_ledger

matplotlib.use("Agg")


@pytest.fixture(scope="module")
def week():
    from deskbook.gates.engine import build_gates
    from deskbook.gates.settings import GateSettings
    from deskbook.market.simulated import simulate_candles
    candles = simulate_candles(("EUR_USD", "USD_JPY"), "2025-11-06", "2025-11-11", seed=1)
    gates = build_gates(candles, GateSettings())
    return candles, gates, run_outcome_study(gates, candles, StudyConfig(n_bootstrap=100, horizons_min=(5, 60)))


@pytest.fixture(autouse=True)
def close_figures():
    yield
    import matplotlib.pyplot as plt
    plt.close("all")


def words(fig):
    fig.canvas.draw()  # a figure that cannot be drawn fails here
    return " | ".join(t.get_text() for t in fig.findobj(matplotlib.text.Text) if t.get_text())


def test_every_figure_names_its_source_and_units(week):
    candles, gates, study = week
    figures = {"mean return (bp)": plots.plot_forward_curves(study, "simulated market"), "mean net return (bp)": plots.plot_deciles(study, "simulated market"),
        "hazard (0 to 1)": plots.plot_strips(gates, candles, "EUR_USD", "simulated market"), "time (UTC)": plots.plot_coverage(candles, "simulated market")}
    for label, fig in figures.items():
        assert "simulated market" in words(fig) and label in words(fig)
    assert "source of the candles unknown" in words(plots.plot_coverage(candles))


def test_curves_show_the_studys_numbers(week):
    study = week[2]
    fig = plots.plot_forward_curves(study)
    ax = next(a for a in fig.axes if a.get_title(loc="left").startswith("USD_JPY"))
    want = study.cells.filter(instrument="USD_JPY", side="long").sort("horizon_min")["avg_return_bp"].to_list()
    line = next(x for x in ax.lines if x.get_label() == "long, net")
    assert line.get_ydata().tolist() == pytest.approx(want)
    assert [t.get_text() for t in ax.get_xticklabels()] == ["5", "60"]


def test_deciles_show_the_table_and_refuse_what_is_not_there(week):
    study = week[2]
    t = study.deciles.filter(instrument="EUR_USD", horizon_min=60, side="long")
    ax = next(a for a in plots.plot_deciles(study).axes if a.get_title(loc="left").startswith("EUR_USD"))
    assert [p.get_height() for p in ax.patches] == pytest.approx(t["mean_bp"].to_list())
    with pytest.raises(BadInput, match="7 minutes"):
        plots.plot_deciles(study, horizon_min=7)


def test_a_weekend_is_no_gap_and_a_hole_is(week):
    candles, gates, _ = week
    def gap_text(c):
        return next(t for t in words(plots.plot_strips(gates, c, "EUR_USD")).split(" | ") if t.startswith("gaps of"))
    before = int(gap_text(candles).split()[-1])
    noon = candles["time"][0].replace(hour=12, minute=0)
    holed = candles.filter(~pl.col("time").is_between(noon, noon + timedelta(minutes=45)))
    assert before < 30 and int(gap_text(holed).split()[-1]) == before + 1


def test_roster_and_empty_inputs(week, tmp_path):
    candles, gates, study = week
    decisions = decide_roster(study.to_evidence(), read_ledger(tmp_path / "roster.jsonl"))
    text = words(plots.plot_roster(decisions))
    assert "EUR_USD" in text and "UNPROVEN" in text and decisions[0].week in text
    for call in (lambda: plots.plot_roster([]), lambda: plots.plot_coverage(candles.clear()), lambda: plots.plot_strips(gates, candles, "GBP_USD")):
        with pytest.raises(NotFound):
            call()


def test_importing_the_module_does_not_import_matplotlib():
    code = "import sys, deskbook.studies.plots; sys.exit('matplotlib' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0
