// The page: who is signed in, which folder is shown, and the rows of its list.
import { currentUser, files, signIn, signOut } from "./session.js";
import { dateText, errorText, lastSegment, sizeText, timeText } from "./text.js";
import { upload } from "./uploads.js";
import { confirmDelete, mediaKind, startDownload, view } from "./viewer.js";

const PAGE = 50; // rows at a time
const $ = (id) => document.getElementById(id);
let user = null;
let entries = null; // the rest of the list that is shown
let ahead = null; // its next entry, read already to know whether there is one
let shown = new AbortController(); // ends what the page asks for a folder that is left

// --- Which folder: the part of the address after "#/" ---

function folder() {
  const segments = location.hash.replace(/^#\/?/, "").split("/").filter(Boolean);
  try {
    return segments.map((segment) => `${decodeURIComponent(segment)}/`).join("");
  } catch {
    return "";
  }
}

function address(prefix) {
  return `#/${prefix.split("/").map(encodeURIComponent).join("/")}`;
}

function showPath(prefix) {
  const names = [user.project, ...prefix.split("/").filter(Boolean)];
  $("title").textContent = names.at(-1);
  document.title = `${names.at(-1)} – Files`;
  const crumbs = names.slice(0, -1).map((name, depth) => {
    const link = document.createElement("a");
    link.href = address(
      names
        .slice(1, depth + 1)
        .map((one) => `${one}/`)
        .join(""),
    );
    link.textContent = name;
    const item = document.createElement("li");
    item.append(link);
    return item;
  });
  $("crumbs").replaceChildren(...crumbs);
  $("path").hidden = crumbs.length === 0;
}

// --- The list ---

async function showFolder() {
  shown.abort();
  shown = new AbortController();
  const prefix = folder();
  showPath(prefix);
  $("rows").replaceChildren();
  const { signal } = shown;
  entries = files
    .list({ prefix, delimiter: "/", pageSize: PAGE + 1, signal })
    [Symbol.asyncIterator]();
  ahead = null;
  await showMore();
}

async function showMore() {
  const { signal } = shown;
  busy(true);
  try {
    const rows = await nextRows(signal);
    if (signal.aborted) return;
    $("rows").append(...rows);
    busy(false);
    const count = $("rows").rows.length;
    $("empty").hidden = count > 0;
    $("table").hidden = count === 0;
    $("more").hidden = ahead === null;
    say(`${count} ${count === 1 ? "entry" : "entries"}${ahead ? ", and more" : ""}`);
    return rows[0];
  } catch (error) {
    if (signal.aborted) return;
    busy(false);
    listFailed(error);
  }
}

async function nextRows(signal) {
  const rows = [];
  while (rows.length < PAGE) {
    const entry = ahead ?? (await next());
    ahead = null;
    if (entry === null || signal.aborted) return rows;
    rows.push(row(entry));
  }
  ahead = await next();
  return rows;
}

async function next() {
  const { value, done } = await entries.next();
  return done ? null : value;
}

function busy(is) {
  $("listing").setAttribute("aria-busy", String(is));
  $("loading").hidden = !is;
  $("more").disabled = is;
  $("list-error").hidden = true;
  if (is) $("empty").hidden = true;
}

function listFailed(error) {
  if (error.code === "unauthorized") return start();
  $("table").hidden = $("rows").rows.length === 0;
  $("list-error").hidden = false;
  $("list-error").querySelector("span").textContent = errorText(error);
}

// --- Rows: text from the bucket becomes text on the page, and never markup ---

function row(entry) {
  return entry.type === "prefix" ? folderRow(entry.prefix) : fileRow(entry);
}

function folderRow(prefix) {
  const made = $("folder-row").content.firstElementChild.cloneNode(true);
  const link = made.querySelector("a");
  link.href = address(prefix);
  link.querySelector("span").textContent = lastSegment(prefix);
  return made;
}

function fileRow(entry) {
  const { key, size, changedAt } = entry;
  const made = $("file-row").content.firstElementChild.cloneNode(true);
  const name = lastSegment(key);
  made.querySelector(".open span").textContent = name;
  made.querySelector(".open use").setAttribute("href", `#${mediaKind(key) ?? "file"}`);
  made.querySelector("small").textContent = `${sizeText(size)} · ${dateText(changedAt)}`;
  made.querySelector(".size").textContent = sizeText(size);
  made.querySelector("time").dateTime = changedAt.toISOString();
  made.querySelector("time").textContent = timeText(changedAt);
  const remove = () => deleteFile(key, made);
  made.querySelector(".open").onclick = () => view(entry, remove);
  action(made.querySelector(".download"), `Download ${name}`, () => download(key));
  action(made.querySelector(".delete"), `Delete ${name}`, remove);
  return made;
}

function action(button, label, act) {
  button.ariaLabel = label;
  button.title = label;
  button.onclick = act;
}

async function download(key) {
  try {
    await startDownload(key);
  } catch (error) {
    alertUser(error);
  }
}

/** Delete a file once the user has confirmed; its row stays until the file is gone. */
async function deleteFile(key, made) {
  if (!(await confirmDelete(lastSegment(key)))) return;
  made.setAttribute("aria-busy", "true");
  for (const button of made.querySelectorAll("button")) button.disabled = true;
  say(`Deleting ${lastSegment(key)}`);
  try {
    await files.delete(key);
    await gone(key);
  } catch (error) {
    made.removeAttribute("aria-busy");
    for (const button of made.querySelectorAll("button")) button.disabled = false;
    if (error.code !== "not_found") return alertUser(error);
  }
  const neighbor = made.nextElementSibling ?? made.previousElementSibling;
  made.remove();
  say(`${lastSegment(key)} is deleted`);
  if (document.activeElement === document.body) {
    (neighbor?.querySelector("a, button") ?? $("title")).focus();
  }
  $("table").hidden = $("rows").rows.length === 0;
  $("empty").hidden = !$("table").hidden;
}

/** Wait until a file is gone from the list: a worker deletes it, soon after the request. */
async function gone(key) {
  for (let wait = 250; ; wait = Math.min(wait * 1.5, 5000)) {
    try {
      const first = await files.list({ prefix: key, pageSize: 1 })[Symbol.asyncIterator]().next();
      if (first.done || first.value.key !== key) return;
    } catch (error) {
      if (!error.transient) throw error;
    }
    await new Promise((resolve) => setTimeout(resolve, wait));
  }
}

// --- Messages ---

/** Let a screen reader say what changed. */
function say(text) {
  $("status").textContent = text;
}

function alertUser(error) {
  if (error.code === "unauthorized") return start();
  $("list-error").hidden = false;
  $("list-error").querySelector("span").textContent = errorText(error);
}

// --- Uploads: chosen, or dropped on the page ---

async function uploadAll(chosen) {
  const prefix = folder();
  const stored = await upload([...chosen], prefix, say);
  if (stored && prefix === folder()) await showFolder();
}

$("choose").onclick = () => $("input").click();
$("input").onchange = () => {
  uploadAll($("input").files);
  $("input").value = "";
};
for (const type of ["dragenter", "dragover"]) {
  addEventListener(type, (event) => {
    if (!user || !event.dataTransfer.types.includes("Files")) return;
    event.preventDefault();
    document.body.classList.add("dragging");
  });
}
addEventListener("dragleave", (event) => {
  if (!event.relatedTarget) document.body.classList.remove("dragging");
});
addEventListener("drop", (event) => {
  document.body.classList.remove("dragging");
  if (!user || !event.dataTransfer.files.length) return;
  event.preventDefault();
  uploadAll(event.dataTransfer.files);
});

// --- Sign in and out ---

async function start() {
  user = await currentUser();
  $("sign-in").hidden = Boolean(user);
  $("browser").hidden = !user;
  $("who").hidden = !user;
  if (!user) return $("sign-in-form").elements.name.focus();
  $("user").textContent = user.name;
  await showFolder();
}

$("sign-in-form").onsubmit = async (event) => {
  event.preventDefault();
  const { name, password } = event.target.elements;
  $("sign-in-error").textContent = "";
  try {
    await signIn(name.value, password.value);
    event.target.reset();
    await start();
    $("title").focus();
  } catch (error) {
    $("sign-in-error").textContent = error.message;
  }
};
$("sign-out").onclick = async () => {
  await signOut();
  location.assign("/");
};
$("refresh").onclick = showFolder;
$("list-error").querySelector("button").onclick = showFolder;
$("more").onclick = async () => (await showMore())?.querySelector("a, button").focus();
addEventListener("hashchange", async () => {
  if (!user) return;
  $("title").focus();
  await showFolder();
});

await start();
