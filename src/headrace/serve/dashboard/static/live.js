// Keeps a page as new as the tables: when told of a change, and now and then, it fetches the page
// again and replaces the parts that differ. What somebody has opened, chosen or typed stays.
"use strict";

const REST_MS = 350; // the least between two fetches
const everyMs = 1000 * Number(document.body.dataset.everyS);

let events = null;
let resting = false;
let wanted = false;

async function refresh() {
  if (document.hidden) return;
  if (resting) {
    wanted = true;
    return;
  }
  resting = true;
  wanted = false;
  try {
    const answer = await fetch(location.href, { headers: { accept: "text/html" }, redirect: "manual" });
    if (answer.type === "opaqueredirect") return location.reload(); // to where one signs in
    if (!answer.ok) throw new Error(answer.status);
    renew(new DOMParser().parseFromString(await answer.text(), "text/html"));
    document.getElementById("stale").hidden = true;
  } catch {
    document.getElementById("stale").hidden = false;
  } finally {
    setTimeout(() => {
      resting = false;
      if (wanted) refresh();
    }, REST_MS);
  }
}

function renew(page) {
  for (const old of document.querySelectorAll("[data-live]")) {
    const fresh = page.getElementById(old.id);
    if (!fresh) continue;
    if (old.classList.contains("chart")) {
      renewChart(old, fresh.querySelector("script").textContent);
    } else if (old.outerHTML !== keep(old, fresh).outerHTML) {
      const focused = old.contains(document.activeElement) ? document.activeElement.id : "";
      const checked = [...old.querySelectorAll("input:checked")].map((box) => box.id);
      const left = old.scrollLeft;
      old.replaceWith(document.adoptNode(fresh));
      fresh.scrollLeft = left;
      for (const id of checked) if (id) tick(id);
      if (focused) document.getElementById(focused)?.focus();
    }
  }
  document.dispatchEvent(new Event("renewed"));
}

// Carries over what is open.
function keep(old, fresh) {
  for (const open of old.querySelectorAll("details[open][id]")) {
    const same = fresh.querySelector(`#${CSS.escape(open.id)}`);
    if (same) same.open = true;
  }
  return fresh;
}

function tick(id) {
  const box = document.getElementById(id);
  if (box) box.checked = true;
}

// A browser has few connections to a server, so only the page that is seen holds one.
function listen() {
  events?.close();
  events = null;
  if (document.hidden) return;
  events = new EventSource("/_/changes");
  events.addEventListener("changed", refresh);
  refresh();
}

if (document.querySelector("[data-live]")) {
  document.addEventListener("visibilitychange", listen);
  addEventListener("pagehide", () => events?.close());
  document.addEventListener("acted", refresh);
  setInterval(refresh, everyMs);
  listen();
}
