"use strict"
// The tape: candles with gates, decisions and fills on them. Whatever comes from the desk reaches the page as text of an element or as paint on a
// canvas, never as markup.
;(() => {
  const box = document.getElementById("tape-chart")
  if (!box || !window.klinecharts) return
  const {pair, interval, show, src} = box.dataset
  const PAGE = 500, POLL_MS = 5000, QUIET_MS = 20000, WAIT_MS = 15000
  const PERIODS = {M1: ["minute", 1], M5: ["minute", 5], M15: ["minute", 15], H1: ["hour", 1], H4: ["hour", 4], D: ["day", 1]}
  const REGIMES = {trend_bull: ["U", "good"], trend_bear: ["D", "bad"], mean_revert: ["M", "busy"], chaotic: ["C", "warn"], neutral: ["N", "muted"], insufficient: ["?", "line"]}
  const ENVIRONMENTS = {live: ["LIVE", "warn"], practice: ["paper", "busy"], sandbox: ["sandbox", "sandbox"]}
  const get = id => document.getElementById(id)
  const put = (element, text) => { if (element.textContent !== text) element.textContent = text }

  // -- colours: those of the style sheet, as the browser resolves them -----------------------------------------------------------------------
  const NAMES = ["bg", "panel", "raised", "ink", "muted", "line", "good", "bad", "warn", "busy", "accent", "sandbox", "good-bg", "bad-bg", "warn-bg", "busy-bg"]
  let ink = {}
  function readColours() {
    const probe = document.createElement("span")
    probe.hidden = true
    document.body.append(probe)
    ink = Object.fromEntries(NAMES.map(name => { probe.style.color = `var(--${name})`; return [name, getComputedStyle(probe).color] }))
    probe.remove()
  }
  const FAMILY = 'system-ui, "Segoe UI", Roboto, "DejaVu Sans", sans-serif'
  const font = (px, weight = "") => `${weight} ${px}px ${FAMILY}`
  const strong = environment => ENVIRONMENTS[environment] ?? ENVIRONMENTS.live  // an unknown one counts as real money

  // -- asking the desk -----------------------------------------------------------------------------------------------------------------------
  class Refused extends Error {}
  async function ask(more) {
    const url = `${src}?${new URLSearchParams({pair, interval, show, ...more})}`
    let answer
    try { answer = await fetch(url, {credentials: "same-origin", headers: {Accept: "application/json"}, signal: AbortSignal.timeout(WAIT_MS)}) }
    catch { throw new Refused("The desk does not answer.") }
    if (answer.redirected || answer.status === 401) throw new Refused("You are signed out. Sign in again to see the tape.")
    const kind = answer.headers.get("content-type") ?? ""
    if (!kind.includes("json")) throw new Refused(`The desk cannot answer this (${answer.status}).`)
    const said = await answer.json()
    if (!answer.ok) throw new Refused(String(said.detail ?? said.title ?? answer.status))
    return said
  }

  // -- bars with their marks -----------------------------------------------------------------------------------------------------------------
  function barsOf(page) {
    const bars = page.bars.map(([timestamp, open, high, low, close, volume]) => ({timestamp, open, high, low, close, volume: volume ?? 0, gate: null, decisions: [], fills: []}))
    if (page.forming && bars.length) bars[bars.length - 1].forming = true
    const holding = t => {  // the last bar that opened by then: what comes after the newest closed bar stands on it until its own bar is there
      let low = 0, high = bars.length - 1
      while (low < high) { const middle = (low + high + 1) >> 1; if (bars[middle].timestamp <= t) low = middle; else high = middle - 1 }
      return bars[low]
    }
    for (const [reason, said] of Object.entries(page.words)) sentences.set(reason, String(said))
    if (!bars.length) return bars
    for (const gate of page.gates) holding(gate.t).gate = gate
    for (const decision of page.decisions) holding(decision.t).decisions.push(decision)
    for (const fill of page.fills) holding(fill.t).fills.push(fill)
    return bars
  }

  // -- words ---------------------------------------------------------------------------------------------------------------------------------
  const moment = ms => new Date(ms).toISOString().slice(0, 19).replace("T", " ")
  const clock = ms => new Date(ms).toISOString().slice(11, 19)
  const grouped = text => String(text).replace(/\B(?=(\d{3})+(?!\d))/g, ",")
  const units = text => { const [whole, rest] = String(text).split("."); return grouped(whole) + (rest === undefined ? "" : `.${rest}`) }
  const sentences = new Map()  // reason -> what it means, as the desk says it
  const because = reasons => reasons?.length ? `: ${reasons.map(r => sentences.get(r) ?? String(r)).join("; ")}` : ""
  function gateWords(g) {
    const count = g.n > 1 ? ` (${g.in} of ${g.n})` : "", measured = g.hazard === null ? "" : `, hazard ${g.hazard.toFixed(3)}${g.limit === null ? "" : ` against ${g.limit.toFixed(3)}`}`
    return `gate ${g.in ? "admitted" : "not admitted"}${count} ${g.direction}${measured}, regime ${g.regime ? g.regime.replaceAll("_", " ") : "unknown"}${g.in ? "" : because(g.reasons)}`
  }
  function decisionWords(d) {
    const what = {enter: "decided to enter", exit: "decided to exit", refuse: "refused"}[d.verdict] ?? d.verdict
    return `${strong(d.environment)[0]} account ${d.account} ${what}${d.action ? ` ${d.action}` : ""}${d.n > 1 ? ` ${d.n} times` : ""} at ${clock(d.at)}${because(d.reasons)}`
  }
  const fillWords = f => `${strong(f.environment)[0]} account ${f.account} ${f.side === "buy" ? "bought" : "sold"} ${units(f.units)} at ${f.price} (${f.kind}) at ${clock(f.at)}`
  function barWords(bar) {
    const p = x => x.toFixed(digits)
    const said = [`${moment(bar.timestamp)} UTC${bar.forming ? " (still forming)" : ""}`, `open ${p(bar.open)}, high ${p(bar.high)}, low ${p(bar.low)}, close ${p(bar.close)}, volume ${grouped(Math.round(bar.volume))}`]
    said.push(bar.gate ? gateWords(bar.gate) : "no gate")
    return [...said.map(text => [text, ""]), ...bar.decisions.map(d => [decisionWords(d), d.environment]), ...bar.fills.map(f => [fillWords(f), f.environment])]
  }

  // -- drawing -------------------------------------------------------------------------------------------------------------------------------
  const visible = chart => { const {realFrom, realTo} = chart.getVisibleRange(), list = chart.getDataList(); return [Math.max(0, Math.floor(realFrom)), Math.min(list.length, Math.ceil(realTo) + 1), list] }
  function triangle(ctx, x, y, size, up) {
    ctx.beginPath(); ctx.moveTo(x, y + (up ? -size : size)); ctx.lineTo(x - size, y + (up ? size : -size)); ctx.lineTo(x + size, y + (up ? size : -size)); ctx.closePath()
  }
  function letter(ctx, text, x, y, colour, px = 10) {
    ctx.font = font(px, "700"); ctx.textAlign = "center"; ctx.textBaseline = "middle"; ctx.fillStyle = colour; ctx.fillText(text, x, y + 0.5)
  }
  const isLong = g => /^(long|buy|promote|scalp)$/i.test(g.direction), isShort = g => /^(short|sell|fade)$/i.test(g.direction)

  function drawGate(ctx, gate, x, above, below, size) {
    if (!gate.in) return below
    ctx.lineWidth = 1; ctx.strokeStyle = ink.panel
    if (isShort(gate)) { ctx.fillStyle = ink.bad; triangle(ctx, x, above - size - 3, size, false); ctx.fill(); ctx.stroke(); return below }
    if (isLong(gate)) { ctx.fillStyle = ink.good; triangle(ctx, x, below + size + 3, size, true) }
    else { ctx.fillStyle = ink.muted; ctx.beginPath(); ctx.rect(x - size + 1, below + 4, 2*size - 2, 2*size - 2) }
    ctx.fill(); ctx.stroke()
    return below + 2*size + 4
  }
  function drawDecision(ctx, d, x, y, wide) {  // a letter in a box; the box of a live account is filled, those of the others have a line
    const [, colour] = strong(d.environment), text = {enter: "E", exit: "X", refuse: "R"}[d.verdict] ?? "?"
    if (d.verdict === "refuse" && !wide) { ctx.fillStyle = ink.warn; ctx.fillRect(x - 1, y + 3, 2, 6); return y + 10 }
    ctx.beginPath(); ctx.rect(x - 6.5, y + 2, 13, 13)
    ctx.fillStyle = d.environment === "practice" || d.environment === "sandbox" ? ink.panel : ink[colour]
    ctx.fill(); ctx.lineWidth = 1.5; ctx.strokeStyle = ink[colour]
    ctx.setLineDash(d.environment === "sandbox" ? [2, 2] : []); ctx.stroke(); ctx.setLineDash([])
    letter(ctx, text, x, y + 8.5, d.environment === "practice" || d.environment === "sandbox" ? ink[colour] : ink.panel)
    return y + 17
  }
  function fewer(bar) {  // many fills on one bar: one mark for each kind of account and side, with how many there are
    if (bar.fills.length <= 3) return bar.fills.map(f => [f, 1])
    const kinds = new Map()
    for (const f of bar.fills) { const key = `${f.environment} ${f.side}`; kinds.set(key, [f, (kinds.get(key)?.[1] ?? 0) + 1]) }
    return [...kinds.values()]
  }
  function drawFill(ctx, f, count, x, y, named, right) {  // live: a disc, full; practice: a diamond; sandbox: a square
    const [word, colour] = strong(f.environment), paper = f.environment === "practice", play = f.environment === "sandbox"
    ctx.beginPath()
    if (paper) { ctx.moveTo(x, y - 9); ctx.lineTo(x + 9, y); ctx.lineTo(x, y + 9); ctx.lineTo(x - 9, y); ctx.closePath() } else if (play) ctx.rect(x - 6.5, y - 6.5, 13, 13); else ctx.arc(x, y, 7.5, 0, 2*Math.PI)
    ctx.fillStyle = paper || play ? ink.panel : ink[colour]; ctx.fill()
    ctx.lineWidth = 2; ctx.strokeStyle = paper || play ? ink[colour] : ink.panel; ctx.stroke()
    letter(ctx, f.side === "buy" ? "B" : "S", x, y, paper || play ? ink[colour] : ink.panel)
    if (!named) return
    const text = count > 1 ? `${count} × ${word} ${f.side}` : `${word} ${f.side} ${units(f.units)}`
    ctx.font = font(11, "600"); ctx.textAlign = "left"; ctx.textBaseline = "middle"
    const width = ctx.measureText(text).width
    const left = x + width + 18 > right ? x - width - 17 : x + 11  // beside the mark, where there is room
    ctx.globalAlpha = 0.85; ctx.fillStyle = ink.panel; ctx.fillRect(left, y - 8, width + 6, 16); ctx.globalAlpha = 1
    ctx.fillStyle = ink[colour]; ctx.fillText(text, left + 3, y + 0.5)
  }
  function drawMarks({ctx, chart, bounding, xAxis, yAxis}) {
    const [from, to, list] = visible(chart), space = chart.getBarSpace().bar, size = Math.max(3, Math.min(6, space/2))
    const fills = []
    for (let i = from; i < to; i++) {
      const bar = list[i], x = xAxis.convertToPixel(i)
      let y = yAxis.convertToPixel(bar.low)
      if (bar.gate) y = drawGate(ctx, bar.gate, x, yAxis.convertToPixel(bar.high), y, size)
      for (const [f, count] of fewer(bar)) { const at = yAxis.convertToPixel(Number(f.price)); fills.push([f, count, x, at]); y = Math.max(y, at + 9) }
      for (const d of bar.decisions.slice(-3)) y = drawDecision(ctx, d, x, y, space >= 9)
    }
    const covered = (x, y, i) => fills.some(([, , ox, oy], j) => j > i && Math.abs(oy - y) < 14 && ox - x >= 0 && ox - x < 110)
    fills.forEach(([f, count, x, y], i) => drawFill(ctx, f, count, x, y, fills.length <= 24 && !covered(x, y, i), bounding.width))
    if (ends && from === 0 && list.length) {
      const x = xAxis.convertToPixel(0) - space
      ctx.strokeStyle = ink.muted; ctx.lineWidth = 1; ctx.setLineDash([4, 4]); ctx.beginPath(); ctx.moveTo(x, 0); ctx.lineTo(x, bounding.height); ctx.stroke(); ctx.setLineDash([])
      ctx.font = font(11); ctx.textAlign = "right"; ctx.textBaseline = "top"; ctx.fillStyle = ink.muted; ctx.fillText("beginning of what is kept", x - 6, 8)
    }
    return true
  }
  function label(ctx, text, y = 3) {
    ctx.font = font(11, "600"); ctx.textAlign = "left"; ctx.textBaseline = "top"
    const width = ctx.measureText(text).width
    ctx.globalAlpha = 0.8; ctx.fillStyle = ink.panel; ctx.fillRect(2, y - 1, width + 8, 15); ctx.globalAlpha = 1
    ctx.fillStyle = ink.muted; ctx.fillText(text, 6, y + 1)
  }
  function hatch(ctx, x, y, width, height, colour, step = 5) {
    ctx.save(); ctx.beginPath(); ctx.rect(x, y, width, height); ctx.clip()
    ctx.strokeStyle = colour; ctx.lineWidth = 1; ctx.beginPath()
    for (let k = -height; k < width; k += step) { ctx.moveTo(x + k, y + height); ctx.lineTo(x + k + height, y) }
    ctx.stroke(); ctx.restore()
  }
  function drawHazard({ctx, chart, bounding, xAxis, yAxis}) {
    const [from, to, list] = visible(chart), space = chart.getBarSpace().bar
    for (let i = from; i < to; i++) {
      const g = list[i].gate
      if (!g || g.hazard === null || g.limit === null || g.hazard <= g.limit) continue
      const x = xAxis.convertToPixel(i) - space/2
      ctx.fillStyle = ink["bad-bg"]; ctx.fillRect(x, 0, space + 0.5, bounding.height); hatch(ctx, x, 0, space + 0.5, bounding.height, ink.bad, 6)
    }
    const line = (key, dash, colour, width) => {
      ctx.setLineDash(dash); ctx.strokeStyle = ink[colour]; ctx.lineWidth = width; ctx.beginPath()
      let pen = false
      for (let i = from; i < to; i++) {
        const value = list[i].gate?.[key] ?? null
        if (value === null) { pen = false; continue }
        const x = xAxis.convertToPixel(i), y = yAxis.convertToPixel(value)
        if (pen) ctx.lineTo(x, y); else { ctx.moveTo(x - (to - from > 2 ? 0 : space/3), y); if (to - from <= 2) ctx.lineTo(x + space/3, y) }
        pen = true
      }
      ctx.stroke(); ctx.setLineDash([])
    }
    line("limit", [5, 4], "ink", 1.25); line("hazard", [], "busy", 1.75)
    label(ctx, "hazard, threshold dashed")
    return true
  }
  const PATTERNS = {  // each regime has a pattern of its own beside its colour and letter
    trend_bull: (ctx, x, y, w, h, c) => hatch(ctx, x, y, w, h, c, 6), chaotic: (ctx, x, y, w, h, c) => { hatch(ctx, x, y, w, h, c, 6); hatchDown(ctx, x, y, w, h, c, 6) },
    trend_bear: (ctx, x, y, w, h, c) => hatchDown(ctx, x, y, w, h, c, 6),
    mean_revert: (ctx, x, y, w, h, c) => { ctx.fillStyle = c; for (let k = 3; k < h; k += 4) ctx.fillRect(x, y + k, w, 1) },
  }
  function hatchDown(ctx, x, y, width, height, colour, step) {
    ctx.save(); ctx.beginPath(); ctx.rect(x, y, width, height); ctx.clip()
    ctx.strokeStyle = colour; ctx.lineWidth = 1; ctx.beginPath()
    for (let k = -height; k < width; k += step) { ctx.moveTo(x + k, y); ctx.lineTo(x + k + height, y + height) }
    ctx.stroke(); ctx.restore()
  }
  const GROUND = {good: "good-bg", bad: "bad-bg", warn: "warn-bg", busy: "busy-bg"}
  function drawRun(ctx, regime, x, y, width, height) {
    const [sign, colour] = REGIMES[regime] ?? ["?", "line"], ground = ink[GROUND[colour]] ?? ink.raised
    ctx.fillStyle = ground; ctx.fillRect(x, y, width, height)
    PATTERNS[regime]?.(ctx, x, y, width, height, ink[colour])
    if (width < 11) return
    const text = width > 90 ? `${sign} ${regime.replaceAll("_", " ")}` : sign
    ctx.font = font(11, "700")
    const wide = ctx.measureText(text).width + 6
    ctx.fillStyle = ground; ctx.fillRect(x + width/2 - wide/2, y + 1, wide, height - 2)
    letter(ctx, text, x + width/2, y + height/2, ink[colour] === ink.line ? ink.muted : ink[colour], 11)
  }
  function drawStrips({ctx, chart, bounding, xAxis}) {
    const [from, to, list] = visible(chart), space = chart.getBarSpace().bar, half = Math.floor(bounding.height/2)
    for (let i = from; i < to; i++) {  // above: every gate, admitted or not
      const g = list[i].gate, x = xAxis.convertToPixel(i), y = half/2, size = Math.max(1.5, Math.min(5, space/2.4))
      if (!g) continue
      if (!g.in) { ctx.fillStyle = ink.muted; ctx.fillRect(x - size, y - 0.75, Math.max(2, 2*size), 1.5); continue }
      ctx.fillStyle = isLong(g) ? ink.good : isShort(g) ? ink.bad : ink.ink
      if (isLong(g) || isShort(g)) { triangle(ctx, x, y, size, isLong(g)); ctx.fill() } else ctx.fillRect(x - size, y - size, 2*size, 2*size)
    }
    let begun = from
    for (let i = from; i <= to; i++) {  // below: runs of one regime
      const regime = i < to ? list[i].gate?.regime ?? null : undefined, last = list[begun]?.gate?.regime ?? null
      if (regime === last) continue
      const left = xAxis.convertToPixel(begun) - space/2
      if (last) drawRun(ctx, last, left, half + 1, (i - begun)*space, bounding.height - half - 2)
      begun = i
    }
    ctx.fillStyle = ink.line; ctx.fillRect(0, half, bounding.width, 1)
    return true
  }

  // -- the chart -----------------------------------------------------------------------------------------------------------------------------
  const {registerIndicator, init} = klinecharts
  const quiet = () => ({name: "", calcParamsText: "", features: [], legends: []})
  registerIndicator({name: "TAPE_MARKS", shortName: "", series: "price", figures: [], calc: list => list.map(() => ({})), draw: drawMarks, createTooltipDataSource: quiet})
  registerIndicator({name: "TAPE_VOLUME", shortName: "", series: "volume", minValue: 0, precision: 0, shouldFormatBigNumber: true, calc: list => list.map(b => ({volume: b.volume, up: b.close >= b.open})), createTooltipDataSource: quiet,
    figures: [{key: "volume", type: "bar", baseValue: 0, styles: ({data}) => ({color: data.current?.up ? ink.good : ink.bad})}],
    draw: ({ctx}) => { label(ctx, "volume"); return false }})
  registerIndicator({name: "TAPE_HAZARD", shortName: "", minValue: 0, precision: 2, calc: list => list.map(b => b.gate ? {hazard: b.gate.hazard ?? undefined, limit: b.gate.limit ?? undefined} : {}), createTooltipDataSource: quiet,
    figures: [{key: "hazard", type: "line"}, {key: "limit", type: "line"}], draw: drawHazard})
  registerIndicator({name: "TAPE_STRIPS", shortName: "", figures: [], calc: list => list.map(() => ({})), draw: drawStrips, createTooltipDataSource: quiet})

  readColours()
  const chart = init(box, {timezone: "UTC", locale: "en-US", hotkey: {enabled: false}, layout: {barSpaceLimit: {min: 2, max: 40}}})
  const none = {tooltip: {showRule: "none"}}
  function paint() {
    readColours()
    const axis = {axisLine: {color: ink.line}, tickLine: {color: ink.line}, tickText: {color: ink.muted, family: FAMILY}}, tag = {color: ink.panel, backgroundColor: ink.ink, borderColor: ink.ink, family: FAMILY}
    const cross = {line: {color: ink.muted}, text: tag}
    chart.setStyles({
      grid: {horizontal: {color: ink.line}, vertical: {color: ink.line}}, xAxis: axis, yAxis: axis, separator: {color: ink.line, activeBackgroundColor: ink.raised}, crosshair: {horizontal: cross, vertical: cross},
      candle: {...none, bar: {upColor: ink.panel, downColor: ink.bad, noChangeColor: ink.muted, upBorderColor: ink.good, downBorderColor: ink.bad, noChangeBorderColor: ink.muted, upWickColor: ink.good, downWickColor: ink.bad, noChangeWickColor: ink.muted},
        type: "candle_up_stroke", priceMark: {high: {color: ink.muted, textFamily: FAMILY}, low: {color: ink.muted, textFamily: FAMILY}, last: {upColor: ink.good, downColor: ink.bad, noChangeColor: ink.muted, text: {color: ink.panel, family: FAMILY}}}},
      indicator: {...none, lastValueMark: {show: false}}})
  }
  paint()
  const height = box.clientHeight, short = height < 480
  chart.createIndicator({name: "TAPE_MARKS", paneId: "candle_pane"}, true)
  for (const [name, id, tall, least] of [["TAPE_VOLUME", "tape-volume", short ? 48 : 76, 30], ["TAPE_HAZARD", "tape-hazard", short ? 56 : 84, 30], ["TAPE_STRIPS", "tape-strips", 44, 36]]) {
    chart.createIndicator({name, paneId: id})
    chart.setPaneOptions({id, height: tall, minHeight: least, dragEnabled: id !== "tape-strips"})
  }
  chart.overrideYAxis({paneId: "tape-strips", createTicks: () => []})
  for (const paneId of ["tape-volume", "tape-hazard"]) chart.overrideYAxis({paneId, gap: {top: 20, bottom: 2}})  // room for the name
  for (const inner of box.querySelectorAll("[tabindex]")) { inner.tabIndex = -1; Object.assign(inner.style, {touchAction: "pan-y", overscrollBehavior: "auto"}) }  // the box takes the focus, and a page can be scrolled
  new ResizeObserver(() => chart.resize()).observe(box)
  document.addEventListener("deskbook:theme", paint)
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", paint)

  // -- touch: a finger that goes up or down scrolls the page, unless it rested first to read a bar ---------------------------------------------
  let finger = null
  const touched = event => { const t = event.touches[0]; return {x: t.clientX, y: t.clientY, at: Date.now(), page: null} }
  document.addEventListener("touchstart", event => { finger = box.contains(event.target) && event.touches.length === 1 ? touched(event) : null }, {capture: true, passive: true})
  document.addEventListener("touchmove", event => {
    if (!finger || event.touches.length !== 1) return
    const now = touched(event), dx = Math.abs(now.x - finger.x), dy = Math.abs(now.y - finger.y)
    finger.page ??= dx + dy < 4 ? null : dy > dx && now.at - finger.at < 250
    if (finger.page) event.stopPropagation()
  }, {capture: true, passive: true})

  // -- loading -------------------------------------------------------------------------------------------------------------------------------
  let digits = 5, ends = false, source = "", push = null, turn = 0, cursor = -1, lastBeat = null, askedMs = 0, asking = false, again = false, failedMs = 0, ailing = false, halved = false  // halved: bars were read while a store was away
  const hide = (id, hidden) => { get(id).hidden = hidden }
  function trouble(list) { const t = get("tape-trouble"); put(t, list.join(" ")); t.hidden = !list.length; ailing = list.length > 0 }
  function wrong(error) { put(get("tape-error-text"), error ? `The tape cannot be shown. ${error.message}` : ""); hide("tape-error", !error) }
  function state() {
    const list = chart.getDataList()
    if (!list.length) return put(get("tape-state"), "No candles yet.")
    const first = `${moment(list[0].timestamp).slice(0, 16)} UTC`, newest = `${moment(list[list.length - 1].timestamp).slice(0, 16)} UTC`
    put(get("tape-state"), `${grouped(list.length)} bars from ${first} to ${newest}. ${ends ? "That is the beginning of what is kept." : "Older bars load when you scroll left."}${source ? ` Source of the page read last: ${source}.` : ""}`)
  }
  async function load({type, timestamp, callback}) {
    if (type === "backward") return callback([], {forward: !ends, backward: false})
    const mine = type === "init" ? ++turn : turn
    if (type === "init") askedMs = Date.now()
    box.setAttribute("aria-busy", "true")
    if (type !== "init") put(get("tape-state"), "Reading older bars …")
    try {
      if (type !== "init" && Date.now() - failedMs < 3000) throw new Refused("The last try failed a moment ago; scroll again.")
      const page = await ask(type === "init" ? {limit: PAGE} : {before: timestamp, limit: PAGE})
      if (mine !== turn) return
      const bars = barsOf(page)
      ends = !page.more; source = page.source
      if (type === "init") { digits = page.digits; chart.setSymbol && symbol(page.digits); hide("tape-empty", bars.length > 0); box.classList.toggle("nothing", !bars.length); ends = ends && bars.length > 0 }
      wrong(null); trouble(page.troubles)
      halved = (type !== "init" && halved) || ailing
      callback(bars, {forward: page.more, backward: false})
      state()
    } catch (error) {
      if (mine !== turn) return
      failedMs = Date.now()
      if (type === "init") { wrong(error); callback([], false); put(get("tape-state"), "") }
      else { callback([], {forward: true, backward: false}); state(); trouble([`Older bars could not be read: ${error.message}`]) }
    } finally { if (mine === turn) box.removeAttribute("aria-busy") }
  }
  let told = -1
  function symbol(precision) { if (told !== precision) { told = precision; Object.assign(chart.getSymbol(), {pricePrecision: precision}) } }

  // -- news ----------------------------------------------------------------------------------------------------------------------------------
  async function news() {
    if (asking) { again = true; return }
    const list = chart.getDataList(), last = list[list.length - 1]
    if (!last) { if (Date.now() - askedMs > POLL_MS) { askedMs = Date.now(); chart.resetData() } return }
    asking = true; askedMs = Date.now()
    try {
      const page = await ask({after: last.timestamp})
      if (page.more || (halved && !page.troubles.length)) { chart.resetData(); return }
      for (const bar of barsOf(page)) push?.(bar)
      trouble(page.troubles); wrong(null); state()
      if (get("tape-tables")?.open) get("tape-tables").dispatchEvent(new CustomEvent("tape-changed"))
    } catch (error) { trouble([`The newest bars could not be read: ${error.message}`]) }
    finally { asking = false; if (again) { again = false; setTimeout(news, 250) } }
  }
  function beat() {
    const mine = [...document.querySelectorAll("#tape-beats [data-pair]")].find(e => e.dataset.pair === pair)
    if (!mine) return
    if (mine.dataset.beat === lastBeat) return
    lastBeat = mine.dataset.beat
    news()
  }
  new MutationObserver(beat).observe(get("main") ?? document.body, {subtree: true, childList: true, attributes: true, attributeFilter: ["data-beat"]})
  const isTold = () => !ailing && document.body.dataset.stream === "live" && lastBeat !== null  // the stream says when to ask; else it is asked by the clock
  setInterval(() => { if (!document.hidden && Date.now() - askedMs > (isTold() ? QUIET_MS : POLL_MS)) news() }, 1000)
  document.addEventListener("visibilitychange", () => { if (!document.hidden) news() })
  get("tape-tables")?.addEventListener("toggle", event => { if (event.target.open) event.target.dispatchEvent(new CustomEvent("tape-changed")) })

  // -- reading a bar -------------------------------------------------------------------------------------------------------------------------
  function read(index, aloud) {
    const bar = chart.getDataList()[index]
    if (!bar) return
    const lines = barWords(bar)
    const readout = get("tape-readout")
    readout.replaceChildren(...lines.map(([text, environment]) => {
      const line = document.createElement("span")
      line.textContent = text
      if (environment) line.className = `of-${ENVIRONMENTS[environment] ? environment : "live"}`
      return line
    }))
    const at = chart.convertToPixel({dataIndex: index, value: bar.close}, {paneId: "candle_pane"})
    readout.classList.toggle("flip", at.x < box.clientWidth/2)
    if (aloud) put(get("tape-said"), lines.map(([text]) => text).join(". "))
  }
  chart.subscribeAction("onCrosshairChange", at => {
    if (typeof at?.x !== "number") return
    const point = chart.convertFromPixel([{x: at.x, y: at.y ?? 0}], {paneId: "candle_pane"})
    const index = (Array.isArray(point) ? point[0] : point)?.dataIndex
    if (Number.isInteger(index)) { cursor = Math.max(0, Math.min(chart.getDataList().length - 1, index)); read(cursor, false) }
  })
  function reach(index) {
    const list = chart.getDataList()
    cursor = Math.max(0, Math.min(list.length - 1, index))
    const {realFrom: from, realTo: to} = chart.getVisibleRange(), space = chart.getBarSpace().bar, edge = Math.min(8, Math.floor((to - from)/4))
    if (cursor < from + edge) chart.scrollByDistance((from + edge - cursor)*space)
    else if (cursor > to - edge) chart.scrollByDistance(-(cursor - to + edge)*space)
    const at = chart.convertToPixel({dataIndex: cursor, value: list[cursor].close}, {paneId: "candle_pane"})
    chart.executeAction("onCrosshairChange", {x: at.x, y: at.y, paneId: "candle_pane"})
    read(cursor, true)
  }
  const eventful = bar => bar.fills.length > 0 || bar.decisions.some(d => d.verdict !== "refuse")
  function eventAfter(step) {
    const list = chart.getDataList()
    for (let i = cursor + step; i >= 0 && i < list.length; i += step) if (eventful(list[i])) return i
    put(get("tape-said"), `No fill or decision further ${step < 0 ? "left among the loaded bars" : "right"}.`)
    return step < 0 ? 0 : list.length - 1
  }
  const screen = () => { const {realFrom, realTo} = chart.getVisibleRange(); return Math.max(1, realTo - realFrom - 2) }
  const DEEDS = {
    older: () => chart.scrollByDistance(screen()*0.8*chart.getBarSpace().bar), newer: () => chart.scrollByDistance(-screen()*0.8*chart.getBarSpace().bar),
    in: () => chart.zoomAtCoordinate(1.3), out: () => chart.zoomAtCoordinate(1/1.3), newest: () => chart.scrollToRealTime(), again: () => { failedMs = 0; wrong(null); put(get("tape-state"), "Reading candles …"); chart.resetData() },
  }
  get("tape").addEventListener("click", event => { DEEDS[event.target.closest?.("button[data-do]")?.dataset.do]?.() })
  const last = () => chart.getDataList().length - 1
  const KEYS = {
    ArrowLeft: e => reach(e.shiftKey ? eventAfter(-1) : cursor - 1), ArrowRight: e => reach(e.shiftKey ? eventAfter(1) : cursor + 1), PageUp: () => reach(cursor - screen()), PageDown: () => reach(cursor + screen()),
    Home: () => reach(0), End: () => { chart.scrollToRealTime(); reach(last()) }, "+": DEEDS.in, "=": DEEDS.in, "-": DEEDS.out, _: DEEDS.out,
  }
  box.addEventListener("keydown", event => {
    if (event.ctrlKey || event.metaKey || event.altKey || !KEYS[event.key] || !chart.getDataList().length) return
    event.preventDefault()
    if (cursor < 0) cursor = last()
    KEYS[event.key](event)
  })
  box.addEventListener("focus", () => { if (cursor < 0 && last() >= 0) { cursor = last(); read(cursor, true) } })

  const [type, span] = PERIODS[interval] ?? PERIODS.M1
  chart.setSymbol({ticker: pair, pricePrecision: digits, volumePrecision: 0})
  chart.setPeriod({type, span})
  chart.setDataLoader({getBars: load, subscribeBar: ({callback}) => { push = callback }, unsubscribeBar: () => { push = null }})
  beat()
  window.deskbookTape = {chart, news}  // for tests
})()
