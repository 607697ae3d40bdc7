// One file: what it is, its preview by an inline link, a link to give away, download and delete.
import { files } from "./session.js";
import { errorText, lastSegment, sizeText, timeText } from "./text.js";

const KINDS = {
  video: ["mp4", "m4v", "webm", "ogv", "mov"],
  audio: ["mp3", "m4a", "ogg", "opus", "wav", "flac"],
  image: ["png", "jpg", "jpeg", "gif", "webp", "avif", "svg"],
};
const PREVIEW_S = 3600; // how long a preview's link lives; a longer video asks for a new one
const DOWNLOAD_S = 60; // a download that has begun goes on after its link has expired
const $ = (id) => document.getElementById(id);
const viewer = $("viewer");
let shown = null; // the key of the file that the dialog shows

/** Whether a file of this name is a "video", an "audio" or an "image"; else undefined. */
export function mediaKind(key) {
  const extension = key.split(".").at(-1).toLowerCase();
  return Object.keys(KINDS).find((kind) => KINDS[kind].includes(extension));
}

/** Ask whether to delete a file. */
export function confirmDelete(name) {
  const dialog = $("confirm");
  dialog.querySelector("b").textContent = name;
  dialog.returnValue = "cancel";
  dialog.showModal();
  return new Promise((resolve) => {
    dialog.onclose = () => resolve(dialog.returnValue === "delete");
  });
}

/** Let the browser download a file by a link that is valid for a minute. */
export async function startDownload(key) {
  await files.stat(key); // an error is shown here, and not on a page of its own
  const { url } = await files.link(key, { expiresSeconds: DOWNLOAD_S });
  location.assign(url);
}

/** Show one file. */
export async function view(entry, remove) {
  const { key } = entry;
  shown = key;
  $("viewer-title").textContent = lastSegment(key);
  $("media").replaceChildren();
  $("media-error").hidden = true;
  $("details").replaceChildren();
  $("link").hidden = $("link-note").hidden = true;
  $("copy").onclick = () => attempt(() => copyLink(key));
  $("viewer-download").onclick = () => attempt(() => startDownload(key));
  $("viewer-delete").onclick = () => {
    viewer.close();
    remove();
  };
  viewer.showModal();
  await attempt(async () => {
    const stat = await files.stat(key);
    if (shown === key) showDetails(entry, stat);
    if (mediaKind(key)) await play(key, 0);
  });
}

viewer.querySelector(".close").onclick = () => viewer.close();
viewer.onclose = () => {
  shown = null;
  $("media").replaceChildren(); // ends the playback, and its requests
};

async function attempt(act) {
  try {
    await act();
  } catch (error) {
    showError(errorText(error), null);
  }
}

function showError(text, again) {
  $("media-error").hidden = false;
  $("media-error").querySelector("span").textContent = text;
  const button = $("media-error").querySelector("button");
  button.hidden = again === null;
  button.onclick = again;
}

/** Play or show a file by an inline link, from this time on. */
async function play(key, from) {
  $("media-error").hidden = true;
  $("media").replaceChildren();
  const { url, expiresAt } = await files.link(key, { expiresSeconds: PREVIEW_S, inline: true });
  if (shown !== key) return; // the dialog was closed meanwhile
  const kind = mediaKind(key);
  const media = document.createElement(kind === "image" ? "img" : kind);
  if (kind === "image") media.alt = `Preview of ${lastSegment(key)}`;
  else Object.assign(media, { controls: true, preload: "metadata", ariaLabel: lastSegment(key) });
  media.onloadedmetadata = () => {
    if (from) media.currentTime = from;
  };
  media.onerror = () => {
    // The browser does not say why, but the page knows when its link ends.
    const expired = Date.now() >= expiresAt.getTime();
    const text = expired ? "The link to this file has expired." : "This file cannot be shown.";
    showError(text, () => attempt(() => play(key, media.currentTime || from)));
  };
  media.src = url;
  $("media").replaceChildren(media);
}

function showDetails({ size }, stat) {
  const rows = [
    ["Size", sizeText(size)],
    ["Stored", timeText(stat.lastModified)],
    ["Type", stat.contentType],
    ...Object.entries(stat.metadata),
  ];
  const nodes = rows
    .filter(([, value]) => value)
    .flatMap((pair) =>
      pair.map((text, at) => {
        const node = document.createElement(at ? "dd" : "dt");
        node.textContent = text;
        return node;
      }),
    );
  $("details").replaceChildren(...nodes);
}

async function copyLink(key) {
  const { url, expiresAt } = await files.link(key, { expiresSeconds: Number($("expiry").value) });
  $("link").hidden = $("link-note").hidden = false;
  $("link").value = url;
  $("link").select();
  const copied = await navigator.clipboard.writeText(url).then(
    () => "Copied.",
    () => "Copy it from here.",
  );
  $("link-note").textContent =
    `${copied} Anyone with it can open this file until ${timeText(expiresAt)}.`;
  $("link-note").scrollIntoView({ block: "nearest" });
}
