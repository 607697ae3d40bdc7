// The Node.js client of `tools/bench/gateway/opening.py`: one way of reading, timed.
//
// A job as JSON on standard input, one JSON object on standard output. What comes is counted and
// discarded. Everything is compiled and connected by a first read, which does not count.
import { readFileSync } from "node:fs";
import { open } from "../../../clients/typescript/src/open/index.ts";

const { way, link, keys, gateway } = JSON.parse(readFileSync(0, "utf8"));

const ways = {
  open: async () => (await open({ ...link, ...keys })).body,
  fetch: async () => {
    const response = await fetch(gateway.url, { headers: gateway.headers });
    if (response.status !== 200) {
      throw new Error(`status ${response.status}`);
    }
    return response.body;
  },
};

async function read() {
  let bytes = 0;
  for (const reader = (await ways[way]()).getReader(); ; ) {
    const { done, value } = await reader.read();
    if (done) {
      return bytes;
    }
    bytes += value.length;
  }
}

await read();
const [began, used] = [performance.now(), process.cpuUsage()];
const bytes = await read();
const wall = (performance.now() - began) / 1000;
const { user, system } = process.cpuUsage(used);
// Not maxRSS, in which the process that started this one counts.
const peak = /VmHWM:\s+(\d+) kB/.exec(readFileSync("/proc/self/status", "utf8"))[1] / 1024;
const report = { bytes, wall_s: wall, cpu_s: (user + system) / 1e6, peak_mib: peak };
process.stdout.write(JSON.stringify(report));
process.exit(0);
