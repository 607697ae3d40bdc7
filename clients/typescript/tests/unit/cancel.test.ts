/** Readers that leave, and a `fetch` that does not end what was aborted. */
import assert from "node:assert/strict";
import { createServer, type Server, type ServerResponse } from "node:http";
import type { AddressInfo } from "node:net";
import { test } from "node:test";
import { setTimeout as sleep } from "node:timers/promises";
import { GatewayUnavailableError, Keyturn } from "../../src/index.ts";

const API_KEY = "key-".repeat(10);
const OBJECT = { etag: '"v1"', "content-length": "10" };

function client(url: string, more = {}): Keyturn {
  return new Keyturn({ url, project: "acme", apiKey: API_KEY, retries: 0, ...more });
}

/** A gateway whose responses these are, in turn. */
async function serving(...responses: ((response: ServerResponse) => void)[]): Promise<{
  server: Server;
  url: string;
  count: () => number;
}> {
  let count = 0;
  const server = createServer((_request, response) => responses[count++]?.(response));
  await new Promise((resolve) => server.listen(0, "127.0.0.1", () => resolve(undefined)));
  const { port } = server.address() as AddressInfo;
  return { server, url: `http://127.0.0.1:${port}`, count: () => count };
}

function connections(server: Server): Promise<number> {
  return new Promise((resolve) => server.getConnections((_error, count) => resolve(count)));
}

test("a reader that leaves while it waits starts no other request", async (context) => {
  const { server, url, count } = await serving((response) => {
    response.writeHead(200, OBJECT).write("hello");
  });
  context.after(() => server.close().closeAllConnections());
  const reader = (await client(url).get("k")).body.getReader();
  await reader.read();
  const pending = reader.read();
  await sleep(20);
  await reader.cancel();
  await pending;
  await sleep(1000); // longer than the pause before a download is resumed
  assert.deepEqual([count(), await connections(server)], [1, 0]);
});

test("a reader that leaves while a download is resumed keeps no connection", async (context) => {
  let resumed = (): void => undefined;
  const resuming = new Promise<void>((resolve) => {
    resumed = resolve;
  });
  const { server, url } = await serving(
    (response) => {
      response.writeHead(200, OBJECT).write("hello");
      setTimeout(() => response.destroy(), 20);
    },
    (response) => {
      resumed();
      setTimeout(() => {
        const headers = { ...OBJECT, "content-length": "5", "content-range": "bytes 5-9/10" };
        response.writeHead(206, headers).write(" ");
      }, 50);
    },
  );
  context.after(() => server.close().closeAllConnections());
  const reader = (await client(url).get("k")).body.getReader();
  await reader.read();
  const pending = reader.read();
  await resuming;
  await reader.cancel();
  await pending;
  await sleep(200);
  assert.equal(await connections(server), 0);
});

test("a fetch that does not stop by itself is left alone in time", async () => {
  const limits = { responseTimeoutMs: 20, idleTimeoutMs: 20 };
  const silent = client("https://gateway.test", { ...limits, fetch: () => new Promise(() => {}) });
  await assert.rejects(silent.stat("k"), GatewayUnavailableError);
  const controller = new AbortController();
  const aborted = silent.list({ signal: controller.signal }).next();
  controller.abort(new Error("enough"));
  await assert.rejects(aborted, /enough/);

  let cancelled = 0;
  const fetch = async (): Promise<Response> =>
    new Response(new ReadableStream({ cancel: () => void cancelled++ }), { headers: OBJECT });
  const stalled = client("https://gateway.test", { ...limits, fetch });
  await assert.rejects((await stalled.get("k", { resumes: 0 })).text(), /timeout/);
  const reader = (await stalled.get("k")).body.getReader();
  const pending = reader.read();
  await reader.cancel();
  await pending;
  assert.equal(cancelled, 2);
});

test("a body that memory cannot hold is not left open", async () => {
  let signal: AbortSignal | null | undefined;
  const fetch: typeof globalThis.fetch = async (_url, init) => {
    signal = init?.signal;
    const headers = { ...OBJECT, "content-length": "999999999999999" };
    return new Response(new ReadableStream(), { headers });
  };
  const opened = await client("https://gateway.test", { fetch }).get("k");
  await assert.rejects(opened.bytes(), RangeError);
  assert.equal(signal?.aborted, true);
});
