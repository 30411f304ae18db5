"""Compile the numerical kernels once, at set-up, so that the first study does not wait for them. A failure here fails nothing."""
from deskbook.gates.engine import build_gates
from deskbook.gates.settings import GateSettings
from deskbook.market.simulated import simulate_candles
from deskbook.studies.outcomes import StudyConfig, run_outcome_study

candles = simulate_candles(["EUR_USD"], "2025-11-03", "2025-11-05")
build_gates(candles, GateSettings(mode="compat"))
run_outcome_study(build_gates(candles), candles, StudyConfig(n_bootstrap=100))
