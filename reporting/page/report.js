// While the run goes on, the page is read again from time to time; folds, focus and place stay as they are.
"use strict";
(() => {
  const seconds = Number(document.body.dataset.reloadSeconds);
  const pause = document.getElementById("pause");
  const store = {
    read() { try { return JSON.parse(sessionStorage.getItem("report") || "{}"); } catch { return {}; } },
    write(state) { try { sessionStorage.setItem("report", JSON.stringify(state)); } catch { /* then nothing is kept */ } },
  };
  const before = store.read();
  if (before.path === location.pathname) {
    for (const id of before.open || []) document.getElementById(id)?.setAttribute("open", "");
    if (pause) pause.checked = Boolean(before.paused);
    if (before.focus) document.getElementById(before.focus)?.focus({ preventScroll: true });
    addEventListener("load", () => scrollTo({ left: 0, top: before.top || 0, behavior: "instant" }));
  }
  const remember = () => store.write({
    path: location.pathname, top: scrollY, paused: pause?.checked, focus: document.activeElement?.id,
    open: [...document.querySelectorAll("details[open][id]")].map((one) => one.id),
  });
  addEventListener("pagehide", remember);
  if (seconds > 0) setInterval(() => { if (!pause?.checked && !document.hidden) location.reload(); }, 1000 * seconds);
})();
