"use strict";
// The two charts of the evidence page, drawn by uPlot from `data-json`: net return over minutes with its intervals, and bars by decile.
(() => {
  const drawn = new Set()
  const signed = v => v == null ? "–" : `${v > 0 ? "+" : ""}${v.toFixed(2)}`.replace("-", "−")

  // A colour of the style sheet as the canvas needs it; light and dark are chosen by the browser.
  function ink(box, name) {
    const probe = document.createElement("span")
    probe.style.color = `var(--${name})`
    box.append(probe)
    const found = getComputedStyle(probe).color
    probe.remove()
    return found
  }
  const faint = colour => colour.replace(/^rgb\((.*)\)$/, "rgba($1, .18)")

  function axes(box, more) {
    const stroke = ink(box, "muted"), grid = {stroke: ink(box, "line"), width: 1}
    const font = "12px system-ui, sans-serif"
    return [
      {stroke, font, grid: {show: false}, ticks: grid, size: 44, labelSize: 16, labelFont: font, labelGap: 0, ...more},
      {stroke, font, grid, ticks: grid, size: 52, label: "net, bp", labelSize: 16, labelFont: font, labelGap: 0, values: (u, splits) => splits.map(v => v == null ? "" : String(Math.round(v * 100) / 100).replace("-", "−"))},
    ]
  }

  // Zero is always in sight, with a line of its own.
  const range = (u, low, high) => {
    const from = Math.min(0, low ?? 0), to = Math.max(0, high ?? 0), room = (to - from || 1) * .08
    return [from - room, to + room]
  }
  const zero = colour => u => {
    const y = Math.round(u.valToPos(0, "y", true)) + .5
    u.ctx.save()
    u.ctx.strokeStyle = colour
    u.ctx.lineWidth = devicePixelRatio
    u.ctx.beginPath(); u.ctx.moveTo(u.bbox.left, y); u.ctx.lineTo(u.bbox.left + u.bbox.width, y); u.ctx.stroke()
    u.ctx.restore()
  }

  function readout(box, text) {
    let line = box.querySelector(".readout")
    if (!line) { line = document.createElement("div"); line.className = "readout"; line.setAttribute("aria-hidden", "true"); box.append(line) }
    line.textContent = text
  }

  function forward(box, d) {
    const data = [d.x], series = [{}], bands = [], hidden = {stroke: "transparent", width: 0, points: {show: false}}
    const looks = {long: [ink(box, "busy"), undefined], short: [ink(box, "warn"), [6, 4]]}
    for (const side of ["long", "short"]) {
      if (!d[side]) continue
      const [colour, dash] = looks[side], {mean, low, high} = d[side]
      if (low.some(v => v != null)) {
        bands.push({series: [data.length, data.length + 1], fill: faint(colour)})
        data.push(high, low)
        series.push(hidden, hidden)
      }
      data.push(mean)
      series.push({stroke: colour, width: 2, dash, points: {show: true, size: 7, fill: colour, stroke: colour}})
    }
    if (d.gross?.some(v => v != null)) { data.push(d.gross); series.push({stroke: ink(box, "muted"), width: 1, dash: [2, 3], points: {show: false}}) }
    const say = u => {
      const i = u.cursor.idx
      readout(box, i == null ? "" : `${d.x[i]} min` + ["long", "short"].filter(s => d[s]).map(s => ` · ${s} ${signed(d[s].mean[i])} bp` + (d[s].low[i] == null ? "" : ` (${signed(d[s].low[i])} to ${signed(d[s].high[i])})`)).join(""))
    }
    return [{
      scales: {x: {time: false, distr: 3, log: 2, range: [d.x[0] / 1.3, d.x[d.x.length - 1] * 1.3]}, y: {range}}, series, bands,
      axes: axes(box, {label: "minutes after the gate", splits: () => d.x, filter: (u, splits) => splits, values: (u, splits) => splits.map(String)}),
      hooks: {drawAxes: [zero(ink(box, "ink"))], setCursor: [say]},
    }, data]
  }

  function deciles(box, d) {
    const colour = ink(box, "busy"), x = d.labels.map((_, i) => i)
    const say = u => readout(box, u.cursor.idx == null ? "" : `${d.labels[u.cursor.idx]}: ${signed(d.mean[u.cursor.idx])} bp`)
    return [{
      scales: {x: {time: false, range: [-.6, x.length - .4]}, y: {range}},
      series: [{}, {stroke: colour, fill: faint(colour), width: 1, points: {show: false}, paths: uPlot.paths.bars({size: [.7, 60]})}],
      axes: axes(box, {label: "decile of hazard, low to high", splits: () => x, values: () => d.labels}),
      hooks: {draw: [zero(ink(box, "ink"))], setCursor: [say]},
    }, [x, d.mean]]
  }

  function place(box, d, make) {
    box.plot?.destroy()
    box.replaceChildren()
    if (!(d?.x ?? d?.labels)?.length) { box.textContent = "There is nothing to draw."; return }
    const [options, data] = make(box, d), size = () => ({width: Math.max(200, box.clientWidth), height: Math.max(120, box.clientHeight)})
    box.plot = new uPlot({...size(), legend: {show: false}, cursor: {y: false, drag: {x: false, y: false}}, padding: [8, 12, 0, 0], ...options}, data, box)
  }

  // Drawn when it comes into sight: a study of sixty instruments has more than a hundred charts.
  const charted = make => (box, d) => {
    box.redraw = () => place(box, d, make)
    if (drawn.has(box)) { if (box.plot) box.redraw(); return }
    drawn.add(box)
    new IntersectionObserver((seen, watch) => { if (seen.some(s => s.isIntersecting)) { watch.disconnect(); box.redraw() } }, {rootMargin: "200px"}).observe(box)
    new ResizeObserver(() => box.plot?.setSize({width: Math.max(200, box.clientWidth), height: Math.max(120, box.clientHeight)})).observe(box)
  }
  function again() {
    for (const box of drawn) if (!box.isConnected) { box.plot?.destroy(); drawn.delete(box) } else if (box.plot) box.redraw()
  }
  document.addEventListener("deskbook:theme", again)
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", again)
  deskbook.chart("forward", charted(forward))
  deskbook.chart("deciles", charted(deciles))
})()
