"use strict"
// What all pages of the desk share: ages that count, local time on hover, a stream that says when it is silent, questions before deeds, charts.
const deskbook = (() => {
  const STALE_MS = 4000, RETRY_MS = 6000  // the server says something every second
  const charts = new Map()
  let skewMs = 0, heardMs = Date.now(), retriedMs = 0, heardOnce = false
  const now = () => Date.now() + skewMs

  // -- moments ------------------------------------------------------------------------------------------------------------------------------
  const words = s => s < 0 ? `in ${span(-s)}` : `${span(s)} ago`
  const span = s => s < 120 ? `${Math.floor(s)} s` : s < 7200 ? `${Math.floor(s / 60)} min` : s < 172800 ? `${Math.floor(s / 3600)} h` : `${Math.floor(s / 86400)} d`
  const put = (element, name, value) => { if (element.getAttribute(name) !== value) element.setAttribute(name, value) }
  function ages() {
    for (const t of document.querySelectorAll("time.age")) {
      const s = (now() - Number(t.dataset.ms)) / 1000, said = words(s)
      if (t.textContent !== said) t.textContent = said
      if (t.dataset.staleS) t.classList.toggle("stale", s > Number(t.dataset.staleS))
    }
  }
  function local(event) {
    const t = event.target.closest?.("time[data-ms]")
    if (!t) return
    const at = new Date(Number(t.dataset.ms)), here = at.toLocaleString(undefined, {dateStyle: "medium", timeStyle: "medium"})
    put(t, "title", `${at.toISOString().replace("T", " ").slice(0, 19)} UTC · ${here} here`)
  }

  // -- the stream ---------------------------------------------------------------------------------------------------------------------------
  const state = () => document.getElementById("stream-state")
  function heard(event) {
    heardMs = Date.now(); heardOnce = true
    const ms = event?.type === "tick" ? Number(event.detail?.data) : NaN
    if (Number.isFinite(ms) && ms > 0) skewMs = ms - Date.now()
    watch()
  }
  function watch() {
    const silent = Date.now() - heardMs, s = state(), stream = document.getElementById("stream")
    if (!s || !stream) return
    const stale = silent > STALE_MS
    put(document.body, "data-stream", stale ? "stale" : heardOnce ? "live" : "connecting")
    const text = stale ? `STALE: nothing heard for ${Math.floor(silent / 1000)} s` : heardOnce ? "live" : "connecting"
    if (s.textContent !== text) s.textContent = text
    s.className = stale ? "stale" : heardOnce ? "live" : "connecting"
    if (silent > RETRY_MS && Date.now() - retriedMs > 2000) { retriedMs = Date.now(); again(stream) }
  }
  function again(stream) {  // a connection that hangs is dropped, one that never came is asked for again
    const held = stream._htmx?.sse
    if (held?.reader) { held.reader.cancel().catch(() => {}); return }
    if (held) { held.delayCanceller?.(); return }
    const fresh = stream.cloneNode(false)
    stream.replaceWith(fresh)
    htmx.process(fresh)
  }

  // -- questions before deeds ---------------------------------------------------------------------------------------------------------------
  function ask(event) {
    const form = event.target, said = form.dataset?.confirm
    if (!said || form.dataset.confirmed) { if (form.dataset) delete form.dataset.confirmed; return }
    event.preventDefault(); event.stopImmediatePropagation()
    const dialog = document.createElement("dialog"), text = document.createElement("p"), row = document.createElement("div")
    dialog.setAttribute("aria-label", "Please confirm")
    text.textContent = said
    row.className = "row"
    const button = (label, kind, value) => { const b = document.createElement("button"); b.textContent = label; b.className = kind; b.type = "button"; b.onclick = () => dialog.close(value); return b }
    row.append(button(event.submitter?.textContent?.trim() || "Do it", "bad", "yes"), button("Go back", "quiet", ""))
    dialog.append(text, row)
    document.body.append(dialog)
    const submitter = event.submitter
    dialog.onclose = () => {
      dialog.remove()
      submitter?.focus()
      if (dialog.returnValue === "yes") { form.dataset.confirmed = "1"; form.requestSubmit(submitter?.form === form ? submitter : undefined) }
    }
    dialog.showModal()
    row.lastChild.focus()
  }

  // -- messages: good ones leave by themselves, others when they are told to -----------------------------------------------------------------
  function messages() {
    for (const m of document.querySelectorAll("#notices .notice:not([data-kept])")) {
      m.dataset.kept = "1"
      const close = document.createElement("button")
      close.type = "button"; close.className = "plain close"; close.textContent = "✕"
      close.setAttribute("aria-label", "Close this message")
      close.onclick = () => m.remove()
      m.append(close)
      if (m.classList.contains("good")) setTimeout(() => m.matches(":hover, :focus-within") || m.remove(), 8000)
    }
    const all = document.querySelectorAll("#notices .notice")
    for (const old of [...all].slice(0, -4)) old.remove()
  }

  // -- charts -------------------------------------------------------------------------------------------------------------------------------
  function draw(root) {
    for (const box of [...(root.matches?.(".chart[data-chart]") ? [root] : []), ...(root.querySelectorAll?.(".chart[data-chart]") ?? [])]) {
      const make = charts.get(box.dataset.chart), data = box.dataset.json
      if (!make || box.drawn === data) continue
      box.drawn = data
      try { make(box, JSON.parse(data || "null")) } catch (error) { box.textContent = "This chart cannot be drawn."; console.error(error) }
    }
  }
  function chart(kind, make) { charts.set(kind, make); draw(document.body) }
  const colour = name => getComputedStyle(document.documentElement).getPropertyValue(`--${name}`).trim()

  // -- light and dark -----------------------------------------------------------------------------------------------------------------------
  function theme(next) {
    document.cookie = `deskbook_theme=${next}; path=/ui; max-age=31536000; samesite=strict`
    document.documentElement.dataset.theme = next
    document.dispatchEvent(new CustomEvent("deskbook:theme"))
  }
  const isDark = () => (document.documentElement.dataset.theme || (matchMedia("(prefers-color-scheme: dark)").matches ? "dark" : "light")) === "dark"

  document.addEventListener("DOMContentLoaded", () => {
    heardMs = Date.now()
    const servedMs = Number(document.getElementById("stream")?.dataset.nowMs)
    if (servedMs > 0 && !skewMs) skewMs = servedMs - Date.now()  // until the stream says it: this computer's clock may be wrong
    ages(); draw(document.body)
    const notices = document.getElementById("notices")
    if (notices) new MutationObserver(messages).observe(notices, {childList: true})
    document.getElementById("theme")?.addEventListener("click", () => theme(isDark() ? "light" : "dark"))
    setInterval(ages, 500); setInterval(watch, 500)
  })
  for (const name of ["mouseover", "focusin"]) document.addEventListener(name, local)
  document.addEventListener("submit", ask, true)
  document.addEventListener("tick", heard)
  document.addEventListener("htmx:sse:after:message", heard)
  document.addEventListener("htmx:sse:error", event => { if (event.detail?.status === 401) location.assign(`/ui/login?next=${encodeURIComponent(location.pathname + location.search)}`) })
  document.addEventListener("visibilitychange", () => { if (!document.hidden) { heardMs = Math.max(heardMs, Date.now() - STALE_MS + 1500); watch() } })
  document.addEventListener("htmx:after:swap", event => { ages(); draw(event.target instanceof Element ? event.target : document.body); draw(document.body) })
  return {chart, colour, isDark, now, draw}
})()
window.deskbook = deskbook
