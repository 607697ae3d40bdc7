// The client of `tools/bench/gateway/typescript.py`: one way of downloading, timed.
//
// A job as JSON on standard input, one JSON object on standard output. What comes is counted and
// discarded. Everything is compiled and connected by a small read, which does not count.
import { readFileSync } from "node:fs";
import { Keyturn } from "../../../clients/typescript/src/index.ts";

const WARM_UP_BYTES = 16 * 2 ** 20;
const { way, key, client, target } = JSON.parse(readFileSync(0, "utf8"));
const keyturn = new Keyturn(client);

const ways = {
  get: async (end) => (await keyturn.get(key, end ? { range: { start: 0, end } } : {})).body,
  fetch: async (end) => {
    const range = end ? { range: `bytes=0-${end - 1}` } : {};
    const response = await fetch(target.url, { headers: { ...target.headers, ...range } });
    if (response.status !== (end ? 206 : 200)) {
      throw new Error(`status ${response.status}`);
    }
    return response.body;
  },
};

async function read(end) {
  let bytes = 0;
  for (const reader = (await ways[way](end)).getReader(); ; ) {
    const { done, value } = await reader.read();
    if (done) {
      return bytes;
    }
    bytes += value.length;
  }
}

await read(WARM_UP_BYTES);
const [began, used] = [performance.now(), process.cpuUsage()];
const bytes = await read();
const wall = (performance.now() - began) / 1000;
const { user, system } = process.cpuUsage(used);
const peak = process.resourceUsage().maxRSS / 1024;
const report = { bytes, wall_s: wall, cpu_s: (user + system) / 1e6, peak_mib: peak };
process.stdout.write(JSON.stringify(report));
process.exit(0);
