/** An upload in a browser: `XMLHttpRequest` reports progress, and `fetch` does not. */
import { type Request, stated } from "./transport.ts";

/** Send a body once. Rejects where no response comes. */
export function sendByXhr(
  request: Request,
  body: Blob,
  signal: AbortSignal,
  onSent: (bytes: number) => void,
): Promise<Response> {
  return new Promise((resolve, reject) => {
    const xhr = new XMLHttpRequest();
    xhr.open("PUT", request.url);
    xhr.responseType = "arraybuffer";
    for (const [name, value] of Object.entries(stated(request.headers))) {
      xhr.setRequestHeader(name, value);
    }
    xhr.upload.onprogress = ({ loaded }) => {
      try {
        onSent(loaded);
      } catch (error) {
        reject(error);
        xhr.abort();
      }
    };
    xhr.onload = () => {
      const headers = new Headers();
      for (const line of xhr
        .getAllResponseHeaders()
        .trim()
        .split(/[\r\n]+/)) {
        const colon = line.indexOf(":");
        headers.append(line.slice(0, colon), line.slice(colon + 1).trim());
      }
      const content: BodyInit | null = xhr.response.byteLength ? xhr.response : null;
      resolve(new Response(content, { status: xhr.status, headers }));
    };
    xhr.onerror = xhr.onabort = () => reject(new TypeError("no response"));
    signal.addEventListener("abort", () => xhr.abort());
    xhr.send(body);
  });
}
