"""Temporary: pictures of the order pages."""
from test_browser_pages import *  # noqa
import pathlib, pytest
OUT = pathlib.Path("/tmp/o/shots"); OUT.mkdir(exist_ok=True)

@pytest.mark.timeout(280)
def test_look(desk, visitor):
    import json, urllib.request
    def api(path, body):
        req = urllib.request.Request(desk.url + path, json.dumps(body).encode(), {"Authorization": "Bearer " + TOKEN, "Content-Type": "application/json"})
        return json.load(urllib.request.urlopen(req))
    from desk_rig import TOKEN
    desk.switch(False)
    try: api("/api/order", {"instrument": "EUR_USD", "units": 5000})
    except Exception as e: print(e, e.read())
    desk.switch(True)
    o = desk.rows("SELECT id, trace_id FROM orders WHERE state = 'filled' AND decision_id IS NOT NULL ORDER BY created_at LIMIT 1")[0]
    paths = {"orders": "/ui/orders", "order": f"/ui/orders/{o[0]}", "trace": f"/ui/trace/{o[1]}", "positions": "/ui/positions", "close": "/ui/positions/EUR_USD/close", "closeo": "/ui/positions/EUR_USD/close?override=yes&units=1200"}
    for theme, size in (("light", (1440, 900)), ("dark", (1440, 900)), ("light", (390, 844)), ("dark", (390, 844))):
        ctx = visitor.context(viewport={"width": size[0], "height": size[1]}, color_scheme=theme)
        for name, path in paths.items():
            p = ctx.new_page()
            p.goto(desk.url + path)
            p.wait_for_timeout(1500)
            if name == "orders": 
                p.locator("#orders-ended a[href^='/ui/orders/']").first.click(); p.wait_for_timeout(700)
            w = p.evaluate("[document.documentElement.scrollWidth, innerWidth]")
            print(name, theme, size, w)
            p.screenshot(path=str(OUT / f"{name}-{theme}-{size[0]}.png"), full_page=True)
            if name == "closeo":
                p.fill("#f-reason", "risk is off"); p.locator("button.bad").click(); p.wait_for_timeout(400)
                p.screenshot(path=str(OUT / f"dialog-{theme}-{size[0]}.png"))
                if size[0] == 390 and theme == "dark":
                    p.locator("dialog button.bad").click(); p.wait_for_timeout(2500)
                    p.screenshot(path=str(OUT / f"closed-{theme}-{size[0]}.png"), full_page=True)
            p.close()
