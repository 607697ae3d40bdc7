// What htmx does not do by itself: ages that go on, open details that stay open, and a word about
// the connection. Pages are complete without this file (SPEC 16.3).
(() => {
  "use strict";
  const units = [[86400, "d"], [3600, "h"], [60, "min"], [1, "s"]];

  const age = (at) => {
    const seconds = (Date.now() - Date.parse(at)) / 1000;
    const size = Math.abs(seconds);
    for (const [unit, name] of units) {
      if (size >= unit) {
        const count = `${Math.floor(size / unit)} ${name}`;
        return seconds > 0 ? `${count} ago` : `in ${count}`;
      }
    }
    return "now";
  };

  const renewAges = () => {
    if (document.hidden) return;
    for (const element of document.querySelectorAll("[data-at]")) {
      const text = age(element.dataset.at);
      if (element.textContent !== text) element.textContent = text;
    }
  };

  // A refreshed page has no `open`: it was opened here, and stays so.
  htmx.registerExtension("console", {
    htmx_before_morph_attr: (element, detail) =>
      !(element.tagName === "DETAILS" && detail.attrName === "open" && detail.newValue === null),
  });

  // A key that is shown once: browsers may keep a page that is left, and show it again.
  addEventListener("pagehide", () => {
    for (const element of document.querySelectorAll(".secret")) element.textContent = "";
  });

  for (const button of document.querySelectorAll("[data-copy]")) {
    button.hidden = !navigator.clipboard;
    button.addEventListener("click", async () => {
      const said = document.getElementById("copied");
      try {
        await navigator.clipboard.writeText(document.getElementById(button.dataset.copy).textContent);
        said.textContent = "Copied";
      } catch {
        said.textContent = "The browser does not allow this: select the key and copy it";
      }
    });
  }

  // The server writes what was chosen into each page, so that none shows the other theme first.
  const theme = document.getElementById("theme");
  if (theme) {
    theme.parentElement.hidden = false;
    theme.addEventListener("change", () => {
      document.cookie = `__Host-keyturn-theme=${theme.value}; path=/; max-age=31536000; samesite=lax; secure`;
      document.documentElement.dataset.theme = theme.value;
    });
  }

  // On a phone the navigation is one row that scrolls.
  const here = document.querySelector("nav [aria-current]");
  if (here) {
    const nav = document.getElementById("nav");
    nav.scrollLeft = here.offsetLeft - (nav.clientWidth - here.offsetWidth) / 2;
  }

  // An open page asks for itself again a second after it was opened, which did not wait long for
  // answers, and then every few seconds, while it is visible. What is typed, opened or ticked stays:
  // htmx changes only what differs.
  let asked = 0;
  let isAsking = false;
  const refresh = () => {
    const page = document.getElementById("page");
    const pause = Number(page?.dataset.refresh) * 1000;
    if (!pause || document.hidden || isAsking || Date.now() - asked < pause) return;
    asked = Date.now();
    htmx.trigger(page, "refresh");
  };
  document.addEventListener("visibilitychange", refresh);

  // Empty fields are no part of an address.
  document.addEventListener("htmx:config:request", (event) => {
    const { request, sourceElement } = event.detail.ctx;
    if (sourceElement.id === "page") isAsking = true;
    if (request.method !== "GET" || !sourceElement.matches("form")) return;
    for (const name of [...request.body.keys()]) {
      if (request.body.getAll(name).every((value) => value === "")) request.body.delete(name);
    }
  });

  // The page asked for itself, and was filtered before the answer came: that is of the page before.
  document.addEventListener("htmx:before:swap", (event) => {
    const { request, sourceElement } = event.detail.ctx;
    if (sourceElement.id !== "page") return;
    if (request.action !== location.pathname + location.search) event.preventDefault();
  });

  const say = (text) => {
    const place = document.getElementById("connection");
    if (place && place.textContent !== text) place.textContent = text;
    document.documentElement.classList.toggle("stale", text !== "");
  };
  document.addEventListener("htmx:finally:request", (event) => {
    if (event.detail.ctx.sourceElement.id === "page") isAsking = false;
  });
  document.addEventListener("htmx:error", () => say("Not live: the console does not respond"));
  document.addEventListener("htmx:response:error", (event) => {
    const { response: { status }, sourceElement } = event.detail.ctx;
    if (status === 401) location.reload();
    else if (status === 404 && sourceElement.id === "page") return;
    else say(`Not live: the console responded with ${status}`);
  });
  document.addEventListener("htmx:after:swap", () => say(""));
  setInterval(() => {
    renewAges();
    refresh();
  }, 1000);
})();
