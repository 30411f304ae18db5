"use strict"
// The list of alerts is everybody's own (filter, page, rights), so it is not pushed: it is asked for again when the count above it carries another mark.
{
  const mark = id => document.getElementById(id)?.dataset.mark
  let seen = mark("ops-alert-counts")
  document.addEventListener("htmx:after:swap", () => {
    const now = mark("ops-alert-counts")
    if (now === undefined || now === seen) return
    seen = now
    if (mark("ops-alerts") !== undefined && mark("ops-alerts") !== now)
      htmx.ajax("GET", location.pathname + location.search, {target: "#ops-alerts", select: "#ops-alerts", swap: "outerMorph"}).catch(() => {})
  })
}
