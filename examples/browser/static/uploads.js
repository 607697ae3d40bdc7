// Uploads: two at a time, each with its progress, its error, and a button to cancel it.
import { putTo } from "/keyturn/index.js";
import { files } from "./session.js";
import { errorText, sizeText } from "./text.js";

const AT_ONCE = 2;
const section = document.getElementById("uploads");
const list = document.getElementById("upload-list");
const waiting = [];
let running = 0;

document.getElementById("clear").onclick = () => {
  for (const item of list.querySelectorAll(".done, .failed")) item.remove();
  section.hidden = list.children.length === 0;
};

/**
 * Upload files to a folder.
 *
 * Returns, once all of them have ended, whether any was stored. `say` announces each end.
 */
export async function upload(chosen, prefix, say) {
  section.hidden = false;
  const ends = chosen.map(
    (file) => new Promise((resolve) => waiting.push({ file, prefix, say, resolve, ...row(file) })),
  );
  startWaiting();
  return (await Promise.all(ends)).includes(true);
}

function startWaiting() {
  while (running < AT_ONCE && waiting.length) {
    const job = waiting.shift();
    running += 1;
    run(job).then((stored) => {
      running -= 1;
      job.resolve(stored);
      startWaiting();
    });
  }
}

function row(file) {
  const item = document.getElementById("upload-row").content.firstElementChild.cloneNode(true);
  const [name, state, bar] = [".upload-name", ".upload-state", "progress"].map((one) =>
    item.querySelector(one),
  );
  name.textContent = file.name;
  name.title = file.name;
  state.textContent = "Waiting";
  bar.ariaLabel = `Upload of ${file.name}`;
  const canceled = new AbortController();
  button(item, `Cancel the upload of ${file.name}`, () => canceled.abort());
  list.append(item);
  return { item, state, bar, canceled };
}

function button(item, label, act) {
  const made = item.querySelector(".cancel");
  made.ariaLabel = label;
  made.title = label;
  made.onclick = act;
}

async function run({ file, prefix, say, item, state, bar, canceled }) {
  try {
    const { signal } = canceled;
    signal.throwIfAborted();
    const key = prefix + file.name;
    if (await isTaken(key, signal)) {
      throw Object.assign(new Error("taken"), { code: "already_exists" });
    }
    // The backend makes a link for this one file; the file itself goes directly to the gateway.
    const contentType = file.type || undefined;
    const link = await files.uploadLink(key, { maxBytes: file.size, contentType, signal });
    await putTo(link, file, {
      signal,
      onProgress: ({ loaded }) => {
        bar.value = file.size ? loaded / file.size : 1;
        state.textContent =
          loaded < file.size
            ? `${Math.floor(bar.value * 100)} % of ${sizeText(file.size)}`
            : "Encrypting…";
      },
    });
    bar.value = 1;
    end(item, state, "done", `Stored, ${sizeText(file.size)}`);
    say(`${file.name} is uploaded`);
    return true;
  } catch (error) {
    const text = canceled.signal.aborted ? "Canceled" : errorText(error);
    if (canceled.signal.aborted) item.classList.add("canceled");
    end(item, state, "failed", text);
    say(`${file.name}: ${text}`);
    return false;
  }
}

/** Whether there is a file of this name: better known before it is sent than after. */
async function isTaken(key, signal) {
  const listing = files.list({ prefix: key, pageSize: 1, signal })[Symbol.asyncIterator]();
  const { value, done } = await listing.next();
  return !done && value.key === key;
}

function end(item, state, kind, text) {
  item.classList.add(kind);
  state.textContent = text;
  const name = item.querySelector(".upload-name").textContent;
  button(item, `Remove ${name} from this list`, () => {
    item.remove();
    section.hidden = list.children.length === 0;
  });
}
